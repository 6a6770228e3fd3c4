"""What takes long on this node now, and how far it is; knows nothing of what is done."""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from csi_driver.domain.progress import Progress


class Kind(enum.StrEnum):
    """What is done."""

    SNAPSHOT = "snapshot"
    CLONE = "clone"
    RESTORE = "restore"
    FETCH = "fetch"
    IMPORT = "import"
    ROLLBACK = "rollback"
    MODIFICATION = "modification"


@dataclass(frozen=True, slots=True)
class Operation:
    """One of them: the object that comes of it or is changed, what its bytes come from, and when it began.

    `source_id` is empty where there is none; `started_at` in seconds since the epoch.
    """

    kind: Kind
    object_id: str
    name: str
    source_id: str
    progress: Progress
    started_at: float = field(default_factory=time.time)


class Operations:
    """Those in flight. What takes no time is here for no time."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._running: dict[int, Operation] = {}

    @contextmanager
    def running(self, operation: Operation) -> Iterator[None]:
        """It is in flight until this ends."""
        number = next(self._numbers)
        self._running[number] = operation
        try:
            yield
        finally:
            del self._running[number]

    def all(self) -> list[Operation]:
        """As of now, the oldest first."""
        return [operation for _, operation in sorted(self._running.copy().items())]
