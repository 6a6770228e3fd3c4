"""How far a copy is, told in the log from time to time; knows nothing of what is copied."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from csi_driver.model import MIB

_log = logging.getLogger("hostvol.copies")
_EVERY_SECONDS: Final = 10.0


class Progress:
    """One copy's progress: called with the bytes that are done."""

    def __init__(self, what: str, total_bytes: int, each: Callable[[int], None] | None = None) -> None:
        """`total_bytes` is 0 where it is not known; `each` is called too, and may end the copy by raising."""
        self.copied_bytes = 0
        self.total_bytes = total_bytes
        self._what = what
        self._each = each
        self._told_at = time.monotonic()

    def __call__(self, copied_bytes: int) -> None:
        self.copied_bytes = copied_bytes
        if copied_bytes > self.total_bytes:
            # Increments followed, which do not tell how much they are.
            self.total_bytes = 0
        if self._each is not None:
            self._each(copied_bytes)
        now = time.monotonic()
        if now >= self._told_at + _EVERY_SECONDS:
            self._told_at = now
            of = f" of {self.total_bytes // MIB}" if self.total_bytes else ""
            _log.info("%s: %d%s MiB are done", self._what, copied_bytes // MIB, of)
