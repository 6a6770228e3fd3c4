"""What becomes of the limits of directory volumes when the driver, the power or the quota goes.

On XFS and ext4, each mounted with `prjquota`:

- A limit outlives a power cut; a deleted volume leaves neither limit nor usage.
- A driver killed at any step of create or delete leaves no limit behind once it was started again, also when it is
  killed again while it clears.
- Where the quota is not enforced (any more), a required one is refused with its remedy and `none` is accepted, and the
  volumes that are there are served and deleted.

Runs inside the machine of `test_driver_quota.py`. Oracles: xfs_quota, lsattr, du.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import MIB, Code, Driver, Failure, Workload, run
from tests.powercut import cut_power
from tests.uml.directories import (
    DISKS,
    FULL,
    NONE,
    SLACK,
    charged_to,
    directory,
    disk_usage,
    is_free,
    kind_of,
    project_in,
    project_of,
    remount,
    stats,
    up,
)
from tests.uml.quotas import NOBODY, reported, write
from tests.waiting import until


def test_a_driver_killed_at_any_step_leaves_no_limit_once_it_is_back(filesystem: Path, driver: Driver) -> None:
    rooms = [driver.pool / room for room in ("volumes", "tmp", "trash")]
    taken: set[int] = set()

    def remains() -> list[tuple[str, Path, int]]:
        """(room, directory, project id) of every object with a record."""
        found = [path for room in rooms for path in room.iterdir() if (path / "record.json").exists()]
        return [(path.parent.name, path, project_in(path)) for path in found]

    def killed_at(point: str, act: Callable[[], object]) -> list[tuple[str, Path, int]]:
        driver.restart(HOSTVOL_CRASH_AT=point)
        with pytest.raises(Failure):
            act()
        assert driver.wait_dead() == -signal.SIGKILL
        taken.update(project_id for *_, project_id in remains())
        return remains()

    first, second = directory(driver, "first"), directory(driver, "second")
    [(room, path, project_id)] = killed_at("directory.project_set", first.create)
    assert room == "tmp"
    assert charged_to(path / "data") == project_id
    assert reported(filesystem, project_id)[1] == 0

    # This one is killed while what the one before left may be half cleared.
    left = killed_at("directory.limited", second.create)
    assert second.size_bytes in [reported(filesystem, project_id)[1] for _, _, project_id in left]

    def create_write_delete() -> None:
        target = up(second)
        (target / "file").write_bytes(b"d" * MIB)
        run("sync", "-f", str(target))
        second.down()

    left = killed_at("delete.discarded", create_write_delete)
    [project_id] = [project_id for room, _, project_id in left if room == "trash"]
    used, limit = reported(filesystem, project_id)
    assert limit == second.size_bytes
    assert used >= MIB

    # Clearing is killed as well, at one place and then the next.
    for point in ("clear.project_freed", "clear.data_removed"):
        driver.start(wait=False, HOSTVOL_CRASH_AT=point)
        assert driver.wait_dead() == -signal.SIGKILL
        assert 0 in [reported(filesystem, project_id)[1] for _, _, project_id in remains()]

    driver.start()
    assert len(taken) == 3
    until(lambda: all(is_free(filesystem, project_id) for project_id in taken))
    until(lambda: driver.files() == [])
    assert write(up(first), NOBODY, "write") in FULL
    assert disk_usage(Path(first.target())) <= first.size_bytes
    first.down()


def test_a_limit_survives_a_power_cut_and_a_deleted_one_does_not(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    kept, deleted = directory(driver, "kept", 8 * MIB), directory(driver, "deleted", 8 * MIB)
    (up(deleted) / "file").write_bytes(b"x" * MIB)
    gone = project_of(deleted)
    deleted.down()
    kept.create()
    cut_power(str(filesystem), flush_log=False)
    driver.kill()
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert reported(filesystem, project_of(kept))[1] == 8 * MIB
    assert write(up(kept), NOBODY, "write") in FULL
    assert 8 * MIB - SLACK <= disk_usage(Path(kept.target())) <= 8 * MIB
    until(lambda: is_free(filesystem, gone), what=lambda: reported(filesystem, gone))
    kept.down()


def test_a_pool_mounted_without_its_quota_serves_what_it_has_and_refuses_more(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    kept, deleted = (directory(driver, name, 4 * MIB) for name in ("kept", "deleted"))
    for workload in (kept, deleted):
        (up(workload) / "file").write_bytes(b"l" * MIB)
        workload.unpublish()
        workload.unstage()
    gone = project_of(deleted)

    remount(driver, filesystem, DISKS[kind], "defaults")
    with pytest.raises(Failure) as refused:
        directory(driver, "refused").create()
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "parameters.quota" in refused.value.details
    assert "-o prjquota" in refused.value.details
    accepted = Workload(driver, "accepted", parameters=NONE)
    (Path(accepted.up()) / "file").write_bytes(b"a" * 4096)
    accepted.down()
    for workload in (kept, deleted):
        workload.stage()
        target = Path(workload.publish())
        assert (target / "file").stat().st_size == MIB
        # It can fill the whole filesystem now, and the statistics say so.
        space = os.statvfs(filesystem)
        assert stats(workload)[0] == space.f_blocks * space.f_frsize
        workload.unpublish()
        workload.unstage()
    deleted.delete()

    remount(driver, filesystem, DISKS[kind], "prjquota")
    # XFS cannot be told without its quota; that limit holds nobody, since an id with a limit is given to nobody.
    print(f"{kind}, quota back: (used, limit) of the volume deleted meanwhile {reported(filesystem, gone)}")
    assert reported(filesystem, gone) == (0, 4 * MIB if kind == "xfs" else 0)
    assert reported(filesystem, project_of(kept))[1] == 4 * MIB
    kept.stage()
    assert write(Path(kept.publish()), NOBODY, "write", "more") in FULL
    assert disk_usage(Path(kept.target())) <= 4 * MIB
    kept.down()
