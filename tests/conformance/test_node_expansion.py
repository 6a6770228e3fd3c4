"""NodeExpandVolume of CSI 1.13, row by row of its table, for every kind of volume.

- The volume is looked up before its path is judged; a path where the volume is not is NOT_FOUND.
- The node gives no more than the controller did.
- A read-only publication, a block device, symbolic links: whatever path kubelet names, the volume grows.
- What cannot grow while it is mounted says how it can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import growth
from tests.conformance.growing import KINDS, growing, grows_mounted, statistics_total
from tests.conformance.probing import refused
from tests.harness import MIB, Code, Driver, Workload, run


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Workload]:
    with growing(driver, request.param) as workload:
        yield workload


@pytest.fixture
def image(driver: Driver) -> Iterator[Workload]:
    with growing(driver, "xfs") as workload:
        yield workload


@pytest.fixture
def device(driver: Driver) -> Iterator[Workload]:
    with growing(driver, "block") as workload:
        yield workload


# The tables


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
