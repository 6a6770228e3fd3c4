"""What a workload finds at the target path.

- The volume: a directory or a block device, as large as it was asked for and not larger.
- Read-only is read-only, asked by `readonly`, by the access mode or by a flag; for a block device too.
- Mount flags and mkfs options are in force; nosuid and nodev are, unless the class says otherwise.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.node_volumes import KINDS, SIZED, existing, with_mode
from tests.conformance.probing import mount_options, refused
from tests.harness import MIB, Code, Driver, Workload, run


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
