"""What was enumerated and what passed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Names of crash points, where each was met, and how many cases held."""

    names: set[str] = field(default_factory=set)
    places: set[tuple[str, ...]] = field(default_factory=set)
    operations: set[str] = field(default_factory=set)
    passed: int = 0
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self, operation: str, points: list[str]) -> None:
        """These points (`name:N`) are passed by that operation."""
        self.operations.add(operation)
        self.names.update(point.partition(":")[0] for point in points)
        self.places.update((operation, point) for point in points)

    def count(self, *, held: bool) -> None:
        """One case has run."""
        with self._lock:
            if held:
                self.passed += 1
            else:
                self.failed += 1

    def __str__(self) -> str:
        return (
            f"crash points: {len(self.names)} points ({len(self.places)} by kind and operation), "
            f"{self.passed} cases passed, {self.failed} failed"
        )
