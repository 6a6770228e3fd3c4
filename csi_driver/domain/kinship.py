"""Which objects may share blocks, told from their records; knows no disk.

Where the kernel does not say which blocks are shared (a project quota counts a reflinked block in every project), the
number of living relatives does.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Protocol

from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue


class Relative(Protocol):
    """A volume or a snapshot, as far as its relatives are concerned."""

    @property
    def object_id(self) -> str: ...

    @property
    def family(self) -> str: ...


class Kinship:
    """The members of each family, those in the trash included."""

    def __init__(self, volumes: Catalogue, snapshots: SnapshotCatalogue) -> None:
        self._lock = threading.Lock()
        self._families: dict[str, str] = {}
        self._members: Counter[str] = Counter()
        volumes.watch(self._changed)
        snapshots.watch(self._changed)

    def is_alone(self, relative: Relative) -> bool:
        """Whether no other object can share blocks with this one."""
        return self._members[relative.family] <= 1

    def note(self, key: str, relative: Relative | None) -> None:
        """What bears `key` in the trash holds its blocks still; None: it is gone from there."""
        self._changed(key, relative)

    def _changed(self, object_id: str, relative: Relative | None) -> None:
        with self._lock:
            before = self._families.pop(object_id, None)
            if before is not None:
                self._members[before] -= 1
                if not self._members[before]:
                    del self._members[before]
            if relative is not None:
                self._families[object_id] = relative.family
                self._members[relative.family] += 1
