"""Group snapshots through a router.

- What a group controller can do is said without any node.
- A call goes to the node of its volumes, and of its group; volumes of two nodes are refused in words.
- What the router says of a group that no node of its own can hold: gone for a deletion, NOT_FOUND else.
"""

from __future__ import annotations

import grpc
import pytest

from tests.cluster.cluster import Cluster, on
from tests.harness import MIB, Failure

Code = grpc.StatusCode


def test_groups_are_made_found_and_deleted_where_their_volumes_are(cluster: Cluster) -> None:
    controller = cluster.controller
    offered = controller.call("GroupControllerGetCapabilities").capabilities
    assert [one.rpc.type for one in offered] == [1]
    ids = {
        name: controller.call("CreateVolume", on(f"g-{name}", name, size_bytes=16 * MIB)).volume.volume_id
        for name in ("node-a", "node-b")
    }
    with pytest.raises(Failure, match="one node") as apart:
        controller.call("CreateVolumeGroupSnapshot", name="group", source_volume_ids=list(ids.values()))
    assert apart.value.code is Code.FAILED_PRECONDITION
    # The nodes' pools share no blocks: the node itself says so, by the name of the member.
    with pytest.raises(Failure, match=f"{ids['node-b']} cannot be a member") as refused:
        controller.call("CreateVolumeGroupSnapshot", name="group", source_volume_ids=[ids["node-b"]])
    assert refused.value.code is Code.FAILED_PRECONDITION
    mine = ids["node-a"].replace("vol-", "grp-")
    for group_id in ("nobody", mine):
        controller.call("DeleteVolumeGroupSnapshot", group_snapshot_id=group_id)
        with pytest.raises(Failure) as missing:
            controller.call("GetVolumeGroupSnapshot", group_snapshot_id=group_id)
        assert missing.value.code is Code.NOT_FOUND
    for volume_id in ids.values():
        controller.call("DeleteVolume", volume_id=volume_id)
