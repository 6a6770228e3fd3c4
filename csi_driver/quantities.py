"""Sizes as Kubernetes writes them (`64Mi`, `1Gi`, `1.5G`, `1e9`), in whole bytes; knows no field."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

FORM: Final = "a size such as 64Mi, 1Gi or 1073741824"
_QUANTITY: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)([KMGTPE]i|[kMGTPE]|[eE][0-9]{1,2})?")
_DECIMAL: Final = {"": 1, **{unit: 1000**power for power, unit in enumerate("kMGTPE", 1)}}
_BINARY: Final = {f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)}
_MAX_BYTES: Final = (1 << 63) - 1


def parse_bytes(text: str) -> int:
    """At least one byte, parts of a byte rounded up as Kubernetes does.

    Raises: ValueError saying what it should be.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(FORM)
    amount, unit = match[1], match[2] or ""
    factor: int = 10 ** int(unit[1:]) if unit[1:].isdigit() else {**_DECIMAL, **_BINARY}[unit]
    size = math.ceil(Fraction(amount) * factor)
    if not 1 <= size <= _MAX_BYTES:
        raise ValueError("at least 1 byte and less than 8Ei")
    return size
