"""The alarms of all attached nodes, told as Events where an operator looks: at the Node, and at the claim concerned.

Every router tells them; the Event's name is made from its content, so that two routers make one. The orchestrator
forgets Events after an hour: while a cause lasts, it is told again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol

from csi_driver.cluster.orchestrator import Subject
from csi_driver.cluster.registry import Registry
from csi_driver.errors import OrchestratorUnavailable
from csi_driver.model import key_of, node_key
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.cluster")
_LOOK_SECONDS = 5.0
_AGAIN_SECONDS = 1800.0
# Of one node in that time: one that changes its words all the while neither fills the orchestrator with Events nor
# keeps the others from being heard.
_MOST_TOLD = 200


class EventWriter(Protocol):
    """The part of the orchestrator's API that is needed here."""

    async def tell(self, subject: Subject, reason: str, message: str) -> None: ...

    async def persistent_volume(self, name: str) -> dict[str, Any] | None: ...


class Alarms:
    """Tells what is not told yet."""

    def __init__(self, registry: Registry, writer: EventWriter, driver_name: str) -> None:
        self._registry = registry
        self._writer = writer
        self._driver_name = driver_name
        self._told_at: dict[tuple[str, str], float] = {}

    def count(self) -> int:
        """Alarms that stand now."""
        return sum(len(alarms) for _, alarms in self._standing())

    async def watch(self) -> None:
        """Tell each alarm soon after it comes; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._tell_all()
            except OrchestratorUnavailable as cause:
                _log.warning("alarms cannot be written as Events: %s", cause)

    def _standing(self) -> list[tuple[str, tuple[peer_pb2.Alarm, ...]]]:
        sessions = list(self._registry.sessions())
        return [(one.node_id, self._registry.alarms(one.key)) for one in sessions]

    async def _tell_all(self) -> None:
        horizon = time.monotonic() - _AGAIN_SECONDS
        self._told_at = {key: told for key, told in self._told_at.items() if told > horizon}
        for node_id, alarms in self._standing():
            room = _MOST_TOLD - sum(told_node == node_id for told_node, _ in self._told_at)
            fresh = [alarm for alarm in alarms if (node_id, alarm.message) not in self._told_at]
            for alarm in fresh[: max(0, room)]:
                await self._tell(node_id, alarm)
                self._told_at[node_id, alarm.message] = time.monotonic()

    async def _tell(self, node_id: str, alarm: peer_pb2.Alarm) -> None:
        _log.warning("node %s: %s: %s", node_id, alarm.reason, alarm.message)
        await self._writer.tell(Subject.node(node_id), alarm.reason, alarm.message)
        if alarm.volume_name:
            await self._tell_claim(node_id, alarm)

    async def _tell_claim(self, node_id: str, alarm: peer_pb2.Alarm) -> None:
        """The node's Event is written: one that the claim's namespace does not take keeps no other alarm waiting."""
        try:
            claim = await self._claim(node_id, alarm.volume_name)
            if claim is not None:
                await self._writer.tell(claim, alarm.reason, f"on node {node_id}: {alarm.message}")
        except OrchestratorUnavailable as cause:
            _log.warning("node %s: no Event at the claim of %s: %s", node_id, alarm.volume_name, cause)

    async def _claim(self, node_id: str, volume_name: str) -> Subject | None:
        """The claim whose volume the node may speak of: one that is on this node."""
        volume = await self._writer.persistent_volume(volume_name) or {}
        source = volume.get("spec", {}).get("csi") or {}
        if source.get("driver") != self._driver_name or key_of(source.get("volumeHandle", "")) != node_key(node_id):
            return None
        return Subject.claim_of(volume)
