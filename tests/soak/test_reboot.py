"""After a reboot, and whatever order kubelet comes back in.

- After a reboot (nothing mounted, no loop device, another boot id) every call that kubelet may come back with is OK:
  stage and publish, unpublish and unstage, or the deletion; acknowledged data is there.
- State that an earlier boot recorded is not believed, neither by its boot id nor when it is gone altogether.
- A volume that is only staged can be deleted: kubelet may never unstage it (kubernetes#85476, #121937).
- A publish repairs what somebody unmounted behind our back (kubernetes#106729); so does a repeated stage.
- A repeated publish with a changed volume_context of others changes nothing; one of ours is refused.
- A leftover at the target is used when it is empty and of the right kind; else it is refused and stays as it is, and
  a publish that fails leaves nothing of its own at the target (kubelet removes the target with a bare os.Remove).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.harness import DIRECTORY, MIB, Code, Driver, Failure, Workload, run
from tests.soak.observing import assert_nothing_remains, mount_ids, mount_table, state_files

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 8 * MIB},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "block": {"block": True, "size_bytes": 4 * MIB},
    "directory": {"parameters": DIRECTORY},
}
CONTENT = "from before"


@pytest.fixture(params=KINDS)
def workload(request: pytest.FixtureRequest, driver: Driver) -> Workload:
    return Workload(driver, request.param, **KINDS[request.param])


def write(workload: Workload) -> None:
    if workload.block:
        with open(workload.target(), "r+b", buffering=0) as device:
            device.write(CONTENT.encode().ljust(4096))
            os.fsync(device.fileno())
    else:
        Path(workload.target(), "note").write_text(CONTENT)


def read(workload: Workload, number: int = 0) -> str:
    if workload.block:
        with open(workload.target(number), "rb", buffering=0) as device:
            return device.read(4096).decode().strip()
    return Path(workload.target(number), "note").read_text()


def edit_boot_id(driver: Driver) -> None:
    """What the state directory looks like when it lies on a disk and not on a tmpfs."""
    files = state_files(driver)
    assert files, "nothing was remembered"
    for file in files:
        body = json.loads(file.read_text())
        body["boot_id"] = "00000000-0000-4000-8000-000000000000"
        file.write_text(json.dumps(body))


def lose_state(driver: Driver) -> None:
    """What the state directory looks like on a tmpfs."""
    shutil.rmtree(driver.home / "state")


def reboot(driver: Driver, new_boot: Callable[[Driver], None]) -> None:
    """Everything that a machine loses: the process, the mounts, the loop devices, the boot id."""
    driver.kill()
    for target, _ in reversed(mount_table(driver.home)):
        run("umount", target)
    for device in driver.loops():
        run("losetup", "-d", device)
    assert (driver.mounts(), driver.loops()) == ([], [])
    new_boot(driver)
    driver.start()


COMEBACKS = {
    "stage, publish": ("stage", "publish", "read", "unpublish", "unstage", "delete"),
    "unpublish, unstage": ("unpublish", "unstage", "stage", "publish", "read", "unpublish", "unstage", "delete"),
    "unstage first": ("unstage", "unpublish", "stage", "publish", "read", "unpublish", "unstage", "delete"),
    "stage, then unstage": ("stage", "unpublish", "unstage", "delete"),
    "delete": ("delete", "delete"),
}


@pytest.mark.parametrize("new_boot", [edit_boot_id, lose_state])
@pytest.mark.parametrize("steps", COMEBACKS.values(), ids=COMEBACKS)
def test_after_a_reboot_every_order_of_calls_is_answered_ok(
    driver: Driver, steps: tuple[str, ...], new_boot: Callable[[Driver], None]
) -> None:
    workloads = [Workload(driver, kind, **options) for kind, options in KINDS.items()]
    for workload in workloads:
        workload.up()
        write(workload)
    reboot(driver, new_boot)
    listed = {entry.volume.volume_id for entry in driver.call("ListVolumes").entries}
    assert listed == {workload.volume_id for workload in workloads}
    for workload in workloads:
        for step in steps:
            if step == "read":
                assert read(workload) == CONTENT
            else:
                getattr(workload, step)()
        # Nobody unpublished before this delete: what was made at the target stays kubelet's to remove.
        if steps[0] == "delete":
            target = Path(workload.target())
            target.unlink() if workload.block else target.rmdir()
    assert_nothing_remains(driver)


def test_a_volume_of_an_earlier_boot_can_be_staged_elsewhere_and_otherwise(workload: Workload) -> None:
    driver = workload.driver
    workload.up()
    write(workload)
    reboot(driver, edit_boot_id)
    # What an earlier boot staged is not staged now; kubelet is told so and stages it first.
    assert driver.code("NodePublishVolume", workload.publish_request()) is Code.FAILED_PRECONDITION
    elsewhere = driver.staging("elsewhere")
    request = workload.stage_request()
    request.staging_target_path = elsewhere
    request.volume_capability.access_mode.mode = csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    driver.call("NodeStageVolume", request)
    publish = workload.publish_request(1)
    publish.staging_target_path = elsewhere
    driver.call("NodePublishVolume", publish)
    assert read(workload, 1) == CONTENT
    workload.unpublish(1)
    driver.call("NodeUnstageVolume", volume_id=workload.volume_id, staging_target_path=elsewhere)
    workload.unpublish(0)
    workload.delete()
    assert_nothing_remains(driver)


def test_a_volume_that_is_only_staged_can_be_deleted(workload: Workload) -> None:
    workload.create()
    workload.stage()
    workload.delete()
    assert_nothing_remains(workload.driver)


def test_a_published_volume_cannot_be_deleted(workload: Workload) -> None:
    driver = workload.driver
    workload.up()
    write(workload)
    for is_restarted in (False, True):
        if is_restarted:
            driver.restart()
        assert driver.code("DeleteVolume", volume_id=workload.volume_id) is Code.FAILED_PRECONDITION
        assert read(workload) == CONTENT
    workload.down()
    assert_nothing_remains(driver)


def undo_staging(workload: Workload) -> None:
    if workload.block:
        for device in workload.driver.loops():
            run("losetup", "-d", device)
    else:
        run("umount", workload.staging)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_a_publish_repairs_a_staging_that_was_undone_behind_our_back(workload: Workload, restarted: bool) -> None:
    driver = workload.driver
    workload.up()
    write(workload)
    workload.unpublish()
    undo_staging(workload)
    if restarted:
        driver.restart()
    workload.publish()
    assert read(workload) == CONTENT
    workload.down()
    assert_nothing_remains(driver)


def test_a_stage_repairs_a_staging_that_was_undone_behind_our_back(workload: Workload) -> None:
    workload.create()
    workload.stage()
    undo_staging(workload)
    workload.stage()
    workload.publish()
    workload.down()
    assert_nothing_remains(workload.driver)


@pytest.mark.parametrize("call", ["stage", "publish"])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "directory"])
def test_a_published_volume_whose_staging_path_was_unmounted_is_staged_again(
    driver: Driver, kind: str, call: str
) -> None:
    options = KINDS.get(kind, {"fs_type": "btrfs", "size_bytes": 128 * MIB})
    workload = Workload(driver, kind, **options)
    workload.up()
    write(workload)
    loops = driver.loops()
    run("umount", workload.staging)
    if call == "stage":
        workload.stage()
    workload.publish(1)
    assert sorted(driver.mounts()) == sorted([workload.staging, workload.target(0), workload.target(1)])
    assert driver.loops() == loops
    assert (read(workload, 0), read(workload, 1)) == (CONTENT, CONTENT)
    assert driver.code("NodeUnstageVolume", volume_id=workload.volume_id, staging_target_path=workload.staging) is (
        Code.FAILED_PRECONDITION
    )
    workload.unpublish(1)
    workload.down()
    assert_nothing_remains(driver)


def test_unpublish_and_unstage_of_what_somebody_unmounted_are_ok(workload: Workload) -> None:
    driver = workload.driver
    workload.up()
    run("umount", workload.target())
    undo_staging(workload)
    workload.unpublish()
    workload.unstage()
    workload.delete()
    assert_nothing_remains(driver)


def test_a_repeated_publish_with_a_changed_context_of_others_changes_nothing(workload: Workload) -> None:
    driver = workload.driver
    created = workload.create()
    own = dict(driver.call("ControllerGetVolume", volume_id=created).volume.volume_context)
    workload.stage()
    request = workload.publish_request()
    request.volume_context.update(own)
    driver.call("NodePublishVolume", request)
    before = mount_ids(workload.target())
    for number in range(3):
        request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"] = f"sesame {number}"
        request.volume_context["csi.storage.k8s.io/pod.name"] = f"pod-{number}"
        request.volume_context["storage.kubernetes.io/csiProvisionerIdentity"] = f"provisioner-{number}"
        driver.call("NodePublishVolume", request)
        assert mount_ids(workload.target()) == before
    assert "sesame" not in driver.log()
    request.volume_context["type"] = "something else"
    assert driver.code("NodePublishVolume", request) is Code.INVALID_ARGUMENT
    assert mount_ids(workload.target()) == before
    workload.down()
    assert_nothing_remains(driver)


def test_an_empty_leftover_of_the_right_kind_at_the_target_is_used(workload: Workload) -> None:
    workload.create()
    workload.stage()
    leftover = Path(workload.target())
    leftover.touch() if workload.block else leftover.mkdir()
    workload.publish()
    workload.down()
    assert_nothing_remains(workload.driver)


def make_leftover(kind: str, where: Path) -> Callable[[], bool]:
    """Something at a target; returns what tells whether it is still there, unchanged."""
    if kind == "file with content":
        where.write_text("somebody's")
        return lambda: where.read_text() == "somebody's"
    if kind == "directory with content":
        where.mkdir()
        (where / "precious").write_text("somebody's")
        return lambda: (where / "precious").read_text() == "somebody's"
    where.symlink_to("/etc")
    return lambda: os.readlink(where) == "/etc"


@pytest.mark.parametrize("kind", ["file with content", "directory with content", "symbolic link"])
def test_a_leftover_with_content_at_the_target_is_refused_and_stays(workload: Workload, kind: str) -> None:
    driver = workload.driver
    workload.create()
    workload.stage()
    is_unchanged = make_leftover(kind, Path(workload.target()))
    mounts = driver.mounts()
    for _ in range(2):
        with pytest.raises(Failure) as refused:
            workload.publish()
        assert refused.value.code in {Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT}
        assert workload.target() in refused.value.details
        assert is_unchanged()
        assert driver.mounts() == mounts
    # Nothing of ours is there, and what is there is not ours to remove.
    assert driver.code("NodeUnpublishVolume", volume_id=workload.volume_id, target_path=workload.target()) in {
        Code.OK,
        Code.FAILED_PRECONDITION,
        Code.INVALID_ARGUMENT,
    }
    assert is_unchanged()
    workload.publish(1)
    workload.unpublish(1)
    workload.unstage()
    workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files(), state_files(driver)) == ([], [], [], [])


def test_a_publish_that_fails_leaves_nothing_at_the_target(workload: Workload) -> None:
    workload.create()
    assert workload.driver.code("NodePublishVolume", workload.publish_request()) is Code.FAILED_PRECONDITION
    assert not os.path.lexists(workload.target())
    # Another try after the stage, with a mode that the first publication excludes.
    workload.mode = "SINGLE_NODE_SINGLE_WRITER"
    workload.stage()
    workload.publish()
    assert workload.driver.code("NodePublishVolume", workload.publish_request(1)) is Code.FAILED_PRECONDITION
    assert not os.path.lexists(workload.target(1))
    workload.down()
    assert_nothing_remains(workload.driver)


def test_an_unpublish_of_an_empty_leftover_removes_it(workload: Workload) -> None:
    workload.create()
    leftover = Path(workload.target())
    leftover.touch() if workload.block else leftover.mkdir()
    workload.unpublish()
    assert not os.path.lexists(leftover)
    workload.delete()
    assert_nothing_remains(workload.driver)
