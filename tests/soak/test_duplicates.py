"""Calls that arrive twice, at once, or against each other.

- 64 callers of one request are answered OK or ABORTED, the request takes effect exactly once, and a retry is OK.
- Opposite requests that race are answered only with codes of the specification's tables; afterwards the answer to a
  list, the mounts and the loop devices agree, and the volume can be taken down.
- The same holds for snapshots and copies, also while their volume is staged, written and deleted.
- A creation that hangs keeps no other volume waiting.
- A creation that outlives its caller's deadline goes on; another spec of that name is refused meanwhile, and the
  identical next call joins it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.harness import DIRECTORY, MIB, Code, Driver, Failure, PoolPlace, Workload, capability, create_request
from tests.soak.observing import assert_nothing_remains, children, held_create, together

CALLERS = 64
ROUNDS = 12
KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 16 * MIB},
    "block": {"block": True},
    "directory": {"parameters": DIRECTORY},
}
TABLES = {
    "create": {Code.OK, Code.ABORTED},
    "delete": {Code.OK, Code.ABORTED, Code.FAILED_PRECONDITION},
    "stage": {Code.OK, Code.ABORTED, Code.NOT_FOUND},
    "unstage": {Code.OK, Code.ABORTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "publish": {Code.OK, Code.ABORTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "unpublish": {Code.OK, Code.ABORTED, Code.NOT_FOUND},
    "expand": {Code.OK, Code.ABORTED, Code.NOT_FOUND},
}


@pytest.fixture(params=KINDS)
def workload(request: pytest.FixtureRequest, driver: Driver) -> Workload:
    return Workload(driver, request.param, **KINDS[request.param])


def code_of(step: Callable[[], object]) -> Code:
    try:
        step()
    except Failure as failure:
        return failure.code
    return Code.OK


def steps_of(workload: Workload) -> dict[str, Callable[[], object]]:
    """The bare calls of a volume's life, made ready so that many threads may use them."""
    driver = workload.driver
    workload.create()
    return {
        "create": workload.create,
        "stage": partial(driver.call, "NodeStageVolume", workload.stage_request()),
        "publish": partial(driver.call, "NodePublishVolume", workload.publish_request()),
        "expand": partial(driver.call, "ControllerExpandVolume", workload.expand_request(2 * workload.size_bytes)),
        "unpublish": workload.unpublish,
        "unstage": workload.unstage,
        "delete": lambda: driver.call("DeleteVolume", volume_id=workload.volume_id),
    }


def until_not_aborted(step: Callable[[], object]) -> None:
    """A retry heals within three calls, each as late as a caller's first back-off."""
    for _ in range(3):
        if (code := code_of(step)) is not Code.ABORTED:
            break
        time.sleep(0.5)
    assert code is Code.OK


def listed(driver: Driver) -> list[str]:
    return [entry.volume.volume_id for entry in driver.call("ListVolumes").entries]


def effect(workload: Workload) -> tuple[list[str], list[str], int]:
    """What a volume has on the machine: its mounts, its loop devices, how often it is listed."""
    driver = workload.driver
    return sorted(driver.mounts()), driver.loops(), len(listed(driver))


def test_sixty_four_callers_of_one_request_have_one_effect(workload: Workload) -> None:
    driver = workload.driver

    def all_at_once(step: Callable[[], object]) -> tuple[list[str], list[str], int]:
        codes = together(CALLERS, lambda _: code_of(step))
        assert set(codes) <= {Code.OK, Code.ABORTED}
        assert Code.OK in codes
        until_not_aborted(step)
        return effect(workload)

    is_filesystem = not workload.block
    is_image = workload.name != "directory"
    _, loops, count = all_at_once(workload.create)
    steps = steps_of(workload)
    assert (loops, count) == ([], 1)
    assert len([path for path in driver.files() if path.endswith("record.json")]) == 1
    mounts, loops, _ = all_at_once(steps["stage"])
    assert mounts == ([workload.staging] if is_filesystem else [])
    assert len(loops) == is_image
    mounts, _, _ = all_at_once(steps["publish"])
    assert mounts == sorted([*([workload.staging] if is_filesystem else []), workload.target()])
    assert all_at_once(steps["expand"])[0] == mounts
    [entry] = driver.call("ListVolumes").entries
    assert entry.volume.capacity_bytes == 2 * workload.size_bytes
    mounts, _, _ = all_at_once(steps["unpublish"])
    assert mounts == ([workload.staging] if is_filesystem else [])
    assert all_at_once(steps["unstage"]) == ([], [], 1)
    all_at_once(steps["delete"])
    assert_nothing_remains(driver)


def race(*steps: Callable[[], object]) -> list[set[Code]]:
    """The codes of eight callers of each step, all at once."""
    codes: list[set[Code]] = [set() for _ in steps]

    def call(number: int) -> Code:
        code = code_of(steps[number % len(steps)])
        codes[number % len(steps)].add(code)
        return code

    together(8 * len(steps), call)
    return codes


