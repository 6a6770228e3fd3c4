"""The power fails while volumes are created, deleted and written, on every filesystem that a pool may lie on.

- A create that was acknowledged is there afterwards, with its record, and can be used; its filesystem is clean.
- A delete that was acknowledged stays done.
- An expansion that was acknowledged has been made, in the record, the image and the limit; one that was not is finished
  or taken back.
- A create that was not acknowledged left a whole volume or nothing.
- What a workload fsynced inside a volume is in the volume.
- The driver starts on what the cut left, and clears the half-built and the half-removed away.
- A directory volume of a btrfs has its subvolume and its limit.
- An ext4 that is grown while nobody has it mounted is whole, whichever step the cut comes after.
- Without the driver's fsyncs the same cuts do lose volumes: they are able to.

`disks` says why these are power cuts.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.durability.disks import Disk
from tests.durability.load import KINDS, Book, Kept, Load, read_number, write_number
from tests.harness import MIB, Code, Driver, Workload, only_by_resize2fs, run
from tests.waiting import until

CUTS = 20
_HOUSEKEEPING_SECONDS = 20.0


@dataclass
class Round:
    """One driver's life between two cuts, on one disk."""

    disk: Disk
    driver: Driver
    book: Book
    lost: int = 0
    risen: int = 0

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if kind != "directory-with-quota" or self.disk.fs_type == "btrfs"]

    def run(self, seed: str, seconds: float) -> None:
        """Work for some time, cut the power, and come back to what is left."""
        load = Load(self.driver, self.book, self.kinds, seed)
        load.start()
        try:
            time.sleep(seconds)  # the moment of the cut is the point, nothing is waited for
            load.expect_the_cut()
            self.disk.cut()
        finally:
            at_cut = load.stop()
        assert load.complaints == []
        self.book = self.book.without_what_came_after(at_cut)
        self.reboot()

    def reboot(self) -> None:
        """Nothing survives but the disk."""
        self.driver.kill()
        self.driver.clean_up()
        self.disk.recover()
        shutil.rmtree(self.driver.home / "state")
        self.driver.start()

    def check(self) -> None:
        """Compare what is there with what the callers know; the book is certain afterwards."""
        listed = {entry.volume.volume_id for entry in self.driver.call("ListVolumes").entries}
        records = self._records()
        assert listed == set(records), "a record is damaged, or a directory without one is served"
        lost = [kept for key, kept in self.book.alive.items() if records.get(key) != kept.name]
        risen = [kept for key, kept in self.book.gone.items() if key in records]
        self.lost += len(lost)
        self.risen += len(risen)
        assert (lost, risen) == ([], [])
        maybe = self.book.creating
        unasked = [
            name
            for key, name in records.items()
            if key not in self.book.alive | self.book.deleting and name not in maybe
        ]
        assert unasked == []
        self.check_sizes()
        appeared = {key: Kept(name, maybe[name].kind, key) for key, name in records.items() if name in maybe}
        undeleted = {key: kept for key, kept in self.book.deleting.items() if key in records}
        self.book.creating, self.book.deleting = {}, {}
        self.book.alive |= appeared | undeleted
        assert "quarantine" not in self.driver.log()
        self.wait_for_housekeeping()

    def check_sizes(self) -> None:
        """No volume is smaller than it was said to be, and every image as large as its record says."""
        told = {
            entry.volume.volume_id: entry.volume.capacity_bytes for entry in self.driver.call("ListVolumes").entries
        }
        for volume_id, size_bytes in told.items():
            assert size_bytes >= self.book.sizes.get(volume_id, 0), volume_id
            image = self.driver.pool / "volumes" / volume_id / "disk.img"
            assert not image.exists() or image.stat().st_size == size_bytes, volume_id

    def check_usable(self, fresh: dict[str, Kept]) -> None:
        for kept in fresh.values():
            self._use(kept)

    def wait_for_housekeeping(self) -> None:
        until(lambda: not self._leftovers(), _HOUSEKEEPING_SECONDS, self._leftovers)

    def _leftovers(self) -> list[str]:
        pool = self.driver.pool
        return [str(path) for room in ("tmp", "trash") for path in (pool / room).iterdir()]

    def _records(self) -> dict[str, str]:
        """Names by id, as the disk has them."""
        found = {}
        for path in (self.driver.pool / "volumes").iterdir():
            found[path.name] = json.loads((path / "record.json").read_text())["record"]["name"]
        return found

    def _use(self, kept: Kept) -> None:
        workload = kept.workload(self.driver)
        assert workload.create() == kept.volume_id
        workload.stage()
        target = workload.publish()
        number = read_number(target)
        write_number(target, number + 1)
        workload.unpublish()
        workload.unstage()
        self._check_content(workload)

    def _check_content(self, workload: Workload) -> None:
        content = self.driver.pool / "volumes" / workload.volume_id
        if workload.parameters.get("type") == "directory":
            if "quota" not in workload.parameters:
                told = self.driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume
                check_limit(content / "data", told.capacity_bytes)
        elif not workload.block:
            tool = ["xfs_repair", "-n"] if workload.fs_type == "xfs" else ["e2fsck", "-fn"]
            run(*tool, str(content / "disk.img"))


