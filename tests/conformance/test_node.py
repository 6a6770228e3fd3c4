"""Stage, publish, unpublish and unstage of CSI 1.13, row by row of its tables.

- They change nothing the second time; both tables of NodePublishVolume hold for every access mode and every kind of
  volume.
- Unpublish and unstage remove what the driver made, and never data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.node_volumes import KINDS, existing, with_mode
from tests.conformance.probing import mount_options, refused, traces
from tests.harness import Code, Driver, Mode, Workload, run


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Workload]:
    with existing(driver, f"node-{request.param}", **KINDS[request.param]) as workload:
        yield workload


@pytest.fixture
def staged(volume: Workload) -> Workload:
    volume.stage()
    return volume


# The tables

OTHER_ARGUMENTS: dict[str, Callable[[Any], object]] = {
    "readonly": lambda request: setattr(request, "readonly", not request.readonly),
    "access mode": lambda request: request.volume_capability.access_mode.CopyFrom(
        Mode(
            mode="SINGLE_NODE_WRITER"
            if request.volume_capability.access_mode.mode != Mode.SINGLE_NODE_WRITER
            else "SINGLE_NODE_SINGLE_WRITER"
        )
    ),
    "mount flags": lambda request: request.volume_capability.mount.mount_flags.append("noexec"),
}
EXCLUSIVE = ("SINGLE_NODE_WRITER", "SINGLE_NODE_READER_ONLY", "SINGLE_NODE_SINGLE_WRITER")
EVERY_MODE = (*EXCLUSIVE, "SINGLE_NODE_MULTI_WRITER")


def changed(workload: Workload, number: int, what: str) -> csi_pb2.NodePublishVolumeRequest:
    request = workload.publish_request(number)
    OTHER_ARGUMENTS[what](request)
    return request


def differences(workload: Workload) -> list[str]:
    """The changes that matter to this volume: a device has no flags, a reader is read-only anyway."""
    without = {"mount flags"} if workload.block else set()
    if workload.mode == "SINGLE_NODE_READER_ONLY":
        without.add("readonly")
    return [what for what in OTHER_ARGUMENTS if what not in without]


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_same_target_and_the_same_arguments_are_ok_and_change_nothing(staged: Workload, mode: str) -> None:
    asked = with_mode(staged, mode)
    asked.publish()
    before = traces(staged.driver)
    for _ in range(3):
        asked.publish()
    assert traces(staged.driver) == before


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_the_same_target_and_other_arguments_already_exist(staged: Workload, mode: str) -> None:
    asked = with_mode(staged, mode)
    target = asked.publish()
    before = traces(staged.driver)
    words = (target, "volume_capability or readonly")
    for what in differences(asked):
        refused(staged.driver, "NodePublishVolume", Code.ALREADY_EXISTS, *words, request=changed(asked, 0, what))
    assert traces(staged.driver) == before


@pytest.mark.parametrize("mode", EXCLUSIVE)
def test_another_target_is_refused_to_every_mode_but_multi_writer(staged: Workload, mode: str) -> None:
    asked = with_mode(staged, mode)
    target = asked.publish()
    before = traces(staged.driver)
    requests = [asked.publish_request(1), *(changed(asked, 1, what) for what in differences(asked))]
    for request in requests:
        refused(staged.driver, "NodePublishVolume", Code.FAILED_PRECONDITION, target, request=request)
    assert traces(staged.driver) == before
    asked.unpublish()
    staged.driver.call("NodePublishVolume", requests[-1])


def test_another_target_is_ok_to_a_multi_writer(staged: Workload) -> None:
    staged.publish(0)
    staged.publish(1)
    staged.publish(2)
    assert len(staged.driver.mounts()) == 4 - staged.block


def test_another_target_with_other_arguments_is_ok_to_a_multi_writer(image: Workload) -> None:
    image.publish(0)
    image.publish(1, readonly=True)
    image.driver.call("NodePublishVolume", changed(image, 2, "mount flags"))
    assert "ro" not in mount_options(image.target(0))[0]
    assert "ro" in mount_options(image.target(1))[0]
    assert "noexec" in mount_options(image.target(2))[0]


def test_an_exclusive_mode_is_refused_beside_a_multi_writer(staged: Workload) -> None:
    target = staged.publish(0)
    asked = with_mode(staged, "SINGLE_NODE_SINGLE_WRITER").publish_request(1)
    refused(staged.driver, "NodePublishVolume", Code.FAILED_PRECONDITION, target, "SINGLE_WRITER", request=asked)


def test_a_device_is_read_only_for_all_or_for_nobody(device: Workload) -> None:
    target = device.publish(0)
    asked = device.publish_request(1, readonly=True)
    refused(device.driver, "NodePublishVolume", Code.FAILED_PRECONDITION, target, "readonly", request=asked)
    assert run("blockdev", "--getro", target).strip() == "0"


def test_the_one_place_of_an_exclusive_mode_is_free_after_an_unpublish(staged: Workload) -> None:
    asked = with_mode(staged, "SINGLE_NODE_SINGLE_WRITER")
    asked.publish(0)
    asked.unpublish(0)
    asked.publish(1)


# Stage and unstage


def test_a_stage_can_be_repeated_and_changes_nothing(staged: Workload) -> None:
    before = traces(staged.driver)
    staged.stage()
    assert traces(staged.driver) == before


def test_a_stage_with_another_capability_at_the_same_path_already_exists(staged: Workload) -> None:
    before = traces(staged.driver)
    for what in [what for what in differences(staged) if what != "readonly"]:
        request = staged.stage_request()
        OTHER_ARGUMENTS[what](request)
        words = (staged.staging, "volume_capability")
        refused(staged.driver, "NodeStageVolume", Code.ALREADY_EXISTS, *words, request=request)
    assert traces(staged.driver) == before


def test_a_second_staging_path_is_refused_and_its_unstage_is_ok(staged: Workload) -> None:
    request = staged.stage_request()
    request.staging_target_path = staged.driver.staging("second-path")
    before = traces(staged.driver)
    refused(staged.driver, "NodeStageVolume", Code.FAILED_PRECONDITION, staged.staging, request=request)
    staged.driver.call("NodeUnstageVolume", volume_id=staged.volume_id, staging_target_path=request.staging_target_path)
    assert traces(staged.driver) == before
    os.rmdir(request.staging_target_path)


def test_an_unstage_is_refused_while_the_volume_is_published(staged: Workload) -> None:
    target = staged.publish()
    before = traces(staged.driver)
    refused(
        staged.driver,
        "NodeUnstageVolume",
        Code.FAILED_PRECONDITION,
        target,
        "unpublish",
        volume_id=staged.volume_id,
        staging_target_path=staged.staging,
    )
    assert traces(staged.driver) == before


def test_what_is_not_staged_or_published_is_unstaged_and_unpublished(volume: Workload) -> None:
    before = traces(volume.driver)
    for path in (volume.target(), "/no/such/directory/at/all"):
        volume.driver.call("NodeUnpublishVolume", volume_id=volume.volume_id, target_path=path)
        volume.driver.call("NodeUnstageVolume", volume_id=volume.volume_id, staging_target_path=path)
    assert traces(volume.driver) == before


@pytest.mark.parametrize("staging", ["", "given"])
def test_a_publish_without_a_stage_is_refused(volume: Workload, staging: str) -> None:
    request = volume.publish_request()
    before = traces(volume.driver)
    if not staging:
        request.staging_target_path = ""
    refused(
        volume.driver,
        "NodePublishVolume",
        Code.FAILED_PRECONDITION,
        volume.volume_id,
        "NodeStageVolume",
        request=request,
    )
    assert traces(volume.driver) == before


def test_a_publish_that_names_another_staging_path_is_refused(staged: Workload) -> None:
    request = staged.publish_request()
    request.staging_target_path = staged.driver.staging("not-it")
    before = traces(staged.driver)
    refused(staged.driver, "NodePublishVolume", Code.FAILED_PRECONDITION, "not-it", request=request)
    assert traces(staged.driver) == before
    os.rmdir(request.staging_target_path)


EXCEEDING: dict[str, Any] = {
    "MULTI_NODE_READER_ONLY": lambda asked: asked.access_mode.CopyFrom(Mode(mode="MULTI_NODE_READER_ONLY")),
    "MULTI_NODE_SINGLE_WRITER": lambda asked: asked.access_mode.CopyFrom(Mode(mode="MULTI_NODE_SINGLE_WRITER")),
    "MULTI_NODE_MULTI_WRITER": lambda asked: asked.access_mode.CopyFrom(Mode(mode="MULTI_NODE_MULTI_WRITER")),
    "access type": lambda asked: asked.block.SetInParent() if asked.HasField("mount") else asked.mount.SetInParent(),
    "fs_type": lambda asked: setattr(asked.mount, "fs_type", "xfs"),
}


@pytest.mark.parametrize("what", EXCEEDING)
@pytest.mark.parametrize("method", ["NodeStageVolume", "NodePublishVolume"])
def test_a_capability_that_the_volume_does_not_have_exceeds_it(image: Workload, method: str, what: str) -> None:
    request = image.stage_request() if method == "NodeStageVolume" else image.publish_request()
    EXCEEDING[what](request.volume_capability)
    before = traces(image.driver)
    refused(image.driver, method, Code.FAILED_PRECONDITION, "volume_capability", request=request)
    assert traces(image.driver) == before


def test_the_staging_directory_stays_for_the_orchestrator_who_made_it(image: Workload) -> None:
    image.unstage()
    assert os.listdir(image.staging) == []


# Unpublish and unstage


def test_unpublish_removes_the_target_and_nothing_else(staged: Workload) -> None:
    target = Path(staged.publish())
    sibling = target.parent / "sibling"
    sibling.write_text("mine")
    for _ in range(2):
        staged.unpublish()
        assert not os.path.lexists(target)
        assert sibling.read_text() == "mine"
    sibling.unlink()


def test_data_in_a_target_that_is_not_mounted_is_kept(staged: Workload) -> None:
    target = Path(staged.target())
    if staged.block:
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "file").write_text("precious")
    before = traces(staged.driver)
    refused(
        staged.driver,
        "NodeUnpublishVolume",
        Code.FAILED_PRECONDITION,
        "target_path",
        str(target),
        "not ours to remove",
        volume_id=staged.volume_id,
        target_path=str(target),
    )
    assert traces(staged.driver) == before
    assert (target if staged.block else target / "file").read_text() == "precious"
    if not staged.block:
        (target / "file").unlink()
        target.rmdir()
    else:
        target.unlink()


def test_data_below_a_staging_path_is_kept(image: Workload) -> None:
    image.unstage()
    kept = Path(image.staging, "file")
    kept.write_text("precious")
    before = traces(image.driver)
    image.driver.call("NodeUnstageVolume", volume_id=image.volume_id, staging_target_path=image.staging)
    refused(image.driver, "NodeStageVolume", Code.FAILED_PRECONDITION, "'file'", request=image.stage_request())
    assert traces(image.driver) == before
    kept.unlink()


def test_a_mount_that_is_not_the_volume_is_left_alone(staged: Workload) -> None:
    target = Path(staged.target())
    target.mkdir()
    run("mount", "-t", "tmpfs", "stranger", str(target))
    (target / "file").write_text("precious")
    before = traces(staged.driver)
    words = ("target_path", str(target))
    refused(
        staged.driver,
        "NodeUnpublishVolume",
        Code.FAILED_PRECONDITION,
        *words,
        volume_id=staged.volume_id,
        target_path=str(target),
    )
    refused(
        staged.driver,
        "NodePublishVolume",
        {Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT},
        *words,
        request=staged.publish_request(),
    )
    assert traces(staged.driver) == before
    assert (target / "file").read_text() == "precious"
    run("umount", str(target))
    target.rmdir()


def test_the_target_of_another_volume_is_left_alone(driver: Driver, staged: Workload) -> None:
    with existing(driver, "another", **KINDS["ext4"]) as other:
        other.stage()
        target = other.publish()
        before = traces(driver)
        refused(
            driver,
            "NodeUnpublishVolume",
            Code.FAILED_PRECONDITION,
            target,
            volume_id=staged.volume_id,
            target_path=target,
        )
        request = staged.publish_request()
        request.target_path = target
        refused(driver, "NodePublishVolume", {Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT}, target, request=request)
        assert traces(driver) == before


def test_what_was_written_survives_unpublish_and_unstage(staged: Workload) -> None:
    target = staged.publish()
    written = os.urandom(4096)
    path = target if staged.block else f"{target}/file"
    descriptor = os.open(path, os.O_RDWR | (0 if staged.block else os.O_CREAT))
    os.write(descriptor, written)
    os.close(descriptor)
    staged.unpublish()
    staged.unstage()
    staged.stage()
    staged.publish()
    with open(path, "rb") as file:
        assert file.read(4096) == written


@pytest.mark.parametrize("length", [128, 1024, 3000])
def test_paths_may_be_long(driver: Driver, length: int) -> None:
    where = Path(driver.home, "long")
    while len(str(where)) < length:
        where /= "d" * min(200, max(1, length - len(str(where))))
    with existing(driver, "long", **KINDS["ext4"]) as workload:
        staging, target = where / "staging", where / "target"
        staging.mkdir(parents=True)
        stage, publish = workload.stage_request(), workload.publish_request()
        stage.staging_target_path = publish.staging_target_path = str(staging)
        publish.target_path = str(target)
        driver.call("NodeStageVolume", stage)
        driver.call("NodePublishVolume", publish)
        (target / "file").write_text("hello")
        assert driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=str(target)).usage
        driver.call("NodeUnpublishVolume", volume_id=workload.volume_id, target_path=str(target))
        assert not target.exists()
        driver.call("NodeUnstageVolume", volume_id=workload.volume_id, staging_target_path=str(staging))
    run("rm", "-r", str(driver.home / "long"))
