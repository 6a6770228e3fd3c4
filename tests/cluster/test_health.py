"""The health of volumes across nodes.

- A volume's health is answered by its node, and listed from what the nodes have told, soon after it changes.
- A volume of a node that is away is INACCESSIBLE: at once when asked for it in a router that knows nothing, after a
  little in one that saw the node leave, which also lists it; until the node is back, or its Node object is gone.
- A node that tells no health (an older one) has healthy volumes in the list.
- A node can tell only of its own volumes.
"""

from __future__ import annotations

import asyncio

import pytest

from csi_driver.cluster import registry as registry_module
from csi_driver.cluster.inventory import Inventory
from csi_driver.cluster.lists import Lists
from csi_driver.cluster.presence import Presence
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.router import Asked, Router
from csi_driver.cluster.streams import Session
from csi_driver.errors import HostvolError, NodeRefused, NodeUnreachable, ObjectUnknown
from csi_driver.model import node_key
from csi_driver.pb import csi_pb2, peer_pb2
from tests.cluster.api import DRIVER
from tests.cluster.cluster import Cluster, on
from tests.cluster.peer import item, volume_id
from tests.waiting import until

LOOK = 120.0


class Directory:
    """The orchestrator's nodes."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    async def node_names(self) -> set[str]:
        return self.names

    async def expected_nodes(self, driver_name: str) -> set[str]:
        return set()

    async def tell(self, *_: object) -> None:
        """No Event."""


def attached(registry: Registry, node: str, *ends: str, sick: str = "") -> Session:
    session, inventory = Session(node, node_key(node)), Inventory(node_key(node))
    health = [sickness(volume_id(node, sick))] if sick else []
    list(inventory.apply(peer_pb2.Inventory(items=[item(node, end) for end in ends], health=health)))
    asyncio.run(registry.attach(session, inventory))
    return session


def sickness(of: str) -> csi_pb2.VolumeHealth:
    health = csi_pb2.VolumeHealth(volume_id=of)
    health.health_statuses.add(status=csi_pb2.DATA_LOSS, reason="ImageShort", message="it was cut")
    return health


def listed(registry: Registry, limit: int = 0, token: str = "") -> csi_pb2.ControllerListVolumeHealthResponse:
    request = csi_pb2.ControllerListVolumeHealthRequest(max_entries=limit, starting_token=token)
    return csi_pb2.ControllerListVolumeHealthResponse.FromString(Lists(registry).health(request))


def reasons(page: csi_pb2.ControllerListVolumeHealthResponse) -> dict[str, list[str]]:
    return {one.volume_id: [status.reason for status in one.health_statuses] for one in page.entries}


def test_nodes_that_tell_no_health_are_healthy_and_a_recovery_is_told() -> None:
    registry = Registry()
    attached(registry, "old", "a", "b")
    session = attached(registry, "new", "a", "b", sick="b")
    sick = volume_id("new", "b")
    assert reasons(listed(registry)) == {sick: ["ImageShort"]}
    registry.apply(session, peer_pb2.Inventory(health=[csi_pb2.VolumeHealth(volume_id=sick)]))
    assert reasons(listed(registry)) == {}
    registry.apply(session, peer_pb2.Inventory(health=[sickness(sick)]))
    registry.apply(session, peer_pb2.Inventory(removed=[sick]))
    assert reasons(listed(registry)) == {}
    with pytest.raises(NodeRefused):
        registry.apply(session, peer_pb2.Inventory(health=[sickness(volume_id("old", "a"))]))


def test_volumes_of_absent_nodes_are_listed_until_their_node_is_back_or_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    sessions = {node: attached(registry, node, "a", "b", sick="b") for node in ("n1", "n2", "n3")}
    away = {volume_id("n2", end): ["NodeAbsent"] for end in "ab"}
    others = {volume_id(node, "b"): ["ImageShort"] for node in ("n1", "n3")}
    registry.detach(sessions["n2"])
    assert reasons(listed(registry)) == {volume_id(node, "b"): ["ImageShort"] for node in sessions}
    monkeypatch.setattr(registry_module, "_GRACE_SECONDS", -1.0)
    assert reasons(listed(registry)) == {**away, **others}
    walked: dict[str, list[str]] = {}
    token = "begin"
    while token:
        page = listed(registry, 1, "" if token == "begin" else token)
        walked |= reasons(page)
        token = page.next_token
    assert list(walked) == sorted({**away, **others})
    directory = Directory("n2")
    asyncio.run(Presence(registry, directory, DRIVER).forget_gone())
    assert reasons(listed(registry)) == {**away, **others}
    directory.names = {"n1"}
    asyncio.run(Presence(registry, directory, DRIVER).forget_gone())
    assert reasons(listed(registry)) == others
    attached(registry, "n2", "a")
    assert reasons(listed(registry)) == others


def asked_health(registry: Registry, object_id: str, *nodes: str) -> csi_pb2.VolumeHealth:
    directory = Directory(*nodes)
    router = Router(registry, Presence(registry, directory, DRIVER), directory, DRIVER)
    request = csi_pb2.ControllerGetVolumeHealthRequest(volume_id=object_id)
    name = "ControllerGetVolumeHealth"
    asked = Asked(f"/csi.v1.Controller/{name}", name, request.SerializeToString(), request, 5.0)
    outcome = asyncio.run(router.call(asked))
    return csi_pb2.ControllerGetVolumeHealthResponse.FromString(outcome.response).volume_health


def test_a_volume_of_an_absent_node_is_inaccessible(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    of = volume_id("n1", "a")
    found = asked_health(registry, of, "n1")
    assert [(one.status, one.reason) for one in found.health_statuses] == [(csi_pb2.INACCESSIBLE, "NodeAbsent")]
    assert of in found.health_statuses[0].message
    session = attached(registry, "n1", "a")
    registry.detach(session)
    for object_id, nodes, error in (
        (of, ["n1"], NodeUnreachable),
        (volume_id("n2", "a"), ["n1"], ObjectUnknown),
        ("foreign", ["n1"], ObjectUnknown),
    ):
        with pytest.raises(HostvolError) as raised:
            asked_health(registry, object_id, *nodes)
        assert raised.type is error
    monkeypatch.setattr(registry_module, "_GRACE_SECONDS", -1.0)
    assert asked_health(registry, of, "n1") == found


def test_health_goes_through_the_controller(empty_cluster: Cluster) -> None:
    empty_cluster.constants["cluster.alarms._LOOK_SECONDS"] = 0.5
    controller = empty_cluster.add_controller()
    held = {}
    for name in ("node-a", "node-b"):
        empty_cluster.add_node(name, constants={"domain.health._LOOK_SECONDS": 1.0})
        held[name] = controller.call("CreateVolume", on(f"pvc-{name}", name)).volume.volume_id
    sick = held["node-b"]
    for of in held.values():
        answer = controller.call("ControllerGetVolumeHealth", volume_id=of).volume_health
        assert (answer.volume_id, len(answer.health_statuses)) == (of, 0)
    assert reasons(controller.call("ControllerListVolumeHealth")) == {}
    data = empty_cluster.nodes["node-b"].pool / "volumes" / sick / "data"
    data.rmdir()
    answer = controller.call("ControllerGetVolumeHealth", volume_id=sick).volume_health
    assert [one.reason for one in answer.health_statuses] == ["ContentMissing"]
    empty_cluster.api.add_volume("pvc-node-b", sick)
    until(lambda: reasons(controller.call("ControllerListVolumeHealth")) == {sick: ["ContentMissing"]}, LOOK)
    until(lambda: "ContentMissing" in told_at_claims(empty_cluster), LOOK)
    data.mkdir()
    until(lambda: reasons(controller.call("ControllerListVolumeHealth")) == {}, LOOK)


def told_at_claims(cluster: Cluster) -> list[str]:
    return [one["reason"] for one in cluster.api.events if one["involvedObject"]["kind"] == "PersistentVolumeClaim"]
