"""On which node a new volume is made; knows no connection, and decides nothing that the request has decided.

Where a topology is required, what nodes tell of themselves never leads a create elsewhere. Where the choice is free,
a name that is known already goes where it is, since a repeated create must find its volume.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping

from csi_driver.cluster import routing
from csi_driver.cluster.registry import Registry
from csi_driver.errors import NodeUnreachable, NoNodeForTopology, ObjectUnknown
from csi_driver.model import DEFAULT_CAPACITY_BYTES, VolumeParameters
from csi_driver.pb import csi_pb2

# How many nodes with enough space are asked before their refusal is the answer.
_MOST_TRIED = 8
# How long a create whose end nobody heard of is repeated on the same node.
_REMEMBER_SECONDS = 900.0
_MOST_REMEMBERED = 10000
DEFAULT_POOL = VolumeParameters().pool


class Placement:
    """Chooses among the nodes that are attached."""

    def __init__(self, registry: Registry, topology_key: str) -> None:
        self._registry = registry
        self._topology_key = topology_key
        self._begun: dict[str, tuple[str, float]] = {}

    def candidates(self, request: csi_pb2.CreateVolumeRequest) -> list[str]:
        """The keys of the nodes to ask, one after the other while each lacks the space; at least one.

        Raises: NoNodeForTopology; NodeUnreachable when none of them can be reached; ObjectUnknown.
        """
        requirement = request.accessibility_requirements
        source = routing.source_of(request)
        keys = self._required(requirement) if requirement.requisite else self._free(request)
        if source is not None and source.key in routing.preferred_first(requirement, self._topology_key):
            # There a copy takes no time; the others have to fetch it.
            keys = [self._of_source(source), *(key for key in keys if key != source.key)]
        known = self._known(request.name)
        return [known, *(key for key in keys if key != known)] if known in keys else keys

    def richest(self, pool: str) -> str:
        """The key of the node with the most available capacity in the pool.

        Raises: NodeUnreachable when no node is attached.
        """
        return self._richest(pool, 1)[0]

    def begins(self, name: str, key: str) -> None:
        """A create is sent to the node; its repetition, while its end is unknown, goes there too."""
        if len(self._begun) >= _MOST_REMEMBERED:
            del self._begun[next(iter(self._begun))]
        self._begun[name] = (key, time.monotonic())

    def ended(self, name: str) -> None:
        """The node has answered finally."""
        self._begun.pop(name, None)

    def _known(self, name: str) -> str:
        key, began = self._begun.get(name, ("", 0.0))
        if key and began + _REMEMBER_SECONDS > time.monotonic():
            return key
        return self._registry.names.holder(name)

    def _required(self, requirement: csi_pb2.TopologyRequirement) -> list[str]:
        keys = list(routing.preferred_first(requirement, self._topology_key))
        if not keys:
            raise NoNodeForTopology(self._topology_key)
        attached = [key for key in keys if self._registry.session(key) is not None]
        if not attached:
            named = " ".join(topology.segments.get(self._topology_key, "?") for topology in requirement.requisite)
            raise NodeUnreachable(f"node {named[:200]} is not attached to the controller; repeat the call")
        return attached

    def _free(self, request: csi_pb2.CreateVolumeRequest) -> list[str]:
        source = routing.source_of(request)
        if source is not None:
            return [self._of_source(source)]
        known = self._known(request.name)
        if known:
            if self._registry.session(known) is None:
                raise NodeUnreachable(f"the node that holds {request.name!r} is not attached; repeat the call")
            return [known]
        return self._with_space(request)

    def _of_source(self, source: routing.Target) -> str:
        if not source.key:
            raise ObjectUnknown(source.field, source.object_id)
        if self._registry.session(source.key) is None:
            raise NodeUnreachable(f"the node that holds {source.object_id} is not attached; repeat the call")
        return source.key

    def _with_space(self, request: csi_pb2.CreateVolumeRequest) -> list[str]:
        pool = pool_of(request.parameters)
        best = self._richest(pool, _MOST_TRIED)
        enough = [key for key in best if self._available(key, pool) >= wanted_bytes(request)]
        return enough or best[:1]

    def _richest(self, pool: str, count: int) -> list[str]:
        keys: Iterable[str] = (session.key for session in self._registry.sessions())
        best = heapq.nlargest(count, keys, key=lambda key: self._available(key, pool))
        if not best:
            raise NodeUnreachable("no node is attached to the controller; repeat the call")
        return best

    def _available(self, key: str, pool: str) -> int:
        inventory = self._registry.inventory(key)
        found = None if inventory is None else inventory.available_bytes(pool)
        return -1 if found is None else found


def pool_of(parameters: Mapping[str, str]) -> str:
    """The pool that a class names."""
    return parameters.get("pool", DEFAULT_POOL)


def wanted_bytes(request: csi_pb2.CreateVolumeRequest) -> int:
    """What a create will at least take."""
    return int(request.capacity_range.required_bytes) or DEFAULT_CAPACITY_BYTES
