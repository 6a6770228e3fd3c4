"""One operation per object at a time, which identical calls join, or several that only read it; knows none of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from csi_driver.errors import OperationPending

T = TypeVar("T")
_MAX_JOINED = 8


@dataclass(slots=True)
class _Operation:
    """What runs under one key, and its outcome once `done` is set."""

    call: Hashable
    done: threading.Event = field(default_factory=threading.Event)
    joined: int = 0
    result: Any = None
    error: BaseException | None = None


class Claims:
    """The operations in flight on this node."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: dict[Hashable, _Operation] = {}
        self._readers: Counter[Hashable] = Counter()

    def run(self, key: Hashable, call: Hashable, deadline: float | None, work: Callable[[], T]) -> T:
        """Do `work` while nothing else happens under `key`; an identical `call` waits for the same outcome.

        The work runs in the caller's thread to its end, also when the remote caller has given up: the next identical
        call joins it. `deadline` is a time.monotonic() value until which a joined call waits.

        Raises: OperationPending when something else runs under `key` or reads it, when the deadline passes first, or
            when too many wait already; whatever `work` raises.
        """
        mine, operation = self._enter(key, call)
        if not mine:
            return self._join(key, operation, deadline)  # type: ignore[no-any-return]
        try:
            operation.result = result = work()
        except BaseException as error:
            operation.error = error
            raise
        finally:
            self._leave(key, operation)
        return result

    @contextmanager
    def reading(self, key: Hashable) -> Iterator[None]:
        """Keep every operation away from `key`, but not others who read it too.

        Raises: OperationPending when an operation runs under `key`.
        """
        with self._lock:
            if key in self._operations:
                raise OperationPending(_object_of(key))
            self._readers[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers[key] -= 1
                if not self._readers[key]:
                    del self._readers[key]

    def holds(self, key: Hashable) -> bool:
        """Whether an operation runs under `key` now."""
        return key in self._operations

    def count(self) -> int:
        """How many operations are in flight, those that only read included."""
        with self._lock:
            return len(self._operations) + self._readers.total()

    def _enter(self, key: Hashable, call: Hashable) -> tuple[bool, _Operation]:
        with self._lock:
            operation = self._operations.get(key)
            if operation is None:
                if key in self._readers:
                    raise OperationPending(_object_of(key))
                operation = self._operations[key] = _Operation(call)
                return True, operation
            if operation.call != call or operation.joined >= _MAX_JOINED:
                raise OperationPending(_object_of(key))
            operation.joined += 1
            return False, operation

    def _join(self, key: Hashable, operation: _Operation, deadline: float | None) -> Any:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not operation.done.wait(timeout):
            with self._lock:
                operation.joined -= 1
            raise OperationPending(_object_of(key))
        if operation.error is not None:
            # Without the frames of those who were told before.
            raise operation.error.with_traceback(None)
        return operation.result

    def _leave(self, key: Hashable, operation: _Operation) -> None:
        with self._lock:
            del self._operations[key]
        operation.done.set()


def _object_of(key: Hashable) -> str:
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
