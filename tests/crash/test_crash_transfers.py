"""The same for a volume whose content comes from another node: either node is killed at every step of the transfer.

- After a kill of the source's or the target's node at any point, and its restart, the repeated create makes the volume
  with the whole content, once.
- Nothing that was half-built, and no cut that was made for the transfer, is left on either node; also when the target
  is killed while it gives up what had come, since the name was asked for with another source.
- Neither the source nor a volume that nobody touches changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from csi_driver import faults
from csi_driver.pb import csi_pb2
from tests.cluster.cluster import Cluster, topology
from tests.crash.lane import numbered
from tests.crash.tally import Tally
from tests.harness import DIRECTORY, MIB, Driver, Failure, PoolPlace, capability, create_request
from tests.waiting import until

KINDS: dict[str, dict[str, Any]] = {
    "image": {"parameters": {"type": "image"}, "volume_capabilities": [capability(block=True)]},
    "directory": {"parameters": DIRECTORY},
}
# The rest of a create is every create's.
STEPS = {
    "node-a": ("transfer.cut", "departure.recorded", "departure.over"),
    "node-b": (
        "create.begun",
        "arrival.kept",
        "image.receiving",
        "image.received",
        "directory.received",
        "arrival.whole",
        "create.built",
        "move.renamed",
    ),
}
MATRIX = [pytest.param(kind, node, id=f"{kind}-{node}") for kind in KINDS for node in STEPS]


class Nodes:
    """A cluster of two nodes, each of which can be told where to end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.made = 0

    def arm(self, node: str, point: str) -> None:
        (self.cluster.home / f"{node}.at").write_text(point)

    def disarm(self, node: str) -> None:
        (self.cluster.home / f"{node}.at").unlink(missing_ok=True)

    def passed(self, node: str) -> list[str]:
        """The points that were passed since the last time."""
        log = self.cluster.home / f"{node}.points"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def driver(self, node: str) -> Driver:
        return self.cluster.nodes[node]

    def source(self, kind: str) -> str:
        """A volume with some content on the first node."""
        self.made += 1
        request = self.request(kind, f"source-{self.made}", "node-a")
        volume_id = str(self.cluster.controller.call("CreateVolume", request).volume.volume_id)
        place = self.content(kind, "node-a", volume_id)
        if kind == "image":
            with place.open("r+b") as file:
                file.write(os.urandom(2 * MIB))
        else:
            (place / "below").mkdir()
            for number in range(3):
                (place / f"below/{number}").write_bytes(os.urandom(100_000))
        return volume_id

    def request(self, kind: str, name: str, node: str, source: str = "") -> csi_pb2.CreateVolumeRequest:
        fields = dict(KINDS[kind])
        if source:
            fields["volume_content_source"] = csi_pb2.VolumeContentSource(
                volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=source)
            )
        return create_request(name, 16 * MIB, accessibility_requirements=topology(node), **fields)

    def content(self, kind: str, node: str, volume_id: str) -> Path:
        return self.driver(node).pool / "volumes" / volume_id / ("disk.img" if kind == "image" else "data")

    def left(self, node: str) -> list[str]:
        pool = self.driver(node).pool
        return [path.name for room in ("tmp", "trash") for path in (pool / room).iterdir()]

    def repeated(self, request: csi_pb2.CreateVolumeRequest) -> str:
        """The id of the volume that the repeated create makes in the end."""
        found = []

        def is_made() -> bool:
            try:
                found.append(self.cluster.controller.call("CreateVolume", request, timeout=20).volume.volume_id)
            except Failure as failure:
                assert failure.code.name in {"ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, failure
                return False
            return True

        until(is_made, 60)
        return str(found[0])


def digest(place: Path) -> str:
    """Of a file, or of all files below a directory with their names."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(place)).encode() + file.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The first node's pool can share blocks: a living volume is cut there."""
    home = tmp_path_factory.mktemp("transfers")
    with ExitStack() as stack:
        place = PoolPlace.make(home / "xfs", "xfs", 1 << 30)
        stack.callback(place.remove)
        cluster = stack.enter_context(closing(Cluster(home)))
        cluster.add_controller()
        for name in ("node-a", "node-b"):
            environment = {faults.CRASH_AT: f"@{home / name}.at", faults.CRASH_LOG: f"{home / name}.points"}
            node = cluster.prepare_node(name, environment=environment)
            if name == "node-a":
                node.pools = [place]
                # A target that has its volume asks for nothing again: the source waits for the word.
                node.constants = {"domain.departures._SENT_SECONDS": 2.0, "domain.departures.LEASE_SECONDS": 15.0}
            node.start()
        for name in ("node-a", "node-b"):
            cluster.wait_attached(name)
        yield Nodes(cluster)


@pytest.mark.parametrize(("kind", "node"), MATRIX)
def test_a_node_is_killed_at_every_step_of_a_transfer(kind: str, node: str, nodes: Nodes, tally: Tally) -> None:
    source = nodes.source(kind)
    untouched = digest(nodes.content(kind, "node-a", source))
    nodes.passed(node)
    first = nodes.repeated(nodes.request(kind, f"{kind}-{node}", "node-b", source))
    points = numbered(nodes.passed(node))
    tally.meet(f"transfer {kind} {node}", points)
    wanted = [point for point in points if point.partition(":")[0] in STEPS[node]]
    assert wanted
    for number, point in enumerate(wanted):
        nodes.arm(node, point)
        request = nodes.request(kind, f"{kind}-{node}-{number}", "node-b", source)
        nodes.cluster.controller.caller.code("CreateVolume", request, timeout=10)
        nodes.driver(node).wait_dead()
        nodes.disarm(node)
        nodes.driver(node).start()
        nodes.cluster.wait_attached(node)
        copy = nodes.repeated(request)
        assert digest(nodes.content(kind, "node-b", copy)) == untouched, point
        for name in STEPS:
            until(lambda name=name: not nodes.left(name), what=f"nothing is left on {name} after {point}")
        nodes.cluster.controller.call("DeleteVolume", volume_id=copy)
        tally.count(held=True)
    assert digest(nodes.content(kind, "node-b", first)) == digest(nodes.content(kind, "node-a", source)) == untouched


def test_the_target_is_killed_when_it_gives_up_what_had_come(nodes: Nodes, tally: Tally) -> None:
    first, second = nodes.source("image"), nodes.source("image")
    nodes.arm("node-b", "image.receiving:1")
    nodes.cluster.controller.caller.code("CreateVolume", nodes.request("image", "changed", "node-b", first), timeout=10)
    nodes.driver("node-b").wait_dead()
    nodes.arm("node-b", "arrival.dropped:1")
    nodes.passed("node-b")
    nodes.driver("node-b").start()
    nodes.cluster.wait_attached("node-b")
    # The same name for something else: what had come is of no use.
    request = nodes.request("image", "changed", "node-b", second)
    nodes.cluster.controller.caller.code("CreateVolume", request, timeout=10)
    nodes.driver("node-b").wait_dead()
    tally.meet("transfer dropped", numbered(nodes.passed("node-b")))
    nodes.disarm("node-b")
    nodes.driver("node-b").start()
    nodes.cluster.wait_attached("node-b")
    copy = nodes.repeated(request)
    assert digest(nodes.content("image", "node-b", copy)) == digest(nodes.content("image", "node-a", second))
    for name in STEPS:
        until(lambda name=name: not nodes.left(name), what=f"nothing is left on {name}")
    tally.count(held=True)
