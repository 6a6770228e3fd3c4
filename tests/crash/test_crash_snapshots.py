"""The driver is killed at every step of taking a snapshot, taking it away, and making volumes of it and of volumes.

- The points are enumerated by a dry run, for images and directories, shared and copied.
- Killed at any of them and started again, the same call succeeds within three tries, and what it gives holds what was
  written before; so does the opposite: the snapshot or the copy is deleted, whether it was made or not.
- A copy that was under way is finished by the next start, without being asked.
- Afterwards nothing is left: no file, no mount, no loop device, no qgroup; the source holds what it held.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from csi_driver.pb import csi_pb2
from tests.crash.lane import Kind, Lane, Lanes, Subject
from tests.crash.tally import Tally
from tests.crash.test_crash_points import held
from tests.harness import DIRECTORY, MIB, create_request
from tests.waiting import until

KINDS = {
    "ext4-shared": Kind(parameters={"pool": "xfs"}),
    "btrfs-shared": Kind(fs_type="btrfs", size_bytes=128 * MIB, parameters={"pool": "btrfs"}),
    "directory-shared": Kind(parameters={"pool": "xfs", **DIRECTORY}),
    "directory-subvolume": Kind(parameters={"type": "directory", "pool": "btrfs"}),
    "ext4-copied": Kind(),
    "directory-copied": Kind(parameters=DIRECTORY),
}


def is_copied(kind: Kind) -> bool:
    return kind.pool == "default"


@dataclass
class Scene:
    """A written volume, its snapshot, and a copy of one of them."""

    lane: Lane
    source: Subject
    copy: Subject
    snapshot_id: str = ""

    @classmethod
    def of(cls, lane: Lane, kind: str) -> Scene:
        name = f"{kind}-{uuid.uuid4().hex[:8]}"
        source = Subject.of(lane.driver, name, KINDS[kind])
        copy = Subject.of(lane.driver, f"{name}-copy", KINDS[kind])
        copy.written = True
        scene = cls(lane, source, copy)
        source.up()
        source.write()
        if is_copied(KINDS[kind]):
            source.unpublish()
            source.unstage()
        return scene

    @property
    def cut_name(self) -> str:
        return f"{self.source.name}-cut"

    def cut(self) -> None:
        asked = {"name": self.cut_name, "source_volume_id": self.source.volume_id}
        self.snapshot_id = self.lane.driver.call("CreateSnapshot", **asked).snapshot.snapshot_id

    def delete_cut(self) -> None:
        self.lane.driver.call("DeleteSnapshot", snapshot_id=self.snapshot_id)

    def restore(self, *, size_bytes: int = 0) -> None:
        content = csi_pb2.VolumeContentSource()
        content.snapshot.snapshot_id = self.snapshot_id
        self._make(content, size_bytes)

    def clone(self) -> None:
        content = csi_pb2.VolumeContentSource()
        content.volume.volume_id = self.source.volume_id
        self._make(content, 0)

    def _make(self, content: csi_pb2.VolumeContentSource, size_bytes: int) -> None:
        request = create_request(
            self.copy.name,
            size_bytes or self.copy.size_bytes,
            parameters=self.copy.parameters,
            volume_capabilities=[self.copy.capability],
            volume_content_source=content,
        )
        self.copy.volume_id = self.lane.driver.call("CreateVolume", request).volume.volume_id

    def snapshots(self) -> list[csi_pb2.Snapshot]:
        found = self.lane.driver.call("ListSnapshots", source_volume_id=self.source.volume_id).entries
        return [entry.snapshot for entry in found]

    def wait_ready(self) -> None:
        until(lambda: all(one.ready_to_use for one in self.snapshots()), what=self.snapshots)

    def check_copy(self) -> None:
        """The copy is used to its end, holds what was written, and is deleted."""
        assert self.lane.named(self.copy.name) == [self.copy.volume_id]
        self.lane.heal(self.copy.stage)
        self.lane.heal(self.copy.publish)
        self.lane.check_up(self.copy)
        self.copy.unpublish()
        self.copy.unstage()
        self.lane.check_detached(self.copy)
        self.delete_copy()

    def delete_copy(self) -> None:
        """The copy is gone, whether it was made or not."""
        for volume_id in self.lane.named(self.copy.name):
            self.lane.heal(partial(self.lane.driver.call, "DeleteVolume", volume_id=volume_id))

    def end(self) -> None:
        """Snapshots are deleted, the source is what it was, and is deleted."""
        for one in self.snapshots():
            self.lane.heal(partial(self.lane.driver.call, "DeleteSnapshot", snapshot_id=one.snapshot_id))
        assert self.snapshots() == []
        self.lane.heal(self.source.stage)
        self.lane.heal(self.source.publish)
        self.lane.check_up(self.source)
        self.source.unpublish()
        self.source.unstage()
        self.lane.check_detached(self.source)
        self.source.delete()


@dataclass(frozen=True)
class Operation:
    prepare: Callable[[Scene], object]
    call: Callable[[Scene], object]
    same: Callable[[Scene], object]
    opposite: Callable[[Scene], object]


def nothing(scene: Scene) -> None:
    pass


def cut_again(scene: Scene) -> None:
    scene.wait_ready()
    scene.lane.heal(scene.cut)
    assert [one.snapshot_id for one in scene.snapshots()] == [scene.snapshot_id]
    scene.wait_ready()
    scene.lane.heal(scene.restore)
    scene.check_copy()


def cut_deleted(scene: Scene) -> None:
    """At once, while it may still be copied by the start."""
    assert len(scene.snapshots()) <= 1
    for one in scene.snapshots():
        scene.snapshot_id = one.snapshot_id
        scene.lane.heal(scene.delete_cut)


def cut_deleted_again(scene: Scene) -> None:
    scene.lane.heal(scene.delete_cut)
    assert scene.snapshots() == []


def cut_after_delete(scene: Scene) -> None:
    scene.lane.heal(scene.cut)
    cut_again(scene)


def restored_again(scene: Scene) -> None:
    scene.lane.heal(scene.restore)
    scene.check_copy()


def restored_larger_again(scene: Scene) -> None:
    scene.lane.heal(partial(larger, scene))
    scene.check_copy()


def cloned_again(scene: Scene) -> None:
    scene.lane.heal(scene.clone)
    scene.check_copy()


def larger(scene: Scene) -> None:
    scene.restore(size_bytes=4 * scene.copy.size_bytes)


OPERATIONS = {
    "snapshot": Operation(nothing, Scene.cut, cut_again, cut_deleted),
    "delete-snapshot": Operation(Scene.cut, Scene.delete_cut, cut_deleted_again, cut_after_delete),
    "restore": Operation(Scene.cut, Scene.restore, restored_again, Scene.delete_copy),
    "restore-larger": Operation(Scene.cut, larger, restored_larger_again, Scene.delete_copy),
    "clone": Operation(nothing, Scene.clone, cloned_again, Scene.delete_copy),
}
MATRIX = [
    pytest.param(kind, operation, id=f"{kind}-{operation}")
    for kind in KINDS
    for operation in OPERATIONS
    if operation != "restore-larger" or kind.startswith("ext4")
]


def dry_run(lane: Lane, kind: str, operation: Operation) -> list[str]:
    scene = Scene.of(lane, kind)
    operation.prepare(scene)
    points = lane.passing(lambda: operation.call(scene))
    scene.delete_copy()
    scene.end()
    lane.check_baseline()
    return points


def crash_case(kind: str, operation: Operation, point: str, after: Callable[[Scene], object], lane: Lane) -> None:
    scene = Scene.of(lane, kind)
    operation.prepare(scene)
    lane.crash(point, lambda: operation.call(scene))
    lane.driver.start()
    lane.check_bystanders()
    after(scene)
    scene.delete_copy()
    scene.end()
    lane.check_baseline()


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_after_a_crash_at_any_point_the_same_call_and_the_opposite_one_succeed(
    kind: str, operation: str, lanes: Lanes, tally: Tally
) -> None:
    asked = OPERATIONS[operation]
    for lane in lanes.all:
        # Templates and quotas are made by the first volume of a pool.
        warm = Subject.of(lane.driver, f"warm-{uuid.uuid4().hex[:8]}", KINDS[kind])
        warm.create()
        warm.delete()
    points = dry_run(lanes.all[0], kind, asked)
    tally.meet(f"{kind} {operation}", points)
    cases = {
        f"{kind} {operation} {point} {which}": partial(crash_case, kind, asked, point, after)
        for point in points
        for which, after in (("same", asked.same), ("opposite", asked.opposite))
    }
    held(tally, lanes, cases)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_copied(KINDS[kind])])
def test_a_start_that_is_killed_while_it_finishes_a_copy_is_followed_by_one_that_does(
    kind: str, lanes: Lanes, tally: Tally
) -> None:
    lane = lanes.all[0]
    resumed = ["copy.copied:1", "copy.moved:1", "copy.finished:1"]
    for point in resumed:
        scene = Scene.of(lane, kind)
        lane.crash("copy.committed:1", scene.cut)
        lane.crash_at_start(point)
        lane.driver.start()
        scene.wait_ready()
        [found] = scene.snapshots()
        scene.snapshot_id = found.snapshot_id
        scene.restore()
        scene.check_copy()
        scene.end()
        lane.check_baseline()
        tally.count(held=True)
    tally.meet(f"start during {kind} snapshot", resumed)


def test_no_snapshot_of_all_these_crashes_leaves_its_qgroup(lanes: Lanes) -> None:
    for lane in lanes.all:
        lane.check_no_qgroup_is_left()
