"""The driver is killed at every step of taking a group snapshot, of taking it away, and of copying what is frozen.

- The points are enumerated by a dry run, for a group over two pools with a mounted and an idle volume.
- Killed at any of them, writers go on at once; started again, there is the whole group or nothing of it, the same call
  succeeds within three tries, and so does the opposite.
- A start that is killed while it finishes or takes away a group is followed by one that does.
- Afterwards nothing is left: no file, no mount, no loop device, no intent of a freeze.
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
from tests.driver.test_freezing import writes_go_on
from tests.harness import Code, create_request

SECONDS = 20.0
KINDS = {"mounted": Kind(parameters={"pool": "xfs"}), "idle": Kind(parameters={"pool": "btrfs"})}
COPIED = Kind()


@dataclass
class Scene:
    """Two written volumes, one of them in use, and their group; or one, in a pool that cannot share blocks."""

    lane: Lane
    volumes: list[Subject]
    group_id: str = ""

    @classmethod
    def of(cls, lane: Lane) -> Scene:
        name = f"group-{uuid.uuid4().hex[:8]}"
        volumes = [Subject.of(lane.driver, f"{name}-{kind}", KINDS[kind]) for kind in KINDS]
        for volume in volumes:
            volume.up()
            volume.write()
        volumes[1].unpublish()
        volumes[1].unstage()
        return cls(lane, volumes)

    @property
    def name(self) -> str:
        return f"{self.volumes[0].name}-cut"

    def cut(self) -> None:
        ids = [one.volume_id for one in self.volumes]
        answer = self.lane.driver.call("CreateVolumeGroupSnapshot", name=self.name, source_volume_ids=ids)
        self.group_id = answer.group_snapshot.group_snapshot_id
        assert len(answer.group_snapshot.snapshots) == len(ids)

    def delete(self) -> None:
        self.lane.driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=self.group_id)

    def snapshots(self) -> list[csi_pb2.Snapshot]:
        ids = {one.volume_id for one in self.volumes}
        listed = [entry.snapshot for entry in self.lane.driver.call("ListSnapshots").entries]
        return [one for one in listed if one.source_volume_id in ids]

    def check_whole(self) -> None:
        """All members are there, or none."""
        found = self.snapshots()
        assert len(found) in (0, 2), found
        if found:
            [self.group_id] = {one.group_snapshot_id for one in found}
            told = self.lane.driver.call("GetVolumeGroupSnapshot", group_snapshot_id=self.group_id).group_snapshot
            assert {one.snapshot_id for one in told.snapshots} == {one.snapshot_id for one in found}

    def check_restored(self) -> None:
        """The members hold what was written."""
        for volume, snapshot in zip(self.volumes, sorted_by(self.volumes, self.snapshots()), strict=True):
            copy = Subject.of(self.lane.driver, f"{volume.name}-copy", volume.kind)
            copy.written = True
            request = create_request(copy.name, copy.size_bytes, parameters=copy.parameters)
            request.volume_content_source.snapshot.snapshot_id = snapshot.snapshot_id
            copy.volume_id = self.lane.driver.call("CreateVolume", request).volume.volume_id
            copy.stage()
            copy.publish()
            self.lane.check_up(copy)
            copy.unpublish()
            copy.unstage()
            self.lane.check_detached(copy)
            copy.delete()

    def end(self) -> None:
        """The group is gone, the volumes are what they were, and are deleted."""
        for group_id in {one.group_snapshot_id for one in self.snapshots()}:
            call = partial(self.lane.driver.call, "DeleteVolumeGroupSnapshot", group_snapshot_id=group_id)
            self.lane.heal(call)
        assert self.snapshots() == []
        for volume in self.volumes:
            self.lane.heal(volume.stage)
            self.lane.heal(volume.publish)
            self.lane.check_up(volume)
            volume.unpublish()
            volume.unstage()
            self.lane.check_detached(volume)
            volume.delete()


def sorted_by(volumes: list[Subject], snapshots: list[csi_pb2.Snapshot]) -> list[csi_pb2.Snapshot]:
    order = [volume.volume_id for volume in volumes]
    return sorted(snapshots, key=lambda one: order.index(one.source_volume_id))


def nothing(scene: Scene) -> None:
    pass


def cut_again(scene: Scene) -> None:
    before = {one.snapshot_id for one in scene.snapshots()}
    scene.lane.heal(scene.cut)
    assert len(scene.snapshots()) == 2
    assert before in (set(), {one.snapshot_id for one in scene.snapshots()})
    scene.check_restored()


def deleted(scene: Scene) -> None:
    if scene.group_id:
        scene.lane.heal(scene.delete)
    assert scene.snapshots() == []


@dataclass(frozen=True)
class Operation:
    prepare: Callable[[Scene], object]
    call: Callable[[Scene], object]
    same: Callable[[Scene], object]
    opposite: Callable[[Scene], object]


OPERATIONS = {
    "group": Operation(nothing, Scene.cut, cut_again, deleted),
    "delete-group": Operation(Scene.cut, Scene.delete, deleted, cut_again),
}
STILL = "snapshot of a mounted volume without shared blocks"


def crash_case(operation: Operation, point: str, after: Callable[[Scene], object], lane: Lane) -> None:
    scene = Scene.of(lane)
    operation.prepare(scene)
    lane.crash(point, lambda: operation.call(scene))
    assert writes_go_on(scene.volumes[0].target(), SECONDS)
    lane.driver.start()
    lane.check_bystanders()
    scene.check_whole()
    after(scene)
    scene.end()
    lane.check_baseline()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_a_crash_at_any_point_there_is_all_of_a_group_or_nothing(
    operation: str, lanes: Lanes, tally: Tally
) -> None:
    asked = OPERATIONS[operation]
    for lane in lanes.all:
        for kind in KINDS.values():
            warm = Subject.of(lane.driver, f"warm-{uuid.uuid4().hex[:8]}", kind)
            warm.create()
            warm.delete()
    scene = Scene.of(lanes.all[0])
    asked.prepare(scene)
    points = lanes.all[0].passing(lambda: asked.call(scene))
    scene.end()
    lanes.all[0].check_baseline()
    tally.meet(operation, points)
    cases = {
        f"{operation} {point} {which}": partial(crash_case, asked, point, after)
        for point in points
        for which, after in (("same", asked.same), ("opposite", asked.opposite))
    }
    held(tally, lanes, cases)


@pytest.mark.parametrize(
    ("point", "at_start", "is_made"),
    [
        ("group.committed:1", ["move.renamed:1", "group.member_settled:1", "group.member_settled:2"], True),
        ("freeze.frozen:1", ["freeze.forgotten:1"], False),
    ],
)
def test_a_start_that_is_killed_while_it_finishes_a_group_is_followed_by_one_that_does(
    point: str, at_start: list[str], is_made: bool, lanes: Lanes, tally: Tally
) -> None:
    lane = lanes.all[0]
    for again in at_start:
        scene = Scene.of(lane)
        lane.crash(point, scene.cut)
        lane.crash_at_start(again)
        lane.driver.start()
        assert len(scene.snapshots()) == 2 * is_made
        scene.check_whole()
        scene.end()
        lane.check_baseline()
        tally.count(held=True)
    tally.meet(f"start after {point}", at_start)


def test_a_start_that_is_killed_while_it_takes_a_group_away_is_followed_by_one_that_does(
    lanes: Lanes, tally: Tally
) -> None:
    lane = lanes.all[0]
    points = ["group.member_discarded:1", "group.forgotten:1", "group.cleared:1"]
    for again in points:
        scene = Scene.of(lane)
        scene.cut()
        lane.crash("group.leaving:1", scene.delete)
        lane.crash_at_start(again)
        lane.driver.start()
        assert scene.snapshots() == []
        assert lane.driver.code("GetVolumeGroupSnapshot", group_snapshot_id=scene.group_id) is Code.NOT_FOUND
        scene.end()
        lane.check_baseline()
        tally.count(held=True)
    tally.meet("start after group.leaving", points)


def still_case(point: str, lane: Lane) -> None:
    source = Subject.of(lane.driver, f"still-{uuid.uuid4().hex[:8]}", COPIED)
    source.up()
    source.write()
    cut = partial(lane.driver.call, "CreateSnapshot", name=source.name, source_volume_id=source.volume_id)
    lane.crash(point, cut)
    assert writes_go_on(source.target(), SECONDS)
    lane.driver.start()
    lane.check_bystanders()
    snapshot = lane.heal(cut).snapshot
    assert snapshot.ready_to_use
    lane.heal(partial(lane.driver.call, "DeleteSnapshot", snapshot_id=snapshot.snapshot_id))
    source.unpublish()
    source.unstage()
    lane.check_detached(source)
    source.delete()
    lane.check_baseline()


def test_a_copy_of_a_frozen_volume_is_made_or_not(lanes: Lanes, tally: Tally) -> None:
    lane = lanes.all[0]
    source = Subject.of(lane.driver, f"still-{uuid.uuid4().hex[:8]}", COPIED)
    source.up()
    asked = {"name": source.name, "source_volume_id": source.volume_id}
    made: list[str] = []
    points = lane.passing(lambda: made.append(lane.driver.call("CreateSnapshot", **asked).snapshot.snapshot_id))
    lane.driver.call("DeleteSnapshot", snapshot_id=made[0])
    source.down()
    lane.check_baseline()
    tally.meet(STILL, points)
    held(tally, lanes, {f"still {point}": partial(still_case, point) for point in points})
