"""Parameters of a volume change through the controller, which knows nothing of them."""

from __future__ import annotations

from tests.cluster.cluster import Cluster, on
from tests.harness import Code


def test_the_controller_brings_a_change_to_the_node_of_the_volume(empty_cluster: Cluster) -> None:
    controller = empty_cluster.add_controller()
    nodes = {name: empty_cluster.add_node(name) for name in ("node-a", "node-b")}
    request = on("pvc-1", "node-b")
    request.parameters.clear()
    request.mutable_parameters["provisioning"] = "thin"
    volume_id = controller.call("CreateVolume", request).volume.volume_id
    offered = {one.rpc.type for one in controller.call("ControllerGetCapabilities").capabilities}
    assert 14 in offered
    changed = {"volume_id": volume_id, "mutable_parameters": {"provisioning": "thick"}}
    controller.call("ControllerModifyVolume", **changed)
    assert nodes["node-b"].call("GetVolume", volume_id=volume_id).provisioning == "thick"
    changed["mutable_parameters"] = {"iops": "9"}
    refusal = controller.failure("ControllerModifyVolume", **changed)
    assert (refusal.code, "iops" in refusal.details) == (Code.INVALID_ARGUMENT, True)
    unknown = {"volume_id": "vol-nobody", "mutable_parameters": {"provisioning": "thick"}}
    assert controller.failure("ControllerModifyVolume", **unknown).code is Code.NOT_FOUND
    controller.call("DeleteVolume", volume_id=volume_id)
