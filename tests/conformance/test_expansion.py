"""ControllerExpandVolume and NodeExpandVolume of CSI 1.13, row by row of their tables, for every kind of volume.

- What is given satisfies what is asked, is told by every later answer, and is what the workload gets: device,
  filesystem and statistics; on a mounted volume at once, and on one that is not when it is staged next.
- Nothing becomes smaller: less is OK and changes nothing, a limit below the size is OUT_OF_RANGE.
- The volume is looked up before its path is judged; a path where the volume is not is NOT_FOUND.
- A capability that the volume does not have is INVALID_ARGUMENT; more than the pool has is RESOURCE_EXHAUSTED, with
  numbers, and leaves no trace.
- A read-only publication, a block device, symbolic links: whatever path kubelet names, the volume grows.
- What cannot grow while it is mounted says how it can.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.linux import growth
from csi_driver.pb import csi_pb2
from csi_driver.store import records
from tests.conformance.probing import refused, traces
from tests.harness import (
    DIRECTORY,
    GIB,
    MIB,
    Code,
    Driver,
    Failure,
    PoolPlace,
    Workload,
    capability,
    create_request,
    run,
)

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 16 * MIB},
    "ext4-thick": {"size_bytes": 16 * MIB, "parameters": {"provisioning": "thick"}},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
    "block": {"block": True, "size_bytes": 8 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 8 * MIB},
}


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Workload]:
    yield from existing(driver, request.param)


@pytest.fixture
def image(driver: Driver) -> Iterator[Workload]:
    yield from existing(driver, "xfs")


@pytest.fixture
def device(driver: Driver) -> Iterator[Workload]:
    yield from existing(driver, "block")


def existing(driver: Driver, kind: str) -> Iterator[Workload]:
    before = (driver.mounts(), driver.loops(), driver.files())
    workload = Workload(driver, f"growing-{kind}", **KINDS[kind])
    workload.create()
    yield workload
    for number in range(2):
        workload.unpublish(number)
    workload.unstage()
    workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == before


def size_of(workload: Workload) -> int:
    """As the controller tells it."""
    told = workload.driver.call("ControllerGetVolume", volume_id=workload.volume_id)
    return int(told.volume.capacity_bytes)


def statistics_total(workload: Workload) -> int:
    answer = workload.driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target())
    return int(answer.usage[0].total)


def is_unlimited(workload: Workload) -> bool:
    return workload.parameters.get("quota") == "none"


def grows_mounted(workload: Workload) -> bool:
    return not workload.name.startswith("growing-ext4") or growth.may_grow_mounted_ext4()


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


@pytest.fixture
def small_btrfs(driver: Driver) -> Iterator[Workload]:
    yield from existing(driver, "btrfs")


def test_a_small_btrfs_grows_to_what_the_kernel_lets_it_grow_to(small_btrfs: Workload) -> None:
    request = small_btrfs.expand_request(192 * MIB)
    request.capacity_range.limit_bytes = 200 * MIB
    refused(small_btrfs.driver, "ControllerExpandVolume", Code.OUT_OF_RANGE, "limit_bytes", request=request)
    small_btrfs.stage()
    small_btrfs.publish()
    assert small_btrfs.expand(192 * MIB) == 256 * MIB
    assert small_btrfs.expand_on_node() == 256 * MIB
    assert small_btrfs.expand(192 * MIB) == 256 * MIB


def test_a_copy_of_a_small_btrfs_has_its_size_or_one_to_which_it_can_grow(small_btrfs: Workload) -> None:
    for size, given in ((128 * MIB, 128 * MIB), (192 * MIB, 256 * MIB)):
        copy = Workload(small_btrfs.driver, f"copy-{size}", fs_type="btrfs", size_bytes=size)
        request = create_request(copy.name, size, volume_capabilities=[copy.capability])
        request.volume_content_source.volume.volume_id = small_btrfs.volume_id
        made = copy.driver.call("CreateVolume", request).volume
        assert made.capacity_bytes == given
        copy.volume_id = made.volume_id
        copy.stage()
        copy.unstage()
        copy.delete()


def stuck_at(workload: Workload, size_bytes: int) -> None:
    """The volume as an earlier build extended it: the image and the record have the size, the btrfs in it has not."""
    driver = workload.driver
    driver.stop()
    volumes = driver.pool / "volumes"
    os.truncate(volumes / workload.volume_id / "disk.img", size_bytes)
    volumes_fd = os.open(volumes, os.O_RDONLY)
    try:
        held = records.read_volume(volumes_fd, workload.volume_id, "its record")
        records.replace_volume(volumes_fd, dataclasses.replace(held, capacity_bytes=size_bytes))
    finally:
        os.close(volumes_fd)
    driver.start()


def filesystem_bytes(path: str) -> int:
    return int(re.findall(r"Device size:\s+(\d+)", run("btrfs", "filesystem", "usage", "--raw", path))[0])


@pytest.mark.parametrize("how", ["stage", "expand", "limited"])
def test_a_btrfs_that_an_earlier_build_left_smaller_than_its_volume_is_made_whole(
    small_btrfs: Workload, how: str
) -> None:
    small_btrfs.stage()
    Path(small_btrfs.staging, "kept").write_text("before")
    small_btrfs.unstage()
    stuck_at(small_btrfs, 192 * MIB)
    if how == "limited":
        request = small_btrfs.expand_request(192 * MIB)
        request.capacity_range.limit_bytes = 192 * MIB
        assert small_btrfs.driver.call("ControllerExpandVolume", request).capacity_bytes == 192 * MIB, "as was allowed"
    if how == "expand":
        assert small_btrfs.expand(192 * MIB) == 256 * MIB
    for _ in range(2):
        small_btrfs.stage()
        small_btrfs.publish()
        assert filesystem_bytes(small_btrfs.staging) == size_of(small_btrfs) == 256 * MIB
        assert small_btrfs.expand_on_node() == 256 * MIB
        assert Path(small_btrfs.target(), "kept").read_text() == "before"
        small_btrfs.unpublish()
        small_btrfs.unstage()
    run("btrfs", "check", "--readonly", str(small_btrfs.driver.pool / "volumes" / small_btrfs.volume_id / "disk.img"))


@pytest.mark.parametrize("point", ["expand.intended", "expand.extended", "expand.recorded", "grow.filesystem_grown"])
def test_a_driver_killed_while_it_makes_a_btrfs_whole_does_it_again(small_btrfs: Workload, point: str) -> None:
    stuck_at(small_btrfs, 192 * MIB)
    small_btrfs.driver.restart(HOSTVOL_CRASH_AT=point)
    with pytest.raises(Failure):
        small_btrfs.stage()
    assert small_btrfs.driver.wait_dead() == -signal.SIGKILL
    small_btrfs.driver.start()
    small_btrfs.stage()
    assert filesystem_bytes(small_btrfs.staging) == size_of(small_btrfs) == 256 * MIB


def test_a_btrfs_that_there_is_no_room_to_make_whole_serves_as_it_is(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(make_pool("xfs", 512 * MIB))
    workload = Workload(driver, "small", **KINDS["btrfs"])
    workload.create()
    stuck_at(workload, 192 * MIB)
    room = driver.call("GetCapacity").available_capacity - MIB
    Workload(driver, "greedy", block=True, size_bytes=room).create()
    workload.stage()
    assert "keeps a btrfs that is smaller" in driver.log()
    assert (size_of(workload), filesystem_bytes(workload.staging)) == (192 * MIB, 128 * MIB)
    at_staging = {"volume_id": workload.volume_id, "volume_path": workload.staging}
    refused(driver, "NodeExpandVolume", Code.FAILED_PRECONDITION, "no less than 268435456", **at_staging)


@pytest.mark.parametrize("source", ["snapshot", "volume"])
def test_a_copy_of_a_btrfs_that_is_smaller_than_its_volume_is_made_whole(small_btrfs: Workload, source: str) -> None:
    stuck_at(small_btrfs, 192 * MIB)
    driver = small_btrfs.driver
    cut = driver.call("CreateSnapshot", name="cut", source_volume_id=small_btrfs.volume_id).snapshot
    copy = Workload(driver, "copy", fs_type="btrfs")
    request = create_request(copy.name, 0, 200 * MIB, volume_capabilities=[copy.capability])
    request.capacity_range.required_bytes = 0
    if source == "snapshot":
        request.volume_content_source.snapshot.snapshot_id = cut.snapshot_id
    else:
        request.volume_content_source.volume.volume_id = small_btrfs.volume_id
    copy.volume_id = driver.call("CreateVolume", request).volume.volume_id
    assert size_of(copy) == 192 * MIB, "its source's size, and what its limit allows"
    copy.stage()
    assert filesystem_bytes(copy.staging) == size_of(copy) == 256 * MIB
    copy.unstage()
    copy.delete()
    driver.call("DeleteSnapshot", snapshot_id=cut.snapshot_id)


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
    for volume in existing(driver, kind):
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


@pytest.mark.parametrize("volume_id", ["fake-vol-id", "vol-0000000000000000-0000000000000000"])
def test_a_volume_that_does_not_exist_is_not_found_whatever_its_path(driver: Driver, volume_id: str) -> None:
    asked = {"required_bytes": 64 * MIB}
    refused(driver, "ControllerExpandVolume", Code.NOT_FOUND, volume_id, volume_id=volume_id, capacity_range=asked)
    for path in ("some/path", "/nowhere", "/"):
        refused(driver, "NodeExpandVolume", Code.NOT_FOUND, volume_id, volume_id=volume_id, volume_path=path)


@pytest.mark.parametrize("path", ["some/path", "/nowhere", "/", "/tmp", "/dev/null", "/proc/self", "/etc/../etc"])
def test_a_path_where_the_volume_is_not_is_not_found(volume: Workload, path: str) -> None:
    volume.stage()
    volume.publish()
    words = ("volume_path", volume.volume_id)
    volume_id = volume.volume_id
    refused(volume.driver, "NodeExpandVolume", Code.NOT_FOUND, *words, volume_id=volume_id, volume_path=path)


def test_a_volume_that_is_not_staged_is_nowhere(volume: Workload) -> None:
    for path in (volume.staging, volume.target()):
        refused(volume.driver, "NodeExpandVolume", Code.NOT_FOUND, volume_id=volume.volume_id, volume_path=path)


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


def test_the_node_gives_no_more_than_the_controller_did(image: Workload) -> None:
    image.stage()
    image.publish()
    refused(
        image.driver,
        "NodeExpandVolume",
        Code.OUT_OF_RANGE,
        "ControllerExpandVolume",
        volume_id=image.volume_id,
        volume_path=image.target(),
        capacity_range={"required_bytes": 301 * MIB},
    )


# The paths that kubelet names


def test_the_staging_path_is_a_path_of_the_volume(volume: Workload) -> None:
    volume.stage()
    volume.expand(2 * volume.size_bytes)
    if grows_mounted(volume):
        assert volume.expand_on_node(volume.staging) == 2 * volume.size_bytes
    if volume.block:
        [loop] = volume.driver.loops()
        assert int(run("blockdev", "--getsize64", loop)) == 2 * volume.size_bytes


def test_a_filesystem_grows_through_a_read_only_publication(image: Workload) -> None:
    image.stage()
    image.publish(readonly=True)
    image.expand(4 * image.size_bytes)
    image.expand_on_node()
    assert statistics_total(image) > 3 * image.size_bytes


def test_a_filesystem_staged_read_only_is_refused_with_the_remedy_and_grows_later(image: Workload) -> None:
    image.flags = ["ro"]
    image.stage()
    image.publish()
    image.expand(2 * image.size_bytes)
    failure = refused(
        image.driver,
        "NodeExpandVolume",
        Code.FAILED_PRECONDITION,
        "read-only",
        volume_id=image.volume_id,
        volume_path=image.target(),
    )
    assert "without `ro`" in failure.details
    image.unpublish()
    image.unstage()
    image.flags = []
    image.stage()
    image.publish()
    assert statistics_total(image) > 3 * image.size_bytes // 2


def test_a_mounted_ext4_grows_or_is_refused_with_both_remedies(driver: Driver) -> None:
    workload = Workload(driver, "mounted ext4", size_bytes=16 * MIB)
    workload.up()
    workload.expand(64 * MIB)
    if growth.may_grow_mounted_ext4():
        workload.expand_on_node()
        assert statistics_total(workload) > 48 * MIB
    else:
        fields = {"volume_id": workload.volume_id, "volume_path": workload.target()}
        refused(driver, "NodeExpandVolume", Code.FAILED_PRECONDITION, "CAP_SYS_RESOURCE", "staged next", **fields)
    # A stage that kubelet repeats is no reason to take the workload's volume away.
    workload.stage()
    workload.down()


def test_a_device_has_its_new_size_before_the_node_is_asked(device: Workload) -> None:
    device.stage()
    target = device.publish()
    with open(target, "rb", buffering=0) as held:
        device.expand(4 * device.size_bytes)
        assert os.lseek(held.fileno(), 0, os.SEEK_END) == 4 * device.size_bytes


def test_a_device_is_found_through_a_symbolic_link(device: Workload, tmp_path: Path) -> None:
    device.stage()
    target = device.publish()
    link = tmp_path / "link"
    link.symlink_to(target)
    device.expand(2 * device.size_bytes)
    assert device.expand_on_node(str(link)) == 2 * device.size_bytes


def test_a_device_below_a_loop_device_of_kubelets_grows(device: Workload) -> None:
    device.stage()
    target = device.publish()
    above = run("losetup", "--find", "--show", target).strip()
    try:
        device.expand(2 * device.size_bytes)
        assert device.expand_on_node(target) == 2 * device.size_bytes
        refused(device.driver, "NodeExpandVolume", Code.NOT_FOUND, volume_id=device.volume_id, volume_path=above)
        assert int(run("blockdev", "--getsize64", target)) == 2 * device.size_bytes
    finally:
        run("losetup", "-d", above)


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