@pytest.mark.parametrize(("do", "undo"), [("stage", "unstage"), ("publish", "unpublish"), ("create", "delete")])
def test_opposites_that_race_leave_one_of_both_states(workload: Workload, do: str, undo: str) -> None:
    driver = workload.driver
    steps = steps_of(workload)
    if do == "publish":
        workload.stage()
    for _ in range(ROUNDS):
        done, undone = race(steps[do], steps[undo])
        assert done <= TABLES[do], (do, done)
        assert undone <= TABLES[undo], (undo, undone)
        mounts, loops, count = effect(workload)
        assert len(mounts) == len(set(mounts)), "a mount was stacked on another"
        assert len(loops) <= 1
        assert count <= 1
        assert count or not (mounts or loops)
    until_not_aborted(workload.create)
    until_not_aborted(workload.stage)
    until_not_aborted(workload.publish)
    mounts, loops, count = effect(workload)
    assert mounts == sorted([*([] if workload.block else [workload.staging]), workload.target()])
    assert (len(loops), count) == (workload.name != "directory", 1)
    for step in (workload.unpublish, workload.unstage, workload.delete):
        until_not_aborted(step)
    assert_nothing_remains(driver)


def test_a_volume_that_is_deleted_while_it_is_staged_and_published_is_gone_or_whole(workload: Workload) -> None:
    driver = workload.driver
    three = ("stage", "publish", "delete")
    for _ in range(ROUNDS):
        steps = steps_of(workload)
        for name, codes in zip(three, race(*(steps[name] for name in three)), strict=True):
            assert codes <= TABLES[name], (name, codes)
        if not listed(driver):
            assert (driver.mounts(), driver.loops()) == ([], [])
            continue
        for step in (workload.unpublish, workload.unstage, workload.delete):
            until_not_aborted(step)
        assert_nothing_remains(driver)
    assert_nothing_remains(driver)


SHARED = {"pool": "pool1"}


@pytest.fixture(params=["ext4", "directory", "ext4 shared", "directory shared"])
def source(
    request: pytest.FixtureRequest,
    make_pool: Callable[..., PoolPlace],
    make_driver: Callable[..., Driver],
    tmp_path: Path,
) -> Workload:
    """A volume in a pool that shares blocks, or in one that does not."""
    kind, _, sharing = request.param.partition(" ")
    driver = make_driver(tmp_path / "pool", make_pool("xfs", 1 << 30))
    options = dict(KINDS[kind])
    if sharing:
        options["parameters"] = {**options.get("parameters", {}), **SHARED}
    made = Workload(driver, request.param, **options)
    made.create()
    return made


def snapshot_ids(driver: Driver) -> list[str]:
    return [entry.snapshot.snapshot_id for entry in driver.call("ListSnapshots").entries]


def copy_request(source: Workload, snapshot_id: str) -> csi_pb2.CreateVolumeRequest:
    content = csi_pb2.VolumeContentSource()
    content.snapshot.snapshot_id = snapshot_id
    return create_request(
        "copy",
        source.size_bytes,
        parameters=source.parameters,
        volume_capabilities=[source.capability],
        volume_content_source=content,
    )


def test_sixty_four_callers_of_one_snapshot_and_of_one_copy_have_one_effect(source: Workload) -> None:
    driver = source.driver

    def all_at_once(step: Callable[[], object]) -> None:
        codes = together(CALLERS, lambda _: code_of(step))
        assert set(codes) <= {Code.OK, Code.ABORTED}
        assert Code.OK in codes
        until_not_aborted(step)

    all_at_once(lambda: driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id))
    [snapshot_id] = snapshot_ids(driver)
    all_at_once(lambda: driver.call("CreateVolume", copy_request(source, snapshot_id)))
    [copy_id] = [volume_id for volume_id in listed(driver) if volume_id != source.volume_id]
    all_at_once(lambda: driver.call("DeleteSnapshot", snapshot_id=snapshot_id))
    assert snapshot_ids(driver) == []
    for volume_id in (copy_id, source.volume_id):
        driver.call("DeleteVolume", volume_id=volume_id)
    assert_nothing_remains(driver)


