"""A btrfs of less than 256 MiB, which the kernel grows to that or more, and to nothing below.

- It grows to a size that the kernel lets it grow to, and a limit below that is refused; a copy has its source's size,
  or one to which it can grow.
- A volume that an earlier build left larger than the btrfs in it is made whole with the next stage or expansion, and
  again by the next driver when the first is killed meanwhile; without room for that, or below a limit, it stays so.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.pb import csi_pb2
from csi_driver.store import records
from tests.conformance.growing import KINDS, growing, size_of
from tests.conformance.probing import refused
from tests.harness import MIB, Code, Driver, Failure, PoolPlace, Workload, create_request, run


@pytest.fixture
def small_btrfs(driver: Driver) -> Iterator[Workload]:
    with growing(driver, "btrfs") as workload:
        yield workload


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


def test_a_btrfs_that_there_is_no_room_to_make_whole_serves_as_it_is_until_there_is(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(make_pool("xfs", 512 * MIB))
    workload = Workload(driver, "small", **KINDS["btrfs"])
    workload.create()
    stuck_at(workload, 192 * MIB)
    room = driver.call("GetCapacity").available_capacity - MIB
    greedy = Workload(driver, "greedy", block=True, size_bytes=room)
    greedy.create()
    workload.stage()
    assert "keeps a btrfs that is smaller" in driver.log()
    assert (size_of(workload), filesystem_bytes(workload.staging)) == (192 * MIB, 128 * MIB)
    at_staging = {"volume_id": workload.volume_id, "volume_path": workload.staging}
    refused(driver, "NodeExpandVolume", Code.FAILED_PRECONDITION, "no less than 268435456", **at_staging)
    greedy.delete()
    for limit in (192 * MIB, 256 * MIB - 4096):
        limited = csi_pb2.CapacityRange(limit_bytes=limit)
        refused(driver, "NodeExpandVolume", Code.OUT_OF_RANGE, "limit_bytes", capacity_range=limited, **at_staging)
    assert (size_of(workload), filesystem_bytes(workload.staging)) == (192 * MIB, 128 * MIB), "no more than is asked"
    limited = csi_pb2.CapacityRange(limit_bytes=256 * MIB)
    assert driver.call("NodeExpandVolume", capacity_range=limited, **at_staging).capacity_bytes == 256 * MIB
    assert filesystem_bytes(workload.staging) == 256 * MIB


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
