"""Snapshots and copies through a router, on real nodes.

- A snapshot is taken where its volume is, and found through the router by id, by source and among all, in pages.
- What happens on a node is in the router's list before its answer is; a router that starts anew has it too.
- A copy goes to the node of its source: chosen freely, and among several required nodes; elsewhere it is fetched, and
  only when the controller was asked for it.
- A snapshot of a node that is away is not said to be gone; one that never was is.
"""

from __future__ import annotations

import grpc
import pytest

from csi_driver.model import node_key
from csi_driver.pb import csi_pb2
from tests.cluster.cluster import Cluster, Controller, on, topology
from tests.harness import DIRECTORY, MIB, create_request
from tests.waiting import until

Code = grpc.StatusCode


def take(controller: Controller, volume_id: str, name: str) -> csi_pb2.Snapshot:
    snapshot = controller.call("CreateSnapshot", source_volume_id=volume_id, name=name).snapshot
    until(lambda: controller.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot.ready_to_use)
    return controller.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot


def listed(controller: Controller, **filters: object) -> list[str]:
    found, token = [], ""
    while True:
        page = controller.call("ListSnapshots", max_entries=2, starting_token=token, **filters)
        found += [entry.snapshot.snapshot_id for entry in page.entries]
        token = page.next_token
        if not token:
            return found


def from_snapshot(name: str, snapshot_id: str, **fields: object) -> csi_pb2.CreateVolumeRequest:
    content = csi_pb2.VolumeContentSource()
    content.snapshot.snapshot_id = snapshot_id
    return create_request(name, 16 * MIB, parameters=DIRECTORY, volume_content_source=content, **fields)


def from_volume(name: str, volume_id: str, **fields: object) -> csi_pb2.CreateVolumeRequest:
    content = csi_pb2.VolumeContentSource()
    content.volume.volume_id = volume_id
    return create_request(name, 16 * MIB, parameters=DIRECTORY, volume_content_source=content, **fields)


@pytest.fixture
def volumes(cluster: Cluster) -> dict[str, str]:
    """One volume on each node."""
    return {
        name: cluster.controller.call("CreateVolume", on(f"v-{name}", name, size_bytes=16 * MIB)).volume.volume_id
        for name in ("node-a", "node-b")
    }


def test_snapshots_are_taken_listed_and_deleted_where_their_volumes_are(
    cluster: Cluster, volumes: dict[str, str]
) -> None:
    controller = cluster.controller
    made: dict[str, list[str]] = {"node-a": [], "node-b": []}
    for name, volume_id in volumes.items():
        for number in range(3):
            snapshot = take(controller, volume_id, f"{name}-{number}")
            assert snapshot.snapshot_id.startswith(f"snap-{node_key(name)}-")
            assert (cluster.nodes[name].pool / "snapshots" / snapshot.snapshot_id).is_dir()
            assert [list(one.segments.values()) for one in snapshot.accessible_topology] == [[name]]
            made[name].append(snapshot.snapshot_id)
            # The list comes from what the nodes have told, which is never later than their answers.
            assert snapshot.snapshot_id in listed(controller, source_volume_id=volume_id)
    everything = sorted([*made["node-a"], *made["node-b"]])
    assert listed(controller) == everything
    assert listed(controller, source_volume_id=volumes["node-a"]) == sorted(made["node-a"])
    assert listed(controller, snapshot_id=made["node-b"][0]) == [made["node-b"][0]]
    assert listed(controller, snapshot_id=made["node-b"][0], source_volume_id=volumes["node-a"]) == []
    direct = cluster.nodes["node-a"].call("GetSnapshot", snapshot_id=made["node-a"][0]).snapshot
    assert controller.call("GetSnapshot", snapshot_id=made["node-a"][0]).snapshot == direct
    controller.kill()
    controller.start()
    cluster.wait_attached("node-a")
    cluster.wait_attached("node-b")
    assert listed(controller) == everything
    for snapshot_id in everything:
        controller.call("DeleteSnapshot", snapshot_id=snapshot_id)
        controller.call("DeleteSnapshot", snapshot_id=snapshot_id)
    assert listed(controller) == []


def test_a_copy_goes_to_the_node_of_its_source(cluster: Cluster, volumes: dict[str, str]) -> None:
    controller = cluster.controller
    snapshot = take(controller, volumes["node-b"], "cut")
    requests = {
        "anywhere": from_snapshot("anywhere", snapshot.snapshot_id),
        "one of two": from_snapshot(
            "one of two", snapshot.snapshot_id, accessibility_requirements=topology("node-a", "node-b")
        ),
        "a clone": from_volume("a clone", volumes["node-b"], accessibility_requirements=topology("node-b")),
    }
    for request in requests.values():
        volume = controller.call("CreateVolume", request).volume
        assert volume.volume_id.startswith(f"vol-{node_key('node-b')}-")
        assert volume.content_source == request.volume_content_source
        assert controller.call("CreateVolume", request).volume == volume
    elsewhere = from_snapshot("elsewhere", snapshot.snapshot_id, accessibility_requirements=topology("node-a"))
    assert controller.call("CreateVolume", elsewhere).volume.volume_id.startswith(f"vol-{node_key('node-a')}-")
    alone = cluster.nodes["node-a"].caller
    unknown = from_volume("not asked for by the controller", volumes["node-b"])
    assert alone.code("CreateVolume", unknown) is Code.UNAVAILABLE
    asked = csi_pb2.CreateSnapshotRequest(
        name="elsewhere", source_volume_id=volumes["node-b"], accessibility_requirements=topology("node-a")
    )
    assert controller.failure("CreateSnapshot", asked).code is Code.RESOURCE_EXHAUSTED


def test_what_is_on_a_node_that_is_away_is_not_gone(cluster: Cluster, volumes: dict[str, str]) -> None:
    controller = cluster.controller
    snapshot_id = take(controller, volumes["node-a"], "cut").snapshot_id
    cluster.nodes["node-a"].kill()
    until(lambda: not cluster.reaches(controller, "node-a"))
    for method, fields in (
        ("GetSnapshot", {"snapshot_id": snapshot_id}),
        ("DeleteSnapshot", {"snapshot_id": snapshot_id}),
        ("ListSnapshots", {"snapshot_id": snapshot_id}),
        ("CreateSnapshot", {"source_volume_id": volumes["node-a"], "name": "another"}),
    ):
        assert controller.caller.code(method, **fields) is Code.UNAVAILABLE, method
    for copy in (
        from_snapshot("copy", snapshot_id),
        from_snapshot("copy", snapshot_id, accessibility_requirements=topology("node-a", "node-b")),
    ):
        assert controller.caller.code("CreateVolume", copy) is Code.UNAVAILABLE
    assert take(controller, volumes["node-b"], "beside it").snapshot_id.startswith(f"snap-{node_key('node-b')}-")
    cluster.nodes["node-a"].start()
    cluster.wait_attached("node-a")
    assert listed(controller, snapshot_id=snapshot_id) == [snapshot_id]
    assert controller.caller.code("GetSnapshot", snapshot_id="snap-0") is Code.NOT_FOUND
    assert controller.caller.code("DeleteSnapshot", snapshot_id="snap-0") is Code.OK
    assert listed(controller, snapshot_id="snap-0") == []
