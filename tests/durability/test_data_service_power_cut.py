"""The power fails while volumes are cut, copied, imported, changed and rolled back, on every filesystem.

- A snapshot, a copy, a group and an import that was acknowledged is there afterwards, with what it has to hold; one
  whose delete was acknowledged stays away. A parameter has the value that was acknowledged last, and a volume the
  content; what a rollback replaced is in the trash.
- What was not acknowledged is whole or not there, never a part of a group; the repeated call finishes it.
- The driver starts on what the cut left and clears the rest away; nothing is quarantined.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.durability.callers import Caller
from tests.durability.disks import Disk
from tests.durability.snapshot_callers import GroupCaller, SnapshotCaller
from tests.durability.volume_callers import ImportCaller, ModifyCaller, RollbackCaller
from tests.harness import Driver
from tests.waiting import until

CUTS = 5
SOURCES = ("ext4", "block", "directory")


@pytest.fixture
def driver(tmp_path: Path, disk: Disk) -> Iterator[Driver]:
    with Driver(tmp_path / "driver", [disk.place]).serving() as driver:
        yield driver


def callers_of(driver: Driver, disk: Disk) -> list[Caller]:
    """One of each kind; groups are of pools that can share blocks."""
    can_share = disk.fs_type != "ext4"
    callers: list[Caller] = [SnapshotCaller(driver, kind, can_share=can_share) for kind in SOURCES]
    callers += [ImportCaller(driver), ModifyCaller(driver), RollbackCaller(driver)]
    return [*callers, GroupCaller(driver)] if can_share else callers


def reboot(driver: Driver, disk: Disk) -> None:
    driver.kill()
    driver.clean_up()
    disk.recover()
    shutil.rmtree(driver.home / "state")
    driver.start()


def forget_the_unheard(driver: Driver, callers: list[Caller]) -> None:
    """Delete what was made by calls that nobody heard the end of."""
    known = {volume_id for caller in callers for volume_id in caller.volumes()}
    for entry in driver.call("ListVolumes").entries:
        if entry.volume.volume_id not in known:
            driver.call("DeleteVolume", volume_id=entry.volume.volume_id)


def leftovers(driver: Driver) -> list[str]:
    return [path for path in driver.files() if path.startswith(("tmp/", "trash/"))]


@pytest.mark.timeout(280)
def test_cuts_lose_nothing_that_was_acknowledged(driver: Driver, disk: Disk, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    choices = random.Random(name)
    callers = callers_of(driver, disk)
    for turn in range(CUTS):
        _ = driver.caller  # made once, by this thread
        for caller in callers:
            caller.begin(turn)
        until(lambda: all(caller.is_under_way() for caller in callers), 60)
        time.sleep(choices.uniform(0, 0.4))  # the moment of the cut is the point, nothing is waited for
        for caller in callers:
            caller.expect_the_cut()
        disk.cut()
        for caller in callers:
            caller.end()
        reboot(driver, disk)
        assert "quarantine" not in driver.log()
        for caller in callers:
            caller.check()
        forget_the_unheard(driver, callers)
        until(lambda: not leftovers(driver), 20, what=lambda: leftovers(driver))
        for caller in callers:
            caller.come_back()
    told = ", ".join(f"{caller.name} {caller.acknowledged}" for caller in callers)
    print(f"{name}: {CUTS} cuts, none lost of the calls that were acknowledged: {told}")
    assert os.path.isdir(driver.pool / "snapshots")
