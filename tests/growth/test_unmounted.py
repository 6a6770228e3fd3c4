"""An ext4 that grows while nobody has it mounted is grown as a whole or not at all.

- A redo log is carried out as a whole: killed or cut short at any point there is no log, or one that says everything.
- A log that is damaged is refused, and nothing is written.
- resize2fs killed at any of its writes leaves the image as it was; the next stage grows it.
- Whatever fails on the way, the volume is served at its old size with all that is in it.
- A log that could not be carried out stays with its image: nothing else is ever written to, and no copy is torn.
- Below somebody who has the image open no log is carried out, nor one that is older than what he did.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_driver.errors import RecordDamaged
from csi_driver.store import redo
from tests.harness import MIB, Code, Driver, PoolPlace, Workload, only_by_resize2fs, run

BLOCKS = [(0, b"first" * 100), (8192, b"\0" * 4096), (1 << 20, b"z" * 4096)]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def target(tmp_path: Path) -> int:
    return os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT, 0o600)


def test_a_log_is_carried_out_once_and_is_gone(room: int, tmp_path: Path) -> None:
    redo.write(room, "log", iter(BLOCKS))
    file = target(tmp_path)
    assert redo.carry_out(room, "log", file)
    for offset, content in BLOCKS:
        assert os.pread(file, len(content), offset) == content
    assert not (tmp_path / "log").exists()
    assert not redo.carry_out(room, "log", file)
    os.close(file)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_log_that_is_not_whole_is_refused_and_nothing_is_written(room: int, tmp_path: Path, damage: str) -> None:
    redo.write(room, "log", iter(BLOCKS))
    whole = (tmp_path / "log").read_bytes()
    damaged = {
        "cut": whole[:-1],
        "flipped": whole[:700] + bytes([whole[700] ^ 1]) + whole[701:],
        "empty": b"",
        "other": b"something else" * 10,
    }[damage]
    (tmp_path / "log").write_bytes(damaged)
    file = target(tmp_path)
    with pytest.raises(RecordDamaged):
        redo.carry_out(room, "log", file)
    assert os.fstat(file).st_size == 0
    assert (tmp_path / "log").exists()
    os.close(file)


def test_a_log_that_cannot_be_written_down_leaves_nothing(room: int, tmp_path: Path) -> None:
    def blocks() -> Iterator[redo.Block]:
        yield BLOCKS[0]
        raise OSError("the source fails")

    with pytest.raises(OSError, match="the source fails"):
        redo.write(room, "log", blocks())
    assert os.listdir(tmp_path) == []


# The tools, killed or failing

TOOLS = ("e2image", "resize2fs", "e2fsck")
CONTENT = os.urandom(3 * MIB)


@pytest.fixture
def grown(driver: Driver) -> Workload:
    """A volume with content, expanded while it was not staged."""
    workload = Workload(driver, "grown", size_bytes=64 * MIB)
    Path(workload.up(), "content").write_bytes(CONTENT)
    workload.unpublish()
    workload.unstage()
    workload.expand(1024 * MIB)
    return workload


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Put a script in the place of a tool, for whoever runs it in this mount namespace."""
    replaced: list[str] = []

    def replace(tool: str, script: str) -> None:
        real, path = shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin"), tmp_path / tool
        assert real is not None
        shutil.copy2(real, tmp_path / f"real-{tool}")
        path.write_text(f"#!/bin/sh\nreal={tmp_path}/real-{tool}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        run("mount", "--bind", str(path), real)
        replaced.append(real)

    yield replace
    for real in replaced:
        run("umount", real)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def logs(driver: Driver) -> list[str]:
    return [path for path in driver.files() if path.endswith("/growth.redo")]


def check_served(workload: Workload, least_bytes: int, most_bytes: int) -> None:
    """Staged and published with its content, at a size between the two; sound afterwards."""
    workload.stage()
    place = workload.publish()
    space = os.statvfs(place)
    assert least_bytes < space.f_blocks * space.f_frsize <= most_bytes
    assert Path(place, "content").read_bytes() == CONTENT
    workload.unpublish()
    workload.unstage()
    run("e2fsck", "-fn", f"{workload.driver.pool}/volumes/{workload.volume_id}/disk.img")


@pytest.mark.parametrize("writes", [1, 3, 4, 6, 9, 12, 16, 20, 24])
def test_a_resize2fs_that_is_killed_at_a_write_harms_nothing(
    grown: Workload, tools: Callable[[str, str], None], writes: int
) -> None:
    only_by_resize2fs(grown.driver)
    image = grown.driver.pool / "volumes" / grown.volume_id / "disk.img"
    run("e2fsck", "-fp", str(image))
    kill = f"strace -f -qq -o /dev/null -e inject=pwrite64,write:signal=KILL:when={writes}"
    tools("resize2fs", f'exec {kill} "$real" "$@"')
    check_served(grown, 32 * MIB, 64 * MIB)
    assert logs(grown.driver) == []
    grown.delete()


@pytest.mark.parametrize("tool", ["e2image", "resize2fs"])
def test_a_tool_that_fails_costs_only_the_growth(grown: Workload, tools: Callable[[str, str], None], tool: str) -> None:
    only_by_resize2fs(grown.driver)
    tools(tool, "echo it fails >&2; exit 1")
    check_served(grown, 32 * MIB, 64 * MIB)
    assert "it fails" in grown.driver.log()
    grown.delete()


def test_it_grows_when_the_tools_work_again(grown: Workload, tmp_path: Path) -> None:
    only_by_resize2fs(grown.driver)
    check_served(grown, 900 * MIB, 1024 * MIB)
    assert [path for path in grown.driver.files() if path.startswith("tmp/")] == []
    grown.delete()


@dataclass
class Interrupted:
    """A volume that was rolled back and expanded, whose growth is written down and cannot be carried out."""

    workload: Workload
    snapshot_id: str
    replaced: str
    inode: int
    is_locked: bool = False

    def lock(self) -> None:
        """Nobody can write to the image, wherever it lies."""
        run("chattr", "+i", str(self._image()))
        self.is_locked = True

    def unlock(self) -> None:
        if self.is_locked:
            run("chattr", "-i", str(self._image()))
            self.is_locked = False

    def _image(self) -> Path:
        images = self.workload.driver.pool.glob("*/*/disk.img")
        return next(image for image in images if image.stat().st_ino == self.inode)


@pytest.fixture
def interrupted(make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]) -> Iterator[Interrupted]:
    driver = make_driver(make_pool("xfs", size_bytes=8 << 30))
    workload = Workload(driver, "grown", size_bytes=64 * MIB, parameters={"retention": "1d"})
    workload.create()
    write(workload, "first")
    volume_id = workload.volume_id
    snapshot_id = driver.call("CreateSnapshot", name="cut", source_volume_id=volume_id).snapshot.snapshot_id
    write(workload, "second")
    replaced = driver.call("RollbackVolume", volume_id=volume_id, snapshot_id=snapshot_id).entry
    workload.expand(1024 * MIB)
    only_by_resize2fs(driver)
    driver.restart(HOSTVOL_CRASH_AT="redo.written")
    assert driver.code("NodeStageVolume", workload.stage_request()) is Code.UNAVAILABLE
    image = driver.pool / "volumes" / volume_id / "disk.img"
    made = Interrupted(workload, snapshot_id, replaced, image.stat().st_ino)
    made.lock()
    try:
        driver.restart()
        yield made
    finally:
        made.unlock()


