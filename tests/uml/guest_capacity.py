"""What a pool with project quotas can grant to directory volumes.

On XFS and ext4, each mounted with `prjquota`:

- What is granted to the brim can be written by all at once; growth is quota less usage.

Runs inside the machine of `test_driver_quota.py`. Oracle: du.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.harness import MIB, Code, Driver, run
from tests.uml.directories import FULL, SLACK, capacity, code_of_creating, directory, disk_usage, kind_of, up
from tests.uml.quotas import NOBODY, WRITER
from tests.waiting import until


def settled_capacity(driver: Driver) -> int:
    """What is available once nothing of earlier tests is being cleared away any more."""
    before = -1
    while (now := capacity(driver)) != before:
        before = now
        time.sleep(1.5)
    return now


def test_growth_is_quota_less_usage(driver: Driver) -> None:
    everything = settled_capacity(driver)
    half = directory(driver, "half", everything // 2 // 4096 * 4096)
    target = up(half)
    granted = capacity(driver)
    assert abs(granted - everything // 2) <= MIB
    with open(target / "file", "wb") as file:
        for _ in range(half.size_bytes * 3 // 4 // MIB):
            file.write(b"g" * MIB)
    run("sync", "-f", str(target))
    # What was written is not available any more and not promised any more: the rest is what it was before.
    rest = directory(driver, "rest", granted - 8 * MIB)
    until(lambda: code_of_creating(rest) is Code.OK)
    rest.create()
    assert capacity(driver) <= 16 * MIB
    rest.delete()
    half.down()
    until(lambda: abs(capacity(driver) - everything) <= 2 * MIB)


def test_volumes_granted_to_the_brim_are_all_written_full_at_once(filesystem: Path, driver: Driver) -> None:
    share = settled_capacity(driver) // 6 // 4096 * 4096
    workloads = [directory(driver, f"brim-{number}", share) for number in range(5)]
    targets = [up(workload) for workload in workloads]
    # The directories took some blocks themselves.
    workloads.append(directory(driver, "brim-last", capacity(driver)))
    targets.append(up(workloads[-1]))
    granted = sum(workload.size_bytes for workload in workloads)
    assert capacity(driver) <= MIB
    assert code_of_creating(directory(driver, "one-more", MIB)) is Code.RESOURCE_EXHAUSTED

    command = [sys.executable, "-S", "-c", WRITER]
    writers = [
        subprocess.Popen([*command, str(target), str(NOBODY), "append", "file"], stdout=subprocess.PIPE)
        for target in targets
    ]
    errors = {int(writer.communicate(timeout=60)[0]) for writer in writers}
    used = [disk_usage(target) for target in targets]
    short = [workload.size_bytes - one for workload, one in zip(workloads, used, strict=True)]
    left = os.statvfs(filesystem)
    print(
        f"{kind_of(filesystem)}: {granted >> 20} of {left.f_blocks * left.f_frsize >> 20} MiB granted to 6 volumes, "
        f"{[errno.errorcode[one] for one in errors]}, bytes short of their sizes {short}, "
        f"{left.f_bavail * left.f_frsize >> 20} MiB still available"
    )
    assert errors <= FULL
    assert all(0 <= one <= SLACK for one in short)
    assert left.f_bavail > 0
    for workload in workloads:
        workload.down()
