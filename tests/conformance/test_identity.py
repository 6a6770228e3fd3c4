"""Identity of CSI 1.13, and what a driver of many volumes answers while it starts.

- Name, version, capabilities and topology have the form that the specification prescribes, and do not change.
- What is advertised is served; every other RPC of the specification is UNIMPLEMENTED, with a message.
- An error carries a code and a message, and no details.
- With 10,000 volumes the driver is ready in 5 seconds. Until then Probe answers without an error, GetPluginInfo and
  GetPluginCapabilities answer, every other call is UNAVAILABLE, /healthz is 200 and /readyz 503.
- A list of all volumes, however many, reaches its reader in messages below 4 MiB, each volume once.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.conftest import NODE_ID
from tests.conformance.probing import SPEC_METHODS, SPEC_SERVICES, assert_readable, list_volume_ids, write_records
from tests.harness import MIB, Caller, Code, Driver, Failure, PoolPlace, create_request
from tests.waiting import until

# Spec: the description of each capability.
CONTROLLER_METHODS = {
    "CREATE_DELETE_VOLUME": {"CreateVolume", "DeleteVolume"},
    "PUBLISH_UNPUBLISH_VOLUME": {"ControllerPublishVolume", "ControllerUnpublishVolume"},
    "LIST_VOLUMES": {"ListVolumes"},
    "GET_CAPACITY": {"GetCapacity"},
    "CREATE_DELETE_SNAPSHOT": {"CreateSnapshot", "DeleteSnapshot"},
    "LIST_SNAPSHOTS": {"ListSnapshots"},
    "EXPAND_VOLUME": {"ControllerExpandVolume"},
    "GET_VOLUME": {"ControllerGetVolume"},
    "MODIFY_VOLUME": {"ControllerModifyVolume"},
    "GET_SNAPSHOT": {"GetSnapshot"},
    "GET_VOLUME_HEALTH": {"ControllerGetVolumeHealth"},
    "LIST_VOLUME_HEALTH": {"ControllerListVolumeHealth"},
}
NODE_METHODS = {
    "STAGE_UNSTAGE_VOLUME": {"NodeStageVolume", "NodeUnstageVolume"},
    "GET_VOLUME_STATS": {"NodeGetVolumeStats"},
    "EXPAND_VOLUME": {"NodeExpandVolume"},
    "GET_VOLUME_HEALTH": {"NodeGetVolumeHealth"},
    "GET_STORAGE_HEALTH": {"NodeGetStorageHealth"},
}
ALWAYS = {
    *(method.name for method in SPEC_SERVICES["Identity"].methods),
    *("ControllerGetCapabilities", "ValidateVolumeCapabilities"),
    *("NodeGetCapabilities", "NodeGetInfo", "NodePublishVolume", "NodeUnpublishVolume"),
}
OPTIONAL_SERVICES = {
    "GroupController": "GROUP_CONTROLLER_SERVICE",
    "SnapshotMetadata": "SNAPSHOT_METADATA_SERVICE",
}


def plugin_services(driver: Driver) -> set[str]:
    found = driver.call("GetPluginCapabilities").capabilities
    return {csi_pb2.PluginCapability.Service.Type.Name(one.service.type) for one in found if one.HasField("service")}


def controller_capabilities(driver: Driver) -> set[str]:
    found = driver.call("ControllerGetCapabilities").capabilities
    return {csi_pb2.ControllerServiceCapability.RPC.Type.Name(one.rpc.type) for one in found}


def node_capabilities(driver: Driver) -> set[str]:
    found = driver.call("NodeGetCapabilities").capabilities
    return {csi_pb2.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in found}


def advertised_methods(driver: Driver) -> set[str]:
    """Every RPC that the driver says it has."""
    found = set(ALWAYS)
    for capability in controller_capabilities(driver):
        found |= CONTROLLER_METHODS.get(capability, set())
    for capability in node_capabilities(driver):
        found |= NODE_METHODS.get(capability, set())
    for service, capability in OPTIONAL_SERVICES.items():
        if capability in plugin_services(driver):
            found |= {method.name for method in SPEC_SERVICES[service].methods}
    return found


def test_the_plugin_has_a_name_in_domain_notation_and_a_version(driver: Driver) -> None:
    info = driver.call("GetPluginInfo")
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", info.name)
    assert info.name == "csi.hostvol.dev"
    assert 0 < len(info.vendor_version) <= 128
    assert sum(len(key) + len(value) for key, value in info.manifest.items()) <= 4096


def test_the_capabilities_of_the_plugin_are_known_and_stay(driver: Driver) -> None:
    assert {"CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS"} <= plugin_services(driver)
    assert "UNKNOWN" not in plugin_services(driver) | controller_capabilities(driver) | node_capabilities(driver)
    for method in ("GetPluginCapabilities", "ControllerGetCapabilities", "NodeGetCapabilities"):
        assert driver.call(method) == driver.call(method)


def test_no_capability_is_advertised_twice_and_none_without_what_it_requires(driver: Driver) -> None:
    for method in ("ControllerGetCapabilities", "NodeGetCapabilities"):
        types = [one.rpc.type for one in driver.call(method).capabilities]
        assert len(types) == len(set(types))
    controller = controller_capabilities(driver)
    assert "LIST_VOLUMES_PUBLISHED_NODES" not in controller or "PUBLISH_UNPUBLISH_VOLUME" in controller
    assert "LIST_VOLUME_HEALTH" not in controller or "GET_VOLUME_HEALTH" in controller
    # Both or none, or orchestrators fall back to the older access modes.
    assert ("SINGLE_NODE_MULTI_WRITER" in controller) == ("SINGLE_NODE_MULTI_WRITER" in node_capabilities(driver))


@pytest.mark.parametrize("method", SPEC_METHODS)
def test_an_rpc_is_served_if_it_is_advertised_and_unimplemented_otherwise(driver: Driver, method: str) -> None:
    try:
        driver.call(method)
        code, message = Code.OK, ""
    except Failure as failure:
        code, message = failure.code, failure.details
    if method in advertised_methods(driver):
        assert code in {Code.OK, Code.INVALID_ARGUMENT}, (code, message)
    else:
        assert (code, bool(message)) == (Code.UNIMPLEMENTED, True)


def test_a_ready_driver_says_so(driver: Driver) -> None:
    for _ in range(20):
        assert driver.call("Probe").ready.value is True


def test_the_node_has_an_id_and_the_topology_that_its_volumes_have(driver: Driver) -> None:
    info = driver.call("NodeGetInfo")
    assert info.node_id == NODE_ID
    assert info.max_volumes_per_node >= 0
    volume = driver.call("CreateVolume", create_request("topology", 8 * MIB)).volume
    assert list(volume.accessible_topology) == [info.accessible_topology]
    for key, value in info.accessible_topology.segments.items():
        prefix, _, name = key.rpartition("/")
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", prefix)
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", name)
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value)
    driver.call("DeleteVolume", volume_id=volume.volume_id)


@pytest.mark.parametrize(
    "method", ["CreateVolume", "DeleteVolume", "NodeStageVolume", "NodePublishVolume", "ControllerPublishVolume"]
)
def test_an_error_has_a_message_and_no_details(driver: Driver, method: str) -> None:
    with pytest.raises(Failure) as failure:
        driver.call(method)
    cause: Any = failure.value.__cause__
    assert "grpc-status-details-bin" not in [key for key, _ in cause.trailing_metadata() or ()]
    assert_readable(failure.value.details)


def test_a_socket_is_for_its_owner_alone(driver: Driver) -> None:
    assert driver.socket_path.stat().st_mode & 0o777 == 0o600


# Ten thousand volumes

LONG_POOL = "p" * 63
LONG_NODE = "n" * 63
STARTED = 10_000
MORE = 9_000
UNAVAILABLE_METHODS = ("ListVolumes", "GetCapacity", "NodeGetInfo", "ControllerGetCapabilities")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A pool with ten thousand records, which no driver serves yet."""
    where = tmp_path_factory.mktemp("full")
    driver = Driver(
        where / "driver",
        [PoolPlace(where / "pool")],
        node_id=LONG_NODE,
        names=[LONG_POOL],
        arguments=["--http-address=127.0.0.1:0"],
    )
    driver.start()
    driver.stop()
    write_records(driver.pool, LONG_POOL, LONG_NODE, range(STARTED))
    (driver.home / "log").unlink()
    yield driver
    driver.stop()
    assert "unforeseen" not in driver.log(), driver.log()


