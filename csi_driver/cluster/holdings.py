"""What this node tells the routers: what it holds and what is wrong, all at first, then changes; knows no stream."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from csi_driver.domain.alarms import Alarm
from csi_driver.domain.alarms import alarms as alarms_of
from csi_driver.domain.node import Node
from csi_driver.domain.troubles import Trouble
from csi_driver.errors import HostvolError
from csi_driver.model import Snapshot, Volume, key_of, node_key
from csi_driver.pb import csi_pb2, peer_pb2

_log = logging.getLogger("hostvol.link")
_CHUNK_BYTES = 1 << 20
_TICK_SECONDS = 10.0
# Changes come in bursts; a pool is measured once for all of one.
_SETTLE_SECONDS = 0.2
# A disk that went bad may damage every record; the first hundred say so as well as all.
_MOST_ALARMS = 100

Change = Callable[[], peer_pb2.Inventory]


class Listener(Protocol):
    """A stream to a router."""

    def tell(self, change: Change) -> None:
        """Queue a change, whose message is built when its turn comes; never blocks."""
        ...


class Holdings:
    """The node's volumes, snapshots and pools, for any number of listeners."""

    def __init__(
        self,
        node: Node,
        describe: Callable[[Volume], csi_pb2.Volume],
        describe_snapshot: Callable[[Snapshot], csi_pb2.Snapshot],
        describe_health: Callable[[str, Iterable[Trouble]], csi_pb2.VolumeHealth],
    ) -> None:
        """The functions give an object, and what is wrong with a volume, as the protocol tells it."""
        self._node = node
        self._describe = describe
        self._describe_snapshot = describe_snapshot
        self._describe_health = describe_health
        self._lock = threading.Lock()
        self._listeners: tuple[Listener, ...] = ()
        self._pools = peer_pb2.Pools()
        self._alarms = peer_pb2.Alarms()
        self._health: dict[str, csi_pb2.VolumeHealth] = {}
        self._stirred = threading.Event()
        self._stopping = False
        self._ticker = threading.Thread(target=self._measure_for_ever, name="holdings", daemon=True)
        node.catalogue.watch(self._changed)
        node.snapshot_catalogue.watch(self._changed)

    def start(self) -> None:
        """Measure the pools from time to time; one that hangs makes numbers old, and nothing else."""
        self._ticker.start()

    def stop(self) -> None:
        self._stopping = True
        self._stirred.set()

    def attach(self, listener: Listener) -> Iterator[peer_pb2.Inventory]:
        """The whole inventory in parts of at most 1 MiB; the listener hears of every change that is not in it."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
        return self._everything()

    def detach(self, listener: Listener) -> None:
        """The listener hears nothing more. Idempotent."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

    def _everything(self) -> Iterator[peer_pb2.Inventory]:
        held: list[Volume | Snapshot] = [*self._node.catalogue.all(), *self._node.snapshot_catalogue.all()]
        told = [one for one in held if _is_told(one)]
        yield from _chunks(self._item(one) for one in sorted(told, key=lambda one: one.object_id))
        yield from _health_chunks(self._health.values())
        yield peer_pb2.Inventory(pools=self._pools, alarms=self._alarms, complete=True)

    def _item(self, held: Volume | Snapshot) -> peer_pb2.Item:
        if isinstance(held, Snapshot):
            return peer_pb2.Item(name=held.name, snapshot=self._describe_snapshot(held))
        return peer_pb2.Item(name=held.name, volume=self._describe(held))

    def _changed(self, object_id: str, held: Volume | Snapshot | None) -> None:
        def change() -> peer_pb2.Inventory:
            if held is None:
                return peer_pb2.Inventory(removed=[object_id])
            return peer_pb2.Inventory(items=[self._item(held)])

        if held is None or _is_told(held):
            self._tell(change)
        self._stirred.set()

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener.tell(change)

    def _measure_for_ever(self) -> None:
        while not self._stopping:
            self._measure()
            self._stirred.wait(_TICK_SECONDS)
            time.sleep(_SETTLE_SECONDS)
            self._stirred.clear()

    def _measure(self) -> None:
        part = peer_pb2.Inventory()
        pools = peer_pb2.Pools(pools=self._measured())
        if pools != self._pools:
            self._pools = pools
            part.pools.CopyFrom(pools)
        alarms = peer_pb2.Alarms(alarms=map(_alarm, self._alarms_now()))
        if alarms != self._alarms:
            self._alarms = alarms
            part.alarms.CopyFrom(alarms)
        if part.ListFields():
            self._tell(lambda: part)
        for change in self._health_changes():
            self._tell(lambda change=change: change)  # type: ignore[misc]

    def _health_changes(self) -> Iterator[peer_pb2.Inventory]:
        before, own = self._health, node_key(self._node.node_id)
        self._health = {
            volume_id: self._describe_health(volume_id, found)
            for volume_id, found in self._node.health.unhealthy().items()
            if key_of(volume_id) == own
        }
        changed = [one for volume_id, one in self._health.items() if before.get(volume_id) != one]
        healed = [csi_pb2.VolumeHealth(volume_id=one) for one in before if one not in self._health]
        return _health_chunks([*changed, *healed])

    def _alarms_now(self) -> list[Alarm]:
        try:
            return alarms_of(self._node)[:_MOST_ALARMS]
        except (OSError, HostvolError) as cause:
            _log.warning("alarms cannot be told: %s", cause)
            return []

    def _measured(self) -> Iterator[peer_pb2.Pool]:
        for name, pool in sorted(self._node.pools.opened.items()):
            try:
                available = pool.grantable_bytes()
            except (OSError, HostvolError) as cause:
                _log.warning("pool %s cannot be measured: %s", name, cause)
                available = 0
            yield peer_pb2.Pool(name=name, available_bytes=available)


def _is_told(held: Volume | Snapshot) -> bool:
    # An ephemeral volume is between kubelet and this node: no PersistentVolume will ever name it.
    return isinstance(held, Snapshot) or not held.is_ephemeral


def _alarm(alarm: Alarm) -> peer_pb2.Alarm:
    return peer_pb2.Alarm(reason=alarm.reason, message=alarm.message, volume_name=alarm.volume_name)


def _chunks(items: Iterable[peer_pb2.Item]) -> Iterator[peer_pb2.Inventory]:
    chunk, size = peer_pb2.Inventory(), 0
    for item in items:
        bytes_more = item.ByteSize() + 8
        if chunk.items and size + bytes_more > _CHUNK_BYTES:
            yield chunk
            chunk, size = peer_pb2.Inventory(), 0
        chunk.items.append(item)
        size += bytes_more
    if chunk.items:
        yield chunk


def _health_chunks(found: Iterable[csi_pb2.VolumeHealth]) -> Iterator[peer_pb2.Inventory]:
    chunk, size = peer_pb2.Inventory(), 0
    for one in found:
        bytes_more = one.ByteSize() + 8
        if chunk.health and size + bytes_more > _CHUNK_BYTES:
            yield chunk
            chunk, size = peer_pb2.Inventory(), 0
        chunk.health.append(one)
        size += bytes_more
    if chunk.health:
        yield chunk
