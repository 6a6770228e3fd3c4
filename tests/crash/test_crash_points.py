"""The driver is killed at every step of every mutating call, and nobody notices for long.

- The crash points of a call are enumerated by a dry run of that call, for every kind of volume.
- Killed by SIGKILL at any of them and started again, the same call succeeds within three tries.
- So does the opposite one: delete or another spec after create, unstage after stage, publish after unpublish, …
- Afterwards a volume can be used to its end: it is mounted once, by one loop device, holds what was written to it,
  and its filesystem is sound.
- Once it is deleted, mounts, loop devices, files, templates, runtime state and target paths are as they were.
- Volumes that nobody touches stay listed, mounted and unchanged to the last byte.
- An expansion ends at the old size or the new one, and the repetition at the new one, as record, file and device.
- A start that is killed while it clears the leftovers of such a crash, or finishes an expansion, is finished by the
  next one.
- No qgroup of a deleted volume is left on a btrfs.
- `hostvol pool init`, killed at any point, is finished by its repetition, and a half-made pool is not served.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from csi_driver import faults
from tests.crash.lane import Kind, Lane, Lanes, Subject, code_of, numbered
from tests.crash.tally import Tally
from tests.harness import DIRECTORY, MIB, Code, Driver, PoolPlace, hostvol

KINDS = {
    "ext4": Kind(),
    "ext4-thick": Kind(parameters={"provisioning": "thick"}),
    "ext4-reflink": Kind(parameters={"pool": "xfs"}),
    "xfs": Kind(fs_type="xfs", size_bytes=300 * MIB),
    "btrfs": Kind(fs_type="btrfs", size_bytes=128 * MIB),
    "block": Kind(block=True),
    "directory": Kind(parameters=DIRECTORY),
    "directory-qgroup": Kind(parameters={"type": "directory", "pool": "btrfs"}),
}
# Only these have something that the first volume of a pool does for the next.
WITH_A_FIRST = ("ext4", "ext4-thick", "ext4-reflink", "xfs", "directory-qgroup")
# And only these have something left to do when they are staged after an expansion.
WITH_A_FILESYSTEM = ("ext4", "ext4-reflink", "xfs", "btrfs")
ONLY_FOR = {"first-create": WITH_A_FIRST, "stage-expanded": WITH_A_FILESYSTEM}


@dataclass(frozen=True)
class Operation:
    """A mutating call: the state it is made in, itself, and what a caller who changed his mind does instead."""

    prepare: Callable[[Lane, Subject], object]
    call: Callable[[Subject], object]
    same: Callable[[Lane, Subject], object]
    opposite: Callable[[Lane, Subject], object]


def up(lane: Lane, subject: Subject) -> None:
    subject.up()
    subject.write()


def created(lane: Lane, subject: Subject) -> None:
    subject.create()


def staged(lane: Lane, subject: Subject) -> None:
    up(lane, subject)
    subject.unpublish()


def idle(lane: Lane, subject: Subject) -> None:
    staged(lane, subject)
    subject.unstage()


def nothing(lane: Lane, subject: Subject) -> None:
    pass


def nothing_as_in_a_new_pool(lane: Lane, subject: Subject) -> None:
    lane.drop_templates()
    lane.drop_quota()


def use_to_its_end(lane: Lane, subject: Subject) -> None:
    """Stage, publish, look, and take everything away again; each call may be a repetition."""
    assert lane.named(subject.name) == [subject.volume_id]
    lane.heal(subject.stage)
    lane.heal(subject.publish)
    lane.check_up(subject)
    subject.write()
    take_away(lane, subject)


def take_away(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.unpublish)
    lane.heal(subject.unstage)
    assert not os.path.lexists(subject.target())
    assert not os.path.lexists(subject.staging)
    lane.check_detached(subject)
    lane.heal(subject.delete)


def created_again(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.create)
    use_to_its_end(lane, subject)


def deleted_or_asked_otherwise(lane: Lane, subject: Subject) -> None:
    found = lane.named(subject.name)
    assert len(found) <= 1, found
    other = subject.with_other_size()
    if found:
        assert code_of(other.create) is Code.ALREADY_EXISTS
        subject.volume_id = found[0]
        lane.heal(subject.delete)
    lane.heal(other.create)
    assert lane.named(subject.name) == [other.volume_id]
    use_to_its_end(lane, other)


def called_again(call: Callable[[Subject], object], lane: Lane, subject: Subject) -> None:
    lane.heal(lambda: call(subject))
    use_to_its_end(lane, subject)


def unstaged(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.unstage)
    assert not os.path.lexists(subject.staging)
    lane.check_detached(subject)
    use_to_its_end(lane, subject)


def unpublished(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.unpublish)
    assert not os.path.lexists(subject.target())
    use_to_its_end(lane, subject)


def published(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.publish)
    lane.check_up(subject)
    take_away(lane, subject)


def deleted_again(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.delete)
    assert lane.named(subject.name) == []
    assert lane.driver.code("NodeStageVolume", subject.stage_request()) is Code.NOT_FOUND


def created_after_delete(lane: Lane, subject: Subject) -> None:
    """The old volume with its content, if it was not gone yet; else a new, empty one."""
    deleted = subject.volume_id
    lane.heal(subject.create)
    subject.written = subject.volume_id == deleted
    use_to_its_end(lane, subject)


def expanded(lane: Lane, subject: Subject) -> None:
    idle(lane, subject)
    subject.expand(subject.grown_bytes)


def expanded_again(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.grow)
    lane.check_extended(subject)
    if subject.fs_type in ("xfs", "btrfs") or subject.block:
        assert subject.shown_bytes() > subject.size_bytes * 3 // 2
    use_to_its_end(lane, subject)


def left_at_some_size(lane: Lane, subject: Subject) -> None:
    """Whoever changes his mind keeps one size or the other: nothing becomes smaller."""
    told = lane.driver.call("ControllerGetVolume", volume_id=subject.volume_id).volume.capacity_bytes
    assert told in (subject.size_bytes, subject.grown_bytes)
    if subject.kind.is_image:
        assert lane.image(subject).stat().st_size == told
    use_to_its_end(lane, subject)


def staged_at_full_size(lane: Lane, subject: Subject) -> None:
    lane.heal(subject.stage)
    lane.heal(subject.publish)
    lane.check_extended(subject)
    assert subject.shown_bytes() > subject.size_bytes * 3 // 2
    use_to_its_end(lane, subject)


OPERATIONS = {
    "first-create": Operation(nothing_as_in_a_new_pool, Subject.create, created_again, deleted_or_asked_otherwise),
    "create": Operation(nothing, Subject.create, created_again, deleted_or_asked_otherwise),
    "stage": Operation(created, Subject.stage, partial(called_again, Subject.stage), unstaged),
    "publish": Operation(staged, Subject.publish, partial(called_again, Subject.publish), unpublished),
    "unpublish": Operation(up, Subject.unpublish, unpublished, published),
    "unstage": Operation(staged, Subject.unstage, unstaged, partial(called_again, Subject.stage)),
    "expand": Operation(up, Subject.grow, expanded_again, left_at_some_size),
    "stage-expanded": Operation(expanded, Subject.stage, staged_at_full_size, unstaged),
    "delete": Operation(idle, Subject.delete, deleted_again, created_after_delete),
    "delete-staged": Operation(staged, Subject.delete, deleted_again, created_after_delete),
}


def new_subject(lane: Lane, kind: str) -> Subject:
    return Subject.of(lane.driver, f"{kind}-{uuid.uuid4().hex[:8]}", KINDS[kind])


def dry_run(lane: Lane, kind: str, operation: Operation) -> list[str]:
    """The points that the operation passes, each with the number of its passage."""
    subject = new_subject(lane, kind)
    operation.prepare(lane, subject)
    points = lane.passing(lambda: operation.call(subject))
    if lane.named(subject.name):
        subject.written = subject.written and bool(points)
        use_to_its_end(lane, subject)
    lane.check_baseline()
    return points


def crash_case(
    kind: str, operation: Operation, point: str, after: Callable[[Lane, Subject], object], lane: Lane
) -> None:
    """Kill at the point, start, and hold the outcome against every invariant."""
    subject = new_subject(lane, kind)
    operation.prepare(lane, subject)
    lane.crash(point, lambda: operation.call(subject))
    lane.driver.start()
    lane.check_bystanders()
    after(lane, subject)
    lane.check_baseline()


def held(tally: Tally, lanes: Lanes, cases: Mapping[str, Callable[[Lane], object]]) -> None:
    """Run the cases; fail with all that failed."""
    assert cases, "nothing was enumerated"
    failures = lanes.run(cases)
    for name in cases:
        tally.count(held=name not in failures)
    if failures:
        pytest.fail("\n".join(f"--- {name}\n{text}" for name, text in failures.items()), pytrace=False)


MATRIX = [
    pytest.param(kind, operation, id=f"{kind}-{operation}")
    for kind in KINDS
    for operation in OPERATIONS
    if kind in ONLY_FOR.get(operation, KINDS)
]


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_after_a_crash_at_any_point_the_same_call_and_the_opposite_one_succeed(
    kind: str, operation: str, lanes: Lanes, tally: Tally
) -> None:
    asked = OPERATIONS[operation]
    for lane in lanes.all:
        # A first volume of its kind makes the template, and turns the quotas of a btrfs on.
        warm = new_subject(lane, kind)
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


# What a start finds to clear: a volume that was not finished, one that was deleted, of each kind that differs in it.
LEFTOVERS = [
    pytest.param(kind, operation, point, id=f"{kind}-{operation}")
    for kind in ("ext4", "directory", "directory-qgroup")
    for operation, point in (("create", "create.built:1"), ("delete", "delete.discarded:1"))
]
# What it finds to finish.
UNFINISHED = [
    pytest.param(kind, operation, point, id=f"{kind}-{operation}")
    for kind, operation, point in (
        ("ext4", "expand", "expand.intended:1"),
        ("ext4-thick", "expand", "image.extended:1"),
        ("directory-qgroup", "expand", "expand.intended:1"),
        ("ext4", "stage-expanded", "redo.written:1"),
    )
]


def leave(kind: str, operation: str, left_at: str, lane: Lane) -> Subject:
    """The remains of a crash; the driver is down."""
    subject, asked = new_subject(lane, kind), OPERATIONS[operation]
    asked.prepare(lane, subject)
    lane.crash(left_at, lambda: asked.call(subject))
    return subject


def start_case(
    leave_it: Callable[[Lane], Subject], point: str, after: Callable[[Lane, Subject], object], lane: Lane
) -> None:
    """Kill the start that clears the leftover; the next one finishes it."""
    subject = leave_it(lane)
    lane.crash_at_start(point)
    lane.driver.start()
    lane.check_bystanders()
    after(lane, subject)
    lane.check_baseline()


@pytest.mark.parametrize(("kind", "operation", "left_at"), LEFTOVERS)
def test_a_start_that_is_killed_while_it_clears_is_finished_by_the_next(
    kind: str, operation: str, left_at: str, lanes: Lanes, tally: Tally
) -> None:
    asked, lane, leave_it = OPERATIONS[operation], lanes.all[0], partial(leave, kind, operation, left_at)

    def start_and_clear() -> None:
        lane.driver.start()
        lane.wait_passed("startup.cleared")

    leave_it(lane)
    points = lane.passing(start_and_clear)
    lane.check_baseline()
    if kind != "ext4":
        # Before anything is cleared all starts are alike.
        points = [point for point in points if not point.startswith("startup.opened")]
    tally.meet(f"start after {kind} {operation}", points)
    cases = {
        f"start after {kind} {operation} {point} {which}": partial(start_case, leave_it, point, after)
        for point in points
        for which, after in (("same", asked.same), ("opposite", asked.opposite))
    }
    held(tally, lanes, cases)


@pytest.mark.parametrize(("kind", "operation", "left_at"), UNFINISHED)
def test_a_start_that_is_killed_while_it_finishes_an_expansion_is_finished_by_the_next(
    kind: str, operation: str, left_at: str, lanes: Lanes, tally: Tally
) -> None:
    asked, lane, leave_it = OPERATIONS[operation], lanes.all[0], partial(leave, kind, operation, left_at)
    subject = leave_it(lane)
    points = lane.passing(lane.driver.start)
    asked.opposite(lane, subject)
    lane.check_baseline()
    tally.meet(f"start after {kind} {operation}", points)
    cases = {
        f"start after {kind} {operation} {point} {which}": partial(start_case, leave_it, point, after)
        for point in points
        for which, after in (("same", asked.same), ("opposite", asked.opposite))
    }
    held(tally, lanes, cases)


def test_no_deleted_volume_of_all_these_crashes_leaves_its_qgroup(lanes: Lanes) -> None:
    for lane in lanes.all:
        volume = new_subject(lane, "directory-qgroup")
        volume.up()
        volume.down()
        lane.check_no_qgroup_is_left()


def pool_init(directory: Path, environment: dict[str, str]) -> int:
    """`hostvol pool init`; its exit code."""
    return hostvol("pool", "init", str(directory), **environment).returncode


def check_pool_serves(driver: Driver) -> None:
    """The running driver's pool takes a volume and gives it back."""
    subject = Subject.of(driver, "first", Kind(parameters=DIRECTORY))
    subject.up()
    subject.down()
    assert {path.name for path in driver.pool.iterdir()} == {"hostvol-pool.json", *ROOMS}
    assert driver.files() == []


