"""The driver is killed at every step of what the trash does: kept, brought back, purged; rolled back, and undone.

- Killed at any of them and started again, a deleted volume or snapshot is there or in the trash, whole, never in both
  and never in neither; the same call succeeds within three tries, and so does the opposite one.
- A volume that is rolled back holds all of what it held or all of what its snapshot holds; once it is, the other can be
  brought back.
- Afterwards nothing is left: no file, no mount, no loop device, no qgroup.
"""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.crash.lane import Kind, Lane, Lanes, Subject
from tests.crash.tally import Tally
from tests.crash.test_crash_points import held
from tests.waiting import until

DAY = {"retention": "1d"}
KINDS = {
    "ext4-shared": Kind(parameters={"pool": "xfs", **DAY}),
    "directory-subvolume": Kind(parameters={"type": "directory", "pool": "btrfs", **DAY}),
    "ext4-copied": Kind(parameters=DAY),
}
BEFORE, AFTER = b"before" * 700, b"after!" * 700


@dataclass
class Scene:
    """A volume that held BEFORE when its snapshot was taken, and holds AFTER."""

    lane: Lane
    volume: Subject
    snapshot_id: str = ""
    entry: str = ""

    @classmethod
    def of(cls, lane: Lane, kind: str) -> Scene:
        volume = Subject.of(lane.driver, f"{kind}-{uuid.uuid4().hex[:8]}", KINDS[kind])
        scene = cls(lane, volume)
        volume.create()
        scene.write(BEFORE)
        return scene

    def write(self, content: bytes) -> None:
        self.volume.stage()
        self.volume.publish()
        command = ("dd", "status=none", "conv=fsync", f"of={self.volume.target()}/content")
        subprocess.run(command, input=content, check=True, timeout=60)
        self.down()

    def down(self) -> None:
        self.volume.unpublish()
        self.volume.unstage()

    def content(self) -> bytes:
        """What the volume holds; it is unstaged before and after."""
        self.volume.stage()
        self.volume.publish()
        command = ("cat", f"{self.volume.target()}/content")
        found = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        self.down()
        return found

    def cut(self) -> None:
        made = self.lane.driver.call("CreateSnapshot", name=self.volume.name, source_volume_id=self.volume.volume_id)
        self.snapshot_id = made.snapshot.snapshot_id
        until(lambda: bool(self.snapshot() and self.snapshot().ready_to_use), what=self.snapshot)

    def snapshot(self) -> Any:
        found = self.lane.driver.call("ListSnapshots", snapshot_id=self.snapshot_id).entries
        return found[0].snapshot if found else None

    def trash(self) -> list[Any]:
        return list(self.lane.driver.call("ListTrash").entries)

    def is_live(self) -> bool:
        return self.volume.volume_id in self.lane.listed()

    # the calls

    def delete(self) -> None:
        self.lane.driver.call("DeleteVolume", volume_id=self.volume.volume_id)

    def delete_cut(self) -> None:
        self.lane.driver.call("DeleteSnapshot", snapshot_id=self.snapshot_id)

    def restore(self) -> None:
        self.lane.driver.call("RestoreTrash", entry=self.entry or self.volume.volume_id)

    def restore_cut(self) -> None:
        self.lane.driver.call("RestoreTrash", entry=self.snapshot_id)

    def purge(self) -> None:
        for one in self.trash():
            self.lane.driver.call("PurgeTrash", entry=one.entry)

    def rollback(self) -> None:
        fields = {"volume_id": self.volume.volume_id, "snapshot_id": self.snapshot_id}
        self.entry = self.lane.driver.call("RollbackVolume", **fields).entry

    def end(self) -> None:
        """Nothing of all this is left."""
        self.lane.heal(self.delete)
        if self.snapshot_id:
            self.lane.heal(self.delete_cut)
        self.lane.heal(self.purge)
        with contextlib.suppress(FileNotFoundError):
            (self.lane.driver.home / "staging" / self.volume.volume_id).rmdir()
        self.lane.check_baseline()


def nothing(scene: Scene) -> None:
    pass


def deleted(scene: Scene) -> None:
    scene.delete()


def cut(scene: Scene) -> None:
    scene.cut()


def cut_deleted(scene: Scene) -> None:
    scene.cut()
    scene.delete_cut()


def cut_and_written(scene: Scene) -> None:
    scene.cut()
    scene.write(AFTER)


def rolled_back_and_larger(scene: Scene) -> None:
    cut_and_written(scene)
    scene.rollback()
    scene.volume.expand(scene.volume.grown_bytes)


def ends_deleted(scene: Scene) -> None:
    scene.lane.heal(scene.delete)
    assert not scene.is_live()
    assert [one.object_id for one in scene.trash()] == [scene.volume.volume_id]
    ends_live(scene)


def ends_live(scene: Scene) -> None:
    assert scene.is_live() != bool(scene.trash())
    if not scene.is_live():
        scene.lane.heal(scene.restore)
    assert scene.content() == BEFORE


