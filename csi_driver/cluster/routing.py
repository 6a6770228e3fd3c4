"""Which node a request belongs to, read from the request alone; knows no node and no connection.

An id carries the key of its node (`vol-<16 hex>-<token>`), so a look-up is never needed, and an RPC that is added
later is routed by the same fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from csi_driver.errors import InvalidField, MissingField, ObjectsApart
from csi_driver.model import key_of, node_key
from csi_driver.pb import csi_pb2

# The first that a request has decides; objects in the others must be on the same node, or the node says that they are
# not there.
_ID_FIELDS = (
    "group_snapshot_id",
    "snapshot_id",
    "target_snapshot_id",
    "volume_id",
    "source_volume_id",
    "source_volume_ids",
)
# Named beside the one that decides; it must be on the same node.
_BESIDE = {"target_snapshot_id": "base_snapshot_id"}
_ID_BYTES = 128


@dataclass(frozen=True, slots=True)
class Target:
    """The object that a request is about. `key` names its node; empty: no node of ours made such an id."""

    field: str
    object_id: str
    key: str


def target_of(request: Any) -> Target | None:
    """The object that the request is about; None when it is about none.

    Raises: MissingField when its id is empty; InvalidField when it is too long; ObjectsApart.
    """
    fields = request.DESCRIPTOR.fields_by_name
    for name in _ID_FIELDS:
        if name in fields:
            value = getattr(request, name)
            if fields[name].is_repeated:
                return _target_of_all(name, value)
            target = _target(name, value)
            if name in _BESIDE:
                _require_beside(_target(_BESIDE[name], getattr(request, _BESIDE[name])), target)
            return target
    return None


def source_of(request: csi_pb2.CreateVolumeRequest) -> Target | None:
    """The object whose content a new volume shall have.

    Raises: MissingField, InvalidField.
    """
    source = request.volume_content_source
    kind = source.WhichOneof("type")
    if kind == "snapshot":
        return _target("volume_content_source.snapshot.snapshot_id", source.snapshot.snapshot_id)
    if kind == "volume":
        return _target("volume_content_source.volume.volume_id", source.volume.volume_id)
    return None


def candidates(topologies: Iterable[csi_pb2.Topology], topology_key: str) -> list[str]:
    """The keys of the nodes that the topologies name, each once, in their order."""
    named = (topology.segments.get(topology_key, "") for topology in topologies)
    return list(dict.fromkeys(node_key(node_id) for node_id in named if node_id))


def preferred_first(requirement: csi_pb2.TopologyRequirement, topology_key: str) -> Iterator[str]:
    """The keys of the nodes among which a create may choose, the preferred ones first."""
    allowed = candidates(requirement.requisite, topology_key)
    preferred = candidates(requirement.preferred, topology_key)
    yield from (key for key in preferred if key in allowed)
    yield from (key for key in allowed if key not in preferred)


def is_deletion(method_name: str) -> bool:
    """Whether the method asks that an object be gone: what is gone already is a success."""
    return method_name.startswith("Delete")


def _target(field: str, object_id: str) -> Target:
    if not object_id:
        raise MissingField(field)
    if len(object_id.encode()) > _ID_BYTES:
        raise InvalidField(field, len(object_id.encode()), f"at most {_ID_BYTES} bytes")
    return Target(field, object_id, key_of(object_id))


def _require_beside(other: Target, target: Target) -> None:
    # An id that no node made is found to be unknown by the node of the other one.
    if other.key and target.key and other.key != target.key:
        raise ObjectsApart(other.field, target.object_id, other.object_id)


def _target_of_all(field: str, object_ids: Sequence[str]) -> Target:
    if not object_ids:
        raise MissingField(field)
    targets = [_target(field, object_id) for object_id in object_ids]
    for other in targets[1:]:
        if other.key != targets[0].key:
            raise ObjectsApart(field, targets[0].object_id, other.object_id)
    return targets[0]


def method_descriptors() -> dict[str, Any]:
    """The methods of a cluster's controller by full name: all CSI services but Node."""
    services = csi_pb2.DESCRIPTOR.services_by_name
    return {
        f"/{services[name].full_name}/{method.name}": method
        for name in ("Identity", "Controller", "GroupController", "SnapshotMetadata")
        for method in services[name].methods
    }
