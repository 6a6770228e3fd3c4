"""Claims: mountinfo is understood as findmnt understands it, and one place is seen without reading it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from pathlib import Path

import pytest

from csi_driver.linux import loop, mount, mountinfo
from csi_driver.linux.mount import MountFlag

from .conftest import opened, run

XFS_IOC_GOINGDOWN = 0x8004587D  # fs/xfs/libxfs/xfs_fs.h: _IOR('X', 125, uint32_t)
XFS_FSOP_GOING_FLAGS_NOLOGFLUSH = 2


def bind(source: Path, target: Path, flags: MountFlag = mount.NO_FLAGS) -> None:
    with opened(source) as source_fd, opened(target) as target_fd:
        mount.bind(source_fd, target_fd, flags=flags)


def test_the_statx_structure_has_the_kernels_size() -> None:
    assert mountinfo.STATX.size == 256


def test_all_mounts_are_those_of_findmnt() -> None:
    listed = json.loads(run("findmnt", "--json", "--list", "--output", "ID,PARENT,TARGET,FSTYPE,FSROOT,MAJ:MIN"))
    expected = [
        (int(fs["id"]), int(fs["parent"]), fs["target"], fs["fstype"], fs["fsroot"], fs["maj:min"].strip())
        for fs in listed["filesystems"]
    ]
    found = [
        (e.mount_id, e.parent_id, e.target, e.fs_type, e.root, f"{os.major(e.device)}:{os.minor(e.device)}")
        for e in mountinfo.read_mounts()
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "name", ["with space", "tab\tand\nline", "return\r", "back\\slash", "hash#", "grüße", "\udcff\udcfe"]
)
def test_a_strange_name_is_found_by_its_needle_and_decoded(source: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    target.mkdir()
    bind(source, target)
    (entry,) = mountinfo.read_mounts(mountinfo.target_needle(str(target)))
    assert entry in mountinfo.read_mounts()
    mount.unmount(str(target))
    assert entry.target == str(target)
    assert os.fsencode(entry.target) == os.fsencode(target)


def test_a_strange_source_is_found_by_its_needle(target: Path) -> None:
    with opened(target) as target_fd:
        mount.mount_filesystem("a #1 \\source", "tmpfs", target_fd)
    (entry,) = mountinfo.read_mounts(mountinfo.source_needle("a #1 \\source"))
    mount.unmount(str(target))
    assert (entry.source, entry.fs_type, entry.target) == ("a #1 \\source", "tmpfs", str(target))


def test_an_empty_source_is_understood(target: Path) -> None:
    with opened(target) as target_fd:
        mount.mount_filesystem("", "tmpfs", target_fd)
    (entry,) = mountinfo.read_mounts(mountinfo.target_needle(str(target)))
    mount.unmount(str(target))
    assert (entry.source, entry.fs_type) == ("", "tmpfs")


def test_optional_fields_are_skipped(source: Path, target: Path) -> None:
    bind(source, target)
    run("mount", "--make-shared", str(target))
    (entry,) = mountinfo.read_mounts(mountinfo.target_needle(str(target)))
    assert b" shared:" in mountinfo.read_table()
    mount.unmount(str(target))
    assert entry.fs_type == run("stat", "-f", "-c", "%T", str(source)).strip().replace("ext2/ext3", "ext4")


def test_two_needles_give_each_line_once_and_in_order(source: Path, target: Path) -> None:
    bind(source, target)
    bind(source, target)
    device = source.stat().st_dev
    entries = mountinfo.read_mounts(
        mountinfo.target_needle(str(target)), mountinfo.device_needle(device), b"no such line"
    )
    ids = [entry.mount_id for entry in entries]
    mount.unmount(str(target))
    mount.unmount(str(target))
    assert len([entry for entry in entries if entry.target == str(target)]) == 2
    assert len(ids) == len(set(ids))
    assert [e for e in mountinfo.read_mounts() if e.mount_id in ids] == [e for e in entries if e.target != str(target)]


def test_read_only_is_told_of_the_mount_and_of_the_superblock(ext4_image: int, source: Path, target: Path) -> None:
    needle = mountinfo.target_needle(str(target))
    bind(source, target)
    assert not mountinfo.read_mounts(needle)[0].read_only
    mount.unmount(str(target))
    bind(source, target, MountFlag.READ_ONLY)
    assert mountinfo.read_mounts(needle)[0].read_only
    mount.unmount(str(target))
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd, options=["ro"])
        (entry,) = mountinfo.read_mounts(mountinfo.device_needle(device.device))
        mount.unmount(str(target))
    assert entry.read_only
    assert entry.options[0] == "rw"


def test_a_bind_is_a_mount_and_shows_the_identity_of_its_source(source: Path, target: Path) -> None:
    before = mountinfo.observe(str(target))
    bind(source, target)
    after = mountinfo.observe(str(target))
    with opened(target) as fd:
        assert mountinfo.observe(fd) == after
    (entry,) = mountinfo.read_mounts(mountinfo.target_needle(str(target)))
    mount.unmount(str(target))
    found = source.stat()
    assert not before.is_mount
    assert after.is_mount
    assert after.is_directory
    assert (after.device, after.inode, after.mode) == (found.st_dev, found.st_ino, found.st_mode)
    assert after.mount_id == entry.mount_id
    assert mountinfo.observe(str(target)) == before


def test_a_link_is_observed_itself(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    found = mountinfo.observe(str(tmp_path / "link"))
    assert found.is_symlink
    assert not found.is_directory


def test_a_name_is_observed_in_a_directory(source: Path) -> None:
    with opened(source) as fd:
        found = mountinfo.observe("hello", dir_fd=fd)
    assert found.is_file
    assert found.size_bytes == 5


def test_a_device_node_shows_its_device() -> None:
    assert mountinfo.observe("/dev/null").special_device == os.makedev(1, 3)


def test_what_is_absent_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mountinfo.observe(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    "flags",
    [
        mount.NO_FLAGS,
        MountFlag.READ_ONLY,
        MountFlag.NO_SUID | MountFlag.NO_DEV | MountFlag.NO_EXEC,
        MountFlag.NO_ATIME | MountFlag.NO_DIRATIME,
        MountFlag.STRICT_ATIME | MountFlag.READ_ONLY,
        MountFlag.NO_SYMLINK_FOLLOW,
    ],
)
def test_the_flags_of_a_mount_are_read_back(target: Path, flags: MountFlag) -> None:
    with opened(target) as target_fd:
        mount.mount_filesystem("none", "tmpfs", target_fd, flags=flags)
    with opened(target) as fd:
        found = mountinfo.mount_flags(fd)
    mount.unmount(str(target))
    assert found == flags


def test_a_dead_mount_is_recognised_and_can_be_unmounted(image: int, target: Path, tmp_path: Path) -> None:
    os.ftruncate(image, 300 << 20)
    run("mkfs.xfs", "-q", "-s", "size=4096", str(tmp_path / "disk.img"))
    with opened(target) as target_fd, loop.attach(image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "xfs", target_fd)
    with opened(target, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, XFS_IOC_GOINGDOWN, struct.pack("=I", XFS_FSOP_GOING_FLAGS_NOLOGFLUSH))
    with pytest.raises(OSError, match="Input/output error") as caught:
        mountinfo.observe(str(target))
    assert mountinfo.is_dead_mount(caught.value)
    mount.unmount(str(target))


def test_absence_is_not_death() -> None:
    assert not mountinfo.is_dead_mount(OSError(errno.ENOENT, ""))


def test_another_process_shows_its_own_table() -> None:
    assert mountinfo.read_mounts(pid=os.getpid()) == mountinfo.read_mounts()
