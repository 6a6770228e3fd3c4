"""To which node a request belongs, from the request alone.

- Every method of the protocol is served here, chooses a node, is a list, or names an object: none was forgotten.
- An id carries its node's key, and nothing that only looks like one does.
- Objects of one request that are on several nodes are refused, naming the one that is elsewhere.
- Preferred topologies come first, and only required ones come at all.
"""

from __future__ import annotations

import pytest
from google.protobuf import message_factory

from csi_driver.cluster import routing
from csi_driver.errors import InvalidField, MissingField, ObjectsApart
from csi_driver.model import key_of, node_key, topology_key
from csi_driver.pb import csi_pb2
from tests.cluster.api import DRIVER
from tests.cluster.peer import volume_id

KEY = topology_key(DRIVER)
ABOUT_NO_OBJECT = {
    "GetPluginInfo",
    "GetPluginCapabilities",
    "Probe",
    "ControllerGetCapabilities",
    "GroupControllerGetCapabilities",
    "CreateVolume",
    "GetCapacity",
    "ListVolumes",
    # Made from inventory like the other lists, once health is a part of it; not offered yet.
    "ControllerListVolumeHealth",
}


def requests() -> dict[str, object]:
    return {
        descriptor.name: message_factory.GetMessageClass(descriptor.input_type)()
        for descriptor in routing.method_descriptors().values()
    }


def test_every_method_names_an_object_or_is_known_not_to() -> None:
    without = set()
    for name, request in requests().items():
        try:
            if routing.target_of(request) is None:
                without.add(name)
        except MissingField:
            pass
    assert without == ABOUT_NO_OBJECT


@pytest.mark.parametrize("kind", ["vol", "snap", "grp"])
def test_an_id_carries_the_key_of_its_node(kind: str) -> None:
    assert key_of(f"{kind}-{node_key('n')}-0123abcd") == node_key("n")


@pytest.mark.parametrize(
    "object_id",
    [
        *("", "fake-vol-id", "vol-", "pvc-0123456789abcdef-x", "vol-0123456789ABCDEF-x", "vol-0123456789abcde-x"),
        *("vol-0123456789abcdef-", "vol-0123456789abcdef-../x", "vol-0123456789abcdef-x\n", "xvol-0123456789abcdef-x"),
        f"vol-0123456789abcdef-{'x' * 120}",
    ],
)
def test_nothing_else_has_a_key(object_id: str) -> None:
    assert key_of(object_id) == ""


def test_an_id_that_is_too_long_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidField, match="volume_id"):
        routing.target_of(csi_pb2.DeleteVolumeRequest(volume_id="x" * 129))


def test_a_group_on_two_nodes_is_refused_by_the_volume_that_is_elsewhere() -> None:
    ids = [volume_id("node-a", "1"), volume_id("node-a", "2"), volume_id("node-b", "3")]
    with pytest.raises(ObjectsApart, match=ids[2]):
        routing.target_of(csi_pb2.CreateVolumeGroupSnapshotRequest(source_volume_ids=ids))
    together = routing.target_of(csi_pb2.CreateVolumeGroupSnapshotRequest(source_volume_ids=ids[:2]))
    assert together is not None
    assert together.key == node_key("node-a")


def test_a_group_of_nothing_is_refused() -> None:
    with pytest.raises(MissingField, match="source_volume_ids"):
        routing.target_of(csi_pb2.CreateVolumeGroupSnapshotRequest())


def test_the_source_of_a_volume_is_a_snapshot_or_a_volume() -> None:
    request = csi_pb2.CreateVolumeRequest()
    assert routing.source_of(request) is None
    request.volume_content_source.volume.volume_id = volume_id("node-a", "1")
    assert routing.source_of(request).key == node_key("node-a")  # type: ignore[union-attr]
    request.volume_content_source.snapshot.snapshot_id = f"snap-{node_key('node-b')}-1"
    assert routing.source_of(request).key == node_key("node-b")  # type: ignore[union-attr]


def test_preferred_nodes_come_first_and_only_required_ones_at_all() -> None:
    def places(*names: str) -> list[csi_pb2.Topology]:
        return [csi_pb2.Topology(segments={KEY: name}) for name in names]

    requirement = csi_pb2.TopologyRequirement(
        requisite=[*places("a", "b", "c", "a"), csi_pb2.Topology(segments={"zone": "z"})], preferred=places("c", "x")
    )
    assert list(routing.preferred_first(requirement, KEY)) == [node_key(name) for name in "cab"]
