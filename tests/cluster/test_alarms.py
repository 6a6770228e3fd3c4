"""What an operator must know of a node becomes an Event.

- A record that is quarantined is told at the Node, and at the claim whose volume it is, once, whoever tells it.
- A node can speak only of claims whose volume is its own.
- A pool that can hardly grant anything is told.
- A node that has no pool at all is attached, tells why, and is given volumes when its pool is back.
- When the cause is gone, so is the alarm.
- A claim whose namespace takes no Event, or a node that talks all the time, keeps no other alarm from being told.
"""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from csi_driver.cluster.alarms import Alarms
from csi_driver.cluster.orchestrator import Subject
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.streams import Session
from csi_driver.errors import OrchestratorUnavailable
from csi_driver.model import node_key
from csi_driver.pb import csi_pb2, peer_pb2
from tests.cluster.api import DRIVER
from tests.cluster.cluster import Cluster, capacity_request, free_port, on, topology
from tests.harness import GIB, MIB, Code, PoolPlace, create_request
from tests.waiting import until

LOOK = 40.0


@pytest.fixture
def empty_cluster(empty_cluster: Cluster) -> Cluster:
    """Its router looks every half second, not every five."""
    empty_cluster.constants["cluster.alarms._LOOK_SECONDS"] = 0.5
    return empty_cluster


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    empty_cluster.add_controller()
    return empty_cluster


def about(cluster: Cluster, kind: str) -> list[dict[str, Any]]:
    return [event for event in cluster.api.events if event["involvedObject"]["kind"] == kind]


def damage(cluster: Cluster, node: str, volume_id: str) -> None:
    """The node's driver starts again and finds the record cut in half."""
    driver = cluster.nodes[node]
    driver.kill()
    record = driver.pool / "volumes" / volume_id / "record.json"
    record.write_bytes(record.read_bytes()[:-9])
    driver.start()
    cluster.wait_attached(node)


def test_a_quarantined_record_is_told_at_the_node_and_at_its_claim(cluster: Cluster) -> None:
    cluster.add_node("node-a")
    volume_id = cluster.controller.call("CreateVolume", on("pvc-1", "node-a")).volume.volume_id
    cluster.api.add_volume("pvc-1", volume_id)
    damage(cluster, "node-a", volume_id)
    until(lambda: about(cluster, "PersistentVolumeClaim"), LOOK, "an Event at the claim")
    node, claim = about(cluster, "Node"), about(cluster, "PersistentVolumeClaim")
    assert [event["reason"] for event in (*node, *claim)] == ["RecordQuarantined"] * 2
    assert node[0]["involvedObject"]["name"] == "node-a"
    assert claim[0]["metadata"]["namespace"] == claim[0]["involvedObject"]["namespace"] == "shop"
    for event in (*node, *claim):
        assert volume_id in event["message"]
        assert "restore the record or remove it" in event["message"]
    # A second router, or one that has forgotten, tells the same, which the API server holds already.
    asked = cluster.api.requests.count("POST /api/v1/namespaces/shop/events")
    cluster.controller.kill()
    cluster.controller.start()
    until(lambda: cluster.api.requests.count("POST /api/v1/namespaces/shop/events") > asked, LOOK)
    assert len(about(cluster, "Node")) == len(about(cluster, "PersistentVolumeClaim")) == 1


@pytest.mark.parametrize("other", [{"driver": "csi.other.dev"}, {"handle": "vol-0123456789abcdef-0123456789abcdef"}])
def test_a_node_cannot_speak_of_a_claim_that_is_not_its_own(cluster: Cluster, other: dict[str, str]) -> None:
    cluster.add_node("node-a")
    volume_id = cluster.controller.call("CreateVolume", on("pvc-1", "node-a")).volume.volume_id
    cluster.api.add_volume("pvc-1", **{"handle": volume_id, **other})
    damage(cluster, "node-a", volume_id)
    until(lambda: "GET /api/v1/persistentvolumes/pvc-1" in cluster.api.requests, LOOK, "the claim is looked for")
    assert len(about(cluster, "Node")) == 1
    assert about(cluster, "PersistentVolumeClaim") == []


