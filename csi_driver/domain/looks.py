"""Looks that may hang, each in a thread of its own, so that whoever asks does not hang with it; knows no subject."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
_MOST: Final = 256


class Looks(Generic[T]):
    """At most one look per key is under way; one that hangs costs a thread until it ends, however often it is asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[T]] = {}

    def begin(self, key: Hashable, look: Callable[[], T]) -> Future[T]:
        """The outcome of the look under this key that is under way, or of one that begins now.

        Never done when too many hang already; a RuntimeError when the machine has no thread for it.
        """
        with self._lock:
            running = self._running.get(key)
            if running is not None:
                return running
            future: Future[T] = Future()
            if len(self._running) >= _MOST:
                return future
            self._running[key] = future
        try:
            threading.Thread(target=self._run, args=(key, future, look), name="look", daemon=True).start()
        except RuntimeError as cause:
            self._end(key)
            future.set_exception(cause)
        return future

    def take(self, key: Hashable, look: Callable[[], T], patience_seconds: float) -> T | None:
        """What the look found; None when it does not answer in time.

        Raises: whatever the look raises.
        """
        future = self.begin(key, look)
        try:
            return future.result(patience_seconds)
        except TimeoutError:
            # Its own time-out, or it was through a moment too late.
            return future.result() if future.done() else None

    def _run(self, key: Hashable, future: Future[T], look: Callable[[], T]) -> None:
        outcome: Any = None
        error: BaseException | None = None
        try:
            outcome = look()
        except BaseException as cause:
            error = cause
        self._end(key)
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)

    def _end(self, key: Hashable) -> None:
        with self._lock:
            del self._running[key]
