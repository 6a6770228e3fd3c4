"""The calls of the sidecars, each brought to the node that can answer it; knows no gRPC server and keeps no state.

One mechanism for all methods: the bytes that came go to the node, the bytes that the node answers go back. Only a few
methods are about the cluster rather than about one object: CreateVolume and GetCapacity choose a node, the lists are
answered from what the nodes have told, and the health of a volume is known also when its node is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

from csi_driver.cluster import placement, routing
from csi_driver.cluster.crossings import Grants
from csi_driver.cluster.lists import Lists, absent_health
from csi_driver.cluster.orchestrator import Subject
from csi_driver.cluster.outcome import Outcome
from csi_driver.cluster.placement import Placement
from csi_driver.cluster.presence import Presence
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.streams import Session
from csi_driver.errors import InvalidField, MissingField, NodeUnreachable, NotOffered, ObjectUnknown
from csi_driver.model import key_of, node_key, topology_key
from csi_driver.pb import csi_pb2

_log = logging.getLogger("hostvol.cluster")
# google/rpc/code.proto
_RESOURCE_EXHAUSTED: Final = 8
# The call may still be running on the node: CANCELLED, DEADLINE_EXCEEDED, ABORTED, UNAVAILABLE.
_UNDECIDED: Final = frozenset({1, 4, 10, 14})


@dataclass(frozen=True, slots=True)
class Asked:
    """A call: its method's full and short name, its request as bytes and parsed, what is left of its time."""

    method: str
    name: str
    raw: bytes
    request: Any
    timeout_seconds: float | None


class Herald(Protocol):
    """Tells an operator what must not pass unnoticed."""

    async def tell(self, subject: Subject, reason: str, message: str) -> None: ...


