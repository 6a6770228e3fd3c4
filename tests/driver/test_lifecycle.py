"""A volume's life, for every kind.

- Whatever its kind, a volume can be created, staged, published, written, unpublished, unstaged and deleted.
- Every step can be repeated and changes nothing the second time.
- Afterwards neither mounts nor loop devices nor files are left.
- What was written is there when the volume is published again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import DIRECTORY, MIB, Driver, Workload

KINDS = {
    "ext4": {},
    "ext4-thick": {"parameters": {"provisioning": "thick"}},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
    "block": {"block": True},
    "block-512": {"block": True, "parameters": {"blockSize": "512"}},
    "directory": {"parameters": DIRECTORY},
}


@pytest.fixture(params=KINDS)
def workload(request: pytest.FixtureRequest, driver: Driver) -> Workload:
    return Workload(driver, request.param, **KINDS[request.param])


def write_something(target: str, *, block: bool) -> None:
    if block:
        with open(target, "r+b", buffering=0) as device:
            device.write(b"hostvol!" * 512)
            os.fsync(device.fileno())
    else:
        Path(target, "greeting").write_text("hello")


def read_it_back(target: str, *, block: bool) -> bool:
    if block:
        with open(target, "rb", buffering=0) as device:
            return device.read(4096) == b"hostvol!" * 512
    return Path(target, "greeting").read_text() == "hello"


def test_every_step_can_be_repeated_and_nothing_is_left(workload: Workload) -> None:
    driver = workload.driver
    first = workload.create()
    assert workload.create() == first
    for step in (workload.stage, workload.publish):
        step()
        mounts = driver.mounts()
        step()
        assert driver.mounts() == mounts
    write_something(workload.target(), block=workload.block)
    for step in (workload.unpublish, workload.unstage, workload.delete):
        step()
        if step != workload.delete:
            step()
    workload.driver.call("DeleteVolume", volume_id=first)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
    assert not os.path.lexists(workload.target())


def test_what_was_written_is_there_when_the_volume_is_published_again(workload: Workload) -> None:
    write_something(workload.up(), block=workload.block)
    workload.unpublish()
    workload.unstage()
    assert workload.driver.loops() == []
    workload.stage()
    assert read_it_back(workload.publish(), block=workload.block)
    workload.down()


def test_a_driver_that_is_killed_finds_its_mounts_again(workload: Workload) -> None:
    target = workload.up()
    write_something(target, block=workload.block)
    workload.driver.restart()
    assert read_it_back(target, block=workload.block)
    mounts = workload.driver.mounts()
    workload.stage()
    workload.publish()
    assert workload.driver.mounts() == mounts
    workload.down()
    assert (workload.driver.mounts(), workload.driver.loops(), workload.driver.files()) == ([], [], [])
