"""Snapshots and content sources of CSI 1.13, row by row of their tables.

- CreateSnapshot: what is given carries its source, size, time and topology; the same name and source give the same
  snapshot; another source under the name is ALREADY_EXISTS; what is not there, asked elsewhere or unknown is refused in
  words, and leaves no trace.
- DeleteSnapshot is OK for what is not there; volumes and snapshots are independent of each other.
- ListSnapshots: filters are joined by "and", no match is an empty list, every page size walks all; bad tokens are
  ABORTED. GetSnapshot of what is not there is NOT_FOUND.
- CreateVolume from a source: the content source comes back; a source that is not there is NOT_FOUND, one that does not
  go with the parameters INVALID_ARGUMENT, a smaller size OUT_OF_RANGE, a place without the source RESOURCE_EXHAUSTED.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from csi_driver.model import node_key
from csi_driver.pb import csi_pb2
from tests.conformance.conftest import NODE_ID
from tests.conformance.probing import refused, traces
from tests.conformance.test_controller import NAMES, TOPOLOGY_KEY, topology
from tests.harness import DIRECTORY, MIB, Code, Driver, Workload, capability, create_request

SIZE = 16 * MIB
ELSEWHERE = node_key("another-node")


@pytest.fixture(scope="module")
def volumes(driver: Driver) -> Iterator[dict[str, str]]:
    """Sources of every kind, idle."""
    made = {}
    for name, fields in {
        "image": {},
        "other": {},
        "xfs": {"size_bytes": 300 * MIB, "volume_capabilities": [capability(fs_type="xfs")]},
        "block": {"volume_capabilities": [capability(block=True)]},
        "small blocks": {"volume_capabilities": [capability(block=True)], "parameters": {"blockSize": "512"}},
        "directory": {"parameters": DIRECTORY},
    }.items():
        asked: dict[str, Any] = {"size_bytes": SIZE, **fields}
        made[name] = driver.call("CreateVolume", create_request(name, **asked)).volume.volume_id
    yield made
    for volume_id in made.values():
        driver.call("DeleteVolume", volume_id=volume_id)


@pytest.fixture(scope="module")
def snapshots(driver: Driver, volumes: dict[str, str]) -> Iterator[dict[str, csi_pb2.Snapshot]]:
    """A snapshot of each of them."""
    made = {name: cut(driver, volume_id, f"cut of {name}") for name, volume_id in volumes.items()}
    yield made
    for snapshot in made.values():
        driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


def cut(driver: Driver, volume_id: str, name: str, **fields: Any) -> csi_pb2.Snapshot:
    snapshot = driver.call("CreateSnapshot", source_volume_id=volume_id, name=name, **fields).snapshot
    assert snapshot.ready_to_use
    return snapshot


def source(snapshot_id: str = "", volume_id: str = "") -> csi_pb2.VolumeContentSource:
    made = csi_pb2.VolumeContentSource()
    if snapshot_id:
        made.snapshot.snapshot_id = snapshot_id
    else:
        made.volume.volume_id = volume_id
    return made


def ids(driver: Driver, **filters: Any) -> list[str]:
    return [entry.snapshot.snapshot_id for entry in driver.call("ListSnapshots", **filters).entries]


# CreateSnapshot


def test_what_is_given_tells_its_source_size_time_and_place(driver: Driver, volumes: dict[str, str]) -> None:
    began = time.time()
    snapshot = cut(driver, volumes["image"], "given")
    assert snapshot.snapshot_id.startswith(f"snap-{node_key(NODE_ID)}-")
    assert len(snapshot.snapshot_id) <= 63
    assert (snapshot.source_volume_id, snapshot.size_bytes) == (volumes["image"], SIZE)
    assert began <= snapshot.creation_time.ToNanoseconds() / 1e9 <= time.time()
    assert [dict(one.segments) for one in snapshot.accessible_topology] == [{TOPOLOGY_KEY: NODE_ID}]
    assert snapshot.group_snapshot_id == ""
    assert driver.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot == snapshot
    assert cut(driver, volumes["image"], "given") == snapshot
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


def test_whoever_asked_for_less_than_there_can_be_may_ask_so_again(driver: Driver) -> None:
    # The least ext4 has 8 MiB; provisioners refuse a claim that asks for less than a snapshot tells.
    volume_id = driver.call("CreateVolume", create_request("least", MIB)).volume.volume_id
    snapshot = cut(driver, volume_id, "of the least")
    assert snapshot.size_bytes == 0
    request = create_request("least again", MIB, volume_content_source=source(snapshot.snapshot_id))
    copy = driver.call("CreateVolume", request).volume
    assert copy.capacity_bytes == 8 * MIB
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    for made in (volume_id, copy.volume_id):
        driver.call("DeleteVolume", volume_id=made)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_any_text(driver: Driver, volumes: dict[str, str], name: str) -> None:
    snapshot = cut(driver, volumes["directory"], name)
    assert cut(driver, volumes["directory"], name) == snapshot
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


def test_a_name_that_belongs_to_a_snapshot_of_another_volume_already_exists(
    driver: Driver, volumes: dict[str, str], snapshots: dict[str, csi_pb2.Snapshot]
) -> None:
    words = ("source_volume_id", volumes["image"], volumes["other"], snapshots["image"].snapshot_id)
    asked = {"name": "cut of image", "source_volume_id": volumes["other"]}
    refused(driver, "CreateSnapshot", Code.ALREADY_EXISTS, *words, **asked)


def test_the_names_of_volumes_and_of_snapshots_have_nothing_to_do_with_each_other(
    driver: Driver, volumes: dict[str, str]
) -> None:
    snapshot = cut(driver, volumes["other"], "image")
    assert snapshot.source_volume_id == volumes["other"]
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


BAD: dict[str, tuple[dict[str, Any], Code, tuple[str, ...]]] = {
    "no name": ({"name": ""}, Code.INVALID_ARGUMENT, ("name",)),
    "a name that is too long": ({"name": "n" * 129}, Code.INVALID_ARGUMENT, ("name", "129", "128")),
    "a name with NUL": ({"name": "a\0b"}, Code.INVALID_ARGUMENT, ("name",)),
    "no source": ({"source_volume_id": ""}, Code.INVALID_ARGUMENT, ("source_volume_id",)),
    "a source that is a path": ({"source_volume_id": "../image"}, Code.INVALID_ARGUMENT, ("source_volume_id",)),
    "a source that is not there": ({"source_volume_id": "vol-0"}, Code.NOT_FOUND, ("source_volume_id", "vol-0")),
    "an unknown parameter": (
        {"parameters": {"colour": "red"}},
        Code.INVALID_ARGUMENT,
        ("parameters.colour", "retention, retentionPolicy"),
    ),
    "another place": (
        {"accessibility_requirements": topology("another-node")},
        Code.RESOURCE_EXHAUSTED,
        ("accessibility_requirements", NODE_ID),
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_request_is_refused_in_words_and_leaves_no_trace(
    driver: Driver, volumes: dict[str, str], bad: tuple[dict[str, Any], Code, tuple[str, ...]]
) -> None:
    changed, code, words = bad
    before = traces(driver)
    refused(driver, "CreateSnapshot", code, *words, **{"name": "bad", "source_volume_id": volumes["image"], **changed})
    assert traces(driver) == before


def test_what_the_sidecars_add_is_ignored_and_a_place_that_is_here_accepted(
    driver: Driver, volumes: dict[str, str]
) -> None:
    snapshot = cut(
        driver,
        volumes["image"],
        "with extras",
        parameters={"csi.storage.k8s.io/volumesnapshot/name": "x"},
        accessibility_requirements=topology("another-node", NODE_ID, preferred=("another-node",)),
    )
    assert [dict(one.segments) for one in snapshot.accessible_topology] == [{TOPOLOGY_KEY: NODE_ID}]
    only_here = topology(NODE_ID, preferred=(NODE_ID,))
    told = cut(driver, volumes["image"], "with extras", accessibility_requirements=only_here)
    assert (told.snapshot_id, len(told.accessible_topology)) == (snapshot.snapshot_id, 0)
    refused(
        driver,
        "CreateSnapshot",
        Code.ALREADY_EXISTS,
        "accessibility_requirements",
        name="with extras",
        source_volume_id=volumes["image"],
        accessibility_requirements=topology("another-node"),
    )
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)


def test_calls_for_one_name_at_the_same_time_make_one_snapshot(driver: Driver, volumes: dict[str, str]) -> None:
    found: list[str] = []

    def call() -> None:
        found.append(cut(driver, volumes["image"], "at once").snapshot_id)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    driver.call("DeleteSnapshot", snapshot_id=found[0])


# DeleteSnapshot, GetSnapshot


def test_a_snapshot_outlives_its_volume_and_its_copy_outlives_both(driver: Driver) -> None:
    volume_id = driver.call("CreateVolume", create_request("short-lived", SIZE)).volume.volume_id
    snapshot = cut(driver, volume_id, "long-lived")
    driver.call("DeleteVolume", volume_id=volume_id)
    assert driver.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot == snapshot
    assert ids(driver, source_volume_id=volume_id) == [snapshot.snapshot_id]
    assert cut(driver, volume_id, "long-lived") == snapshot
    request = create_request("from it", SIZE, volume_content_source=source(snapshot.snapshot_id))
    copy = driver.call("CreateVolume", request).volume
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    refused(driver, "GetSnapshot", Code.NOT_FOUND, snapshot.snapshot_id, snapshot_id=snapshot.snapshot_id)
    # Its source is gone, and the same request still finds it.
    assert driver.call("CreateVolume", request).volume == copy
    driver.call("DeleteVolume", volume_id=copy.volume_id)


@pytest.mark.parametrize("snapshot_id", ["snap-0", f"snap-{ELSEWHERE}-0123456789abcdef", "x" * 128, "vol-1", "A.b_c"])
def test_what_is_not_there_is_deleted_and_not_found(driver: Driver, snapshot_id: str) -> None:
    assert driver.code("DeleteSnapshot", snapshot_id=snapshot_id) is Code.OK
    refused(driver, "GetSnapshot", Code.NOT_FOUND, "snapshot_id", snapshot_id, snapshot_id=snapshot_id)
    assert ids(driver, snapshot_id=snapshot_id) == []


@pytest.mark.parametrize("method", ["DeleteSnapshot", "GetSnapshot"])
@pytest.mark.parametrize("snapshot_id", ["", "../x", "a/b", "-x", "x" * 129, "a b", "ü"])
def test_what_is_no_id_is_refused(driver: Driver, method: str, snapshot_id: str) -> None:
    refused(driver, method, Code.INVALID_ARGUMENT, "snapshot_id", snapshot_id=snapshot_id)


# ListSnapshots


def test_filters_are_joined_by_and(
    driver: Driver, volumes: dict[str, str], snapshots: dict[str, csi_pb2.Snapshot]
) -> None:
    everything = sorted(one.snapshot_id for one in snapshots.values())
    image = snapshots["image"].snapshot_id
    second = cut(driver, volumes["image"], "a second one").snapshot_id
    assert ids(driver) == sorted([*everything, second])
    assert ids(driver, snapshot_id=image) == [image]
    assert ids(driver, source_volume_id=volumes["image"]) == sorted([image, second])
    assert ids(driver, snapshot_id=image, source_volume_id=volumes["image"]) == [image]
    assert ids(driver, snapshot_id=image, source_volume_id=volumes["other"]) == []
    assert ids(driver, source_volume_id="vol-0") == ids(driver, source_volume_id="no id at all/") == []
    assert ids(driver, snapshot_id="no id at all/") == []
    driver.call("DeleteSnapshot", snapshot_id=second)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 100])
@pytest.mark.parametrize("is_filtered", [False, True])
def test_a_list_can_be_walked_at_every_page_size(
    driver: Driver,
    volumes: dict[str, str],
    snapshots: dict[str, csi_pb2.Snapshot],
    size: int,
    is_filtered: bool,
) -> None:
    more = [cut(driver, volumes["image"], f"more-{number}").snapshot_id for number in range(5)]
    filters = {"source_volume_id": volumes["image"]} if is_filtered else {}
    wanted = sorted(
        [*more, snapshots["image"].snapshot_id]
        if is_filtered
        else [*more, *(one.snapshot_id for one in snapshots.values())]
    )
    pages, token = [], ""
    while True:
        page = driver.call("ListSnapshots", max_entries=size, starting_token=token, **filters)
        pages.append([entry.snapshot.snapshot_id for entry in page.entries])
        token = page.next_token
        if not token:
            break
    assert sum(pages, []) == wanted
    assert len(pages) == -(-len(wanted) // size)
    for snapshot_id in more:
        driver.call("DeleteSnapshot", snapshot_id=snapshot_id)


@pytest.mark.parametrize("filters", [{}, {"snapshot_id": "snap-0"}, {"source_volume_id": "vol-0"}])
@pytest.mark.parametrize("token", ["invalid-token", "0", "after:", "after:../..", "after:A", "\0", "x" * 9000])
def test_a_token_that_is_not_ours_is_aborted(driver: Driver, token: str, filters: dict[str, str]) -> None:
    words = ("starting_token", "from the beginning")
    refused(driver, "ListSnapshots", Code.ABORTED, *words, starting_token=token, **filters)


@pytest.mark.parametrize("value", [-1, -(1 << 31)])
def test_a_negative_page_size_is_refused(driver: Driver, value: int) -> None:
    refused(driver, "ListSnapshots", Code.INVALID_ARGUMENT, "max_entries", str(value), max_entries=value)


# CreateVolume from a source


def copy_of(kind: str, **fields: Any) -> dict[str, Any]:
    """A request for a copy of a source of this kind: by default one that is granted."""
    asked: dict[str, Any] = {"size_bytes": SIZE}
    if kind == "xfs":
        asked = {"size_bytes": 300 * MIB}
    if kind in ("block", "small blocks"):
        asked["volume_capabilities"] = [capability(block=True)]
    if kind == "directory":
        asked["parameters"] = DIRECTORY
    return {**asked, **fields}


GRANTED: dict[str, tuple[str, dict[str, Any], int]] = {
    "as it is": ("image", {}, SIZE),
    "without a size": ("image", {"size_bytes": 0}, SIZE),
    "with a limit alone": ("image", {"size_bytes": 0, "limit_bytes": 64 * MIB}, SIZE),
    "larger": ("image", {"size_bytes": 3 * SIZE}, 3 * SIZE),
    "its filesystem named": ("xfs", {"volume_capabilities": [capability(fs_type="xfs")]}, 300 * MIB),
    "its filesystem not named": ("xfs", {}, 300 * MIB),
    "a size below the least, which is the source's": ("xfs", {"size_bytes": MIB}, 300 * MIB),
    "thick": ("image", {"parameters": {"provisioning": "thick"}}, SIZE),
    "in another pool": ("image", {"parameters": {"pool": "second"}}, SIZE),
    "an image as a device": ("image", {"volume_capabilities": [capability(block=True)]}, SIZE),
    "a device": ("block", {}, SIZE),
    "a larger device": ("block", {"size_bytes": 2 * SIZE, "limit_bytes": 2 * SIZE}, 2 * SIZE),
    "a device with small blocks": ("small blocks", {}, SIZE),
    "a device with small blocks that are named": ("small blocks", {"parameters": {"blockSize": "512"}}, SIZE),
    "a directory": ("directory", {}, SIZE),
    "a larger directory": ("directory", {"size_bytes": 2 * SIZE}, 2 * SIZE),
}


@pytest.mark.parametrize("of", ["snapshot", "volume"])
@pytest.mark.parametrize("granted", GRANTED.values(), ids=GRANTED)
def test_a_copy_is_what_was_asked_and_is_found_again(
    driver: Driver,
    volumes: dict[str, str],
    snapshots: dict[str, csi_pb2.Snapshot],
    granted: tuple[str, dict[str, Any], int],
    of: str,
) -> None:
    kind, changes, wanted = granted
    content = source(snapshots[kind].snapshot_id) if of == "snapshot" else source(volume_id=volumes[kind])
    request = create_request("copy", **copy_of(kind, **changes), volume_content_source=content)
    volume = driver.call("CreateVolume", request).volume
    assert (volume.capacity_bytes, volume.content_source) == (wanted, content)
    assert driver.call("CreateVolume", request).volume == volume
    assert driver.call("ControllerGetVolume", volume_id=volume.volume_id).volume == volume
    confirmed = driver.call(
        "ValidateVolumeCapabilities",
        volume_id=volume.volume_id,
        volume_capabilities=request.volume_capabilities,
        parameters=request.parameters,
    )
    assert confirmed.HasField("confirmed"), confirmed.message
    driver.call("DeleteVolume", volume_id=volume.volume_id)


REFUSED: dict[str, tuple[str, dict[str, Any], Code, tuple[str, ...]]] = {
    "smaller": ("image", {"size_bytes": 9 * MIB}, Code.OUT_OF_RANGE, ("required_bytes", str(9 * MIB), str(SIZE))),
    "a limit below it": (
        "image",
        {"size_bytes": 0, "limit_bytes": 9 * MIB},
        Code.OUT_OF_RANGE,
        ("limit_bytes", str(9 * MIB), str(SIZE)),
    ),
    "a smaller device": ("block", {"size_bytes": 4096}, Code.OUT_OF_RANGE, ("required_bytes", "4096")),
    "a smaller directory": ("directory", {"size_bytes": 4096}, Code.OUT_OF_RANGE, ("required_bytes", "4096")),
    "another filesystem": (
        "image",
        {"volume_capabilities": [capability(fs_type="xfs")], "size_bytes": 300 * MIB},
        Code.INVALID_ARGUMENT,
        ("fs_type", "xfs", "ext4"),
    ),
    "a device as a filesystem": (
        "block",
        {"volume_capabilities": [capability()]},
        Code.INVALID_ARGUMENT,
        ("volume_capabilities", "never mounted"),
    ),
    "an image as a directory": ("image", {"parameters": DIRECTORY}, Code.INVALID_ARGUMENT, ("parameters.type",)),
    "a directory as an image": ("directory", {"parameters": {}}, Code.INVALID_ARGUMENT, ("parameters.type",)),
    "other blocks": (
        "small blocks",
        {"parameters": {"blockSize": "4096"}},
        Code.INVALID_ARGUMENT,
        ("parameters.blockSize", "4096", "512"),
    ),
    "a filesystem as a device with other blocks": (
        "image",
        {"parameters": {"blockSize": "512"}, "volume_capabilities": [capability(block=True)]},
        Code.INVALID_ARGUMENT,
        ("parameters.blockSize", "512", "4096"),
    ),
}


@pytest.mark.parametrize("of", ["snapshot", "volume"])
@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_with_its_source_is_refused_and_leaves_no_trace(
    driver: Driver,
    volumes: dict[str, str],
    snapshots: dict[str, csi_pb2.Snapshot],
    row: tuple[str, dict[str, Any], Code, tuple[str, ...]],
    of: str,
) -> None:
    kind, changes, code, words = row
    content = source(snapshots[kind].snapshot_id) if of == "snapshot" else source(volume_id=volumes[kind])
    request = create_request("refused", **copy_of(kind, **changes), volume_content_source=content)
    before = traces(driver)
    refused(driver, "CreateVolume", code, *words, request=request)
    assert traces(driver) == before


MISSING = {
    "a snapshot that is not there": (source("snap-0"), Code.NOT_FOUND, ("volume_content_source.snapshot", "snap-0")),
    "a volume that is not there": (
        source(volume_id="vol-0"),
        Code.NOT_FOUND,
        ("volume_content_source.volume", "vol-0"),
    ),
    "a snapshot of another node": (
        source(f"snap-{ELSEWHERE}-0123456789abcdef"),
        Code.RESOURCE_EXHAUSTED,
        ("volume_content_source", ELSEWHERE, NODE_ID),
    ),
    "a volume of another node": (
        source(volume_id=f"vol-{ELSEWHERE}-0123456789abcdef"),
        Code.RESOURCE_EXHAUSTED,
        ("volume_content_source", ELSEWHERE, NODE_ID),
    ),
    "a snapshot without an id": (
        csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource()),
        Code.INVALID_ARGUMENT,
        ("snapshot_id",),
    ),
    "a volume without an id": (
        csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource()),
        Code.INVALID_ARGUMENT,
        ("volume_id",),
    ),
    "a source of no kind": (csi_pb2.VolumeContentSource(), Code.INVALID_ARGUMENT, ("volume_content_source",)),
    "a path": (source("../../x"), Code.INVALID_ARGUMENT, ("snapshot_id",)),
}


@pytest.mark.parametrize("row", MISSING.values(), ids=MISSING)
def test_a_source_that_is_not_here_is_refused_and_leaves_no_trace(
    driver: Driver, row: tuple[csi_pb2.VolumeContentSource, Code, tuple[str, ...]]
) -> None:
    content, code, words = row
    before = traces(driver)
    request = create_request("missing", SIZE, volume_content_source=content)
    refused(driver, "CreateVolume", code, *words, request=request)
    assert traces(driver) == before


def test_a_name_that_belongs_to_a_volume_of_another_source_already_exists(
    driver: Driver, volumes: dict[str, str], snapshots: dict[str, csi_pb2.Snapshot]
) -> None:
    content = source(snapshots["image"].snapshot_id)
    request = create_request("taken", SIZE, volume_content_source=content)
    volume_id = driver.call("CreateVolume", request).volume.volume_id
    others = [None, source(snapshots["other"].snapshot_id), source(volume_id=volumes["image"]), source("snap-0")]
    for other in others:
        asked = create_request("taken", SIZE, volume_content_source=other)
        refused(driver, "CreateVolume", Code.ALREADY_EXISTS, "volume_content_source", volume_id, request=asked)
    driver.call("DeleteVolume", volume_id=volume_id)
    plain = create_request("plain", SIZE)
    plain_id = driver.call("CreateVolume", plain).volume.volume_id
    asked = create_request("plain", SIZE, volume_content_source=content)
    refused(driver, "CreateVolume", Code.ALREADY_EXISTS, "volume_content_source", plain_id, request=asked)
    driver.call("DeleteVolume", volume_id=plain_id)


def test_what_was_made_from_a_device_is_not_mounted_either(
    driver: Driver, snapshots: dict[str, csi_pb2.Snapshot]
) -> None:
    device = driver.call(
        "CreateVolume",
        create_request("device", **copy_of("block"), volume_content_source=source(snapshots["block"].snapshot_id)),
    ).volume
    again = cut(driver, device.volume_id, "of the device")
    words = ("volume_capabilities", "never mounted")
    for content in (source(again.snapshot_id), source(volume_id=device.volume_id)):
        request = create_request("mounted", SIZE, volume_content_source=content)
        refused(driver, "CreateVolume", Code.INVALID_ARGUMENT, *words, request=request)
    staged = Workload(driver, "device")
    staged.volume_id = device.volume_id
    assert driver.code("NodeStageVolume", staged.stage_request()) is Code.FAILED_PRECONDITION
    driver.call("DeleteSnapshot", snapshot_id=again.snapshot_id)
    driver.call("DeleteVolume", volume_id=device.volume_id)
