"""Ephemeral volumes are between kubelet and its node: a cluster's controller never hears of them.

- They are in no list, neither when they come nor after the controller has asked for everything again.
- No call to the controller makes one, finds one, or takes a mounted one away.
"""

from __future__ import annotations

from tests.cluster.cluster import Cluster, on
from tests.harness import Code, PodVolume
from tests.soak.observing import assert_nothing_remains


def test_the_controller_never_hears_of_an_ephemeral_volume(empty_cluster: Cluster) -> None:
    controller = empty_cluster.add_controller()
    node = empty_cluster.add_node("node-a", options=[",ephemeral=64Mi"])
    inline = PodVolume(node, "pod", {"size": "8Mi"})
    target = inline.publish()
    # Changes come in their order: what this one follows has been told.
    other = controller.call("CreateVolume", on("pvc-1", "node-a")).volume.volume_id
    assert controller.volumes() == [other]
    controller.kill()
    controller.start()
    empty_cluster.wait_attached("node-a")
    assert controller.volumes() == [other]
    volume_id = inline.held().volume_id
    assert controller.failure("ControllerGetVolume", volume_id=volume_id).code is Code.NOT_FOUND
    assert controller.failure("NodePublishVolume", inline.publish_request(1)).code is Code.UNIMPLEMENTED
    assert controller.failure("DeleteVolume", volume_id=volume_id).code is Code.FAILED_PRECONDITION
    assert node.mounts() == [target]
    inline.unpublish()
    controller.call("DeleteVolume", volume_id=other)
    assert controller.volumes() == []
    assert_nothing_remains(node)
