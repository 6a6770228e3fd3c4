"""Node of CSI 1.13, row by row of its tables.

- Stage, publish, unpublish and unstage change nothing the second time; both tables of NodePublishVolume hold for every
  access mode and every kind of volume.
- The volume is at the target path: a directory or a block device, as large as it was asked for and not larger.
- Read-only is read-only, asked by `readonly`, by the access mode or by a flag; for a block device too.
- Mount flags and mkfs options are in force; nosuid and nodev are, unless the class says otherwise.
- Unpublish and unstage remove what the driver made, and never data.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.probing import mount_options, refused, traces
from tests.harness import DIRECTORY, MIB, Code, Driver, Mode, Workload, run

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 16 * MIB},
    "block": {"block": True, "size_bytes": 8 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 8 * MIB},
}
SIZED: dict[str, dict[str, Any]] = {
    **KINDS,
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
}


@contextmanager
def existing(driver: Driver, name: str, **kind: Any) -> Iterator[Workload]:
    """A volume, taken down afterwards whatever was published of it."""
    before = (driver.mounts(), driver.loops(), driver.files())
    workload = Workload(driver, name, **kind)
    workload.create()
    try:
        yield workload
    finally:
        for number in range(3):
            workload.unpublish(number)
        workload.unstage()
        workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == before


@pytest.fixture(params=KINDS)
def volume(request: pytest.FixtureRequest, driver: Driver) -> Iterator[Workload]:
    with existing(driver, f"node-{request.param}", **KINDS[request.param]) as workload:
        yield workload


@pytest.fixture
def staged(volume: Workload) -> Workload:
    volume.stage()
    return volume


@pytest.fixture
def image(driver: Driver) -> Iterator[Workload]:
    with existing(driver, "image", **KINDS["ext4"]) as workload:
        workload.stage()
        yield workload


@pytest.fixture
def device(driver: Driver) -> Iterator[Workload]:
    with existing(driver, "device", **KINDS["block"]) as workload:
        workload.stage()
        yield workload


def with_mode(workload: Workload, mode: str) -> Workload:
    return dataclasses.replace(workload, mode=mode)


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


# What is at the target path


@pytest.mark.parametrize("kind", SIZED)
def test_the_volume_is_at_the_target_and_has_its_size(driver: Driver, kind: str) -> None:
    with existing(driver, f"sized-{kind}", **SIZED[kind]) as workload:
        workload.stage()
        target = workload.publish()
        given = driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes
        usage = driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=target).usage
        units = {csi_pb2.VolumeUsage.Unit.Name(one.unit): one for one in usage}
        if workload.block:
            assert stat.S_ISBLK(os.stat(target).st_mode)
            assert int(run("blockdev", "--getsize64", target)) == given == units["BYTES"].total
            assert set(units) == {"BYTES"}
            return
        assert stat.S_ISDIR(os.stat(target).st_mode)
        assert [name for name in os.listdir(target) if name != "lost+found"] == []
        space = os.statvfs(target)
        assert units["BYTES"].total == space.f_blocks * space.f_frsize
        assert units["BYTES"].available >= 0
        assert units["BYTES"].used + units["BYTES"].available <= units["BYTES"].total
        if kind in ("ext4", "xfs"):
            assert units["INODES"].total == space.f_files == units["INODES"].used + units["INODES"].available
        if kind != "directory":
            assert units["BYTES"].total <= given


@pytest.mark.parametrize("provisioning", ["thin", "thick"])
@pytest.mark.parametrize("size", [8 * MIB, 15 * MIB])
def test_sixteen_mebibytes_do_not_fit_into_less(driver: Driver, size: int, provisioning: str) -> None:
    kind = {"size_bytes": size, "parameters": {"provisioning": provisioning}}
    with existing(driver, "small", **kind) as workload:
        workload.stage()
        target = workload.publish()
        with pytest.raises(OSError) as caught, Path(target, "data").open("wb", buffering=0) as file:  # noqa: PT012
            for _ in range(16):
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        assert caught.value.errno == errno.ENOSPC
        assert os.stat(target + "/data").st_size < size
        usage = driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=target).usage[0]
        assert usage.available < MIB


@pytest.mark.parametrize("size", [4096, 4 * MIB])
def test_a_device_ends_where_its_size_says(driver: Driver, size: int) -> None:
    with existing(driver, "exact", block=True, size_bytes=size) as workload:
        workload.stage()
        target = workload.publish()
        descriptor = os.open(target, os.O_RDWR)
        try:
            assert os.pwrite(descriptor, b"x" * 4096, size - 4096) == 4096
            with pytest.raises(OSError, match="No space"):
                os.pwrite(descriptor, b"x" * 4096, size)
        finally:
            os.close(descriptor)


def test_statistics_are_of_the_staging_path_and_of_every_target(image: Workload) -> None:
    image.publish()
    for path in (image.staging, image.target(), f"{image.target()}/"):
        assert image.driver.call("NodeGetVolumeStats", volume_id=image.volume_id, volume_path=path).usage


@pytest.mark.parametrize("path", ["unpublished", "/", "/nowhere", "relative", "../..", "/etc", "inside"])
def test_statistics_of_a_place_where_the_volume_is_not_are_not_found(image: Workload, path: str) -> None:
    target = image.publish()
    os.mkdir(f"{target}/inside")
    where = {"unpublished": image.target(1), "inside": f"{target}/inside"}.get(path, path)
    refused(
        image.driver,
        "NodeGetVolumeStats",
        Code.NOT_FOUND,
        "volume_path",
        image.volume_id,
        volume_id=image.volume_id,
        volume_path=where,
    )


# Read-only


@pytest.mark.parametrize("how", ["readonly", "SINGLE_NODE_READER_ONLY", "ro"])
@pytest.mark.parametrize("kind", ["ext4", "directory"])
def test_a_read_only_filesystem_takes_no_write(driver: Driver, kind: str, how: str) -> None:
    with existing(driver, f"ro-{kind}", **KINDS[kind]) as workload:
        workload.stage()
        Path(workload.publish(), "greeting").write_text("hello")
        workload.unpublish()
        asked = with_mode(workload, how) if how.startswith("SINGLE") else workload
        asked = dataclasses.replace(asked, flags=["ro"]) if how == "ro" else asked
        target = asked.publish(1, readonly=how == "readonly")
        attempts: list[Callable[[], object]] = [
            lambda: Path(target, "greeting").write_text("changed"),
            lambda: Path(target, "new").touch(),
            lambda: os.mkdir(f"{target}/directory"),
            lambda: os.unlink(f"{target}/greeting"),
            lambda: os.chmod(target, 0o777),
        ]
        for attempt in attempts:
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        assert Path(target, "greeting").read_text() == "hello"
        assert "ro" in mount_options(target)[0]


@pytest.mark.parametrize("how", ["readonly", "SINGLE_NODE_READER_ONLY"])
def test_a_read_only_device_takes_no_write(device: Workload, how: str) -> None:
    asked = with_mode(device, how) if how.startswith("SINGLE") else device
    image_file = next((device.driver.pool / "volumes").glob("*/disk.img"))
    before = hashlib.sha256(image_file.read_bytes()).digest()
    target = asked.publish(readonly=how == "readonly")
    assert run("blockdev", "--getro", target).strip() == "1"
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_DIRECT):
        with pytest.raises(OSError) as caught:
            _write_block(target, flags)
        assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EROFS)
    os.sync()
    assert hashlib.sha256(image_file.read_bytes()).digest() == before
    asked.unpublish()
    target = device.publish()
    _write_block(target, os.O_RDWR)
    os.sync()
    assert hashlib.sha256(image_file.read_bytes()).digest() != before


def _write_block(target: str, flags: int) -> None:
    descriptor = os.open(target, flags)
    try:
        os.write(descriptor, b"x" * 4096)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Flags and options

FLAGS: dict[str, tuple[str, list[str], set[str], set[str]]] = {
    "ext4": (
        "ext4",
        ["noatime", "noexec", "commit=17", "nodelalloc"],
        {"noatime", "noexec"},
        {"commit=17", "nodelalloc"},
    ),
    "ext4 in one word": ("ext4", ["noatime,commit=18"], {"noatime"}, {"commit=18"}),
    "ext4 sync": ("ext4", ["sync", "nodiratime"], {"nodiratime"}, {"sync"}),
    "xfs": ("xfs", ["noatime", "logbufs=4", "inode32"], {"noatime"}, {"logbufs=4", "inode32"}),
    "btrfs": ("btrfs", ["strictatime", "compress=zstd:3"], set(), {"compress=zstd:3"}),
    "directory": ("", ["noexec", "nosymfollow"], {"noexec", "nosymfollow"}, set()),
}


@pytest.mark.parametrize(("kind", "flags", "of_mount", "of_filesystem"), FLAGS.values(), ids=FLAGS)
def test_mount_flags_are_in_force(
    driver: Driver, kind: str, flags: list[str], of_mount: set[str], of_filesystem: set[str]
) -> None:
    with existing(driver, f"flags-{kind}", **{**SIZED[kind or "directory"], "flags": flags}) as workload:
        workload.stage()
        target = workload.publish()
        held_by_mount, held_by_filesystem = mount_options(target)
        assert of_mount | {"nosuid", "nodev"} <= held_by_mount
        assert of_filesystem <= held_by_filesystem
        if "noexec" in flags:
            script = Path(target, "script")
            script.write_text("#!/bin/sh\n")
            script.chmod(0o755)
            with pytest.raises(PermissionError):
                os.execv(script, [str(script)])


@pytest.mark.parametrize("kind", ["ext4", "directory"])
@pytest.mark.parametrize("flags", [[], ["suid"], ["dev"], ["suid", "dev"]], ids=lambda flags: " ".join(flags) or "none")
def test_devices_and_set_user_id_are_dead_unless_the_class_says_otherwise(
    driver: Driver, kind: str, flags: list[str]
) -> None:
    with existing(driver, f"attributes-{kind}", **{**KINDS[kind], "flags": flags}) as workload:
        workload.stage()
        target = workload.publish()
        for path in (target, workload.staging):
            held = mount_options(path)[0]
            assert ("nosuid" in held) == ("suid" not in flags)
            assert ("nodev" in held) == ("dev" not in flags)
        os.mknod(f"{target}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        if "dev" in flags:
            Path(target, "null").write_text("swallowed")
        else:
            with pytest.raises(PermissionError):
                Path(target, "null").write_text("swallowed")


def test_mkfs_options_of_ext4_are_in_force(driver: Driver) -> None:
    kind = {"size_bytes": 32 * MIB, "parameters": {"mkfsOptions": "-m 0 -i 65536 -I 512 -L 'label1'"}}
    with existing(driver, "mkfs", **kind) as workload:
        image_file = driver.pool / "volumes" / workload.volume_id / "disk.img"
        told = run("dumpe2fs", "-h", str(image_file))
        assert re.search(r"Reserved block count:\s+0\n", told)
        assert re.search(r"Inode count:\s+512\n", told)
        assert re.search(r"Inode size:\s+512\n", told)
        assert re.search(r"Filesystem volume name:\s+label1\n", told)
        assert re.search(r"Block size:\s+4096\n", told)


def test_mkfs_options_of_xfs_are_in_force(driver: Driver) -> None:
    kind = {"fs_type": "xfs", "size_bytes": 300 * MIB, "parameters": {"mkfsOptions": "-i size=1024 -L label1"}}
    with existing(driver, "mkfs", **kind) as workload:
        workload.stage()
        told = run("xfs_info", workload.publish())
        assert "isize=1024" in told
        assert re.search(r"data\s+=\s+bsize=4096", told)
        assert re.search(r"sectsz=4096", told)


def test_mkfs_options_of_btrfs_are_in_force(driver: Driver) -> None:
    kind = {"fs_type": "btrfs", "size_bytes": 128 * MIB, "parameters": {"mkfsOptions": "--csum xxhash -L label1"}}
    with existing(driver, "mkfs", **kind) as workload:
        image_file = driver.pool / "volumes" / workload.volume_id / "disk.img"
        told = run("btrfs", "inspect-internal", "dump-super", str(image_file))
        assert re.search(r"csum_type\s+1 \(xxhash64\)", told)
        assert re.search(r"label\s+label1\n", told)


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
