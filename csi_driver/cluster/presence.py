"""Which nodes should be here, and which exist no more, as the orchestrator says at this moment; knows no volume."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from csi_driver.cluster.registry import Registry
from csi_driver.errors import NotReady, OrchestratorUnavailable
from csi_driver.model import node_key

_log = logging.getLogger("hostvol.cluster")
# So long after a start a list waits for the nodes that must be there.
_START_SECONDS = 30.0
_REFRESH_SECONDS = 60.0


class NodeDirectory(Protocol):
    """The part of the orchestrator's API that is needed here."""

    async def node_names(self) -> set[str]: ...

    async def expected_nodes(self, driver_name: str) -> set[str]: ...


class Presence:
    """Compares the nodes that are attached with those of the orchestrator."""

    def __init__(self, registry: Registry, directory: NodeDirectory, driver_name: str) -> None:
        self.absent_count = 0
        self._registry = registry
        self._directory = directory
        self._driver_name = driver_name
        self._asking = asyncio.Lock()
        self._asked = 0
        self._keys: set[str] = set()
        self._settled = False

    async def exists(self, key: str) -> bool:
        """Whether a Node object has this key; asked after this call began, never answered from memory.

        Callers that come while the API is being asked share the next question, not the one under way.

        Raises: OrchestratorUnavailable.
        """
        came = self._asked
        async with self._asking:
            # The question number came+1 may have been on its way when we came; came+2 was asked later.
            if self._asked < came + 2:
                names = await self._directory.node_names()
                self._keys = {node_key(name) for name in names}
                self._asked += 1
            return key in self._keys

    async def settle(self, timeout_seconds: float | None) -> None:
        """Return when a list may be made: all expected nodes are attached, or the start is long enough ago.

        Raises: NotReady when the caller has to come again; OrchestratorUnavailable.
        """
        remaining = self._registry.started_at + _START_SECONDS - time.monotonic()
        if self._settled or remaining <= 0:
            return
        keys = {node_key(name) for name in await self._directory.expected_nodes(self._driver_name)}
        patience = remaining if timeout_seconds is None else min(remaining, timeout_seconds)
        complete = await self._registry.wait_for(keys, patience)
        self._settled = complete
        if not complete and patience < remaining:
            raise NotReady("the controller has just started, and not every node is attached yet; repeat the call")

    async def forget_gone(self) -> None:
        """Of an absent node whose Node object is gone nothing is told any more.

        Raises: OrchestratorUnavailable.
        """
        absent = self._registry.absent_keys()
        if absent:
            exist = {node_key(name) for name in await self._directory.node_names()}
            for key in absent - exist:
                self._registry.forget_absent(key)

    async def watch(self) -> None:
        """Count the absent nodes from time to time; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.forget_gone()
                names = await self._directory.expected_nodes(self._driver_name)
            except OrchestratorUnavailable as cause:
                _log.warning("absent nodes cannot be counted: %s", cause)
                continue
            absent = sorted(name for name in names if self._registry.session(node_key(name)) is None)
            if len(absent) != self.absent_count:
                _log.warning("%d Ready nodes of this driver are not attached: %s", len(absent), " ".join(absent[:20]))
            self.absent_count = len(absent)
