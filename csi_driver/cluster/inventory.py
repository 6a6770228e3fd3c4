"""What one node holds, as it told the router; knows no connection and believes nothing that is not the node's.

A volume or snapshot is kept as the bytes of a list page that holds it alone: pages are joined, not built.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.errors import NodeRefused
from csi_driver.model import key_of
from csi_driver.pb import csi_pb2, peer_pb2

# What one node may make an operator read.
_MOST_ALARMS = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its serialized page of one entry, its name, and for a snapshot its source."""

    page: bytes
    name: str
    source_volume_id: str = ""


class Shelf:
    """Objects of one kind in the order of their ids, which never changes: a walk in pages misses none."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._ordered: list[str] = []

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, object_id: str) -> Entry | None:
        return self._entries.get(object_id)

    def put(self, object_id: str, entry: Entry) -> Entry | None:
        """The object is as `entry` says; returns what it was."""
        before = self._entries.get(object_id)
        if before is None:
            # Ids of a whole inventory come in order.
            if not self._ordered or object_id > self._ordered[-1]:
                self._ordered.append(object_id)
            else:
                bisect.insort(self._ordered, object_id)
        self._entries[object_id] = entry
        return before

    def remove(self, object_id: str) -> Entry | None:
        """The object is gone; returns what it was."""
        before = self._entries.pop(object_id, None)
        if before is not None:
            del self._ordered[bisect.bisect_left(self._ordered, object_id)]
        return before

    def after(self, object_id: str) -> Iterator[tuple[str, Entry]]:
        """All objects behind the id ("" for the beginning); nothing may change meanwhile."""
        for index in range(bisect.bisect_right(self._ordered, object_id), len(self._ordered)):
            found = self._ordered[index]
            yield found, self._entries[found]

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All objects, in no order."""
        return iter(self._entries.items())


class Inventory:
    """One node's volumes, snapshots, pools, alarms and troubles of volumes."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.volumes = Shelf()
        self.snapshots = Shelf()
        # Pages of ControllerListVolumeHealth, also of volumes that are not served and therefore in no other list.
        self.health = Shelf()
        self.alarms: tuple[peer_pb2.Alarm, ...] = ()
        self._available: dict[str, int] = {}

    def apply(self, part: peer_pb2.Inventory) -> Iterator[tuple[str, str, bool]]:
        """Take over one part; yields (name, volume id, whether it is there now) for each volume that came or went.

        Raises: NodeRefused when an id is not the node's.
        """
        for item in part.items:
            yield from self._put(item)
        for object_id in part.removed:
            before = self.volumes.remove(object_id)
            if before is not None:
                yield before.name, object_id, False
            self.snapshots.remove(object_id)
            self.health.remove(object_id)
        for health in part.health:
            self._put_health(health)
        if part.HasField("pools"):
            self._available = {pool.name: pool.available_bytes for pool in part.pools.pools}
        if part.HasField("alarms"):
            self.alarms = tuple(part.alarms.alarms)[:_MOST_ALARMS]

    def available_bytes(self, pool: str) -> int | None:
        """What a new volume in the pool could be granted; None when the node has no such pool."""
        return self._available.get(pool)

    def spend(self, pool: str, size_bytes: int) -> None:
        """A volume was made; until the node tells its new numbers, the pool has so much less."""
        if pool in self._available:
            self._available[pool] = max(0, self._available[pool] - size_bytes)

    def _put(self, item: peer_pb2.Item) -> Iterator[tuple[str, str, bool]]:
        kind = item.WhichOneof("object")
        if kind == "volume":
            volume_id = self._own(item.volume.volume_id)
            page = csi_pb2.ListVolumesResponse()
            page.entries.add().volume.CopyFrom(item.volume)
            before = self.volumes.put(volume_id, Entry(page.SerializeToString(), item.name))
            if before is None:
                yield item.name, volume_id, True
        elif kind == "snapshot":
            self._put_snapshot(item)

    def _put_health(self, health: csi_pb2.VolumeHealth) -> None:
        volume_id = self._own(health.volume_id)
        if health.health_statuses:
            page = csi_pb2.ControllerListVolumeHealthResponse(entries=[health])
            self.health.put(volume_id, Entry(page.SerializeToString(), ""))
        else:
            self.health.remove(volume_id)

    def _put_snapshot(self, item: peer_pb2.Item) -> None:
        source = item.snapshot.source_volume_id
        page = csi_pb2.ListSnapshotsResponse()
        page.entries.add().snapshot.CopyFrom(item.snapshot)
        self.snapshots.put(self._own(item.snapshot.snapshot_id), Entry(page.SerializeToString(), item.name, source))

    def _own(self, object_id: str) -> str:
        if key_of(object_id) != self.key:
            raise NodeRefused(f"inventory: {object_id[:128]!r} is not an id of the node with the key {self.key}")
        return object_id
