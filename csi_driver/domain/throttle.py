"""So many bytes a second and no more, for all who ask together; knows nothing of what the bytes are."""

from __future__ import annotations

import threading
import time
from typing import Final

# What may pass at once after a pause.
_BURST_SECONDS: Final = 0.25


class Throttle:
    """A rate in bytes a second that its users share; 0: no limit."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pass_on(self, count: int, stopped: threading.Event) -> None:
        """Wait until so many bytes may pass, or until `stopped` is set."""
        if not self._rate:
            return
        now = time.monotonic()
        with self._lock:
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self._rate
            wait_seconds = self._free_at - now
        if wait_seconds > 0:
            stopped.wait(wait_seconds)