ROOMS = ("groups", "snapshots", "templates", "tmp", "trash", "volumes")


def test_a_pool_whose_init_was_killed_is_refused_or_whole_and_made_by_the_repetition(
    tmp_path: Path, tally: Tally
) -> None:
    log = tmp_path / "passed"
    assert pool_init(tmp_path / "dry", {faults.CRASH_LOG: str(log)}) == 0
    points = numbered(log.read_text().split())
    assert points
    tally.meet("pool init", points)
    for point in points:
        directory = tmp_path / point
        assert pool_init(directory, {faults.CRASH_AT: point}) == -signal.SIGKILL
        driver = Driver(tmp_path / f"driver-{point}", [PoolPlace(directory)], init_pools=False)
        try:
            if (directory / "hostvol-pool.json").exists():
                driver.start()
                driver.kill()
            else:
                driver.start()
                assert "hostvol pool init" in driver.call("NodeGetStorageHealth").backend_health[0].message
                driver.kill()
            assert pool_init(directory, {}) == 0
            driver.start()
            check_pool_serves(driver)
            assert driver.stop() == 0
        finally:
            driver.kill()
            driver.clean_up()
        tally.count(held=True)


def test_a_node_that_was_killed_while_it_made_its_pool_makes_it_when_it_starts_again(
    tmp_path: Path, tally: Tally
) -> None:
    log = tmp_path / "passed"
    dry = Driver(tmp_path / "driver-dry", [PoolPlace(tmp_path / "dry")])
    dry.environment[faults.CRASH_LOG] = str(log)
    dry.start()
    assert dry.stop() == 0
    points = numbered(log.read_text().split())
    assert points
    tally.meet("node --init-pools", points)
    for point in points:
        driver = Driver(tmp_path / f"driver-{point}", [PoolPlace(tmp_path / point)])
        driver.environment[faults.CRASH_AT] = point
        driver.start(wait=False)
        try:
            assert driver.wait_dead() == -signal.SIGKILL
            driver.environment.clear()
            driver.start()
            check_pool_serves(driver)
            assert driver.stop() == 0
        finally:
            driver.kill()
            driver.clean_up()
        tally.count(held=True)
