"""Claims: no link leads out of a directory or away from a target, and none is removed with content."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from csi_driver.linux import loop, mount, paths
from csi_driver.linux.paths import Kind, Target

from .conftest import fails_with, opened


def bind(source: Path, target: Target) -> None:
    target_fd = target.open()
    with opened(source) as source_fd:
        mount.bind(source_fd, target_fd)
    os.close(target_fd)


def test_the_open_how_structure_has_the_kernels_size() -> None:
    assert paths.OPEN_HOW.size == 24


def test_a_file_below_is_opened_and_made(source: Path) -> None:
    with opened(source) as fd:
        made = paths.open_beneath(fd, "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        assert not os.get_inheritable(made)
        os.close(made)
        os.close(paths.open_beneath(fd, "./hello", os.O_RDONLY))
    assert stat.S_IMODE((source / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("relative", "number"),
    [("../outside", errno.EXDEV), ("/etc/passwd", errno.EXDEV), ("link", errno.ELOOP), ("up/x", errno.ELOOP)],
)
def test_no_path_leads_out(source: Path, tmp_path: Path, relative: str, number: int) -> None:
    (tmp_path / "outside").touch()
    (source / "link").symlink_to("hello")
    (source / "up").symlink_to("..")
    with opened(source) as fd, fails_with(number):
        paths.open_beneath(fd, relative, os.O_RDONLY)


def test_a_nul_below_is_refused(source: Path) -> None:
    with opened(source) as fd, pytest.raises(ValueError, match="NUL"):
        paths.open_beneath(fd, "hello\0.txt", os.O_RDONLY)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("relative/path", "not absolute"),
        ("/", "root directory"),
        ("//./", "root directory"),
        ("/a/../b", r"'\.\.'"),
        ("/a/..", r"'\.\.'"),
        ("/a\0b", "NUL"),
        ("/" + "a/" * 2048, "4095 bytes"),
        ("/" + "a" * 256, "255 bytes"),
        ("/" + "ü" * 128, "255 bytes"),
        ("/\ud800", "encode"),
    ],
)
def test_a_bad_target_path_is_refused_with_its_reason(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Target(path)


@pytest.mark.parametrize("path", ["/a//b/", "/a/./b", "//a/b/."])
def test_a_target_path_is_told_without_empty_components(path: str) -> None:
    assert paths.check_target_path(path) == "/a/b"


def test_the_longest_path_is_accepted() -> None:
    path = "/" + "/".join(["a" * 255] * 15 + ["a" * 254])
    assert len(paths.check_target_path(path)) == 4095


def test_a_target_without_a_parent_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Target(str(tmp_path / "absent" / "mount"))


def test_a_parent_that_is_a_file_is_not_a_directory(source: Path) -> None:
    with pytest.raises(NotADirectoryError):
        Target(str(source / "hello" / "mount"))


def test_an_ancestor_may_be_a_link(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    with Target(str(tmp_path / "link" / "hello")) as target:
        assert target.kind() is Kind.FILE


def test_an_ancestor_may_not_be_a_link_into_another_process(source: Path) -> None:
    with fails_with(errno.ELOOP):
        Target(f"/proc/self/root{source}")


def test_each_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("directory")
    os.mkfifo(tmp_path / "fifo")
    kinds = {"absent": Kind.ABSENT, "directory": Kind.DIRECTORY, "file": Kind.FILE, "link": Kind.SYMLINK}
    for name, kind in (kinds | {"fifo": Kind.OTHER}).items():
        with Target(str(tmp_path / name)) as target:
            assert target.kind() is kind
    with Target("/dev/loop0") as target:
        assert target.kind() is Kind.BLOCK_DEVICE


def test_a_directory_is_made_once_and_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    with Target(str(path)) as target:
        assert target.ensure_directory()
        assert not target.ensure_directory()
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
        assert target.remove()
        assert not target.remove()
        assert not path.exists()


def test_a_file_is_made_once_and_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "block"
    with Target(str(path)) as target:
        assert target.ensure_file()
        assert not target.ensure_file()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert target.remove()
        assert not target.remove()


def test_a_link_is_not_taken_for_what_it_points_to(tmp_path: Path, source: Path) -> None:
    (tmp_path / "to-directory").symlink_to(source)
    (tmp_path / "to-file").symlink_to(source / "hello")
    (tmp_path / "to-nothing").symlink_to(tmp_path / "nothing")
    with (
        Target(str(tmp_path / "to-directory")) as target,
        pytest.raises(NotADirectoryError, match="symbolic link"),
    ):
        target.ensure_directory()
    for name in ("to-file", "to-nothing"):
        with Target(str(tmp_path / name)) as target:
            with pytest.raises(FileExistsError, match="symbolic link"):
                target.ensure_file()
            with fails_with(errno.ELOOP):
                target.open()
            with pytest.raises(OSError, match="symbolic link"):
                target.remove()
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "to-file").is_symlink()


def test_what_has_content_is_not_removed(source: Path) -> None:
    for path in (source, source / "hello"):
        with Target(str(path)) as target, fails_with(errno.ENOTEMPTY):
            target.remove()
    assert (source / "hello").read_text() == "hello"


def test_a_special_file_is_not_removed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Target(str(tmp_path / "fifo")) as target, pytest.raises(FileExistsError, match="special file"):
        target.remove()


def test_a_mount_is_seen_unmounted_and_only_then_removed(source: Path, tmp_path: Path) -> None:
    with Target(str(tmp_path / "mount")) as target:
        assert target.observe() is None
        target.ensure_directory()
        assert not target.unmount()
        bind(source, target)
        found = target.observe()
        assert found is not None
        assert found.is_mount
        with fails_with(errno.EBUSY):
            target.remove()
        assert not target.ensure_directory()
        assert target.unmount()
        assert not target.unmount()
        assert target.remove()
        assert not target.unmount()
    assert (source / "hello").exists()


def test_unmounting_a_target_in_use_is_ebusy(source: Path, target: Path) -> None:
    with Target(str(target)) as place:
        bind(source, place)
        with opened(target / "hello"), fails_with(errno.EBUSY):
            place.unmount()
        assert place.unmount()


def test_a_block_device_on_a_file_target_counts_as_that_file(image: int, tmp_path: Path) -> None:
    with (
        Target(str(tmp_path / "block")) as target,
        loop.attach(image, block_size=4096, autoclear=True) as device,
    ):
        target.ensure_file()
        bind(Path(device.path), target)
        assert target.kind() is Kind.BLOCK_DEVICE
        assert not target.ensure_file()
        with fails_with(errno.EBUSY):
            target.remove()
        assert target.unmount()
        assert target.remove()


def test_a_bare_device_node_at_a_file_target_is_refused(tmp_path: Path) -> None:
    os.mknod(tmp_path / "node", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    with Target(str(tmp_path / "node")) as target:
        with pytest.raises(FileExistsError, match="block device"):
            target.ensure_file()
        with pytest.raises(FileExistsError, match="block device"):
            target.remove()


def test_a_directory_is_in_the_way_of_a_file(target: Path) -> None:
    with Target(str(target)) as place, pytest.raises(FileExistsError, match="a directory is in the way"):
        place.ensure_file()


def test_an_exchanged_parent_does_not_lead_away(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pod").mkdir()
    with Target(str(tmp_path / "pod" / "mount")) as target:
        (tmp_path / "pod").rename(tmp_path / "moved")
        (tmp_path / "pod").symlink_to(source)
        target.ensure_directory()
    assert (tmp_path / "moved" / "mount").is_dir()
    assert not (source / "mount").exists()
