"""The size that volumes of every kind grow to, and the table of ControllerExpandVolume of CSI 1.13, row by row.

- What is given satisfies what is asked, is told by every later answer, and is what the workload gets: device,
  filesystem and statistics; on a mounted volume at once, and on one that is not when it is staged next.
- Nothing becomes smaller: less is OK and changes nothing, a limit below the size is OUT_OF_RANGE.
- A capability that the volume does not have is INVALID_ARGUMENT, to the node as well; more than the pool has is
  RESOURCE_EXHAUSTED, with numbers, and leaves no trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.linux import growth
from csi_driver.pb import csi_pb2
from tests.conformance.growing import KINDS, growing, grows_mounted, is_unlimited, size_of, statistics_total
from tests.conformance.probing import refused, traces
from tests.harness import GIB, MIB, Code, Driver, Workload, capability, create_request, run


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Workload]:
    with growing(driver, request.param) as workload:
        yield workload


@pytest.fixture
def image(driver: Driver) -> Iterator[Workload]:
    with growing(driver, "xfs") as workload:
        yield workload


# The size


def test_an_expansion_gives_exactly_what_is_asked_and_every_answer_tells_it(volume: Workload) -> None:
    wanted = 4 * volume.size_bytes
    answer = volume.driver.call("ControllerExpandVolume", volume.expand_request(wanted))
    assert answer.capacity_bytes == wanted
    assert answer.node_expansion_required == (not volume.block and volume.parameters.get("type") != "directory")
    assert size_of(volume) == wanted
    entries = volume.driver.call("ListVolumes").entries
    assert {entry.volume.capacity_bytes for entry in entries if entry.volume.volume_id == volume.volume_id} == {wanted}
    volume.driver.restart()
    assert size_of(volume) == wanted


def test_an_expansion_can_be_repeated_and_changes_nothing(volume: Workload) -> None:
    volume.expand(2 * volume.size_bytes)
    volume.stage()
    volume.publish()
    volume.expand_on_node()
    before = traces(volume.driver)
    for asked in (2 * volume.size_bytes, volume.size_bytes, 1):
        assert volume.expand(asked) == 2 * volume.size_bytes
    assert volume.expand_on_node() == 2 * volume.size_bytes
    assert traces(volume.driver) == before


def test_a_size_is_rounded_up_to_whole_blocks(volume: Workload) -> None:
    assert volume.expand(2 * volume.size_bytes + 1) == 2 * volume.size_bytes + 4096


def test_a_workload_gets_what_was_added_at_once_or_with_the_next_stage(volume: Workload) -> None:
    volume.stage()
    target = volume.publish()
    before = statistics_total(volume)
    volume.expand(4 * volume.size_bytes)
    if not grows_mounted(volume):
        volume.unpublish()
        volume.unstage()
        volume.stage()
        volume.publish()
    volume.expand_on_node()
    after = statistics_total(volume)
    if volume.block:
        assert after == 4 * volume.size_bytes == int(run("blockdev", "--getsize64", target))
        with open(target, "r+b", buffering=0) as device:
            os.pwrite(device.fileno(), b"e" * 4096, after - 4096)
    elif is_unlimited(volume):
        assert after == before
    else:
        assert 3 * volume.size_bytes < after <= 4 * volume.size_bytes
        Path(target, "large").write_bytes(b"g" * (volume.size_bytes * 5 // 4))


def test_a_volume_that_is_not_staged_grows_when_it_is(volume: Workload) -> None:
    volume.expand(4 * volume.size_bytes)
    volume.stage()
    volume.publish()
    if not is_unlimited(volume):
        assert statistics_total(volume) > 3 * volume.size_bytes
    assert volume.expand_on_node() == 4 * volume.size_bytes


def test_a_thick_volume_owns_all_of_its_new_blocks(driver: Driver) -> None:
    workload = Workload(driver, "thick growth", **KINDS["ext4-thick"])
    workload.create()
    workload.expand(64 * MIB)
    image = driver.pool / "volumes" / workload.volume_id / "disk.img"
    assert image.stat().st_blocks * 512 >= 64 * MIB
    workload.delete()


def test_the_name_still_means_the_volume_that_has_grown(driver: Driver) -> None:
    request = create_request("named and grown", 16 * MIB)
    volume_id = driver.call("CreateVolume", request).volume.volume_id
    driver.call("ControllerExpandVolume", volume_id=volume_id, capacity_range={"required_bytes": 32 * MIB})
    again = driver.call("CreateVolume", request).volume
    assert (again.volume_id, again.capacity_bytes) == (volume_id, 32 * MIB)
    limited = create_request("named and grown", 16 * MIB, limit_bytes=16 * MIB)
    refused(driver, "CreateVolume", Code.ALREADY_EXISTS, "capacity_range", request=limited)
    driver.call("DeleteVolume", volume_id=volume_id)


# The tables


def test_a_limit_below_the_size_is_out_of_range(volume: Workload) -> None:
    volume.stage()
    volume.publish()
    asked: dict[str, Any] = {"volume_id": volume.volume_id, "capacity_range": {"limit_bytes": volume.size_bytes - 1}}
    words = ("capacity_range.limit_bytes", str(volume.size_bytes), "smaller")
    refused(volume.driver, "ControllerExpandVolume", Code.OUT_OF_RANGE, *words, **asked)
    refused(volume.driver, "NodeExpandVolume", Code.OUT_OF_RANGE, *words, volume_path=volume.target(), **asked)
    asked["capacity_range"]["limit_bytes"] = volume.size_bytes
    assert volume.driver.call("ControllerExpandVolume", **asked).capacity_bytes == volume.size_bytes


@pytest.mark.parametrize(
    ("required", "limit"),
    [(1 << 62, 0), (16 << 40, 0), (300 * MIB + 1, 300 * MIB + 1)],
    ids=["no such volume", "no such file", "no whole blocks"],
)
def test_a_size_that_no_such_volume_can_have_is_out_of_range(image: Workload, required: int, limit: int) -> None:
    asked = {"required_bytes": required, "limit_bytes": limit}
    before = traces(image.driver)
    refused(
        image.driver,
        "ControllerExpandVolume",
        Code.OUT_OF_RANGE,
        "capacity_range",
        volume_id=image.volume_id,
        capacity_range=asked,
    )
    assert traces(image.driver) == before


def test_an_ext4_that_only_the_kernel_could_grow_is_not_extended_where_it_will_not(driver: Driver) -> None:
    workload = Workload(driver, "small ext4", size_bytes=8 * MIB)
    workload.create()
    request = workload.expand_request(8 * GIB + 4096)
    if growth.may_grow_mounted_ext4():
        assert driver.code("ControllerExpandVolume", request) in {Code.OK, Code.RESOURCE_EXHAUSTED}
    else:
        words = ("capacity_range.required_bytes", "CAP_SYS_RESOURCE", str(8 * GIB))
        refused(driver, "ControllerExpandVolume", Code.OUT_OF_RANGE, *words, request=request)
        assert workload.expand(128 * MIB) == 128 * MIB
    workload.delete()


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "block"])
def test_more_than_the_pool_can_promise_is_refused_with_the_numbers_and_leaves_no_trace(
    driver: Driver, kind: str
) -> None:
    with growing(driver, kind) as volume:
        available = driver.call("GetCapacity").available_capacity
        wanted = (volume.size_bytes + available + GIB) // 4096 * 4096
        before = traces(driver)
        words = (volume.volume_id, str(volume.size_bytes), str(wanted), str(wanted - volume.size_bytes), "pool default")
        refused(
            driver,
            "ControllerExpandVolume",
            Code.RESOURCE_EXHAUSTED,
            *words,
            request=volume.expand_request(wanted),
        )
        assert traces(driver) == before
        assert volume.expand(2 * volume.size_bytes) == 2 * volume.size_bytes


MISSING: dict[str, tuple[str, dict[str, Any], str]] = {
    "no volume id": ("ControllerExpandVolume", {"capacity_range": {"required_bytes": MIB}}, "volume_id"),
    "no range": ("ControllerExpandVolume", {"volume_id": "vol-x"}, "capacity_range"),
    "an empty range": ("ControllerExpandVolume", {"volume_id": "vol-x", "capacity_range": {}}, "capacity_range"),
    "no volume id on the node": ("NodeExpandVolume", {"volume_path": "/x"}, "volume_id"),
    "no path": ("NodeExpandVolume", {"volume_id": "vol-x"}, "volume_path"),
}


@pytest.mark.parametrize(("method", "request_fields", "field"), MISSING.values(), ids=MISSING)
def test_a_field_that_is_missing_is_named(
    driver: Driver, method: str, request_fields: dict[str, Any], field: str
) -> None:
    refused(driver, method, Code.INVALID_ARGUMENT, field, **request_fields)


@pytest.mark.parametrize(
    "given", [{"required_bytes": -1}, {"limit_bytes": -1}, {"required_bytes": 2, "limit_bytes": 1}]
)
def test_a_range_that_is_none_is_refused(image: Workload, given: dict[str, int]) -> None:
    for method, more in (("ControllerExpandVolume", {}), ("NodeExpandVolume", {"volume_path": image.target()})):
        fields = {"volume_id": image.volume_id, "capacity_range": given, **more}
        refused(image.driver, method, Code.INVALID_ARGUMENT, "capacity_range", **fields)


EXCEEDING = {
    "block": capability(block=True),
    "another filesystem": capability(fs_type="btrfs"),
    "many nodes": capability("MULTI_NODE_MULTI_WRITER"),
    "no access type": csi_pb2.VolumeCapability(access_mode={"mode": "SINGLE_NODE_WRITER"}),
    "a flag of nobody": capability(flags=["frobnicate"]),
}


@pytest.mark.parametrize("asked", EXCEEDING.values(), ids=EXCEEDING)
def test_a_capability_that_the_volume_does_not_have_is_an_invalid_argument(
    image: Workload, asked: csi_pb2.VolumeCapability
) -> None:
    image.stage()
    image.publish()
    fields = {"volume_id": image.volume_id, "capacity_range": {"required_bytes": 600 * MIB}, "volume_capability": asked}
    refused(image.driver, "ControllerExpandVolume", Code.INVALID_ARGUMENT, "volume_capability", **fields)
    refused(
        image.driver,
        "NodeExpandVolume",
        Code.INVALID_ARGUMENT,
        "volume_capability",
        volume_path=image.target(),
        **fields,
    )
    assert size_of(image) == image.size_bytes


def test_the_capability_of_the_volume_is_accepted(volume: Workload) -> None:
    volume.stage()
    volume.publish()
    request = volume.expand_request(2 * volume.size_bytes)
    request.volume_capability.CopyFrom(volume.capability)
    volume.driver.call("ControllerExpandVolume", request)
    if grows_mounted(volume):
        volume.driver.call(
            "NodeExpandVolume",
            volume_id=volume.volume_id,
            volume_path=volume.target(),
            staging_target_path=volume.staging,
            volume_capability=volume.capability,
            capacity_range={"required_bytes": 2 * volume.size_bytes},
        )


# Damage


def test_a_volume_whose_image_is_missing_or_short_is_not_extended(driver: Driver) -> None:
    workload = Workload(driver, "short", size_bytes=16 * MIB)
    workload.create()
    image = driver.pool / "volumes" / workload.volume_id / "disk.img"
    os.truncate(image, MIB)
    refused(driver, "ControllerExpandVolume", Code.INTERNAL, "record says", request=workload.expand_request(64 * MIB))
    image.unlink()
    refused(driver, "ControllerExpandVolume", Code.INTERNAL, "missing", request=workload.expand_request(64 * MIB))
    workload.delete()


def test_an_unmounted_ext4_with_errors_is_neither_grown_nor_mounted_before_it_is_repaired(driver: Driver) -> None:
    workload = Workload(driver, "broken", size_bytes=16 * MIB)
    workload.create()
    workload.expand(64 * MIB)
    image = driver.pool / "volumes" / workload.volume_id / "disk.img"
    run("debugfs", "-w", "-R", "set_inode_field <2> mode 0100644", str(image))
    if growth.may_grow_mounted_ext4():
        run("debugfs", "-w", "-R", "set_super_value state 2", str(image))
    refused(driver, "NodeStageVolume", Code.INTERNAL, "e2fsck -f", str(image), request=workload.stage_request())
    assert driver.mounts() == []
    workload.delete()
