"""One volume grown from 1 to 8 GiB below a workload that writes, and what must be true of both."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.checks import CHECKS
from tests.growth.writer import Report, writing
from tests.harness import GIB, MIB, Workload, run

# More than the volume could hold at first.
WRITTEN = 1100 * MIB
STEPS = (2 * GIB, 4 * GIB, 8 * GIB)
PAUSE_SECONDS = 1.0


def grow_below_a_writer(workload: Workload, seconds_between: float = 1.0) -> Report:
    """Publish the volume, write, grow it in three steps meanwhile, take it down and check its filesystem."""
    place = workload.up()
    with writing(place, WRITTEN) as reports:
        time.sleep(seconds_between)  # so that the first step meets a writer at work, nothing is waited for
        began = time.monotonic()
        for size in STEPS:
            assert workload.expand(size) == size
            if not workload.block:
                assert workload.expand_on_node() == size
            time.sleep(seconds_between)
        ended = time.monotonic()
    [report] = reports
    pause = report.longest_pause(began, ended)
    print(
        f"{workload.name}: {report.written >> 20} MiB written; longest write or sync while it grew "
        f"{pause * 1000:.0f} ms, at all {report.longest_pause(0, time.monotonic()) * 1000:.0f} ms (0: less than 50)"
    )
    assert report.errors == []
    assert report.intact
    assert report.written >= WRITTEN
    assert pause < PAUSE_SECONDS
    check_size(place, workload)
    check_filesystem(workload)
    return report


def check_size(place: str, workload: Workload) -> None:
    """The workload has all that it was given."""
    if workload.block:
        assert int(run("blockdev", "--getsize64", place)) == STEPS[-1]
        return
    space = os.statvfs(place)
    assert STEPS[-1] * 95 // 100 < space.f_blocks * space.f_frsize <= STEPS[-1]


def check_filesystem(workload: Workload) -> None:
    """Nothing is wrong with the filesystem once it is unmounted."""
    workload.unpublish()
    workload.unstage()
    if not workload.block:
        image = Path(workload.driver.pool, "volumes", workload.volume_id, "disk.img")
        run(*CHECKS[workload.fs_type or "ext4"], str(image))
    workload.delete()
