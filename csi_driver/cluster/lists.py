"""Lists of the whole cluster, made from what the nodes have told, in pages; asks no node.

A token names the last id of its page. Ids have one order for ever, so a walk meets everything that exists all the
while exactly once, whatever comes and goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from csi_driver.cluster.inventory import Entry, Inventory, Shelf
from csi_driver.cluster.registry import Registry
from csi_driver.errors import InvalidField, InvalidToken
from csi_driver.model import key_of
from csi_driver.pb import csi_pb2

# Clients accept 4 MiB.
_PAGE_BYTES = 3 << 20
_MOST_ENTRIES = 20000
_PREFIX = "after:"
_TOKEN = re.compile(r"after:(?:vol|snap)-[0-9a-f]{16}-[a-z0-9-]{1,40}")

Found = Iterable[tuple[str, Entry]]


class Lists:
    """Pages over all nodes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def volumes(self, request: csi_pb2.ListVolumesRequest) -> bytes:
        """A serialized ListVolumesResponse.

        Raises: InvalidField, InvalidToken.
        """
        after = _after(request.starting_token)
        found = self._walk(after, lambda inventory: inventory.volumes)
        return _page(found, _limit(request.max_entries), csi_pb2.ListVolumesResponse)

    def snapshots(self, request: csi_pb2.ListSnapshotsRequest) -> bytes:
        """A serialized ListSnapshotsResponse: all, those of one volume, or one.

        Raises: InvalidField, InvalidToken.
        """
        after = _after(request.starting_token)
        found: Found
        if request.snapshot_id:
            found = self._one_snapshot(request.snapshot_id, request.source_volume_id)
        elif request.source_volume_id:
            found = self._snapshots_of(request.source_volume_id, after)
        else:
            found = self._walk(after, lambda inventory: inventory.snapshots)
        return _page(found, _limit(request.max_entries), csi_pb2.ListSnapshotsResponse)

    def health(self, request: csi_pb2.ControllerListVolumeHealthRequest) -> bytes:
        """A serialized ControllerListVolumeHealthResponse.

        Raises: InvalidField, InvalidToken.
        """
        found = self._unhealthy(_after(request.starting_token))
        return _page(found, _limit(request.max_entries), csi_pb2.ControllerListVolumeHealthResponse)

    def _unhealthy(self, after: str) -> Iterator[tuple[str, Entry]]:
        start = key_of(after)
        for key in self._registry.keys_from(start):
            last = after if key == start else ""
            inventory = self._registry.inventory(key)
            if inventory is not None:
                yield from inventory.health.after(last)
                continue
            for volume_id in self._registry.absent_volumes(key):
                if volume_id > last:
                    page = csi_pb2.ControllerListVolumeHealthResponse(entries=[absent_health(volume_id)])
                    yield volume_id, Entry(page.SerializeToString(), "")

    def _walk(self, after: str, shelf: Callable[[Inventory], Shelf]) -> Iterator[tuple[str, Entry]]:
        start = key_of(after)
        for inventory in self._registry.inventories_from(start):
            yield from shelf(inventory).after(after if inventory.key == start else "")

    def _one_snapshot(self, snapshot_id: str, source_volume_id: str) -> Found:
        inventory = self._registry.inventory(key_of(snapshot_id))
        entry = None if inventory is None else inventory.snapshots.get(snapshot_id)
        if entry is None or source_volume_id not in ("", entry.source_volume_id):
            return []
        return [(snapshot_id, entry)]

    def _snapshots_of(self, source_volume_id: str, after: str) -> Iterator[tuple[str, Entry]]:
        inventory = self._registry.inventory(key_of(source_volume_id))
        if inventory is not None:
            for snapshot_id, entry in inventory.snapshots.after(after):
                if entry.source_volume_id == source_volume_id:
                    yield snapshot_id, entry


def absent_health(volume_id: str) -> csi_pb2.VolumeHealth:
    """What is wrong with a volume whose node is away."""
    health = csi_pb2.VolumeHealth(volume_id=volume_id)
    health.health_statuses.add(
        status=csi_pb2.INACCESSIBLE,
        reason="NodeAbsent",
        message=f"the node that holds {volume_id} is not attached to the controller: look whether it runs, and its "
        "pod hostvol-node too",
    )
    return health


def _page(found: Found, limit: int, response: Any) -> bytes:
    parts: list[bytes] = []
    size, last = 0, ""
    for object_id, entry in found:
        size += len(entry.page)
        if len(parts) == limit or size > _PAGE_BYTES:
            parts.append(response(next_token=f"{_PREFIX}{last}").SerializeToString())
            break
        parts.append(entry.page)
        last = object_id
    # Serialized messages one after the other are one message whose repeated fields have the elements of all.
    return b"".join(parts)


def _after(token: str) -> str:
    if token and not _TOKEN.fullmatch(token):
        raise InvalidToken(token)
    return token.removeprefix(_PREFIX)


def _limit(max_entries: int) -> int:
    if max_entries < 0:
        raise InvalidField("max_entries", max_entries, "0 or more")
    return min(max_entries or _MOST_ENTRIES, _MOST_ENTRIES)
