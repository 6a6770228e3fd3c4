"""Limits of directory volumes that are raised, set and lifted.

On XFS and ext4, each mounted with `prjquota`:

- A limit that is raised holds to the byte at once, survives a power cut, and is finished by the next start when the
  driver is killed in its middle; where no quota is enforced it is not raised.
- A directory without a limit gets one while nobody uses it: all in it is charged, and the limit holds to the byte;
  more than its size is refused; a driver killed in the middle leaves a directory without a limit, in which files can be
  renamed.

Runs inside the machine of `test_driver_quota.py`. Oracles: xfs_quota, du.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import MIB, Code, Driver, Failure, Workload, run
from tests.powercut import cut_power
from tests.uml.directories import (
    DISKS,
    FULL,
    NONE,
    SLACK,
    directory,
    disk_usage,
    is_free,
    kind_of,
    project_of,
    remount,
    stats,
    up,
)
from tests.uml.quotas import NOBODY, reported, write
from tests.waiting import until


def test_a_full_volume_that_grows_holds_exactly_what_was_added(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "growing", 8 * MIB)
    target = up(workload)
    project_id = project_of(workload)
    assert write(target, NOBODY, "write") in FULL
    answer = driver.call("ControllerExpandVolume", workload.expand_request(24 * MIB))
    assert (answer.capacity_bytes, answer.node_expansion_required) == (24 * MIB, False)
    assert reported(filesystem, project_id)[1] == 24 * MIB
    assert write(target, NOBODY, "append") in FULL
    assert 24 * MIB - SLACK <= disk_usage(target) <= 24 * MIB
    assert stats(workload)[:2] == (24 * MIB, disk_usage(target))
    # Nothing becomes smaller, and a limit that was written full is not lifted by asking again.
    assert workload.expand(8 * MIB) == 24 * MIB
    assert workload.expand_on_node() == 24 * MIB
    assert reported(filesystem, project_id)[1] == 24 * MIB
    workload.down()
    until(lambda: is_free(filesystem, project_id))


@pytest.mark.parametrize("point", ["expand.intended", "directory.limit_raised", "expand.extended", "expand.recorded"])
def test_a_driver_killed_while_a_quota_grows_finishes_it(filesystem: Path, driver: Driver, point: str) -> None:
    workload = directory(driver, "growing", 8 * MIB)
    up(workload)
    driver.restart(HOSTVOL_CRASH_AT=point)
    with pytest.raises(Failure):
        workload.expand(16 * MIB)
    assert driver.wait_dead() == -signal.SIGKILL
    driver.start()
    assert driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes == 16 * MIB
    assert reported(filesystem, project_of(workload))[1] == 16 * MIB
    workload.down()


def test_a_grown_limit_survives_a_power_cut(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "grown", 8 * MIB)
    workload.create()
    workload.expand(16 * MIB)
    kind = kind_of(filesystem)
    cut_power(str(filesystem), flush_log=False)
    driver.kill()
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes == 16 * MIB
    assert reported(filesystem, project_of(workload))[1] == 16 * MIB
    workload.delete()


def test_a_volume_without_its_quota_is_not_extended(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    workload = directory(driver, "unlimited now", 8 * MIB)
    workload.create()
    remount(driver, filesystem, DISKS[kind], "defaults")
    with pytest.raises(Failure) as refused:
        workload.expand(16 * MIB)
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert "-o prjquota" in refused.value.details
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert workload.expand(16 * MIB) == 16 * MIB
    workload.delete()


def modify(workload: Workload, quota_policy: str) -> None:
    mutable = {"quota": quota_policy}
    workload.driver.call("ControllerModifyVolume", volume_id=workload.volume_id, mutable_parameters=mutable)


def fill(target: Path) -> None:
    """6 MiB of files, with what else a tree has."""
    (target / "deep" / "er").mkdir(parents=True)
    for path in (target / "file", target / "deep/file", target / "deep/er/file"):
        path.write_bytes(b"f" * 2 * MIB)
        os.chown(path, NOBODY, NOBODY)
    os.link(target / "file", target / "deep/link")
    os.symlink("/etc/passwd", target / "symlink")
    os.mkfifo(target / "fifo")
    run("sync", "-f", str(target))


def test_a_directory_gets_its_limit_while_nobody_uses_it(filesystem: Path, driver: Driver) -> None:
    workload = Workload(driver, "free", parameters=NONE, size_bytes=16 * MIB)
    target = up(workload)
    fill(target)
    with pytest.raises(Failure, match="it is mounted; stop what uses it"):
        modify(workload, "required")
    workload.unpublish()
    workload.unstage()
    driver.restart(HOSTVOL_CRASH_AT="directory.charged")
    with pytest.raises(Failure):
        modify(workload, "required")
    assert driver.wait_dead() == -signal.SIGKILL
    driver.start()
    workload.stage()
    workload.publish()
    assert driver.call("GetVolume", volume_id=workload.volume_id).quota == "none"
    (target / "new").mkdir()
    (target / "new/file").write_bytes(b"n")
    for name in ("new/file", "deep/er/file"):
        os.rename(target / name, target / "moved")
        os.rename(target / "moved", target / "deep" / "moved")
        os.rename(target / "deep/moved", target / name)
    assert reported(filesystem, project_of(workload))[1] == 0
    workload.unpublish()
    workload.unstage()
    modify(workload, "required")
    workload.stage()
    workload.publish()
    used, limit = reported(filesystem, project_of(workload))
    assert limit == 16 * MIB
    assert 6 * MIB <= used <= 6 * MIB + SLACK
    assert write(target, NOBODY, "write", "rest") in FULL
    assert disk_usage(target) <= 16 * MIB
    # Lifted at once, also while it is used.
    modify(workload, "none")
    assert reported(filesystem, project_of(workload))[1] == 0
    run("dd", "if=/dev/zero", f"of={target}/more", "bs=1M", "count=12", "conv=fsync")
    project_id = project_of(workload)
    workload.unpublish()
    workload.unstage()
    with pytest.raises(Failure, match="expand it, or delete files"):
        modify(workload, "required")
    workload.expand(64 * MIB)
    modify(workload, "required")
    assert reported(filesystem, project_id)[1] == 64 * MIB
    workload.delete()
    until(lambda: is_free(filesystem, project_id))
