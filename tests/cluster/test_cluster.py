"""Routers and real nodes, each in a process of its own.

- A volume is made where its topology says, and everything about it goes there; lists show all nodes.
- A create that is repeated, on either router, finds its volume; without a topology too.
- A node that is dead or stopped disturbs no other; its own objects are UNAVAILABLE, and are there again when it is.
- A router that is killed is dialled again; a list right after its start waits for the nodes; it keeps nothing.
- An object of a node that never was, or is gone, is told apart from one whose node is away; gone ones can be deleted.
- Deadlines travel: a create that outlives its caller goes on, and its repetition joins it.
- What the node refuses, the caller hears.
- Routers agree on one authority; a certificate that vanished is published again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest

from csi_driver.model import node_key
from csi_driver.pb import csi_pb2
from tests.cluster.cluster import Cluster, Controller, anywhere, capacity_request, free_port, on, topology
from tests.harness import GIB, MIB, Failure, create_request, run
from tests.waiting import until

Code = grpc.StatusCode
HOST = "hostvol-controller.test"


def code(controller: Controller, method: str, request: object = None, **fields: object) -> grpc.StatusCode:
    return controller.caller.code(method, request, **fields)


def test_a_volume_is_made_where_its_topology_says_and_found_through_the_router(cluster: Cluster) -> None:
    controller = cluster.controller
    made = {name: controller.call("CreateVolume", on(f"v-{name}", name)).volume for name in ("node-a", "node-b")}
    for name, volume in made.items():
        assert volume.volume_id.startswith(f"vol-{node_key(name)}-")
        assert (cluster.nodes[name].pool / "volumes" / volume.volume_id).is_dir()
        assert controller.call("ControllerGetVolume", volume_id=volume.volume_id).volume == volume
        direct = cluster.nodes[name].call("ControllerGetVolume", volume_id=volume.volume_id).volume
        assert direct == volume
        asked = controller.call(
            "ValidateVolumeCapabilities",
            volume_id=volume.volume_id,
            volume_capabilities=create_request("x").volume_capabilities,
        )
        assert asked.HasField("confirmed")
    assert controller.volumes() == sorted(volume.volume_id for volume in made.values())
    for volume in made.values():
        controller.call("DeleteVolume", volume_id=volume.volume_id)
        controller.call("DeleteVolume", volume_id=volume.volume_id)
    assert controller.volumes() == []
    assert cluster.nodes["node-a"].files() == cluster.nodes["node-b"].files() == []


def test_what_is_made_on_the_nodes_own_socket_is_listed_by_the_router(cluster: Cluster) -> None:
    volume = cluster.nodes["node-a"].call("CreateVolume", anywhere("own")).volume
    until(lambda: cluster.controller.volumes() == [volume.volume_id])
    cluster.nodes["node-a"].call("DeleteVolume", volume_id=volume.volume_id)
    until(lambda: cluster.controller.volumes() == [])


def test_a_repeated_create_finds_its_volume(cluster: Cluster) -> None:
    controller = cluster.controller
    free = controller.call("CreateVolume", anywhere("free")).volume
    bound = controller.call("CreateVolume", on("bound", "node-b")).volume
    for _ in range(3):
        assert controller.call("CreateVolume", anywhere("free")).volume == free
        assert controller.call("CreateVolume", on("bound", "node-b")).volume == bound
        assert controller.call("CreateVolume", anywhere("bound")).volume == bound
    assert len(controller.volumes()) == 2
    differing = controller.failure("CreateVolume", on("bound", "node-b", size_bytes=9 * GIB))
    assert differing.code is Code.ALREADY_EXISTS


def test_free_creates_spread_by_available_capacity(cluster: Cluster) -> None:
    """Both nodes have the same filesystem, so the one that was just given a volume is the poorer one."""
    controller = cluster.controller
    for number in range(6):
        controller.call("CreateVolume", anywhere(f"free{number}", size_bytes=GIB))
    counts = [len(list((node.pool / "volumes").iterdir())) for node in cluster.nodes.values()]
    assert min(counts) >= 1


def test_capacity_is_that_of_the_node_that_is_asked_for(cluster: Cluster) -> None:
    through = cluster.controller.call("GetCapacity", capacity_request("node-a"))
    assert through.available_capacity > 0
    assert cluster.controller.call("GetCapacity").available_capacity > 0
    assert code(cluster.controller, "GetCapacity", capacity_request("node-x")) is Code.UNAVAILABLE
    strange = csi_pb2.GetCapacityRequest(accessible_topology=csi_pb2.Topology(segments={"zone": "z"}))
    assert code(cluster.controller, "GetCapacity", strange) is Code.INVALID_ARGUMENT


def test_a_topology_without_our_nodes_cannot_be_satisfied(cluster: Cluster) -> None:
    request = create_request("x")
    request.accessibility_requirements.requisite.add().segments["zone"] = "z"
    assert code(cluster.controller, "CreateVolume", request) is Code.RESOURCE_EXHAUSTED


def test_one_of_several_required_nodes_that_is_there_is_taken(cluster: Cluster) -> None:
    request = create_request("x", parameters={"type": "directory", "quota": "none"})
    request.accessibility_requirements.CopyFrom(topology("node-x", "node-b"))
    volume = cluster.controller.call("CreateVolume", request).volume
    assert volume.volume_id.startswith(f"vol-{node_key('node-b')}-")


def test_a_node_that_is_killed_disturbs_nobody_else(cluster: Cluster) -> None:
    controller = cluster.controller
    held = controller.call("CreateVolume", on("held", "node-a")).volume.volume_id
    cluster.nodes["node-a"].kill()
    until(lambda: not cluster.reaches(controller, "node-a"))
    other = controller.call("CreateVolume", on("other", "node-b")).volume.volume_id
    assert controller.call("CreateVolume", anywhere("free")).volume.volume_id.startswith(f"vol-{node_key('node-b')}-")
    for method in ("DeleteVolume", "ControllerGetVolume"):
        assert code(controller, method, volume_id=held) is Code.UNAVAILABLE
    assert code(controller, "CreateVolume", on("new", "node-a")) is Code.UNAVAILABLE
    controller.call("DeleteVolume", volume_id=other)
    cluster.nodes["node-a"].start()
    cluster.wait_attached("node-a")
    assert controller.call("ControllerGetVolume", volume_id=held).volume.volume_id == held
    assert controller.call("CreateVolume", on("held", "node-a")).volume.volume_id == held


def test_a_node_that_is_frozen_disturbs_nobody_else(cluster: Cluster) -> None:
    controller = cluster.controller
    held = controller.call("CreateVolume", on("held", "node-a")).volume.volume_id
    pid = cluster.nodes["node-a"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T")
        assert code(controller, "DeleteVolume", volume_id=held, timeout=1) is Code.DEADLINE_EXCEEDED
        began = time.monotonic()
        for number in range(20):
            controller.call("CreateVolume", on(f"other{number}", "node-b"))
        assert len(controller.volumes()) == 21
        assert time.monotonic() - began < 5
        until(lambda: code(controller, "DeleteVolume", volume_id=held, timeout=3) is Code.UNAVAILABLE, 40)
    finally:
        os.kill(pid, signal.SIGCONT)
    # The calls that it was sent meanwhile may be served now that it wakes: their callers were told to repeat them.
    cluster.wait_attached("node-a")
    controller.call("DeleteVolume", volume_id=held)
    assert held not in controller.volumes()
    assert len(controller.volumes()) == 20


def test_a_killed_router_finds_everything_again(cluster: Cluster) -> None:
    controller = cluster.controller
    made = sorted(
        controller.call("CreateVolume", on(f"v{number}", f"node-{'ab'[number % 2]}")).volume.volume_id
        for number in range(10)
    )
    controller.kill()
    controller.start()
    assert controller.volumes() == made
    for name in ("node-a", "node-b"):
        cluster.wait_attached(name)
    assert controller.call("CreateVolume", anywhere("v3")).volume.volume_id in made


def test_a_list_right_after_a_start_waits_only_for_nodes_that_must_be_there(cluster: Cluster) -> None:
    controller = cluster.controller
    volume = controller.call("CreateVolume", on("v", "node-b")).volume.volume_id
    cluster.nodes["node-a"].kill()
    controller.kill()
    controller.start()
    cluster.wait_attached("node-b")
    assert code(controller, "ListVolumes", timeout=2) in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    assert controller.call("CreateVolume", on("at once", "node-b"))
    cluster.api.nodes["node-a"] = False
    assert volume in controller.volumes()


def test_a_caller_that_is_there_when_the_last_node_comes_gets_the_list(cluster: Cluster) -> None:
    controller = cluster.controller
    cluster.nodes["node-a"].call("CreateVolume", anywhere("v"))
    cluster.nodes["node-a"].kill()
    controller.kill()
    controller.start()
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(controller.volumes(timeout=25)))
    asking.start()
    cluster.nodes["node-a"].start()
    asking.join(30)
    assert [len(page) for page in found] == [1]


def test_an_object_is_gone_only_when_the_api_says_that_its_node_is(cluster: Cluster) -> None:
    controller = cluster.controller
    held = controller.call("CreateVolume", on("held", "node-a")).volume.volume_id
    cluster.nodes["node-a"].kill()
    until(lambda: not cluster.reaches(controller, "node-a"))
    cluster.api.broken = True
    assert code(controller, "DeleteVolume", volume_id=held) is Code.UNAVAILABLE
    cluster.api.broken = False
    assert code(controller, "DeleteVolume", volume_id=held) is Code.UNAVAILABLE
    del cluster.api.nodes["node-a"]
    assert code(controller, "ControllerGetVolume", volume_id=held) is Code.NOT_FOUND
    assert code(controller, "DeleteVolume", volume_id=held) is Code.OK
    until(lambda: cluster.api.events, what="an Event")
    assert held in cluster.api.events[0]["message"]
    # Nothing was deleted: the machine comes back with what it holds.
    cluster.nodes["node-a"].start()
    assert (cluster.nodes["node-a"].pool / "volumes" / held).is_dir()


def test_an_id_that_no_node_can_have_made(cluster: Cluster) -> None:
    assert code(cluster.controller, "ControllerGetVolume", volume_id="fake-vol-id") is Code.NOT_FOUND
    assert code(cluster.controller, "DeleteVolume", volume_id="fake-vol-id") is Code.OK
    assert code(cluster.controller, "DeleteVolume", volume_id="") is Code.INVALID_ARGUMENT
    assert code(cluster.controller, "DeleteVolume", volume_id="x" * 200) is Code.INVALID_ARGUMENT
    assert code(cluster.controller, "DeleteVolume", volume_id=f"vol-{'0' * 16}-1") is Code.OK


def test_what_an_operator_must_know_is_in_the_metrics(empty_cluster: Cluster) -> None:
    port = free_port()
    controller = empty_cluster.add_controller("127.0.0.1", f"--http-address=127.0.0.1:{port}")

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    for name in ("node-a", "node-b"):
        empty_cluster.add_node(name).call("CreateVolume", anywhere("moved"))
    until(lambda: len(controller.volumes()) == 2)
    assert "the name 'moved' is held by two nodes" in controller.log()
    assert (metric("hostvol_router_nodes"), metric("hostvol_router_volumes")) == (2, 2)
    assert metric("hostvol_router_duplicate_names") == 1
    assert controller.call("DeleteVolume", volume_id=f"vol-{'0' * 16}-1") is not None
    assert metric("hostvol_router_deleted_on_gone_nodes_total") == 1
    assert metric("hostvol_router_refused_streams_total") == 0


def test_a_create_goes_on_when_its_caller_gives_up_and_its_repetition_joins(cluster: Cluster) -> None:
    """A thick volume takes longer than the first caller waits."""
    controller = cluster.controller
    request = create_request(
        "thick",
        size_bytes=300 << 20,
        parameters={"provisioning": "thick"},
        accessibility_requirements=topology("node-a"),
    )
    with pytest.raises(Failure) as failure:
        controller.call("CreateVolume", request, timeout=0.005)
    assert failure.value.code in (Code.DEADLINE_EXCEEDED, Code.ABORTED)
    volume = controller.call("CreateVolume", request).volume
    assert controller.volumes() == [volume.volume_id]
    assert len(list((cluster.nodes["node-a"].pool / "volumes").iterdir())) == 1


def test_opposite_calls_on_one_object_are_aborted_not_mixed(cluster: Cluster) -> None:
    controller = cluster.controller
    request = on("contended", "node-a")
    codes: list[grpc.StatusCode] = []

    def hammer(method: str, **fields: object) -> None:
        codes.extend(code(controller, method, **fields) for _ in range(30))

    volume_id = controller.call("CreateVolume", request).volume.volume_id
    threads = [
        *(threading.Thread(target=lambda: hammer("CreateVolume", request=request)) for _ in range(4)),
        *(threading.Thread(target=lambda: hammer("DeleteVolume", volume_id=volume_id)) for _ in range(4)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {Code.OK, Code.ABORTED}
    made = controller.call("CreateVolume", request).volume.volume_id
    assert controller.volumes() == [made]
    assert [path.name for path in (cluster.nodes["node-a"].pool / "volumes").iterdir()] == [made]


def test_what_the_node_refuses_the_caller_hears(cluster: Cluster) -> None:
    failure = cluster.controller.failure("CreateVolume", create_request("x", parameters={"colour": "red"}))
    assert failure.code is Code.INVALID_ARGUMENT
    assert "colour" in failure.details
    huge = cluster.controller.failure("CreateVolume", create_request("x", size_bytes=1 << 60))
    assert huge.code in (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)


def test_a_volume_grows_on_its_node_and_every_answer_tells_it(cluster: Cluster) -> None:
    controller, node = cluster.controller, cluster.nodes["node-b"]
    volume = controller.call("CreateVolume", on("growing", "node-b", size_bytes=16 * MIB)).volume
    asked = {"volume_id": volume.volume_id, "capacity_range": csi_pb2.CapacityRange(required_bytes=64 * MIB)}
    answer = controller.call("ControllerExpandVolume", **asked)
    # A directory: its quota is all that grows.
    assert (answer.capacity_bytes, answer.node_expansion_required) == (64 * MIB, False)
    # The node tells of a change before it answers the call that made it.
    [entry] = controller.call("ListVolumes").entries
    assert entry.volume.capacity_bytes == 64 * MIB
    assert node.call("ControllerGetVolume", volume_id=volume.volume_id).volume.capacity_bytes == 64 * MIB
    refusal = controller.failure("ControllerExpandVolume", **{**asked, "capacity_range": {"limit_bytes": MIB}})
    assert refusal.code is Code.OUT_OF_RANGE
    node.kill()
    assert code(controller, "ControllerExpandVolume", **asked) is Code.UNAVAILABLE


def test_node_calls_are_not_forwarded(cluster: Cluster) -> None:
    assert code(cluster.controller, "NodeGetInfo") is Code.UNIMPLEMENTED


def test_methods_that_nobody_has_are_unimplemented(cluster: Cluster) -> None:
    held = cluster.controller.call("CreateVolume", on("v", "node-a")).volume.volume_id
    assert code(cluster.controller, "ControllerPublishVolume", volume_id=held) is Code.UNIMPLEMENTED


def test_identity_answers_without_any_node(empty_cluster: Cluster) -> None:
    controller = empty_cluster.add_controller()
    assert controller.call("Probe").ready.value
    assert controller.call("GetPluginInfo").name == "csi.hostvol.dev"
    assert controller.call("ControllerGetCapabilities").capabilities
    assert controller.call("GetPluginCapabilities").capabilities
    assert code(controller, "CreateVolume", anywhere("x")) is Code.UNAVAILABLE
    assert code(controller, "GetCapacity") is Code.UNAVAILABLE
    assert controller.volumes() == []


def test_two_routers_behind_one_name_serve_the_same_nodes(empty_cluster: Cluster, tmp_path: Path) -> None:
    with addresses(tmp_path, "127.0.0.1", "127.0.0.2"):
        first, second = (empty_cluster.add_controller(address) for address in ("127.0.0.1", "127.0.0.2"))
        for name in ("node-a", "node-b"):
            empty_cluster.add_node(name, HOST)
        volume = first.call("CreateVolume", on("v", "node-a")).volume
        assert second.call("CreateVolume", on("v", "node-a")).volume == volume
        until(lambda: second.volumes() == [volume.volume_id])
        first.kill()
        second.call("DeleteVolume", volume_id=volume.volume_id)
        assert second.volumes() == []
        first.start()
        for name in ("node-a", "node-b"):
            empty_cluster.wait_attached(name)
        assert first.volumes() == []


def test_a_router_that_comes_later_is_found_by_the_name(empty_cluster: Cluster, tmp_path: Path) -> None:
    with addresses(tmp_path, "127.0.0.1"):
        empty_cluster.add_controller()
        empty_cluster.add_node("node-a", HOST)
        with addresses(tmp_path, "127.0.0.1", "127.0.0.2"):
            second = empty_cluster.add_controller("127.0.0.2")
            until(lambda: empty_cluster.reaches(second, "node-a"))


def test_routers_that_start_together_agree_on_one_authority(empty_cluster: Cluster) -> None:
    starting = [
        Controller(empty_cluster.home / f"together{number}", empty_cluster.api, empty_cluster.port, f"127.0.0.{number}")
        for number in range(2, 6)
    ]
    threads = [threading.Thread(target=controller.start) for controller in starting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    empty_cluster.write_authority()
    for controller in starting:
        credentials = grpc.ssl_channel_credentials(empty_cluster.ca_file.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"{controller.address}:{controller.port}", credentials, options=options) as channel:
            grpc.channel_ready_future(channel).result(10)
        assert controller.stop() == 0
    secrets = [path for path in empty_cluster.api.stored if "/secrets/" in path]
    assert len(secrets) == 1


def test_the_authority_can_be_kept_in_a_directory(empty_cluster: Cluster, tmp_path: Path) -> None:
    directory = tmp_path / "authority"
    home = empty_cluster.home / "controller0"
    controller = Controller(home, empty_cluster.api, empty_cluster.port, arguments=(f"--tls-directory={directory}",))
    controller.start()
    empty_cluster.controllers.append(controller)
    empty_cluster.ca_file.symlink_to(directory / "ca.crt")
    assert (directory / "authority.pem").stat().st_mode & 0o777 == 0o600
    empty_cluster.add_node("node-a")
    controller.kill()
    before = (directory / "ca.crt").read_bytes()
    controller.start()
    assert (directory / "ca.crt").read_bytes() == before
    empty_cluster.wait_attached("node-a")
    assert empty_cluster.api.stored == {}


def test_a_node_without_the_authoritys_certificate_comes_when_it_has_it(empty_cluster: Cluster) -> None:
    empty_cluster.add_controller()
    good = empty_cluster.ca_file.read_bytes()
    empty_cluster.ca_file.unlink()
    node = empty_cluster.prepare_node("node-a")
    node.start()
    until(lambda: "cannot be read" in node.log())
    empty_cluster.ca_file.write_bytes(good)
    empty_cluster.wait_attached("node-a")


def test_a_node_serves_its_own_socket_whatever_its_controllers_do(empty_cluster: Cluster) -> None:
    empty_cluster.write_token("node-a", "x")
    empty_cluster.ca_file.write_text("rubbish")
    node = empty_cluster.prepare_node("node-a", "no-such-host.invalid")
    node.start()
    volume_id = node.call("CreateVolume", anywhere("v")).volume.volume_id
    node.call("DeleteVolume", volume_id=volume_id)
    assert node.stop() == 0


def test_both_end_quickly_when_they_are_told_to(cluster: Cluster) -> None:
    began = time.monotonic()
    assert cluster.nodes["node-a"].stop() == 0
    assert cluster.controller.stop() == 0
    assert cluster.nodes["node-b"].stop() == 0
    assert time.monotonic() - began < 10
    assert not cluster.controller.socket_path.exists()


class addresses:  # noqa: N801 - reads as a statement
    """The name has these addresses, as /etc/hosts of this mount namespace says."""

    def __init__(self, where: Path, *found: str) -> None:
        self._file = where / f"hosts{len(found)}"
        self._file.write_text("".join(f"{address} {name}\n" for name in ("localhost", HOST) for address in found))

    def __enter__(self) -> None:
        run("mount", "--bind", str(self._file), "/etc/hosts")

    def __exit__(self, *_: object) -> None:
        run("umount", "/etc/hosts")
