"""The same for changes of a volume's parameters: killed at every step of ControllerModifyVolume.

- After a crash at any point, and a restart, the volume has the old parameters or the new ones, its users notice
  nothing, and the same call makes it what was asked.
- The opposite call takes it back instead; a directory that was not limited is not limited by half a call.
- Volumes that nobody touches stay as they are, to the last byte.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from tests.crash.lane import Kind, Lane, Lanes, Subject
from tests.crash.tally import Tally
from tests.crash.test_crash_points import held, take_away, up
from tests.harness import DIRECTORY, MIB, run


@dataclass(frozen=True)
class Change:
    """One parameter of one kind of volume, and its values before and after."""

    kind: Kind
    key: str
    before: str
    after: str


CHANGES = {
    "thick": Change(Kind(size_bytes=32 * MIB), "provisioning", "thin", "thick"),
    "thin": Change(Kind(block=True, parameters={"provisioning": "thick"}), "provisioning", "thick", "thin"),
    "limited": Change(Kind(parameters={**DIRECTORY, "pool": "btrfs"}), "quota", "none", "required"),
    "freed": Change(Kind(parameters={"type": "directory", "pool": "btrfs"}), "quota", "required", "none"),
}
MATRIX = [pytest.param(name, id=name) for name in CHANGES]


def new_subject(lane: Lane, change: Change) -> Subject:
    return Subject.of(lane.driver, f"changed-{uuid.uuid4().hex[:8]}", change.kind)


def change_to(subject: Subject, change: Change, value: str) -> None:
    mutable = {change.key: value}
    subject.driver.call("ControllerModifyVolume", volume_id=subject.volume_id, mutable_parameters=mutable)


def value_of(subject: Subject, change: Change) -> str:
    return str(getattr(subject.driver.call("GetVolume", volume_id=subject.volume_id), change.key))


def limit_of(lane: Lane, subject: Subject) -> str:
    """As btrfs tells it."""
    data = lane.pool_of(subject.kind).directory / "volumes" / subject.volume_id / "data"
    return run("btrfs", "qgroup", "show", "-rf", "--raw", str(data)).split()[-2]


def check(lane: Lane, subject: Subject, change: Change) -> None:
    """What the record says is so."""
    value = value_of(subject, change)
    assert value in (change.before, change.after)
    if value == "thick":
        assert lane.image(subject).stat().st_blocks * 512 >= subject.size_bytes
    if change.key == "quota":
        assert limit_of(lane, subject) == (str(subject.size_bytes) if value == "required" else "none")


def ends_as(value: Callable[[Change], str], change: Change, lane: Lane, subject: Subject) -> None:
    check(lane, subject, change)
    lane.heal(lambda: change_to(subject, change, value(change)))
    check(lane, subject, change)
    assert value_of(subject, change) == value(change)
    lane.check_up(subject)
    take_away(lane, subject)


def crash_case(change: Change, point: str, after: Callable[[Lane, Subject], object], lane: Lane) -> None:
    subject = new_subject(lane, change)
    up(lane, subject)
    lane.crash(point, lambda: change_to(subject, change, change.after))
    lane.driver.start()
    lane.check_bystanders()
    after(lane, subject)
    lane.check_baseline()


@pytest.mark.parametrize("name", MATRIX)
def test_after_a_crash_at_any_point_a_volume_has_its_old_parameters_or_the_new_ones(
    name: str, lanes: Lanes, tally: Tally
) -> None:
    change, lane = CHANGES[name], lanes.all[0]
    for one in lanes.all:
        # The quotas of a btrfs are on, once and for all.
        warm = Subject.of(one.driver, "warm", CHANGES["freed"].kind)
        warm.create()
        warm.delete()
    subject = new_subject(lane, change)
    up(lane, subject)
    points = lane.passing(lambda: change_to(subject, change, change.after))
    assert {"modify.intended:1", "modify.changed:1", "modify.recorded:1"} <= set(points)
    ends_as(lambda asked: asked.after, change, lane, subject)
    tally.meet(f"modify {name}", points)
    outcomes: dict[str, Callable[[Change], str]] = {
        "same": lambda asked: asked.after,
        "opposite": lambda asked: asked.before,
    }
    cases = {
        f"modify {name} {point} {which}": partial(crash_case, change, point, partial(ends_as, value, change))
        for point in points
        for which, value in outcomes.items()
    }
    held(tally, lanes, cases)


def test_a_start_that_is_killed_while_it_takes_a_change_back_is_finished_by_the_next(
    lanes: Lanes, tally: Tally
) -> None:
    change, lane = CHANGES["limited"], lanes.all[0]

    def left() -> Subject:
        subject = new_subject(lane, change)
        up(lane, subject)
        lane.crash("modify.changed:1", lambda: change_to(subject, change, change.after))
        return subject

    subject = left()
    points = lane.passing(lane.driver.start)
    ends_as(lambda asked: asked.before, change, lane, subject)
    tally.meet("start after modify", points)
    for point in points:
        subject = left()
        lane.crash_at_start(point)
        lane.driver.start()
        assert value_of(subject, change) == change.before
        ends_as(lambda asked: asked.after, change, lane, subject)
        lane.check_baseline()
        tally.count(held=True)
