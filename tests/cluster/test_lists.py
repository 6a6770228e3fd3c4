"""Lists of many nodes in pages.

- A walk in pages of any size meets every volume once, in the order of ids.
- What is there all the while is met once, whatever is made and deleted between the pages, and when nodes come.
- A page is cut by bytes before a client would refuse it, and by the entries that were asked for.
- A token that we did not make is refused.
- Snapshots are listed like volumes, by their source, and one by its id.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from csi_driver.cluster.inventory import Inventory
from csi_driver.cluster.lists import Lists
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.streams import Session
from csi_driver.errors import InvalidField, InvalidToken, NodeKeyTaken, NodeRefused
from csi_driver.model import node_key
from csi_driver.pb import csi_pb2, peer_pb2
from tests.cluster.peer import item, volume_id


def attach(registry: Registry, node: str, *ends: str, snapshots: dict[str, str] | None = None) -> Session:
    """A node with volumes, and snapshots by their ends with the ends of their sources."""
    session, inventory = Session(node, node_key(node)), Inventory(node_key(node))
    items = [item(node, end) for end in ends]
    for end, source in (snapshots or {}).items():
        snapshot = csi_pb2.Snapshot(
            snapshot_id=f"snap-{node_key(node)}-{end}", source_volume_id=volume_id(node, source)
        )
        items.append(peer_pb2.Item(snapshot=snapshot))
    list(inventory.apply(peer_pb2.Inventory(items=items)))
    asyncio.run(registry.attach(session, inventory))
    return session


def page(registry: Registry, limit: int = 0, token: str = "") -> csi_pb2.ListVolumesResponse:
    raw = Lists(registry).volumes(csi_pb2.ListVolumesRequest(max_entries=limit, starting_token=token))
    return csi_pb2.ListVolumesResponse.FromString(raw)


def walk(registry: Registry, limit: int) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        one = page(registry, limit, token)
        assert len(one.entries) <= limit or not limit
        found += [entry.volume.volume_id for entry in one.entries]
        token = one.next_token
        if not token:
            return found


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 12, 100])
def test_a_walk_meets_every_volume_once_in_order(registry: Registry, limit: int) -> None:
    ends = {"node-a": ["1", "2", "3"], "node-b": [], "node-c": list("123456789")}
    for node, some in ends.items():
        attach(registry, node, *random.sample(some, len(some)))
    assert walk(registry, limit) == sorted(volume_id(node, end) for node, some in ends.items() for end in some)


def test_what_stays_is_met_once_whatever_else_comes_and_goes(registry: Registry) -> None:
    choose = random.Random(4)
    nodes = [f"node-{number}" for number in range(8)]
    sessions = {node: attach(registry, node, *(f"stay{number}" for number in range(20))) for node in nodes[:6]}
    found: list[str] = []
    token = ""
    for step in range(10000):
        one = page(registry, 3, token)
        found += [entry.volume.volume_id for entry in one.entries]
        token = one.next_token
        if not token:
            break
        node = choose.choice(list(sessions))
        end = f"{choose.randrange(100):02}"
        change = choose.choice([{"items": [item(node, end)]}, {"removed": [volume_id(node, end)]}])
        registry.apply(sessions[node], peer_pb2.Inventory(**change))
        if step in (10, 20):
            late = nodes[6 if step == 10 else 7]
            sessions[late] = attach(registry, late, "x")
    stayed = [one for one in found if "-stay" in one]
    assert stayed == sorted(volume_id(node, f"stay{number}") for node in nodes[:6] for number in range(20))


def test_the_page_goes_on_when_its_last_volume_and_its_node_are_gone(registry: Registry) -> None:
    ordered = sorted(["node-a", "node-b", "node-c"], key=node_key)
    sessions = [attach(registry, node, "1", "2") for node in ordered]
    first = page(registry, 3)
    registry.detach(sessions[1])
    registry._forget(sessions[1].key)
    rest = page(registry, 0, first.next_token)
    assert [entry.volume.volume_id for entry in rest.entries] == [volume_id(ordered[2], end) for end in "12"]


def test_a_page_is_cut_by_bytes(registry: Registry) -> None:
    session, inventory = Session("n", node_key("n")), Inventory(node_key("n"))
    for number in range(3000):
        big = item("n", f"{number:05}")
        big.volume.volume_context["x"] = "y" * 3000
        list(inventory.apply(peer_pb2.Inventory(items=[big])))
    asyncio.run(registry.attach(session, inventory))
    one = page(registry)
    assert one.next_token
    assert 2 << 20 < one.ByteSize() < 4 << 20
    assert len(walk(registry, 0)) == 3000


@pytest.mark.parametrize("token", ["x", "after:", "after:x", "after:../..", "17", "after:vol-0123456789abcdef-X"])
def test_a_token_of_somebody_else_is_refused(registry: Registry, token: str) -> None:
    with pytest.raises(InvalidToken):
        page(registry, 0, token)


def test_a_negative_page_size_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidField, match="max_entries"):
        page(registry, -1)


def test_snapshots_are_found_by_id_by_source_and_all(registry: Registry) -> None:
    attach(registry, "node-a", "1", "2", snapshots={"a": "1", "b": "1", "c": "2"})
    attach(registry, "node-b", snapshots={"d": "9"})

    def ids(**asked: str) -> list[str]:
        raw = Lists(registry).snapshots(csi_pb2.ListSnapshotsRequest(**asked))
        found = csi_pb2.ListSnapshotsResponse.FromString(raw).entries
        return [entry.snapshot.snapshot_id[-1] for entry in found]

    assert sorted(ids()) == ["a", "b", "c", "d"]
    assert ids(source_volume_id=volume_id("node-a", "1")) == ["a", "b"]
    assert ids(snapshot_id=f"snap-{node_key('node-a')}-c") == ["c"]
    assert ids(snapshot_id=f"snap-{node_key('node-a')}-c", source_volume_id=volume_id("node-a", "1")) == []
    assert ids(snapshot_id="snap-unknown") == ids(source_volume_id="vol-unknown") == []


def test_names_are_followed_while_volumes_and_nodes_come_and_go(registry: Registry) -> None:
    first, second = attach(registry, "node-a", "1"), attach(registry, "node-b", "1")
    assert registry.names.duplicates() == 1
    registry.apply(first, peer_pb2.Inventory(removed=[volume_id("node-a", "1")]))
    assert (registry.names.duplicates(), registry.names.holder("name-1")) == (0, node_key("node-b"))
    registry.apply(second, peer_pb2.Inventory(removed=[volume_id("node-b", "1")]))
    assert registry.names.holder("name-1") == ""


def test_two_nodes_with_one_key_cannot_both_attach(registry: Registry) -> None:
    attach(registry, "node-a")
    impostor = Session("other", node_key("node-a"))
    with pytest.raises(NodeKeyTaken):
        asyncio.run(registry.attach(impostor, Inventory(impostor.key)))


def test_inventory_takes_only_its_own_ids() -> None:
    with pytest.raises(NodeRefused):
        list(Inventory(node_key("node-a")).apply(peer_pb2.Inventory(items=[item("node-b", "1")])))
