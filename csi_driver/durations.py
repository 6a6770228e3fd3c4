"""Times as people write them (`72h`, `7d`, `1d12h`, `0s`), in whole seconds; knows no field."""

from __future__ import annotations

import re
from typing import Final

FORM: Final = "0s, or days, hours, minutes and seconds in this order, such as 72h, 7d, 30m or 1d12h"
# The same two expressions judge in the admission policy (daemonset/chart/templates/admission.yaml). The digits keep the
# sum of all within 700 years.
_ZERO: Final = re.compile(r"0+(\.0+)?(ns|us|ms|s|m|h|d)?")
_DURATION: Final = re.compile(r"(?=[0-9])(?:([0-9]{1,4})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,8})m)?(?:([0-9]{1,10})s)?")
_SECONDS: Final = (86400, 3600, 60, 1)


def parse_seconds(text: str) -> int:
    """Whole seconds.

    Raises: ValueError saying what it should be.
    """
    if _ZERO.fullmatch(text):
        return 0
    match = _DURATION.fullmatch(text)
    if match is None or not text.isascii():
        raise ValueError(FORM)
    return sum(int(amount or 0) * unit for amount, unit in zip(match.groups(), _SECONDS, strict=True))


def human_seconds(seconds: int) -> str:
    """The shortest way of writing them: `3d12h`."""
    parts = []
    for unit, letter in zip(_SECONDS, "dhms", strict=True):
        amount, seconds = divmod(seconds, unit)
        if amount:
            parts.append(f"{amount}{letter}")
    return "".join(parts) or "0s"
