"""Two volumes for one claim, and volumes for none.

- Of two volumes with one name the one that a PersistentVolume does not name is retired: out of service, kept in the
  trash over restarts, told as an alarm.
- Without such a PersistentVolume, or where one names the other volume too, both stay.
- A volume that is used is not retired.
- A volume that no PersistentVolume names is listed by `hostvol orphans`, counted when it is found twice, not deleted.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.cluster.orphans import Orphans
from csi_driver.cluster.registry import Registry
from tests.cluster.cluster import Cluster, Controller, on
from tests.harness import capability
from tests.waiting import until

LOOK = 45.0


@pytest.fixture
def empty_cluster(empty_cluster: Cluster) -> Cluster:
    """Its router looks every second, not every ten."""
    empty_cluster.constants["cluster.duplicates._LOOK_SECONDS"] = 1.0
    return empty_cluster


@pytest.fixture
def cluster(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    for node in cluster.nodes.values():
        node.clean_up()


def both(cluster: Cluster) -> dict[str, str]:
    """A volume of the same name on each node."""
    create = cluster.controller.call
    return {node: create("CreateVolume", on("pvc-1", node)).volume.volume_id for node in ("node-a", "node-b")}


def kept(cluster: Cluster, node: str) -> list[Path]:
    return sorted((cluster.nodes[node].pool / "trash").iterdir())


def test_the_volume_that_the_claim_does_not_have_is_retired(cluster: Cluster) -> None:
    ids = both(cluster)
    data = cluster.nodes["node-a"].pool / "volumes" / ids["node-a"] / "data"
    (data / "precious").write_text("kept")
    cluster.api.add_volume("pvc-1", ids["node-b"])
    until(lambda: cluster.controller.volumes() == [ids["node-b"]], LOOK, "one volume is left")
    [trash] = kept(cluster, "node-a")
    assert trash.name.startswith(f"{ids['node-a']}@")
    cluster.nodes["node-a"].restart()
    assert (trash / "data/precious").read_text() == "kept"
    assert kept(cluster, "node-b") == []
    told = [event for event in cluster.api.events if event["reason"] == "VolumeRetired"]
    until(lambda: told or [event for event in cluster.api.events if event["reason"] == "VolumeRetired"], LOOK)
    assert str(trash) in next(e for e in cluster.api.events if e["reason"] == "VolumeRetired")["message"]


def test_both_stay_where_nothing_says_which_one_is_the_claims(cluster: Cluster) -> None:
    ids = both(cluster)
    cluster.api.add_volume("pvc-1", "vol-0123456789abcdef-0123456789abcdef")
    rest(cluster)
    assert sorted(cluster.controller.volumes()) == sorted(ids.values())
    # One says so, but the other volume has a PersistentVolume too.
    cluster.api.add_volume("pvc-1", ids["node-b"])
    cluster.api.add_volume("by-hand", ids["node-a"])
    rest(cluster)
    assert sorted(cluster.controller.volumes()) == sorted(ids.values())


def rest(cluster: Cluster) -> None:
    """Let the router look once more."""
    look = "GET /api/v1/persistentvolumes/pvc-1"
    before = cluster.api.requests.count(look)
    until(lambda: cluster.api.requests.count(look) >= before + 2, 2 * LOOK, "two looks")


def test_a_volume_that_is_used_is_not_retired(cluster: Cluster) -> None:
    ids, node = both(cluster), cluster.nodes["node-a"]
    common = {"volume_id": ids["node-a"], "volume_capability": capability()}
    node.call("NodeStageVolume", staging_target_path=node.staging(ids["node-a"]), **common)
    node.call(
        "NodePublishVolume",
        staging_target_path=node.staging(ids["node-a"]),
        target_path=node.target("t"),
        **common,
    )
    cluster.api.add_volume("pvc-1", ids["node-b"])
    until(lambda: "cannot retire" in cluster.controller.log(), LOOK, "the node refuses")
    assert sorted(cluster.controller.volumes()) == sorted(ids.values())
    node.call("NodeUnpublishVolume", volume_id=ids["node-a"], target_path=node.target("t"))
    until(lambda: cluster.controller.volumes() == [ids["node-b"]], LOOK, "it is retired once nothing uses it")


def listed(controller: Controller, cluster: Cluster) -> list[dict[str, object]]:
    command = [
        *(sys.executable, "-m", "csi_driver", "orphans", f"--endpoint=unix://{controller.socket_path}"),
        *(f"--api-server={cluster.api.url}", "--output=json"),
    ]
    found: list[dict[str, object]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def test_volumes_without_a_persistent_volume_are_listed(cluster: Cluster) -> None:
    create = cluster.controller.call
    claimed = create("CreateVolume", on("pvc-1", "node-a")).volume.volume_id
    forgotten = create("CreateVolume", on("pvc-2", "node-b")).volume
    cluster.api.add_volume("pvc-1", claimed)
    # Another driver's volume may have any handle.
    cluster.api.add_volume("foreign", forgotten.volume_id, driver="csi.other.dev")
    assert listed(cluster.controller, cluster) == [
        {"volume_id": forgotten.volume_id, "node": "node-b", "capacity_bytes": forgotten.capacity_bytes}
    ]
    cluster.api.add_volume("pvc-2", forgotten.volume_id)
    assert listed(cluster.controller, cluster) == []


def test_a_volume_counts_when_it_is_found_twice() -> None:
    class Volumes(Registry):
        def volume_ids(self) -> Iterator[str]:
            return iter(("vol-a", "vol-b", "vol-c"))

    class Handles:
        def __init__(self) -> None:
            self.answers = [{"vol-a"}, {"vol-a", "vol-b"}, {"vol-a", "vol-b", "vol-c"}]

        async def volume_handles(self, driver_name: str) -> set[str]:
            return self.answers.pop(0)

    async def looks() -> list[set[str]]:
        orphans = Orphans(Volumes(), Handles(), "csi.hostvol.dev")
        found = []
        for _ in range(3):
            await orphans._look()
            found.append(set(orphans.found))
        return found

    assert asyncio.run(looks()) == [set(), {"vol-c"}, set()]
