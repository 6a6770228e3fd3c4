"""Volumes made on another node than their source's: their content crosses through the router, on real nodes.

- The content of an image of every kind, of a raw block volume and of a directory arrives as it was.
- Identical calls join one transfer; what a caller is told meanwhile is how far it is.
- A router that is killed in the middle costs the bytes that were on the way.
- A source that is deleted is deleted when its transfer is over.
- A target that fills up keeps nothing.
- A node may fetch only what a volume is being made from there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.pb import admin_pb2, peer_pb2
from tests.checks import CHECKS
from tests.cluster.cluster import Cluster, topology
from tests.cluster.peer import Peer, volume_id
from tests.cluster.test_cluster import HOST, addresses
from tests.cluster.transfers import RAW, Create, asked, half_way, image_of, left, made, sends, sent_bytes, written
from tests.harness import DIRECTORY, MIB, Code, PoolPlace, Workload, capability, run
from tests.mounted_trees import digest, filled, looks
from tests.waiting import until


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One controller, two nodes, for all tests that break nothing."""
    with closing(Cluster(tmp_path_factory.mktemp("shared"))) as shared:
        shared.begin()
        yield shared


def test_a_raw_block_volume_is_cloned_to_another_node(shared_cluster: Cluster) -> None:
    controller, nodes = shared_cluster.controller, shared_cluster.nodes
    source = made(controller, "source", "node-a").volume_id
    told = written(nodes["node-a"], source, 32 * MIB)
    copy = made(controller, "copy", "node-b", source=source)
    assert digest(image_of(nodes["node-b"], copy.volume_id)) == told


KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"fs_type": "ext4"},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
    "thick": {"fs_type": "ext4", "parameters": {"provisioning": "thick"}},
    "directory": {"parameters": DIRECTORY},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_and_a_clone_on_another_node_hold_what_was_written(kind: str, shared_cluster: Cluster) -> None:
    controller, (source_node, target_node) = shared_cluster.controller, shared_cluster.nodes.values()
    source = Workload(source_node, f"source-{kind}", **KINDS[kind])
    told = filled(Path(source.up()))
    source.unpublish()
    source.unstage()
    cut = controller.call("CreateSnapshot", source_volume_id=source.volume_id, name=f"cut-{kind}").snapshot.snapshot_id
    until(lambda: controller.call("GetSnapshot", snapshot_id=cut).snapshot.ready_to_use)
    larger = source.size_bytes + 256 * MIB
    for name, origin, size_bytes in (
        (f"clone-{kind}", source.volume_id, source.size_bytes),
        (f"restored-{kind}", cut, larger),
    ):
        copy = Workload(target_node, name, **{**KINDS[kind], "size_bytes": size_bytes})
        fields = {"parameters": copy.parameters, "volume_capabilities": [copy.capability]}
        volume = made(controller, name, "node-b", size_bytes, source=origin, **fields)
        assert volume.capacity_bytes == size_bytes
        assert [dict(one.segments) for one in volume.accessible_topology] == [
            dict(topology("node-b").requisite[0].segments)
        ]
        copy.volume_id = volume.volume_id
        copy.stage()
        assert looks(Path(copy.publish())) == told, name
        copy.unpublish()
        copy.unstage()
        if copy.fs_type:
            run(*CHECKS[copy.fs_type], str(image_of(target_node, copy.volume_id)))
    smaller = asked(f"smaller-{kind}", "node-b", source.size_bytes // 2, source=cut, **fields)
    smaller.capacity_range.limit_bytes = source.size_bytes // 2
    assert controller.failure("CreateVolume", smaller).code is Code.OUT_OF_RANGE
    other = asked(f"other-{kind}", "node-b", larger, source=cut, parameters=DIRECTORY if copy.fs_type else RAW)
    other.volume_capabilities[0].CopyFrom(copy.capability)
    assert controller.failure("CreateVolume", other).code is Code.INVALID_ARGUMENT
    until(lambda: left(target_node) == left(source_node) == [], what="nothing is left")


def test_identical_calls_join_one_transfer_and_hear_how_far_it_is(slow_cluster: Cluster) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    sent = len(source_node.log())
    source = made(controller, "joined-source", "node-a").volume_id
    told = written(source_node, source, 48 * MIB)
    request = asked("joined-copy", "node-b", 64 * MIB, source=source)
    began = time.monotonic()
    creates = [Create(controller, request) for _ in range(3)]
    half_way(target_node)
    listing = target_node.caller.admin_stub("ListOperations")
    [operation] = listing(admin_pb2.ListOperationsRequest(), timeout=20).operations
    assert (operation.kind, operation.name, operation.source_id) == ("fetch", "joined-copy", source)
    assert 0 < operation.done_bytes < operation.total_bytes
    refused = controller.failure("CreateVolume", request, timeout=1)
    assert refused.code in (Code.ABORTED, Code.DEADLINE_EXCEEDED)
    volume_ids = {create.made().volume_id for create in creates}
    assert len(volume_ids) == 1
    # At 16 MiB a second, of which a quarter of a second's worth may pass at once.
    assert time.monotonic() - began > 2.5
    assert any(Code.ABORTED in create.codes for create in creates)
    assert "bytes have come from the node of" in controller.log()
    assert digest(image_of(target_node, volume_ids.pop())) == told
    assert sends(source_node, since=sent) == 1
    assert 48 * MIB < sent_bytes(source_node) < 50 * MIB


def test_a_router_that_is_killed_costs_only_what_was_on_the_way(slow_cluster: Cluster) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    sent, come = len(source_node.log()), len(target_node.log())
    source = made(controller, "router-source", "node-a").volume_id
    told = written(source_node, source, 48 * MIB)
    create = Create(controller, asked("router-copy", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    controller.kill()
    controller.start()
    assert digest(image_of(target_node, create.made().volume_id)) == told
    assert sends(source_node, since=sent) == 1
    assert "interrupted after" in target_node.log()[come:]
    assert 48 * MIB < sent_bytes(source_node) < 64 * MIB


def test_the_other_router_takes_a_transfer_over(empty_cluster: Cluster, tmp_path: Path) -> None:
    with addresses(tmp_path, "127.0.0.1", "127.0.0.2"):
        first, second = (empty_cluster.add_controller(address) for address in ("127.0.0.1", "127.0.0.2"))
        for name in ("node-a", "node-b"):
            node = empty_cluster.prepare_node(name, HOST)
            node.arguments = [*node.arguments, "--transfer-rate=16Mi"]
            node.start()
        for name in ("node-a", "node-b"):
            empty_cluster.wait_attached(name)
        source_node, target_node = empty_cluster.nodes.values()
        source = made(first, "source", "node-a").volume_id
        told = written(source_node, source, 48 * MIB)
        request = asked("copy", "node-b", 64 * MIB, source=source)
        threading.Thread(target=first.caller.code, args=("CreateVolume", request), daemon=True).start()
        half_way(target_node)
        first.kill()
        create = Create(second, request)
        assert digest(image_of(target_node, create.made().volume_id)) == told
        assert sends(source_node) == 1
        assert 48 * MIB < sent_bytes(source_node) < 64 * MIB


def test_a_transfer_goes_on_under_new_tokens(slow_cluster: Cluster) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    sent, come = len(source_node.log()), len(target_node.log())
    source = made(controller, "token-source", "node-a").volume_id
    told = written(source_node, source, 64 * MIB)
    slow_cluster.write_token("node-b", slow_cluster.api.token("node-b", seconds=3))
    create = Create(controller, asked("token-copy", "node-b", 64 * MIB, source=source))
    until(lambda: "interrupted after" in target_node.log()[come:], what="the token has expired")
    slow_cluster.write_token("node-b", slow_cluster.api.token("node-b"))
    assert digest(image_of(target_node, create.made().volume_id)) == told
    assert sends(source_node, since=sent) == 1
    assert sent_bytes(source_node) < 96 * MIB


def test_a_source_is_deleted_when_its_transfer_is_over(slow_cluster: Cluster) -> None:
    controller, (source_node, target_node) = slow_cluster.controller, slow_cluster.nodes.values()
    volume = made(controller, "deleted-source", "node-a").volume_id
    told = written(source_node, volume, 32 * MIB)
    source = controller.call("CreateSnapshot", source_volume_id=volume, name="deleted-cut").snapshot.snapshot_id
    until(lambda: controller.call("GetSnapshot", snapshot_id=source).snapshot.ready_to_use)
    create = Create(controller, asked("deleted-copy", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    assert controller.caller.code("DeleteSnapshot", snapshot_id=source) is Code.ABORTED
    copy = create.made().volume_id
    until(lambda: controller.caller.code("DeleteSnapshot", snapshot_id=source) is Code.OK)
    assert digest(image_of(target_node, copy)) == told
    assert create.volume is not None
    assert create.volume.content_source.snapshot.snapshot_id == source
    gone = asked("deleted-another", "node-b", 64 * MIB, source=source)
    assert controller.failure("CreateVolume", gone).code is Code.NOT_FOUND


def test_a_node_fetches_only_what_a_volume_is_made_from_there(cluster: Cluster) -> None:
    controller = cluster.controller
    source = made(controller, "source", "node-a").volume_id
    request = peer_pb2.FetchRequest(transfer_id="run-1", source_id=source)
    for node in ("node-a", "node-b"):
        assert dialled(cluster, node, "Fetch", request) == (
            Code.PERMISSION_DENIED,
            f"no volume is being made from {source!r} on this node",
        )
    assert sends(cluster.nodes["node-a"]) == 0
    made(controller, "copy", "node-b", source=source)
    assert dialled(cluster, "node-a", "Fetch", request)[0] is Code.PERMISSION_DENIED
    assert dialled(cluster, "node-b", "Fetch", request) == (Code.OK, "")
    assert dialled(cluster, "node-b", "Offer", iter([peer_pb2.Part()]))[0] is Code.PERMISSION_DENIED
    cluster.write_token("node-b", "nonsense")
    assert dialled(cluster, "node-b", "Fetch", request)[0] is Code.UNAUTHENTICATED


def dialled(cluster: Cluster, node: str, method: str, request: Any) -> tuple[Code, str]:
    """How a call to the router ends that the node's token opens."""
    credentials = grpc.ssl_channel_credentials(cluster.ca_file.read_bytes())
    metadata = (("authorization", f"Bearer {cluster.token_file(node).read_text()}"), ("hostvol-ticket", "0" * 32))
    with grpc.secure_channel(f"127.0.0.1:{cluster.port}", credentials) as channel:
        path, encode = f"/hostvol.peer.v1.Peer/{method}", peer_pb2.FetchRequest.SerializeToString
        try:
            if method == "Offer":
                channel.stream_unary(path, peer_pb2.Part.SerializeToString, bytes)(request, metadata=metadata)
            else:
                list(channel.unary_stream(path, encode, peer_pb2.Part.FromString)(request, metadata=metadata))
        except grpc.RpcError as error:
            return error.code(), error.details()
    return Code.OK, ""


def test_a_volume_in_use_is_sent_as_it_was_when_its_transfer_began(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    empty_cluster.begin("--transfer-rate=16Mi", pools={"node-a": make_pool("xfs", 1 << 30)})
    controller, (source_node, target_node) = empty_cluster.controller, empty_cluster.nodes.values()
    workload = Workload(source_node, "source", block=True, parameters=RAW)
    device = workload.up()
    before = os.urandom(MIB) * 40
    Path(device).write_bytes(before)
    create = Create(controller, asked("copy", "node-b", 64 * MIB, source=workload.volume_id))
    half_way(target_node)
    with open(device, "r+b") as file:
        file.write(bytes(40 * MIB))
        os.fsync(file.fileno())
    controller.kill()
    controller.start()
    copy = image_of(target_node, create.made().volume_id)
    with copy.open("rb") as file:
        assert file.read(len(before)) == before
    assert sends(source_node) == 1
    workload.down()
    assert left(source_node) == []


def test_a_directory_in_use_is_sent_as_it_was_when_its_transfer_began_and_may_be_deleted(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    empty_cluster.begin("--transfer-rate=16Mi", pools={"node-a": make_pool("xfs", 1 << 30)})
    controller, (source_node, target_node) = empty_cluster.controller, empty_cluster.nodes.values()
    workload = Workload(source_node, "source", parameters=DIRECTORY)
    top = Path(workload.up())
    files = [top / f"below/{number}" for number in range(40)]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(os.urandom(MIB))
    told = {file.name: digest(file) for file in files}
    request = asked(
        "copy", "node-b", 64 * MIB, source=workload.volume_id, parameters=DIRECTORY, volume_capabilities=[capability()]
    )
    create = Create(controller, request)
    half_way(target_node)
    for file in files:
        file.write_bytes(b"changed")
    workload.down()
    controller.kill()
    controller.start()
    copy = target_node.pool / "volumes" / create.made().volume_id / "data/below"
    assert {file.name: digest(file) for file in copy.iterdir()} == told
    assert sends(source_node) == 1
    until(lambda: left(source_node) == left(target_node) == [], what="nothing is left")


def test_a_source_that_cannot_be_cut_is_not_staged_until_it_is_sent(
    make_pool: Callable[..., PoolPlace], empty_cluster: Cluster
) -> None:
    empty_cluster.begin("--transfer-rate=16Mi", pools={"node-a": make_pool("ext4", 512 * MIB)})
    controller, (source_node, target_node) = empty_cluster.controller, empty_cluster.nodes.values()
    workload = Workload(source_node, "source", block=True, parameters=RAW)
    told = written(source_node, workload.create(), 40 * MIB)
    request = asked("copy", "node-b", 64 * MIB, source=workload.volume_id)
    workload.stage()
    busy = controller.failure("CreateVolume", request)
    assert busy.code is Code.FAILED_PRECONDITION
    assert "it is staged" in busy.details
    workload.unstage()
    create = Create(controller, request)
    half_way(target_node)
    assert source_node.code("NodeStageVolume", workload.stage_request()) is Code.ABORTED
    assert source_node.code("DeleteVolume", volume_id=workload.volume_id) is Code.ABORTED
    assert digest(image_of(target_node, create.made().volume_id)) == told
    until(lambda: source_node.code("NodeStageVolume", workload.stage_request()) is Code.OK, what="it is sent")
    workload.unstage()


def test_a_target_that_fills_up_keeps_nothing(make_pool: Callable[..., PoolPlace], empty_cluster: Cluster) -> None:
    empty_cluster.begin("--transfer-rate=16Mi", pools={"node-b": make_pool("ext4", 384 * MIB)})
    controller, (source_node, target_node) = empty_cluster.controller, empty_cluster.nodes.values()
    source = made(controller, "source", "node-a").volume_id
    written(source_node, source, 48 * MIB)
    too_large = asked("larger", "node-b", 512 * MIB, source=source)
    assert controller.failure("CreateVolume", too_large).code is Code.RESOURCE_EXHAUSTED
    create = Create(controller, asked("copy", "node-b", 64 * MIB, source=source))
    half_way(target_node)
    strangers = target_node.pool.parent / "strangers"
    space = os.statvfs(target_node.pool)
    with strangers.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_bsize - MIB)
    assert create.failed().code is Code.RESOURCE_EXHAUSTED
    assert left(target_node) == []
    assert controller.volumes() == [source]
    strangers.unlink()
    assert made(controller, "copy", "node-b", source=source).capacity_bytes == 64 * MIB
    until(lambda: controller.caller.code("DeleteVolume", volume_id=source) is Code.OK, what="nothing is held")


def test_a_source_whose_node_is_older_is_refused_with_a_reason(cluster: Cluster) -> None:
    controller = cluster.controller
    old = Peer(cluster.port, cluster.api.token("node-c"), cluster.ca_file)
    old.attach("node-c", "1")
    source = volume_id("node-c", "1")
    until(lambda: source in controller.volumes())

    def answer() -> None:
        for _ in range(2):
            call = old.next().call
            assert call.method == "/hostvol.peer.v1.Holder/Serve"
            old.reply(call, code=Code.UNIMPLEMENTED.value[0], message="this node does not have it")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    refused = controller.failure("CreateVolume", asked("copy", "node-b", 64 * MIB, source=source))
    assert refused.code is Code.RESOURCE_EXHAUSTED
    assert "too old" in refused.details
    thread.join(20)
    old.close()
    absent = controller.failure("CreateVolume", asked("another", "node-b", 64 * MIB, source=source))
    assert absent.code is Code.UNAVAILABLE
    assert "is not attached" in absent.details