def test_a_snapshot_that_races_with_its_deletion_and_with_its_volumes_life_is_whole_or_not_there(
    source: Workload,
) -> None:
    driver = source.driver
    steps = steps_of(source)

    def cut() -> object:
        return driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id)

    def delete_cut() -> None:
        for snapshot_id in snapshot_ids(driver):
            driver.call("DeleteSnapshot", snapshot_id=snapshot_id)

    for _ in range(ROUNDS // 2):
        made, gone, staged, unstaged = race(cut, delete_cut, steps["stage"], steps["unstage"])
        assert made <= {Code.OK, Code.ABORTED, Code.FAILED_PRECONDITION, Code.NOT_FOUND}, made
        assert gone <= {Code.OK, Code.ABORTED}, gone
        assert staged <= TABLES["stage"], staged
        assert unstaged <= TABLES["unstage"], unstaged
        assert len(snapshot_ids(driver)) <= 1
        for snapshot_id in snapshot_ids(driver):
            until_not_aborted(lambda snapshot_id=snapshot_id: driver.call("GetSnapshot", snapshot_id=snapshot_id))
    until_not_aborted(steps["unstage"])
    until_not_aborted(cut)
    [snapshot_id] = snapshot_ids(driver)
    until_not_aborted(lambda: driver.call("CreateVolume", copy_request(source, snapshot_id)))
    [copy_id] = [volume_id for volume_id in listed(driver) if volume_id != source.volume_id]
    copied, deleted, cut_deleted = race(
        lambda: driver.call("CreateVolume", copy_request(source, snapshot_id)),
        lambda: driver.call("DeleteVolume", volume_id=copy_id),
        delete_cut,
    )
    assert copied <= {Code.OK, Code.ABORTED, Code.NOT_FOUND}, copied
    assert deleted <= TABLES["delete"]
    assert cut_deleted <= {Code.OK, Code.ABORTED}
    until_not_aborted(delete_cut)
    for volume_id in listed(driver):
        until_not_aborted(lambda volume_id=volume_id: driver.call("DeleteVolume", volume_id=volume_id))


@pytest.mark.parametrize("other", ["publish", "stage", "delete"])
def test_an_expansion_beside_another_call_is_done_or_aborted(workload: Workload, other: str) -> None:
    driver = workload.driver
    steps = steps_of(workload)
    if other == "publish":
        workload.stage()
    for codes, name in zip(race(steps["expand"], steps[other]), ("expand", other), strict=True):
        assert codes <= TABLES[name], (name, codes)
    if listed(driver):
        until_not_aborted(steps["expand"])
        for step in (workload.stage, workload.publish):
            until_not_aborted(step)
        mounts, loops, _ = effect(workload)
        assert len(mounts) == len(set(mounts))
        assert len(loops) == (workload.name != "directory")
        for step in (workload.unpublish, workload.unstage, workload.delete):
            until_not_aborted(step)
    assert_nothing_remains(driver)


def btrfs_request(name: str, size_bytes: int = 128 * MIB) -> object:
    return create_request(name, size_bytes, volume_capabilities=[capability(fs_type="btrfs")])


def test_a_creation_that_hangs_keeps_no_other_volume_waiting(driver: Driver) -> None:
    others = [Workload(driver, kind, **KINDS[kind]) for kind in KINDS]
    with held_create(driver, lambda attempt: btrfs_request(f"slow-{attempt}")) as held:
        began = time.monotonic()
        for other in others:
            other.up()
            driver.call("NodeGetVolumeStats", volume_id=other.volume_id, volume_path=other.target())
            other.down()
        driver.call("GetCapacity")
        seconds = time.monotonic() - began
        assert held.caller.is_alive(), "the slow creation was not slow"
    print(f"three lifecycles beside a creation that hangs: {seconds:.2f} s")
    assert held.outcome == [Code.OK]
    assert seconds < 10


def test_a_creation_outlives_its_caller_and_the_next_identical_call_joins_it(driver: Driver) -> None:
    attempts: list[str] = []

    def request(attempt: int) -> object:
        attempts.append(f"late-{attempt}")
        return btrfs_request(attempts[-1])

    answers: list[str] = []
    with held_create(driver, request, timeout=1.0) as held:
        name = attempts[-1]
        held.caller.join(30)
        assert held.outcome == [Code.DEADLINE_EXCEEDED]
        assert driver.code("CreateVolume", btrfs_request(name, 256 * MIB), timeout=10) is Code.ABORTED
        # One that joins and still does not live to see the end is told that the work goes on.
        assert driver.code("CreateVolume", btrfs_request(name), timeout=1) in {Code.ABORTED, Code.DEADLINE_EXCEEDED}
        joined = threading.Thread(
            target=lambda: answers.append(driver.call("CreateVolume", btrfs_request(name)).volume.volume_id)
        )
        joined.start()
        joined.join(0.5)
        assert joined.is_alive(), "the identical call did not wait for the first"
        assert [command for _, command in children(driver.pid)] == ["mkfs.btrfs"]
        held.release()
        joined.join(30)
    assert len(answers) == 1
    assert answers[0] in listed(driver)
    assert driver.code("CreateVolume", btrfs_request(name, 256 * MIB)) is Code.ALREADY_EXISTS
    for volume_id in listed(driver):
        driver.call("DeleteVolume", volume_id=volume_id)
    assert_nothing_remains(driver)