class Router:
    """Answers calls; every HostvolError it raises is the caller's answer."""

    def __init__(self, registry: Registry, presence: Presence, herald: Herald, driver_name: str) -> None:
        self.deleted_on_gone_nodes = 0
        self.grants = Grants()
        self._registry = registry
        self._presence = presence
        self._herald = herald
        self._driver_name = driver_name
        self._topology_key = topology_key(driver_name)
        self._placement = Placement(registry, self._topology_key)
        self._lists = Lists(registry)
        self._telling: set[asyncio.Task[None]] = set()
        self._special: dict[str, Callable[[Asked], Awaitable[Outcome]]] = {
            "CreateVolume": self._create,
            "GetCapacity": self._capacity,
            "ListVolumes": self._list_volumes,
            "ListSnapshots": self._list_snapshots,
            "ControllerGetVolumeHealth": self._volume_health,
            "ControllerListVolumeHealth": self._list_health,
        }

    async def call(self, asked: Asked) -> Outcome:
        """The answer to a unary call.

        Raises: HostvolError.
        """
        special = self._special.get(asked.name)
        if special is not None:
            return await special(asked)
        target = self._target(asked)
        session = self._registry.session(target.key)
        if session is None:
            return await self._without_node(asked, target)
        return await _forward(session, asked)

    async def stream(self, asked: Asked) -> AsyncGenerator[bytes]:
        """The messages of a streamed answer.

        Raises: HostvolError; StreamEnded.
        """
        target = self._target(asked)
        session = self._registry.session(target.key)
        if session is None:
            # Raises, since a stream is never a deletion.
            await self._without_node(asked, target)
            return
        async with aclosing(session.stream(asked.method, asked.raw, asked.timeout_seconds)) as messages:
            async for message in messages:
                yield message

    @staticmethod
    def _target(asked: Asked) -> routing.Target:
        target = routing.target_of(asked.request)
        if target is None:
            raise NotOffered(asked.name)
        return target

    async def _without_node(self, asked: Asked, target: routing.Target) -> Outcome:
        """The answer for an object whose node is not attached, if there is such a node at all."""
        deletion = routing.is_deletion(asked.name)
        if not target.key:
            if deletion:
                return Outcome(0)
            if "name" in asked.request.DESCRIPTOR.fields_by_name and not asked.request.name:
                # Wrong wherever the object is.
                raise MissingField("name")
            raise ObjectUnknown(target.field, target.object_id)
        if await self._presence.exists(target.key):
            raise NodeUnreachable(f"the node that holds {target.object_id} is not attached; repeat the call")
        if not deletion:
            raise ObjectUnknown(target.field, target.object_id)
        self._tell_gone(asked.name, target.object_id)
        return Outcome(0)

    def _tell_gone(self, name: str, object_id: str) -> None:
        self.deleted_on_gone_nodes += 1
        message = (
            f"{name} of {object_id}: its Node object is gone, so the call succeeded and nothing was deleted; if the "
            "machine comes back, remove what it still holds"
        )
        _log.warning("%s", message)
        task = asyncio.create_task(self._tell("DeletedOnGoneNode", message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, reason: str, message: str) -> None:
        try:
            await self._herald.tell(Subject.driver(self._driver_name), reason, message)
        except Exception as cause:
            _log.warning("no Event could be written: %s", cause)

    async def _create(self, asked: Asked) -> Outcome:
        request: csi_pb2.CreateVolumeRequest = asked.request
        outcome = Outcome(_RESOURCE_EXHAUSTED)
        for key in self._placement.candidates(request):
            outcome = await self._create_on(self._session(key), asked)
            if outcome.code != _RESOURCE_EXHAUSTED:
                break
        return outcome

    async def _create_on(self, session: Session, asked: Asked) -> Outcome:
        request: csi_pb2.CreateVolumeRequest = asked.request
        self._placement.begins(request.name, session.key)
        source = routing.source_of(request)
        if source is not None and source.key != session.key:
            self.grants.allow(session.key, source.object_id)
        outcome = await _forward(session, asked)
        # Where a newer stream has taken over, the name is known only once that one has told it.
        if outcome.code not in _UNDECIDED and self._registry.session(session.key) is session:
            self._placement.ended(request.name)
        inventory = self._registry.inventory(session.key)
        if outcome.code == 0 and inventory is not None:
            inventory.spend(placement.pool_of(request.parameters), placement.wanted_bytes(request))
        return outcome

    async def _capacity(self, asked: Asked) -> Outcome:
        request: csi_pb2.GetCapacityRequest = asked.request
        if not request.HasField("accessible_topology"):
            key = self._placement.richest(placement.pool_of(request.parameters))
        else:
            key = node_key(self._segment(request.accessible_topology))
        return await _forward(self._session(key), asked)

    def _segment(self, topology: csi_pb2.Topology) -> str:
        node_id = topology.segments.get(self._topology_key, "")
        if not node_id:
            given = ", ".join(topology.segments) or "nothing"
            raise InvalidField("accessible_topology.segments", given, f"the segment {self._topology_key}")
        return node_id

    async def _list_volumes(self, asked: Asked) -> Outcome:
        await self._presence.settle(asked.timeout_seconds)
        return Outcome(0, response=self._lists.volumes(asked.request))

    async def _list_health(self, asked: Asked) -> Outcome:
        await self._presence.settle(asked.timeout_seconds)
        return Outcome(0, response=self._lists.health(asked.request))

    async def _volume_health(self, asked: Asked) -> Outcome:
        """From the node; of a node that is away, and not only for the moment: inaccessible."""
        target = self._target(asked)
        if self._registry.session(target.key) is None:
            await self._presence.settle(asked.timeout_seconds)
        session = self._registry.session(target.key)
        if session is not None:
            return await _forward(session, asked)
        is_away = bool(target.key) and self._registry.inventory(target.key) is None
        if is_away and await self._presence.exists(target.key):
            answer = csi_pb2.ControllerGetVolumeHealthResponse(volume_health=absent_health(target.object_id))
            return Outcome(0, response=answer.SerializeToString())
        return await self._without_node(asked, target)

    async def _list_snapshots(self, asked: Asked) -> Outcome:
        """One that is asked for by its id must not seem gone because its node is."""
        request: csi_pb2.ListSnapshotsRequest = asked.request
        key = key_of(request.snapshot_id or request.source_volume_id)
        if not (request.snapshot_id or request.source_volume_id):
            await self._presence.settle(asked.timeout_seconds)
        elif key and self._registry.session(key) is None and await self._presence.exists(key):
            raise NodeUnreachable("the node that holds the snapshot is not attached; repeat the call")
        return Outcome(0, response=self._lists.snapshots(request))

    def _session(self, key: str) -> Session:
        session = self._registry.session(key)
        if session is None:
            raise NodeUnreachable("the node that was asked for is not attached to the controller; repeat the call")
        return session


async def _forward(session: Session, asked: Asked) -> Outcome:
    return await session.call(asked.method, asked.raw, asked.timeout_seconds)
