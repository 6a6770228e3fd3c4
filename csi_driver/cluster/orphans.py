"""Volumes that no PersistentVolume names: counted and told, never deleted.

A provisioner that restarts while a claim is deleted forgets the volume that it had asked for. A create that is under
way looks the same for a moment, so the router counts only what it finds twice.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from csi_driver.cluster.registry import Registry
from csi_driver.errors import OrchestratorUnavailable

_log = logging.getLogger("hostvol.cluster")
_LOOK_SECONDS = 300.0
_MOST_NAMED = 20


class HandleDirectory(Protocol):
    """The part of the orchestrator's API that is needed here."""

    async def volume_handles(self, driver_name: str) -> set[str]: ...


class Orphans:
    """What the last two looks have found."""

    def __init__(self, registry: Registry, directory: HandleDirectory, driver_name: str) -> None:
        self.found: frozenset[str] = frozenset()
        self._registry = registry
        self._directory = directory
        self._driver_name = driver_name
        self._suspects: frozenset[str] = frozenset()

    async def watch(self) -> None:
        """Look from time to time; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._look()
            except OrchestratorUnavailable as cause:
                _log.warning("volumes without a PersistentVolume cannot be counted: %s", cause)

    async def _look(self) -> None:
        # The volumes first: one that is made in between is in neither.
        held = frozenset(self._registry.volume_ids())
        suspects = held - await self._directory.volume_handles(self._driver_name)
        found = suspects & self._suspects
        for volume_id in sorted(found - self.found)[:_MOST_NAMED]:
            _log.warning("no PersistentVolume names volume %s; `hostvol orphans` lists all such volumes", volume_id)
        self._suspects, self.found = suspects, found