def test_a_pool_that_is_nearly_full_is_told_until_it_is_not(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    cluster, port = empty_cluster, free_port()
    controller = cluster.add_controller("127.0.0.1", f"--http-address=127.0.0.1:{port}")
    driver = cluster.prepare_node("node-a")
    driver.pools = [make_pool("xfs", size_bytes=GIB)]
    driver.start()
    cluster.wait_attached("node-a")
    available = controller.call("GetCapacity", csi_pb2.GetCapacityRequest()).available_capacity
    request = create_request(
        "big", size_bytes=available - 4 * MIB, accessibility_requirements=topology("node-a"), parameters={}
    )
    held = controller.call("CreateVolume", request).volume.volume_id
    until(lambda: about(cluster, "Node"), LOOK, "an Event at the node")
    assert about(cluster, "Node")[0]["reason"] == "PoolNearlyFull"
    assert standing(port) == 1
    controller.call("DeleteVolume", volume_id=held)
    until(lambda: standing(port) == 0, LOOK, "no alarm")


def test_a_node_without_a_pool_is_attached_and_tells_why_until_it_has_one_again(cluster: Cluster) -> None:
    driver = cluster.add_node("node-a", constants={"domain.startup._TRY_AGAIN_SECONDS": 0.5})
    driver.stop()
    identity = driver.pool / "hostvol-pool.json"
    identity.rename(driver.home / "aside")
    driver.init_pools = False
    driver.start()
    cluster.wait_attached("node-a")
    until(lambda: about(cluster, "Node"), LOOK, "an Event at the node")
    [event] = about(cluster, "Node")
    assert (event["reason"], event["involvedObject"]["name"]) == ("PoolUnavailable", "node-a")
    assert "Is its disk mounted?" in event["message"]
    assert cluster.controller.call("GetCapacity", capacity_request("node-a")).available_capacity == 0
    assert cluster.controller.failure("CreateVolume", on("pvc-1", "node-a")).code is Code.UNAVAILABLE
    (driver.home / "aside").rename(identity)
    until(lambda: cluster.controller.call("GetCapacity", capacity_request("node-a")).available_capacity, LOOK)
    assert cluster.controller.call("CreateVolume", on("pvc-1", "node-a")).volume.volume_id


def test_no_alarm_keeps_another_from_being_told() -> None:
    talker, other = "node-a", "node-b"
    spoken = {
        node_key(talker): tuple(peer_pb2.Alarm(message=f"m{n}", volume_name="pvc-1") for n in range(300)),
        node_key(other): (peer_pb2.Alarm(message="mine"),),
    }

    class Attached(Registry):
        def sessions(self) -> list[Session]:
            return [Session(name, node_key(name)) for name in (talker, other)]

        def alarms(self, key: str) -> tuple[peer_pb2.Alarm, ...]:
            return spoken[key]

    class Writer:
        told: ClassVar[list[tuple[str, str]]] = []

        async def tell(self, subject: Subject, reason: str, message: str) -> None:
            if subject.kind != "Node":
                raise OrchestratorUnavailable("the namespace is being terminated")
            self.told.append((subject.name, message))

        async def persistent_volume(self, name: str) -> dict[str, Any]:
            source = {"driver": DRIVER, "volumeHandle": f"vol-{node_key(talker)}-0"}
            return {"spec": {"csi": source, "claimRef": {"name": "orders", "namespace": "shop"}}}

    async def look() -> None:
        alarms = Alarms(Attached(), Writer(), DRIVER)
        for _ in range(2):
            await alarms._tell_all()

    asyncio.run(look())
    assert (other, "mine") in Writer.told
    assert len(Writer.told) == 200 + 1


def standing(port: int) -> float:
    """The metric of alarms."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        found = re.search(r"^hostvol_router_alarms (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])
