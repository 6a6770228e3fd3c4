"""All objects of one kind on this node in memory, by id, by name and in order; knows no disk and no kernel."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from csi_driver.errors import GroupNotFound, HostvolError, NotReady, RecordDamaged, SnapshotNotFound, VolumeNotFound
from csi_driver.model import GroupSnapshot, Snapshot, Volume


class Held(Protocol):
    """A volume or a snapshot, as far as an index has to know it."""

    @property
    def object_id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def created_at(self) -> float: ...


HeldT = TypeVar("HeldT", bound=Held)


class Index(Generic[HeldT]):
    """The index of records; rebuilt from them at every start, so it cannot disagree for longer than a process lives.

    Every look-up costs the same at ten volumes and at ten thousand.
    """

    def __init__(self, kind: str, not_found: Callable[[str], HostvolError]) -> None:
        """`kind` is the word for one object; `not_found` makes the failure of looking for one that is not there."""
        self._kind = kind
        self._not_found = not_found
        self._lock = threading.Lock()
        self._by_id: dict[str, HeldT] = {}
        self._by_name: dict[str, str] = {}
        self._ordered: list[str] = []
        self._quarantined: dict[str, RecordDamaged] = {}
        self._quarantined_names: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._same_name: dict[str, list[str]] = {}
        self._watchers: list[Callable[[str, HeldT | None], None]] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def watch(self, watcher: Callable[[str, HeldT | None], None]) -> None:
        """`watcher` hears of every change from now on, in order and before its maker goes on; None: gone.

        It is called under the catalogue's lock: it only takes a note.
        """
        with self._lock:
            self._watchers.append(watcher)

    def add(self, held: HeldT) -> None:
        """The object exists from now on. A name that two records bear stays with the older one."""
        with self._lock:
            if held.object_id not in self._by_id:
                bisect.insort(self._ordered, held.object_id)
            self._by_id[held.object_id] = held
            self._give_name(held)
            self._tell(held.object_id, held)

    def add_all(self, held: list[HeldT]) -> None:
        """The same as `add` for each, in one pass (a start loads thousands)."""
        with self._lock:
            for one in sorted(held, key=lambda one: one.created_at):
                self._by_id[one.object_id] = one
                self._give_name(one)
                self._tell(one.object_id, one)
            self._ordered = sorted(self._by_id)

    def replace(self, held: HeldT) -> None:
        """The object is like this from now on; one that is not there (yet, or any more) stays away."""
        with self._lock:
            if held.object_id in self._by_id:
                self._by_id[held.object_id] = held
                self._tell(held.object_id, held)

    def remove(self, held: HeldT) -> None:
        """The object exists no more, and its name belongs to the next one that bears it. Idempotent."""
        with self._lock:
            if self._by_id.pop(held.object_id, None) is None:
                return
            del self._ordered[bisect.bisect_left(self._ordered, held.object_id)]
            if self._by_name.get(held.name) == held.object_id:
                del self._by_name[held.name]
                for other in self._same_name.pop(held.name, []):
                    if other in self._by_id:
                        self._give_name(self._by_id[other])
            self._tell(held.object_id, None)

    def _give_name(self, held: HeldT) -> None:
        holder = self._by_id.get(self._by_name.get(held.name, ""))
        if holder is None or holder.object_id == held.object_id:
            self._by_name[held.name] = held.object_id
            return
        older, newer = sorted((holder, held), key=lambda one: one.created_at)
        self._by_name[held.name] = older.object_id
        self._same_name.setdefault(held.name, []).append(newer.object_id)

    def quarantine(self, object_id: str, damage: RecordDamaged, name: str) -> None:
        """The object stays on disk, untouched and unserved, until an operator decides.

        `name` is what its record seems to say, or empty: no second object may be made under it.
        """
        self._quarantined[object_id] = damage
        if name:
            self._quarantined_names[name] = object_id

    def miss(self, pool: str, reason: str) -> None:
        """The pool is not served, for this reason: an unknown object may be in it, so nothing is said to be gone."""
        self._missing[pool] = reason

    def found(self, pool: str) -> None:
        """All objects of the pool have been added."""
        self._missing.pop(pool, None)

    @property
    def is_complete(self) -> bool:
        """Whether every pool that was missed has been found."""
        return not self._missing

    def quarantined(self) -> dict[str, RecordDamaged]:
        """Why each quarantined object is not served."""
        return dict(self._quarantined)

    def quarantined_names(self) -> dict[str, str]:
        """The name that each quarantined object seems to bear, by its id; those without one are left out."""
        return {object_id: name for name, object_id in list(self._quarantined_names.items())}

    def get(self, object_id: str) -> HeldT:
        """The object with this id.

        Raises: VolumeNotFound or SnapshotNotFound; RecordDamaged when its record is quarantined; NotReady when it may
            be in a pool that is not served.
        """
        held = self._by_id.get(object_id)
        if held is not None:
            return held
        damage = self._quarantined.get(object_id)
        if damage is not None:
            # A new one each time: an exception that is raised again collects the frames of all its callers.
            raise RecordDamaged(damage.path, damage.reason)
        for reason in list(self._missing.values()):
            raise NotReady(f"{self._kind} {object_id} is in no pool that is served; not served is {reason}")
        raise self._not_found(object_id)

    def has(self, object_id: str) -> bool:
        """Whether the object exists, served or quarantined."""
        return object_id in self._by_id or object_id in self._quarantined

    def served(self, object_ids: Iterable[str]) -> list[HeldT]:
        """Those of them that are served, in the same order."""
        found = (self._by_id.get(object_id) for object_id in object_ids)
        return [one for one in found if one is not None]

    def named(self, name: str) -> HeldT | None:
        """The object that was created under `name`, the idempotency key of its create call.

        Raises: RecordDamaged when a quarantined record seems to bear the name.
        """
        damaged = self._quarantined_names.get(name)
        if damaged is not None:
            self.get(damaged)
        object_id = self._by_name.get(name)
        return None if object_id is None else self._by_id.get(object_id)

    def after(self, object_id: str, limit: int) -> list[HeldT]:
        """Up to `limit` objects in the order of their ids, beginning behind `object_id` ("" for the beginning).

        The order never changes, so a walk in pages meets every object that exists all the while exactly once.
        """
        with self._lock:
            start = bisect.bisect_right(self._ordered, object_id) if object_id else 0
            return [self._by_id[found] for found in self._ordered[start : start + limit]]

    def all(self) -> list[HeldT]:
        """All objects as of now, in no order."""
        with self._lock:
            return list(self._by_id.values())

    def _tell(self, object_id: str, held: HeldT | None) -> None:
        for watcher in self._watchers:
            watcher(object_id, held)


class Catalogue(Index[Volume]):
    """The volumes."""

    def __init__(self) -> None:
        super().__init__("volume", VolumeNotFound)

    def is_ephemeral(self, volume_id: str) -> bool:
        """Whether the id is an ephemeral volume's, which orchestrators know by its handle only."""
        volume = self._by_id.get(volume_id)
        return volume is not None and volume.is_ephemeral

    def persistent(self, volume_id: str) -> Volume:
        """The volume with this id; an ephemeral one is none that anybody could name.

        Raises: as `get`.
        """
        volume = self.get(volume_id)
        if volume.is_ephemeral:
            raise VolumeNotFound(volume_id)
        return volume


class SnapshotCatalogue(Index[Snapshot]):
    """The snapshots."""

    def __init__(self) -> None:
        super().__init__("snapshot", SnapshotNotFound)


class GroupCatalogue(Index[GroupSnapshot]):
    """The group snapshots."""

    def __init__(self) -> None:
        super().__init__("group snapshot", GroupNotFound)
