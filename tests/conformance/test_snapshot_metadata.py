"""SnapshotMetadata of CSI 1.13, row by row of its tables.

- Missing and malformed ids, negative offsets and counts, and snapshots of unrelated volumes are INVALID_ARGUMENT.
- Snapshots that are not there are NOT_FOUND, under the name of the field that names them.
- An offset behind the end is OUT_OF_RANGE; at the end nothing is left.
- Snapshots of directories and such that are not ready are FAILED_PRECONDITION, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from csi_driver.model import node_key
from csi_driver.pb import csi_pb2
from tests.conformance.conftest import NODE_ID
from tests.conformance.probing import refused
from tests.harness import DIRECTORY, MIB, Code, Driver, capability, create_request
from tests.waiting import until

SIZE = 16 * MIB
GONE = f"snap-{node_key(NODE_ID)}-0123456789abcdef"


@pytest.fixture(scope="module")
def snapshots(driver: Driver) -> Iterator[dict[str, str]]:
    made, volumes = {}, []
    for name, fields in {
        "image": {"volume_capabilities": [capability(block=True)]},
        "other": {"volume_capabilities": [capability(block=True)]},
        "directory": {"parameters": DIRECTORY},
    }.items():
        asked: dict[str, Any] = {"size_bytes": SIZE, **fields}
        volumes.append(driver.call("CreateVolume", create_request(name, **asked)).volume.volume_id)
        for number in range(2):
            call = {"name": f"{name} {number}", "source_volume_id": volumes[-1]}
            made[f"{name} {number}"] = driver.call("CreateSnapshot", **call).snapshot.snapshot_id
    yield made
    for snapshot_id in made.values():
        driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
    for volume_id in volumes:
        driver.call("DeleteVolume", volume_id=volume_id)


BAD: dict[str, tuple[dict[str, Any], Code, tuple[str, ...]]] = {
    "no id": ({"snapshot_id": ""}, Code.INVALID_ARGUMENT, ("snapshot_id",)),
    "no id at all": ({"snapshot_id": "../x"}, Code.INVALID_ARGUMENT, ("snapshot_id",)),
    "unknown": ({"snapshot_id": GONE}, Code.NOT_FOUND, ("snapshot_id", GONE)),
    "negative offset": ({"starting_offset": -1}, Code.INVALID_ARGUMENT, ("starting_offset", "-1")),
    "negative count": ({"max_results": -1}, Code.INVALID_ARGUMENT, ("max_results", "-1")),
    "behind the end": ({"starting_offset": SIZE + 1}, Code.OUT_OF_RANGE, ("starting_offset", str(SIZE + 1), str(SIZE))),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_listed_is_refused_in_words(driver: Driver, snapshots: dict[str, str], case: str) -> None:
    changes, code, words = BAD[case]
    refused(driver, "GetMetadataAllocated", code, *words, **{"snapshot_id": snapshots["image 0"], **changes})
    changes = dict(changes)
    asked = {"base_snapshot_id": snapshots["image 0"], "target_snapshot_id": snapshots["image 1"]}
    snapshot_id = changes.pop("snapshot_id", None)
    fields = ("target_snapshot_id", "base_snapshot_id") if snapshot_id is not None else ("",)
    for field in fields:
        wrong = {field: snapshot_id} if field else {}
        named = [word.replace("snapshot_id", field) if field else word for word in words]
        refused(driver, "GetMetadataDelta", code, *named, **{**asked, **changes, **wrong})


def test_directories_have_no_blocks(driver: Driver, snapshots: dict[str, str]) -> None:
    words = (snapshots["directory 0"], "directory", "volumes of type image")
    refused(driver, "GetMetadataAllocated", Code.FAILED_PRECONDITION, *words, snapshot_id=snapshots["directory 0"])
    both = {"base_snapshot_id": snapshots["directory 0"], "target_snapshot_id": snapshots["directory 1"]}
    refused(driver, "GetMetadataDelta", Code.FAILED_PRECONDITION, *words, **both)


def test_snapshots_of_unrelated_volumes_are_not_compared(driver: Driver, snapshots: dict[str, str]) -> None:
    both = {"base_snapshot_id": snapshots["other 0"], "target_snapshot_id": snapshots["image 0"]}
    refused(driver, "GetMetadataDelta", Code.INVALID_ARGUMENT, "base_snapshot_id", snapshots["other 0"], **both)


def test_at_the_end_nothing_is_left(driver: Driver, snapshots: dict[str, str]) -> None:
    for message in driver.call("GetMetadataAllocated", snapshot_id=snapshots["image 0"], starting_offset=SIZE):
        assert (message.volume_capacity_bytes, list(message.block_metadata)) == (SIZE, [])


def test_a_snapshot_that_is_not_ready_has_no_list_yet(driver: Driver) -> None:
    request = create_request("slow", 2048 * MIB, volume_capabilities=[capability(block=True)])
    volume_id = driver.call("CreateVolume", request).volume.volume_id
    with open(driver.pool / "volumes" / volume_id / "disk.img", "r+b") as file:
        for _ in range(512):
            file.write(b"x" * MIB)
    snapshot = driver.call("CreateSnapshot", name="slow", source_volume_id=volume_id).snapshot
    call: dict[str, Any] = {"snapshot_id": snapshot.snapshot_id}
    if not snapshot.ready_to_use:
        try:
            words = ("snapshot_id", snapshot.snapshot_id, "ready_to_use")
            refused(driver, "GetMetadataAllocated", Code.FAILED_PRECONDITION, *words, **call)
        except pytest.fail.Exception:
            # It was ready just then.
            assert driver.call("GetSnapshot", **call).snapshot.ready_to_use
    until(lambda: driver.call("GetSnapshot", **call).snapshot.ready_to_use, 60)
    messages = driver.call("GetMetadataAllocated", **call)
    assert sum(one.size_bytes for message in messages for one in message.block_metadata) == 512 * MIB
    driver.call("DeleteSnapshot", **call)
    driver.call("DeleteVolume", volume_id=volume_id)


def test_the_service_is_advertised(driver: Driver) -> None:
    wanted = csi_pb2.PluginCapability.Service.SNAPSHOT_METADATA_SERVICE
    assert wanted in [one.service.type for one in driver.call("GetPluginCapabilities").capabilities]
