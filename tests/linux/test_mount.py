"""Claims: a mount is where and how it was asked, an error speaks the kernel's words, unmount is never lazy.

Oracle: findmnt.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from csi_driver.linux import libc, loop, mount
from csi_driver.linux.mount import MountFlag

from .conftest import fails_with, opened, run


def findmnt(target: Path, column: str) -> list[str]:
    return run("findmnt", "-n", "-o", column, "--mountpoint", str(target)).strip().split(",")


def bind(source: Path, target: Path, flags: MountFlag = mount.NO_FLAGS) -> None:
    with opened(source) as source_fd, opened(target) as target_fd:
        mount.bind(source_fd, target_fd, flags=flags)


def test_the_structures_and_constants_are_those_of_the_kernel_headers() -> None:
    assert mount.MOUNT_ATTR.size == 32
    assert (libc.SYS_OPEN_TREE, libc.SYS_MOVE_MOUNT, libc.SYS_FSOPEN) == (428, 429, 430)
    assert (libc.SYS_FSCONFIG, libc.SYS_FSMOUNT, libc.SYS_MOUNT_SETATTR) == (431, 432, 442)
    assert MountFlag.NO_ATIME | MountFlag.STRICT_ATIME | 0x40 == mount.MOUNT_ATTR__ATIME


def test_a_raw_system_call_returns_its_result_or_raises_its_errno() -> None:
    os.close(libc.syscall(libc.SYS_FSOPEN, b"ext4", 0))
    with fails_with(errno.ENODEV):
        libc.syscall(libc.SYS_FSOPEN, b"no such filesystem", 0)


def test_a_bind_shows_the_source_and_unmount_uncovers_the_target(source: Path, target: Path) -> None:
    bind(source, target)
    assert (target / "hello").read_text() == "hello"
    (target / "new").write_text("written through the bind")
    mount.unmount(str(target))
    assert list(target.iterdir()) == []
    assert (source / "new").exists()


def test_a_read_only_bind_refuses_writes_from_its_first_moment(source: Path, target: Path) -> None:
    bind(source, target, MountFlag.READ_ONLY)
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").write_text("")
    (source / "new").write_text("the source stays writable")
    mount.unmount(str(target))


def test_each_flag_arrives(source: Path, target: Path) -> None:
    words = {
        MountFlag.READ_ONLY: "ro",
        MountFlag.NO_SUID: "nosuid",
        MountFlag.NO_DEV: "nodev",
        MountFlag.NO_EXEC: "noexec",
        MountFlag.NO_ATIME: "noatime",
        MountFlag.NO_DIRATIME: "nodiratime",
        MountFlag.NO_SYMLINK_FOLLOW: "nosymfollow",
    }
    for flag, word in words.items():
        bind(source, target, flag)
        shown = findmnt(target, "VFS-OPTIONS")
        mount.unmount(str(target))
        assert word in shown
        assert not (set(words.values()) - {word}) & set(shown)


def test_strict_access_time_replaces_the_relative_one(source: Path, target: Path) -> None:
    bind(source, target, MountFlag.STRICT_ATIME | MountFlag.NO_DEV)
    assert set(findmnt(target, "VFS-OPTIONS")) == {"rw", "nodev"}
    mount.unmount(str(target))


def test_a_bind_of_a_bind_keeps_the_first_ones_flags(source: Path, target: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    bind(source, target, MountFlag.NO_SUID)
    bind(target, second, MountFlag.NO_EXEC)
    assert {"nosuid", "noexec"} <= set(findmnt(second, "VFS-OPTIONS"))
    mount.unmount(str(second))
    mount.unmount(str(target))


def test_a_second_bind_stacks_and_each_unmount_takes_one_off(source: Path, target: Path) -> None:
    bind(source, target)
    bind(source, target)
    mount.unmount(str(target))
    assert (target / "hello").exists()
    mount.unmount(str(target))
    assert not (target / "hello").exists()


def test_a_file_is_bound_on_a_file(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.touch()
    bind(source / "hello", target)
    assert target.read_text() == "hello"
    mount.unmount(str(target))
    assert target.read_text() == ""


def test_a_device_node_is_bound_on_a_file(image: int, tmp_path: Path) -> None:
    target = tmp_path / "block"
    target.touch()
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        bind(Path(device.path), target)
        found = target.stat()
        assert stat.S_ISBLK(found.st_mode)
        assert found.st_rdev == device.device
        mount.unmount(str(target))


def test_a_directory_does_not_go_on_a_file_nor_a_file_on_a_directory(source: Path, target: Path) -> None:
    for one, other in ((source, source / "hello"), (source / "hello", target)):
        with fails_with(errno.EINVAL, errno.ENOTDIR):
            bind(one, other)


def test_unmounting_what_is_not_mounted_is_einval(target: Path) -> None:
    with fails_with(errno.EINVAL):
        mount.unmount(str(target))


def test_unmounting_what_is_in_use_is_ebusy_and_changes_nothing(source: Path, target: Path) -> None:
    bind(source, target)
    with opened(target / "hello", os.O_RDONLY):
        with fails_with(errno.EBUSY):
            mount.unmount(str(target))
        assert (target / "hello").exists()
    mount.unmount(str(target))


def test_unmount_does_not_follow_a_link_to_a_mount(source: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    bind(source, target)
    with fails_with(errno.EINVAL):
        mount.unmount(str(tmp_path / "link"))
    assert (target / "hello").exists()
    mount.unmount(str(target))


def test_unmount_by_name_in_a_directory_survives_a_renamed_parent(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pod" / "mount").mkdir(parents=True)
    with opened(tmp_path / "pod") as parent:
        bind(source, tmp_path / "pod" / "mount")
        (tmp_path / "pod").rename(tmp_path / "elsewhere")
        mount.unmount("mount", dir_fd=parent)
    assert list((tmp_path / "elsewhere" / "mount").iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/"])
def test_unmount_in_a_directory_takes_one_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        mount.unmount(name, dir_fd=0)


def test_a_filesystem_is_mounted_with_its_options_and_flags(ext4_image: int, target: Path) -> None:
    flags = MountFlag.NO_DEV | MountFlag.NO_SUID | MountFlag.NO_ATIME
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(
            device.path, "ext4", target_fd, options=["errors=remount-ro", "noauto_da_alloc"], flags=flags
        )
        assert findmnt(target, "SOURCE,FSTYPE") == [f"{device.path} ext4"]
        assert set(findmnt(target, "VFS-OPTIONS")) == {"rw", "nodev", "nosuid", "noatime"}
        assert {"rw", "errors=remount-ro", "noauto_da_alloc"} <= set(findmnt(target, "FS-OPTIONS"))
        mount.unmount(str(target))


def test_the_option_ro_makes_the_superblock_read_only_and_the_flag_only_the_mount(
    ext4_image: int, target: Path
) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd, options=["ro"])
        assert findmnt(target, "VFS-OPTIONS")[0] == "rw"
        assert findmnt(target, "FS-OPTIONS")[0] == "ro"
        mount.unmount(str(target))
        mount.mount_filesystem(device.path, "ext4", target_fd, flags=MountFlag.READ_ONLY)
        assert findmnt(target, "VFS-OPTIONS")[0] == "ro"
        assert findmnt(target, "FS-OPTIONS")[0] == "rw"
        mount.unmount(str(target))


@pytest.mark.parametrize(
    ("option", "reason"),
    [("nonsense", "Unknown parameter 'nonsense'"), ("errors=nonsense", "Bad value for 'errors'")],
)
def test_a_refused_option_is_told_in_the_kernels_words(ext4_image: int, target: Path, option: str, reason: str) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        with pytest.raises(OSError, match=reason) as caught:
            mount.mount_filesystem(device.path, "ext4", target_fd, options=[option])
        assert caught.value.errno == errno.EINVAL
        assert device.path in str(caught.value)


def test_a_device_without_a_filesystem_is_refused(image: int, target: Path) -> None:
    with (
        opened(target) as target_fd,
        loop.attach(image, block_size=4096, autoclear=True) as device,
        pytest.raises(OSError, match="mount ext4 from /dev/loop") as caught,
    ):
        mount.mount_filesystem(device.path, "ext4", target_fd)
    assert caught.value.errno == errno.EINVAL


def test_a_filesystem_that_the_kernel_does_not_have_is_enodev(target: Path) -> None:
    with opened(target) as target_fd, fails_with(errno.ENODEV):
        mount.mount_filesystem("/dev/null", "nosuchfs", target_fd)


def test_a_filesystem_that_cannot_be_attached_to_its_target_is_not_kept(ext4_image: int, source: Path) -> None:
    with loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        with opened(source / "hello") as target_fd, fails_with(errno.EINVAL, errno.ENOTDIR):
            mount.mount_filesystem(device.path, "ext4", target_fd)
        assert run("findmnt", "-n", "-S", device.path, check=False) == ""
    found = os.fstat(ext4_image)
    assert loop.is_gone(device.number, device=found.st_dev, inode=found.st_ino, patience_seconds=5)


def test_a_filesystem_is_mounted_unseen_and_goes_with_its_descriptor(ext4_image: int, target: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        tree = mount.detached(device.path, "ext4")
    root_fd = os.open(".", os.O_RDONLY, dir_fd=tree)
    os.close(tree)
    os.mkdir("seen", dir_fd=root_fd)
    assert Path("/proc/self/mountinfo").read_text() == before
    file = os.fstat(ext4_image)
    number = device.number
    assert loop.backing_is(number, file.st_dev, file.st_ino)
    os.close(root_fd)
    assert loop.is_gone(number, device=file.st_dev, inode=file.st_ino, patience_seconds=10)
    with loop.attach(ext4_image, block_size=4096, autoclear=True) as device, opened(target, os.O_PATH) as target_fd:
        mount.attach(mount.detached(device.path, "ext4"), target_fd)
    assert (target / "seen").is_dir()
    mount.unmount(str(target))
