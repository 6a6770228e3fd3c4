"""The whole driver where the kernel has project quotas: its server and its clients run inside the machine.

On XFS and ext4, each mounted with `prjquota`:

- A directory volume holds no byte more than its size, and two of them do not disturb each other.
- Everything in it is charged to its project; NodeGetVolumeStats says what du says.
- Its limit outlives a SIGKILL of the driver; a deleted volume leaves neither limit nor usage.
- A workload that moves its files to another project takes no limit from anybody.
- The XFS of a pool in a backing file enforces the sizes of directories, whatever the file is on.

On btrfs: the qgroups that an older kernel keeps are reaped.

Runs inside the machine of `test_driver_quota.py`, with /dev/ubda to /dev/ubdc. Oracles: xfs_quota, lsattr, du, btrfs.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from csi_driver.domain.pools import initialise_backed_pool
from csi_driver.model import DEFAULT_DRIVER_NAME
from tests.harness import MIB, Driver, Workload, run
from tests.uml.directories import (
    FULL,
    NONE,
    SLACK,
    charged_to,
    directory,
    disk_usage,
    is_free,
    kind_of,
    project_of,
    running,
    stats,
    up,
)
from tests.uml.quotas import NOBODY, mounted, reported, write
from tests.waiting import until

BTRFS_DISK = "/dev/ubdc"


def test_a_volume_holds_no_byte_over_its_size_from_create_to_delete(filesystem: Path, driver: Driver) -> None:
    full, neighbour = directory(driver, "full"), directory(driver, "neighbour")
    limit = full.size_bytes
    full_at, neighbour_at = up(full), up(neighbour)
    project_id, others = project_of(full), project_of(neighbour)
    assert project_id != others

    failed_with = write(full_at, NOBODY, "write")
    over = max(0, disk_usage(full_at) - limit)
    print(f"{kind_of(filesystem)}: {errno.errorcode[failed_with]}, du {disk_usage(full_at)} of {limit}, over {over}")
    assert failed_with in FULL
    assert over == 0
    assert disk_usage(full_at) >= limit - SLACK

    (neighbour_at / "below").mkdir()
    (neighbour_at / "below" / "file").write_bytes(b"n" * 8 * MIB)
    for path in (neighbour_at, neighbour_at / "below", neighbour_at / "below" / "file"):
        assert charged_to(path) == others
    for workload, path in ((full, full_at), (neighbour, neighbour_at)):
        used = disk_usage(path)
        assert stats(workload) == (limit, used, limit - used)

    driver.restart()
    assert reported(filesystem, project_id) == (disk_usage(full_at), limit)
    assert write(full_at, NOBODY, "append") in FULL
    assert stats(full)[:2] == (limit, disk_usage(full_at))
    assert disk_usage(full_at) <= limit

    full.down()
    until(lambda: is_free(filesystem, project_id), what=lambda: reported(filesystem, project_id))
    assert reported(filesystem, others) == (disk_usage(neighbour_at), limit)
    neighbour.down()
    until(lambda: is_free(filesystem, others))


def test_root_with_all_capabilities_is_held_or_not_as_the_filesystem_does_it(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "roots", 4 * MIB)
    target = up(workload)
    # Bounded: ext4 would let it fill the disk.
    script = f"dd if=/dev/zero of={target}/file bs=64k count=256 status=none conv=fsync"
    failed = subprocess.run(["sh", "-c", script], capture_output=True, check=False, timeout=60).returncode != 0
    total, used, available = stats(workload)
    print(f"{kind_of(filesystem)}: root wrote {used} of {total}")
    assert used == disk_usage(target)
    if kind_of(filesystem) == "xfs":
        assert failed
        assert used <= total
    else:
        assert not failed
        assert used >= 16 * MIB
        assert available == 0
        # Everybody else finds the volume full.
        assert write(target, NOBODY, "write", "another") in FULL
    workload.down()


def test_the_list_of_pools_shows_the_quota_and_an_unlimited_volume_has_no_project(
    filesystem: Path, driver: Driver
) -> None:
    listed = run(sys.executable, "-m", "csi_driver", "pool", "list", "--endpoint", driver.endpoint).splitlines()
    header = listed[0]
    [row] = [line for line in listed if str(driver.pool) in line]
    assert row[header.index("QUOTA") :].split()[0] == "project"
    workload = Workload(driver, "unlimited", parameters=NONE)
    target = Path(workload.up())
    space = os.statvfs(filesystem)
    assert charged_to(target) == 0
    assert stats(workload)[0] == space.f_blocks * space.f_frsize
    workload.down()


def test_a_workload_that_changes_projects_takes_no_limit_from_anybody(filesystem: Path, driver: Driver) -> None:
    hostile, victim = directory(driver, "hostile"), directory(driver, "victim")
    at, victim_at = up(hostile), up(victim)
    own, others = project_of(hostile), project_of(victim)
    (at / "moved").write_bytes(b"m" * MIB)
    (at / "kept").write_bytes(b"k" * MIB)
    for path in (at / "moved", at):
        run("chattr", "-p", str(others), str(path))
    assert [charged_to(path) for path in (at, at / "moved", at / "kept")] == [others, others, own]
    hostile.down()
    until(lambda: is_free(filesystem, own), what=lambda: reported(filesystem, own))
    assert reported(filesystem, others)[1] == victim.size_bytes
    assert write(victim_at, NOBODY, "write") in FULL
    assert victim.size_bytes - SLACK <= disk_usage(victim_at) <= victim.size_bytes
    victim.down()
    until(lambda: is_free(filesystem, others))


def test_a_pool_in_a_backing_file_holds_directories_to_their_size(filesystem: Path, tmp_path: Path) -> None:
    backed = filesystem / "backed"
    initialise_backed_pool(str(backed), DEFAULT_DRIVER_NAME, 320 * MIB)
    with running(tmp_path / "driver", backed) as driver:
        assert "prjquota" in run("findmnt", "-no", "OPTIONS", str(backed / "pool"))
        workload = directory(driver, "held")
        target = up(workload)
        assert write(target, NOBODY, "write") in FULL
        assert workload.size_bytes - SLACK <= disk_usage(target) <= workload.size_bytes
        workload.down()
    run("umount", str(backed / "pool"))
    (backed / "hostvol-backing.img").unlink()


def test_qgroups_that_an_older_kernel_keeps_are_reaped(tmp_path: Path) -> None:
    mkfs = ["mkfs.btrfs", "-q", "-f"]
    with (
        mounted(tmp_path / "mnt", "btrfs", "commit=1", disk=BTRFS_DISK, mkfs=mkfs) as mount_point,
        running(tmp_path / "driver", mount_point / "pool") as driver,
    ):

        def qgroups() -> dict[str, int]:
            """Bytes referenced by qgroup."""
            lines = run("btrfs", "qgroup", "show", "-r", "--raw", str(mount_point)).splitlines()
            return {words[0]: int(words[1]) for line in lines if (words := line.split())[0].startswith("0/")}

        workload = directory(driver, "limited")
        target = up(workload)
        assert write(target, NOBODY, "write") in FULL
        print(f"btrfs: du {disk_usage(target)} of {workload.size_bytes}")
        assert disk_usage(target) <= workload.size_bytes
        assert stats(workload)[0] == workload.size_bytes
        assert len(qgroups()) == 2
        workload.down()
        # The kernel lets nobody take the qgroup before the commit after the one that removed the subvolume.
        until(lambda: not any(bytes_ for name, bytes_ in qgroups().items() if name != "0/5"))
        print(f"btrfs of {os.uname().release}: after the deletion {sorted(qgroups())}")
        driver.restart()
        until(lambda: set(qgroups()) == {"0/5"}, what=qgroups)
        again = directory(driver, "again")
        assert write(up(again), NOBODY, "write") in FULL
        again.down()
