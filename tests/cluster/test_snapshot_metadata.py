"""Lists of blocks through a router, on real nodes.

- The list of the node comes through as it is, in as many messages, from any offset.
- Two snapshots on two nodes are refused, naming them; an unknown one is NOT_FOUND, one of a node away UNAVAILABLE.
"""

from __future__ import annotations

import os
from typing import Any

import grpc

from csi_driver.model import node_key
from tests.cluster.cluster import Cluster, topology
from tests.cluster.test_snapshots import take
from tests.harness import MIB, capability, create_request

Code = grpc.StatusCode
SIZE = 16 * MIB


def device(cluster: Cluster, name: str, node: str) -> str:
    fields: dict[str, Any] = {
        "volume_capabilities": [capability(block=True)],
        "accessibility_requirements": topology(node),
    }
    request = create_request(name, SIZE, **fields)
    volume_id: str = cluster.controller.call("CreateVolume", request).volume.volume_id
    return volume_id


def scribble(cluster: Cluster, node: str, volume_id: str, first: int) -> None:
    with open(cluster.nodes[node].pool / "volumes" / volume_id / "disk.img", "r+b") as file:
        for number in range(100):
            os.pwrite(file.fileno(), b"x" * 4096, (2 * number + first) * 4096)
        os.fsync(file.fileno())


def ranges(messages: list[Any]) -> list[tuple[int, int]]:
    return [(one.byte_offset, one.size_bytes) for message in messages for one in message.block_metadata]


def test_the_list_of_the_node_comes_through(cluster: Cluster) -> None:
    controller, node = cluster.controller, cluster.nodes["node-a"]
    volume_id = device(cluster, "blocks", "node-a")
    scribble(cluster, "node-a", volume_id, 0)
    base = take(controller, volume_id, "blocks-base").snapshot_id
    scribble(cluster, "node-a", volume_id, 1)
    target = take(controller, volume_id, "blocks-target").snapshot_id
    both = {"base_snapshot_id": base, "target_snapshot_id": target}
    for offset in (0, 5000, SIZE):
        # More messages than a node may be ahead of its reader.
        asked = {"starting_offset": offset, "max_results": 5}
        through = controller.call("GetMetadataAllocated", snapshot_id=base, **asked)
        assert through == node.call("GetMetadataAllocated", snapshot_id=base, **asked)
        changes = controller.call("GetMetadataDelta", **both, **asked)
        assert changes == node.call("GetMetadataDelta", **both, **asked)
        assert all(len(message.block_metadata) <= 5 for message in changes)
    wanted = {(2 * number + 1) * 4096 for number in range(100)}
    listed = {
        at
        for start, size in ranges(controller.call("GetMetadataDelta", **both))
        for at in range(start, start + size, 4096)
    }
    assert wanted <= listed
    failure = controller.failure("GetMetadataAllocated", snapshot_id=base, starting_offset=SIZE + 1)
    assert failure.code is Code.OUT_OF_RANGE
    assert "starting_offset" in failure.details


def test_two_snapshots_must_be_on_one_node(cluster: Cluster) -> None:
    controller = cluster.controller
    here, there = (
        take(controller, device(cluster, f"apart-{node}", node), f"apart-{node}").snapshot_id
        for node in ("node-a", "node-b")
    )
    failure = controller.failure("GetMetadataDelta", base_snapshot_id=here, target_snapshot_id=there)
    assert failure.code is Code.FAILED_PRECONDITION
    assert all(word in failure.details for word in ("base_snapshot_id", here, there, "one node"))
    for field in ("base_snapshot_id", "target_snapshot_id"):
        ids = {"base_snapshot_id": here, "target_snapshot_id": here}
        failure = controller.failure("GetMetadataDelta", **{**ids, field: ""})
        assert (failure.code, field in failure.details) == (Code.INVALID_ARGUMENT, True)
        gone = f"snap-{node_key('node-a')}-0123456789abcdef"
        failure = controller.failure("GetMetadataDelta", **{**ids, field: gone})
        assert (failure.code, field in failure.details) == (Code.NOT_FOUND, True)
        failure = controller.failure("GetMetadataDelta", **{**ids, field: "strange"})
        assert (failure.code, field in failure.details) == (Code.NOT_FOUND, True)