def http_port(driver: Driver) -> int:
    found = until(lambda: re.search(r"metrics and health on port (\d+)", driver.log()), what=driver.log, every=0.005)
    assert found
    return int(found[1])


def http_status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def is_open(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return not connection.connect_ex(str(path))


def test_ten_thousand_volumes_are_served_in_five_seconds_and_probe_never_fails(full: Driver) -> None:
    began = time.monotonic()
    full.start(wait=False)
    port = http_port(full)
    until(lambda: is_open(full.socket_path), what="the socket", every=0.005)
    caller = Caller(full.socket_path)
    seen: list[tuple[bool, int]] = []
    refusals: set[tuple[str, Code]] = set()
    while not seen or not seen[-1][0]:
        assert time.monotonic() - began < 30
        refusals |= {(method, caller.code(method)) for method in UNAVAILABLE_METHODS}
        assert caller.call("GetPluginInfo").name
        assert caller.call("GetPluginCapabilities").capabilities
        assert http_status(port, "/healthz") == 200
        status = http_status(port, "/readyz")
        seen.append((caller.call("Probe").ready.value, status))
    seconds = time.monotonic() - began
    caller.close()
    print(f"{STARTED} volumes: ready {seconds:.2f} s after the process was started, {len(seen)} looks")
    assert seconds < 5
    assert seen[0] == (False, 503)
    assert {code for _, code in refusals} <= {Code.UNAVAILABLE, Code.OK}
    assert {method for method, code in refusals if code is Code.UNAVAILABLE} == set(UNAVAILABLE_METHODS)
    assert http_status(port, "/readyz") == 200


def test_a_list_of_any_length_comes_in_messages_that_every_client_takes(full: Driver) -> None:
    full.stop()
    write_records(full.pool, LONG_POOL, LONG_NODE, range(STARTED, STARTED + MORE))
    full.start()
    token, sizes, ids = "", [], []
    while True:
        page = full.call("ListVolumes", starting_token=token)
        sizes.append(page.ByteSize())
        ids += [entry.volume.volume_id for entry in page.entries]
        token = page.next_token
        if not token:
            break
    assert sum(sizes) > 4 * MIB, "this list would fit into one message: the test needs more volumes"
    assert max(sizes) < 4 * MIB
    assert len(ids) == len(set(ids)) == STARTED + MORE
    assert [len(page) for page in list_volume_ids(full, 7000)] == [7000, 7000, 5000]