def ends_purged(scene: Scene) -> None:
    if scene.is_live():
        scene.lane.heal(scene.delete)
    scene.lane.heal(scene.purge)
    assert scene.trash() == []


def ends_live_or_purged(scene: Scene) -> None:
    if scene.trash():
        ends_live(scene)


def ends_cut_deleted(scene: Scene) -> None:
    scene.lane.heal(scene.delete_cut)
    assert scene.snapshot() is None
    ends_cut(scene)


def ends_cut(scene: Scene) -> None:
    assert (scene.snapshot() is None) == bool(scene.trash())
    if scene.snapshot() is None:
        scene.lane.heal(scene.restore_cut)
    scene.write(AFTER)
    scene.rollback()
    assert scene.content() == BEFORE


def ends_rolled_back(scene: Scene) -> None:
    scene.lane.heal(scene.rollback)
    assert scene.content() == BEFORE
    found = []
    for one in scene.trash():
        scene.entry = one.entry
        scene.restore()
        found.append(scene.content())
    assert AFTER in found


def ends_in_one_of_both(scene: Scene) -> None:
    entries = scene.trash()
    first = scene.content()
    assert len(entries) == (first == BEFORE), (entries, first)
    assert first in (BEFORE, AFTER)
    for one in entries:
        assert one.state == "replaced"
        scene.entry = one.entry
        scene.restore()
        assert scene.content() == AFTER


def ends_exchanged(scene: Scene) -> None:
    [one] = scene.trash()
    scene.entry = one.entry
    contents = [scene.content()]
    for _ in range(2):
        scene.lane.heal(scene.restore)
        contents.append(scene.content())
        told = scene.lane.driver.call("ControllerGetVolume", volume_id=scene.volume.volume_id).volume
        assert told.capacity_bytes == scene.volume.grown_bytes
    assert contents[0] == contents[2]
    assert {*contents} == {BEFORE, AFTER}


@dataclass(frozen=True)
class Operation:
    """A call, the state it is made in, what comes after the crash, and a point that it passes."""

    prepare: Callable[[Scene], object]
    call: Callable[[Scene], object]
    same: Callable[[Scene], object]
    opposite: Callable[[Scene], object]
    passes: str


OPERATIONS = {
    "delete": Operation(nothing, Scene.delete, ends_deleted, ends_live, "delete.kept"),
    "restore": Operation(deleted, Scene.restore, ends_live, ends_purged, "undelete.moved"),
    "purge": Operation(deleted, Scene.purge, ends_purged, ends_live_or_purged, "purge.condemned"),
    "delete-snapshot": Operation(cut, Scene.delete_cut, ends_cut_deleted, ends_cut, "snapshot.kept"),
    "restore-snapshot": Operation(
        cut_deleted, Scene.restore_cut, ends_cut, ends_cut_deleted, "undelete.snapshot_moved"
    ),
    "rollback": Operation(cut_and_written, Scene.rollback, ends_rolled_back, ends_in_one_of_both, "rollback.exchanged"),
    "undo": Operation(rolled_back_and_larger, Scene.restore, ends_exchanged, ends_exchanged, "undelete.exchanged"),
}
ONLY_FOR = {
    "delete-snapshot": ("ext4-shared",),
    "restore-snapshot": ("ext4-shared",),
    "undo": ("ext4-shared",),
}
MATRIX = [
    pytest.param(kind, operation, id=f"{kind}-{operation}")
    for kind in KINDS
    for operation in OPERATIONS
    if kind in ONLY_FOR.get(operation, KINDS)
]


def dry_run(lane: Lane, kind: str, operation: Operation) -> list[str]:
    scene = Scene.of(lane, kind)
    operation.prepare(scene)
    points = lane.passing(lambda: operation.call(scene))
    scene.end()
    return points


def crash_case(kind: str, operation: Operation, point: str, after: Callable[[Scene], object], lane: Lane) -> None:
    scene = Scene.of(lane, kind)
    operation.prepare(scene)
    lane.crash(point, lambda: operation.call(scene))
    lane.driver.start()
    lane.check_bystanders()
    after(scene)
    scene.end()


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_after_a_crash_at_any_point_what_was_deleted_or_replaced_is_there_once(
    kind: str, operation: str, lanes: Lanes, tally: Tally
) -> None:
    asked = OPERATIONS[operation]
    for lane in lanes.all:
        Scene.of(lane, kind).end()
    points = dry_run(lanes.all[0], kind, asked)
    assert f"{asked.passes}:1" in points
    tally.meet(f"trash {kind} {operation}", points)
    cases = {
        f"trash {kind} {operation} {point} {which}": partial(crash_case, kind, asked, point, after)
        for point in points
        for which, after in {"same": asked.same, "opposite": asked.opposite}.items()
    }
    held(tally, lanes, cases)


def test_no_entry_of_all_these_crashes_leaves_its_qgroup(lanes: Lanes) -> None:
    for lane in lanes.all:
        lane.check_no_qgroup_is_left()
