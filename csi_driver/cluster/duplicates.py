"""One name on two nodes: a create that moved while its first node did not answer; knows which volume is the claim's.

Nothing is decided by inference. Only a PersistentVolume of that name, read now, that names one of the volumes says that
it is the claim's; the other is retired if no PersistentVolume at all names it, and is kept in its pool's trash.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from csi_driver.cluster.registry import Registry
from csi_driver.errors import HostvolError
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.cluster")
_LOOK_SECONDS = 10.0
_RETIRE_SECONDS = 60.0
_RETIRE = f"/{peer_pb2.DESCRIPTOR.services_by_name['Holder'].full_name}/Retire"


class VolumeDirectory(Protocol):
    """The part of the orchestrator's API that is needed here."""

    async def persistent_volume(self, name: str) -> dict[str, Any] | None: ...

    async def volume_handles(self, driver_name: str) -> set[str]: ...


class Duplicates:
    """Retires the losers."""

    def __init__(self, registry: Registry, directory: VolumeDirectory, driver_name: str) -> None:
        self.retired = 0
        self._registry = registry
        self._directory = directory
        self._driver_name = driver_name

    async def watch(self) -> None:
        """Look from time to time; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for name in self._registry.names.duplicated():
                try:
                    await self._settle(name)
                except HostvolError as cause:
                    _log.warning("the name %r stays on two nodes for now: %s", name, cause)

    async def _settle(self, name: str) -> None:
        held = self._registry.volumes_named(name)
        volume = await self._directory.persistent_volume(name)
        source = (volume or {}).get("spec", {}).get("csi") or {}
        winner = source.get("volumeHandle", "")
        if source.get("driver") != self._driver_name or winner not in held:
            return
        claimed = await self._directory.volume_handles(self._driver_name)
        for volume_id, key in held.items():
            if volume_id not in claimed and volume_id != winner:
                await self._retire(volume_id, key, winner)

    async def _retire(self, volume_id: str, key: str, winner: str) -> None:
        session = self._registry.session(key)
        if session is None:
            return
        request = peer_pb2.RetireRequest(volume_id=volume_id).SerializeToString()
        outcome = await session.call(_RETIRE, request, _RETIRE_SECONDS)
        if outcome.code:
            _log.warning("node %s cannot retire %s: %s", session.node_id, volume_id, outcome.message)
            return
        self.retired += 1
        _log.warning("node %s retired %s: the claim's volume is %s", session.node_id, volume_id, winner)