def check_limit(data: Path, size_bytes: int) -> None:
    """The directory is a subvolume with a limit, as btrfs's own tool tells."""
    run("btrfs", "subvolume", "show", str(data))
    shown = run("btrfs", "qgroup", "show", "--raw", "-r", "-f", str(data)).splitlines()[-1]
    assert re.fullmatch(rf"0/\d+(\s+\d+){{2}}\s+{size_bytes}\b.*", shown), shown


@pytest.fixture
def round_(tmp_path: Path, disk: Disk) -> Iterator[Round]:
    with Driver(tmp_path / "driver", [disk.place]).serving() as driver:
        yield Round(disk, driver, Book())


def publish_diaries(round_: Round, diaries: list[Kept]) -> None:
    """Volumes whose workloads write all the time."""
    for kept in diaries:
        workload = kept.workload(round_.driver)
        workload.stage()
        target = workload.publish()
        found, acknowledged = read_number(target), round_.book.written.get(kept.volume_id, 0)
        assert found >= acknowledged, f"{kept}: {acknowledged} was fsynced, {found} is there"
        if not found:
            write_number(target, 1)
        round_.book.written[kept.volume_id] = max(found, 1)


@pytest.mark.timeout(280)
def test_cuts_lose_nothing_that_was_acknowledged(round_: Round, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id
    choices = random.Random(name)
    kinds = ["ext4", "block", "directory-with-quota" if "directory-with-quota" in round_.kinds else "directory"]
    diaries = []
    for kind in kinds:
        kept = Kept(f"diary-{kind}", kind)
        diaries.append(Kept(kept.name, kind, kept.workload(round_.driver).create()))
    round_.book.alive = {kept.volume_id: kept for kept in diaries}
    publish_diaries(round_, diaries)
    acknowledged = checked = 0
    for number in range(CUTS):
        before, gone = set(round_.book.alive), set(round_.book.gone)
        round_.run(f"{name}-{number}", choices.uniform(0.02, 0.5))
        acknowledged += len(set(round_.book.alive) - before) + len(set(round_.book.gone) - gone)
        round_.check()
        fresh = {key: kept for key, kept in round_.book.alive.items() if key not in before}
        round_.check_usable(fresh)
        checked += len(fresh)
        publish_diaries(round_, diaries)
    print(
        f"{name}: {CUTS} cuts, {acknowledged} calls acknowledged, {checked} volumes used, "
        f"{len(round_.book.sizes)} expansions, "
        f"{sum(round_.book.written.values())} numbers fsynced by workloads, lost {round_.lost}, risen {round_.risen}"
    )
    assert acknowledged > CUTS, "the driver hardly worked: the cuts proved little"


def test_without_fsync_the_same_cut_loses_volumes(round_: Round, tmp_path: Path) -> None:
    (tmp_path / "careless").mkdir()
    (tmp_path / "careless" / "sitecustomize.py").write_text("import os\nos.fsync = lambda fd: None\n")
    round_.driver.forked = False
    round_.driver.restart(PYTHONPATH=f"{tmp_path / 'careless'}:{Path.cwd()}")
    # A template costs a sync of mkfs, so it is made first.
    Workload(round_.driver, "first", size_bytes=32 * MIB).create()
    names = [f"volume-{number}" for number in range(10)]
    ids = {Workload(round_.driver, name, size_bytes=32 * MIB).create() for name in names}
    round_.disk.cut()
    round_.reboot()
    listed = {entry.volume.volume_id for entry in round_.driver.call("ListVolumes").entries}
    images = [round_.driver.pool / "volumes" / key / "disk.img" for key in ids & listed]
    broken = [image for image in images if is_broken(image)]
    assert len(ids & listed) - len(broken) < len(ids)


def is_broken(image: Path) -> bool:
    """Whether e2fsck finds fault."""
    done = subprocess.run(["e2fsck", "-fn", str(image)], check=False, capture_output=True, timeout=60)
    return done.returncode != 0


@pytest.mark.parametrize("point", ["growth.copied", "redo.written", "redo.carried_out", "redo.removed"])
def test_a_cut_while_an_unmounted_ext4_grows_leaves_it_whole(round_: Round, point: str) -> None:
    workload = Workload(round_.driver, "grown", size_bytes=32 * MIB)
    write_number(workload.up(), 7)
    workload.unpublish()
    workload.unstage()
    workload.expand(512 * MIB)
    only_by_resize2fs(round_.driver)
    round_.driver.restart(HOSTVOL_CRASH_AT=point)
    assert round_.driver.code("NodeStageVolume", workload.stage_request()) is Code.UNAVAILABLE
    round_.disk.cut()
    round_.reboot()
    workload.stage()
    place = workload.publish()
    assert read_number(place) == 7
    assert shutil.disk_usage(place).total > 400 * MIB
    workload.unpublish()
    workload.unstage()
    run("e2fsck", "-fn", str(round_.driver.pool / "volumes" / workload.volume_id / "disk.img"))
