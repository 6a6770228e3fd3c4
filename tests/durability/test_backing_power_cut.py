"""The power fails below the ext4 that a pool in a backing file lies on.

- What was acknowledged is there, and what a workload fsynced in a volume: a flush goes through both loop devices.
- A growth of the file that the cut came into is finished by the next start, or was never seen.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backing.backed import Backed
from tests.durability.disks import BackedDisk, ShutDownDisk, wait_until_released
from tests.durability.load import Book, Kept, read_number, write_number
from tests.durability.test_power_cut import Round, publish_diaries
from tests.harness import GIB, Driver, PoolPlace, Workload, admin_pools

CUTS = 5


@pytest.fixture
def round_(tmp_path: Path, memory: Path) -> Iterator[Round]:
    with ExitStack() as stack:
        disk = BackedDisk(memory / "disk")
        stack.callback(disk.remove)
        driver = Driver(tmp_path / "driver", [disk.place], init_pools=False)
        yield Round(disk, stack.enter_context(driver.serving()), Book())


def test_cuts_below_the_file_lose_nothing_that_was_acknowledged(round_: Round) -> None:
    choices = random.Random("backing file")
    diaries = []
    for kind in ("ext4", "block", "directory"):
        kept = Kept(f"diary-{kind}", kind)
        diaries.append(Kept(kept.name, kind, kept.workload(round_.driver).create()))
    round_.book.alive = {kept.volume_id: kept for kept in diaries}
    publish_diaries(round_, diaries)
    for number in range(CUTS):
        before = set(round_.book.alive)
        round_.run(f"backing-{number}", choices.uniform(0.02, 0.5))
        round_.check()
        round_.check_usable({key: kept for key, kept in round_.book.alive.items() if key not in before})
        publish_diaries(round_, diaries)
    print(f"backing file: {CUTS} cuts, {sum(round_.book.written.values())} numbers fsynced by workloads")
    assert len(round_.book.alive) > len(diaries)


@pytest.mark.parametrize("point", ["backing.grow_intended", "backing.grow_extended", "backing.filesystem_grown"])
def test_a_cut_while_the_file_grows_leaves_a_pool(memory: Path, tmp_path: Path, point: str) -> None:
    disk = ShutDownDisk(memory / "disk", "ext4")
    backed = Backed(PoolPlace(disk.mount_point / "backed"))
    driver = Driver(tmp_path / "driver", [backed.made()], init_pools=False)
    driver.start(HOSTVOL_CRASH_AT=point)
    life = Workload(driver, "life")
    write_number(life.up(), 7)
    assert backed.hostvol("grow", "default", "2GiB", f"--endpoint={driver.endpoint}").returncode == 1
    disk.cut()
    driver.wait_dead()
    driver.clean_up()
    backed.unmount()
    wait_until_released(backed.image)
    disk.recover()
    shutil.rmtree(driver.home / "state")
    driver.start()
    life.stage()
    assert read_number(life.publish()) == 7
    [row] = admin_pools(driver)
    assert row.backing_bytes == 2 * GIB
    life.down()
    driver.stop()
    backed.unmount()
    backed.check()
    disk.remove()
