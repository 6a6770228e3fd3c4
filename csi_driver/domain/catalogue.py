"""All volumes of this node in memory, by id, by name and in order; knows no disk and no kernel."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable

from csi_driver.errors import NotReady, RecordDamaged, VolumeNotFound
from csi_driver.model import Volume, VolumeId


class Catalogue:
    """The index of records; rebuilt from them at every start, so it cannot disagree for longer than a process lives.

    Every look-up costs the same at ten volumes and at ten thousand.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, Volume] = {}
        self._by_name: dict[str, VolumeId] = {}
        self._ordered: list[str] = []
        self._quarantined: dict[str, RecordDamaged] = {}
        self._quarantined_names: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._same_name: dict[str, list[str]] = {}
        self._watchers: list[Callable[[VolumeId, Volume | None], None]] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def watch(self, watcher: Callable[[VolumeId, Volume | None], None]) -> None:
        """`watcher` hears of every change from now on, in order and before its maker goes on; None: gone.

        It is called under the catalogue's lock: it only takes a note.
        """
        with self._lock:
            self._watchers.append(watcher)

    def add(self, volume: Volume) -> None:
        """The volume exists from now on. A name that two records bear stays with the older one."""
        with self._lock:
            if volume.volume_id not in self._by_id:
                bisect.insort(self._ordered, volume.volume_id)
            self._by_id[volume.volume_id] = volume
            self._give_name(volume)
            self._tell(volume.volume_id, volume)

    def add_all(self, volumes: list[Volume]) -> None:
        """The same as `add` for each, in one pass (a start loads thousands)."""
        with self._lock:
            for volume in sorted(volumes, key=lambda volume: volume.created_at):
                self._by_id[volume.volume_id] = volume
                self._give_name(volume)
                self._tell(volume.volume_id, volume)
            self._ordered = sorted(self._by_id)

    def remove(self, volume: Volume) -> None:
        """The volume exists no more, and its name belongs to the next one that bears it. Idempotent."""
        with self._lock:
            if self._by_id.pop(volume.volume_id, None) is None:
                return
            del self._ordered[bisect.bisect_left(self._ordered, volume.volume_id)]
            if self._by_name.get(volume.name) == volume.volume_id:
                del self._by_name[volume.name]
                for other in self._same_name.pop(volume.name, []):
                    if other in self._by_id:
                        self._give_name(self._by_id[other])
            self._tell(volume.volume_id, None)

    def _give_name(self, volume: Volume) -> None:
        holder = self._by_id.get(self._by_name.get(volume.name, ""))
        if holder is None or holder.volume_id == volume.volume_id:
            self._by_name[volume.name] = volume.volume_id
            return
        older, newer = sorted((holder, volume), key=lambda one: one.created_at)
        self._by_name[volume.name] = older.volume_id
        self._same_name.setdefault(volume.name, []).append(newer.volume_id)

    def quarantine(self, volume_id: str, damage: RecordDamaged, name: str) -> None:
        """The object stays on disk, untouched and unserved, until an operator decides.

        `name` is what its record seems to say, or empty: no second volume may be made under it.
        """
        self._quarantined[volume_id] = damage
        if name:
            self._quarantined_names[name] = volume_id

    def miss(self, pool: str, reason: str) -> None:
        """The pool is not served, for this reason: an unknown volume may be in it, so nothing is said to be gone."""
        self._missing[pool] = reason

    def found(self, pool: str) -> None:
        """All volumes of the pool have been added."""
        self._missing.pop(pool, None)

    def quarantined(self) -> dict[str, RecordDamaged]:
        """Why each quarantined object is not served."""
        return dict(self._quarantined)

    def quarantined_names(self) -> dict[str, str]:
        """The name that each quarantined object seems to bear, by its id; those without one are left out."""
        return {volume_id: name for name, volume_id in list(self._quarantined_names.items())}

    def get(self, volume_id: str) -> Volume:
        """The volume with this id.

        Raises: VolumeNotFound; RecordDamaged when its record is quarantined; NotReady when it may be in a pool that is
            not served.
        """
        volume = self._by_id.get(volume_id)
        if volume is not None:
            return volume
        damage = self._quarantined.get(volume_id)
        if damage is not None:
            # A new one each time: an exception that is raised again collects the frames of all its callers.
            raise RecordDamaged(damage.path, damage.reason)
        for reason in list(self._missing.values()):
            raise NotReady(f"volume {volume_id} is in no pool that is served; not served is {reason}")
        raise VolumeNotFound(volume_id)

    def has(self, volume_id: str) -> bool:
        """Whether the volume exists, served or quarantined."""
        return volume_id in self._by_id or volume_id in self._quarantined

    def is_ephemeral(self, volume_id: str) -> bool:
        """Whether the id is an ephemeral volume's, which orchestrators know by its handle only."""
        volume = self._by_id.get(volume_id)
        return volume is not None and volume.is_ephemeral

    def named(self, name: str) -> Volume | None:
        """The volume that was created under `name`, the idempotency key of CreateVolume.

        Raises: RecordDamaged when a quarantined record seems to bear the name.
        """
        damaged = self._quarantined_names.get(name)
        if damaged is not None:
            self.get(damaged)
        volume_id = self._by_name.get(name)
        return None if volume_id is None else self._by_id.get(volume_id)

    def after(self, volume_id: str, limit: int) -> list[Volume]:
        """Up to `limit` volumes in the order of their ids, beginning behind `volume_id` ("" for the beginning).

        The order never changes, so a walk in pages meets every volume that exists all the while exactly once.
        """
        with self._lock:
            start = bisect.bisect_right(self._ordered, volume_id) if volume_id else 0
            return [self._by_id[found] for found in self._ordered[start : start + limit]]

    def all(self) -> list[Volume]:
        """A snapshot of all volumes, in no order."""
        with self._lock:
            return list(self._by_id.values())

    def _tell(self, volume_id: VolumeId, volume: Volume | None) -> None:
        for watcher in self._watchers:
            watcher(volume_id, volume)
