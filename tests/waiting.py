"""Waiting for what others do in their own time: drivers, the kernel, a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 30.0, what: object = "", *, every: float = 0.02) -> T:
    """The first true value of the condition, which is asked again after so many seconds.

    `what` says what was waited for; a function is called for what there is instead.

    Raises: AssertionError, when it has not come true in time; whatever the condition raises.
    """
    ends = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > ends:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what or condition}")
        time.sleep(every)
    return found