def write(workload: Workload, content: str) -> None:
    workload.stage()
    Path(workload.publish(), "content").write_text(content)
    workload.unpublish()
    workload.unstage()


def check_holds(workload: Workload, content: str, size_bytes: int) -> None:
    workload.stage()
    place = workload.publish()
    assert Path(place, "content").read_text() == content
    assert 0.8 * size_bytes < shutil.disk_usage(place).total <= size_bytes
    workload.unpublish()
    workload.unstage()
    run("e2fsck", "-fn", f"{workload.driver.pool}/volumes/{workload.volume_id}/disk.img")


def test_a_log_goes_to_the_trash_with_its_image_and_comes_back(interrupted: Interrupted) -> None:
    workload, driver = interrupted.workload, interrupted.workload.driver
    assert driver.code("NodeStageVolume", workload.stage_request()) is not Code.OK
    interrupted.unlock()
    workload.delete()
    driver.call("RestoreTrash", entry=interrupted.replaced)
    check_holds(workload, "second", 64 * MIB)
    workload.delete()
    [grown] = [entry for entry in driver.call("ListTrash").entries if entry.size_bytes == 1024 * MIB]
    driver.call("RestoreTrash", entry=grown.entry)
    check_holds(workload, "first", 1024 * MIB)
    assert logs(driver) == []


def test_a_log_stays_with_what_a_rollback_replaces(interrupted: Interrupted) -> None:
    workload, driver = interrupted.workload, interrupted.workload.driver
    interrupted.unlock()
    entry = driver.call("RollbackVolume", volume_id=workload.volume_id, snapshot_id=interrupted.snapshot_id).entry
    check_holds(workload, "first", 1024 * MIB)
    write(workload, "third")
    driver.call("RestoreTrash", entry=entry)
    check_holds(workload, "first", 1024 * MIB)
    driver.call("RestoreTrash", entry=entry)
    check_holds(workload, "third", 1024 * MIB)
    assert logs(driver) == []


def test_a_log_is_carried_out_before_its_image_is_copied(interrupted: Interrupted) -> None:
    workload, driver = interrupted.workload, interrupted.workload.driver
    asked = {"name": "grown", "source_volume_id": workload.volume_id}
    assert driver.code("CreateSnapshot", **asked) is not Code.OK
    interrupted.unlock()
    snapshot = driver.call("CreateSnapshot", **asked).snapshot
    assert logs(driver) == []
    run("e2fsck", "-fn", f"{driver.pool}/snapshots/{snapshot.snapshot_id}/disk.img")


def test_a_log_of_an_earlier_build_is_found_where_that_left_it(interrupted: Interrupted) -> None:
    workload, driver = interrupted.workload, interrupted.workload.driver
    driver.stop()
    [log] = logs(driver)
    (driver.pool / log).rename(driver.pool / "tmp" / f"{workload.volume_id}.redo")
    interrupted.unlock()
    driver.start()
    assert [path for path in driver.files() if "redo" in path] == []
    check_holds(workload, "first", 1024 * MIB)


def test_a_log_does_no_harm_to_whoever_used_the_image_without_it(interrupted: Interrupted, tmp_path: Path) -> None:
    workload, driver = interrupted.workload, interrupted.workload.driver
    driver.stop()
    interrupted.unlock()
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    run("mount", "-o", "loop", f"{driver.pool}/volumes/{workload.volume_id}/disk.img", str(by_hand))
    try:
        (by_hand / "content").write_text("by hand")
        driver.start()
        assert len(logs(driver)) == 1
        assert driver.code("CreateSnapshot", name="late", source_volume_id=workload.volume_id) is Code.ABORTED
    finally:
        run("umount", str(by_hand))
    check_holds(workload, "by hand", 1024 * MIB)
    assert logs(driver) == []
    assert "is dropped" in driver.log()
