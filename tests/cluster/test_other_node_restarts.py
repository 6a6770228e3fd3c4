"""Transfers between nodes whose drivers are killed in the middle, and started again.

- Whichever is killed, or both at once, the repeated create goes on where it was: what is sent again is what was on the
  way. Image or directory, the content is what the source had when its transfer began.
- A source that cannot be cut is still held after a restart of its node: it is not deleted until it is sent, and what
  has come is void if somebody may have written to it. One that was cut may be deleted meanwhile.
- What nobody asks for again is cleared on both nodes, also by processes that were started meanwhile, and its space,
  which was promised all the while, can be had again.
- Another create of the same name gets what it asks for, and nothing of what had come.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from tests.cluster.cluster import Cluster, topology
from tests.cluster.transfers import Create, asked, building, half_way, image_of, left, made, sends, sent_bytes, written
from tests.harness import DIRECTORY, MIB, Driver, PoolPlace, Workload, capability, run
from tests.mounted_trees import digest
from tests.waiting import until

Code = grpc.StatusCode
SIZE = 32 * MIB
# Where something must be asked while it is on the way: three seconds and a half after half_way().
LONG_SIZE = 64 * MIB
# What may be on the way in gRPC's windows, the router and the two nodes.
ON_THE_WAY = 8 * MIB


def come_bytes(node: Driver) -> int:
    """How much of a content lies on the node."""
    return sum(file.stat().st_blocks * 512 for file in building(node))


def resumed_at(node: Driver) -> int:
    """Where the node went on with a transfer last."""
    return int(re.findall(r": (\d+) bytes are here, the rest is fetched", node.log())[-1])


def restart(cluster: Cluster, *nodes: Driver, gracefully: bool = False) -> None:
    for node in nodes:
        if gracefully:
            node.stop()
        else:
            node.kill()
    for node in nodes:
        node.start()
    for node in nodes:
        cluster.wait_attached(node.node_id)


def test_a_held_image_is_sent_once_whichever_driver_is_killed(slow_cluster: Cluster) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    source = made(controller, "source", "node-a").volume_id
    told = written(source_node, source, SIZE)

    create = Create(controller, asked("first", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    restart(slow_cluster, target_node)
    assert digest(image_of(target_node, create.made().volume_id)) == told
    assert resumed_at(target_node) >= 7 * MIB
    assert sends(source_node) == 1
    assert sent_bytes(source_node) < SIZE + ON_THE_WAY

    told = written(source_node, source, LONG_SIZE)
    create = Create(controller, asked("second", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    source_node.restart()
    # Asked on the node, which holds it from its start on: by the way of the router it might be sent already.
    assert source_node.code("DeleteVolume", volume_id=source) is Code.ABORTED
    assert digest(image_of(target_node, create.made().volume_id)) == told
    until(lambda: "is held again" in source_node.log() and left(source_node) == [], what="it is over")
    assert int(re.findall(r"is over: (\d+) bytes were sent", source_node.log())[-1]) < LONG_SIZE - 7 * MIB
    assert left(target_node) == []
    until(lambda: controller.caller.code("DeleteVolume", volume_id=source) is Code.OK, what="nothing is held")


def test_a_held_image_is_sent_once_though_its_driver_is_stopped_and_anew_if_somebody_had_it_open(
    slow_cluster: Cluster,
) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    source = made(controller, "kept-source", "node-a").volume_id
    told = written(source_node, source, SIZE)

    sent = sends(source_node)
    create = Create(controller, asked("kept-first", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    restart(slow_cluster, source_node, target_node, gracefully=True)
    first = create.made().volume_id
    assert digest(image_of(target_node, first)) == told
    assert resumed_at(target_node) >= 7 * MIB
    assert sends(source_node) == sent + 1

    create = Create(controller, asked("kept-second", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    source_node.kill()
    device = run("losetup", "--find", "--show", str(image_of(source_node, source))).strip()
    release = threading.Thread(target=detach_when, args=(device, lambda: "is given up" in source_node.log()))
    release.start()
    try:
        source_node.start()
    finally:
        release.join()
    second = create.made().volume_id
    assert digest(image_of(target_node, second)) == told
    assert sends(source_node) == sent + 3
    for volume_id in (first, second, source):
        until(lambda volume_id=volume_id: controller.caller.code("DeleteVolume", volume_id=volume_id) is Code.OK)


def detach_when(device: str, condition: Callable[[], bool]) -> None:
    try:
        until(condition, what="its content may have changed")
    finally:
        run("losetup", "-d", device)


def test_a_cut_directory_is_sent_once_though_both_drivers_are_killed_and_its_source_is_deleted(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    empty_cluster.begin("--transfer-rate=16Mi", pools={"node-a": make_pool("xfs", 1 << 30)})
    controller, (source_node, target_node) = empty_cluster.controller, empty_cluster.nodes.values()
    workload = Workload(source_node, "source", parameters=DIRECTORY)
    top = Path(workload.up())
    for number in range(SIZE // MIB):
        (top / f"{number % 4}").mkdir(exist_ok=True)
        (top / f"{number % 4}/{number}").write_bytes(bytes([number]) * 1000 + b"x" * (MIB - 1000))
    told = {file.name: digest(file) for file in top.rglob("*") if file.is_file()}
    request = asked(
        "copy", "node-b", 64 * MIB, source=workload.volume_id, parameters=DIRECTORY, volume_capabilities=[capability()]
    )
    create = Create(controller, request)
    half_way(target_node)
    workload.down()
    restart(empty_cluster, source_node, target_node)
    copy = target_node.pool / "volumes" / create.made().volume_id / "data"
    assert {file.name: digest(file) for file in copy.rglob("*") if file.is_file()} == told
    assert resumed_at(target_node) >= 7 * MIB
    until(lambda: left(source_node) == left(target_node) == [], what="nothing is left")
    assert int(re.findall(r"is over: (\d+) bytes were sent", source_node.log())[-1]) < SIZE - 7 * MIB
    assert sends(source_node) == 1


def test_what_nobody_asks_for_again_is_cleared_and_another_create_of_the_name_begins_anew(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    controller = empty_cluster.add_controller()
    source_node, target_node = (empty_cluster.prepare_node(name) for name in ("node-a", "node-b"))
    # A filesystem of its own: nobody else takes its space.
    target_node.pools = [make_pool("ext4", 512 * MIB)]
    source_node.constants = {"domain.departures.LEASE_SECONDS": 3.0}
    target_node.constants = {"domain.half_arrivals.KEPT_SECONDS": 4.0, "domain.startup._TEND_SECONDS": 0.5}
    for node in (source_node, target_node):
        node.arguments = [*node.arguments, "--transfer-rate=16Mi"]
        node.start()
        empty_cluster.wait_attached(node.node_id)
    sources = [made(controller, f"source-{number}", "node-a").volume_id for number in range(2)]
    told = [written(source_node, source, SIZE) for source in sources]
    before = capacity(empty_cluster)

    broken_off(empty_cluster, asked("copy", "node-b", 64 * MIB, source=sources[0]))
    assert left(target_node)
    other = made(controller, "copy", "node-b", source=sources[1])
    assert digest(image_of(target_node, other.volume_id)) == told[1]
    controller.call("DeleteVolume", volume_id=other.volume_id)

    broken_off(empty_cluster, asked("again", "node-b", 64 * MIB, source=sources[0]))
    assert capacity(empty_cluster) <= before - 32 * MIB
    until(lambda: left(target_node) == left(source_node) == [], what="nothing is left")
    assert "nobody asks for it any more" in target_node.log()
    assert capacity(empty_cluster) >= before - 8 * MIB
    for source in sources:
        assert controller.caller.code("DeleteVolume", volume_id=source) is Code.OK


def broken_off(cluster: Cluster, request: object) -> None:
    """A create that nobody repeats when the drivers of both nodes are killed in its middle."""
    source_node, target_node = cluster.nodes.values()
    call = threading.Thread(target=cluster.controller.caller.code, args=("CreateVolume", request), daemon=True)
    call.start()
    half_way(target_node)
    for node in (source_node, target_node):
        node.kill()
    call.join(60)
    for node in (source_node, target_node):
        node.start()
        cluster.wait_attached(node.node_id)


def capacity(cluster: Cluster) -> int:
    """What the second node could still promise, in bytes."""
    segments = topology("node-b").requisite[0]
    return int(cluster.controller.call("GetCapacity", accessible_topology=segments).available_capacity)
