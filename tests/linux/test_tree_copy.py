"""A tree made again: everything that files are is kept, and nobody is led astray or harmed.

- Contents, owners, modes, times, ACLs, attributes, links of both kinds, holes and special files are the source's.
- Blocks are shared where the caller shares them, and holes stay holes where it copies.
- Any depth is copied with the same few descriptors.
- A mount point inside is refused by name; a device is never opened; what is removed meanwhile is left out.
- What progress raises ends the copy, and a failure names its place.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.linux import reflink, tree_copy

from .conftest import fails_with, open_descriptors
from .filesystem_images import MIB, mounted, opened, run

ACL = bytes.fromhex("0200000001000700ffffffff02000600e803000004000500ffffffff10000700ffffffff20000500ffffffff")


def share(source: int, target: int, progress: Callable[[int], None]) -> int:
    reflink.clone_file(source, target)
    return 0


def copy(source: int, target: int, progress: Callable[[int], None]) -> int:
    return reflink.copy_sparse(source, target, progress=progress)


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture
def place(filesystem: Path) -> Iterator[Path]:
    path = filesystem / "place"
    (path / "source").mkdir(parents=True)
    (path / "target").mkdir()
    yield path
    run("rm", "--recursive", "--force", "--", path)


def copied(place: Path, how: tree_copy.CopyFile = copy, progress: Callable[[int], None] | None = None) -> int:
    with opened(place / "source", os.O_RDONLY) as source, opened(place / "target", os.O_RDONLY) as target:
        return tree_copy.copy_tree(source, target, how, progress=progress)


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def described(path: Path) -> tuple[object, ...]:
    """Everything about one entry that its copy has to have."""
    found = path.lstat()
    kind = stat.S_IFMT(found.st_mode)
    content: object = None
    if kind == stat.S_IFREG:
        content = path.read_bytes()
    elif kind == stat.S_IFLNK:
        content = os.readlink(path)
    device = found.st_rdev if kind in (stat.S_IFBLK, stat.S_IFCHR) else 0
    links = found.st_nlink if kind != stat.S_IFDIR else 0
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, device, links, content, attributes(path)


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    return {str(path.relative_to(top)): described(path) for path in [top, *top.rglob("*")]}


def make_everything(top: Path) -> None:
    (top / "deep/er").mkdir(parents=True)
    (top / "file").write_bytes(b"data" * 5000)
    (top / "deep/empty").touch()
    os.link(top / "file", top / "deep/second name")
    os.link(top / "file", top / "deep/er/third name")
    os.symlink("/nowhere", top / "dangling")
    os.symlink("deep", top / "a link")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "deep/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(top / "deep/socket"))
    os.chown(top / "file", 1000, 2000)
    os.chmod(top / "file", 0o4751)
    os.chown(top / "dangling", 5, 6, follow_symlinks=False)
    os.chmod(top / "deep", 0o2770)
    os.setxattr(top / "file", "user.colour", b"red")
    os.setxattr(top / "file", "trusted.note", b"\0\1")
    os.setxattr(top / "dangling", "trusted.note", b"link", follow_symlinks=False)
    os.setxattr(top / "deep", "system.posix_acl_default", ACL)
    os.setxattr(top / "deep/empty", "system.posix_acl_access", ACL)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 123), follow_symlinks=False)
    os.chown(top, 7, 8)
    os.chmod(top, 0o3775)
    os.utime(top, ns=(10**18, 10**18 + 99))


def test_everything_that_files_are_is_kept(place: Path) -> None:
    make_everything(place / "source")
    before = open_descriptors()
    assert copied(place) == 20000
    assert open_descriptors() == before
    assert listing(place / "target") == listing(place / "source")
    inodes = {(place / "target" / name).stat().st_ino for name in ("file", "deep/second name", "deep/er/third name")}
    assert len(inodes) == 1


def test_blocks_are_shared_where_the_filesystem_can(place: Path) -> None:
    make_everything(place / "source")
    with opened(place) as directory:
        can_share = reflink.probe(directory)
    if not can_share:
        with fails_with(errno.EOPNOTSUPP):
            copied(place, share)
        return
    copied(place, share)
    assert listing(place / "target") == listing(place / "source")


def test_holes_stay_holes(place: Path) -> None:
    sparse = place / "source/sparse"
    with sparse.open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(64 * MIB)
    assert copied(place) < MIB
    twin = place / "target/sparse"
    assert (twin.stat().st_size, twin.stat().st_blocks) == (64 * MIB, sparse.stat().st_blocks)


def test_any_depth_takes_the_same_few_descriptors(place: Path) -> None:
    here = os.open(place / "source", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    most = 0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, open_descriptors())

    before = open_descriptors()
    copied(place, progress=look)
    assert before < most < before + 16
    assert run("find", place / "target", "-name", "bottom").count("bottom") == 1


def test_a_mount_point_inside_is_refused_by_name(place: Path) -> None:
    (place / "source/sub/inner").mkdir(parents=True)
    run("mount", "--bind", place / "target", place / "source/sub/inner")
    try:
        with pytest.raises(OSError, match="sub/inner") as refused:
            copied(place)
        assert refused.value.errno == errno.EBUSY
    finally:
        run("umount", place / "source/sub/inner")


def test_a_file_that_is_bound_over_another_is_refused(place: Path) -> None:
    (place / "source/file").write_text("ours")
    (place / "secret").write_text("somebody else's")
    run("mount", "--bind", place / "secret", place / "source/file")
    try:
        with pytest.raises(OSError, match="file") as refused:
            copied(place)
        assert refused.value.errno == errno.EBUSY
    finally:
        run("umount", place / "source/file")


def test_what_changes_meanwhile_is_left_out_or_told_and_never_followed_away(place: Path) -> None:
    source, stop = place / "source", threading.Event()
    (place / "outside").mkdir()
    (place / "outside/secret").write_text("secret")
    for number in range(50):
        (source / f"d{number}/inner").mkdir(parents=True)
        (source / f"d{number}/inner/file").write_text("x")

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number = (number + 1) % 50
            victim = source / f"d{number}"
            os.rename(victim, source / "away")
            os.symlink(place / "outside", victim)
            os.unlink(victim)
            os.rename(source / "away", victim)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for attempt in range(30):
            target = place / f"target{attempt}"
            target.mkdir()
            with opened(source, os.O_RDONLY) as source_fd, opened(target, os.O_RDONLY) as target_fd:
                try:
                    tree_copy.copy_tree(source_fd, target_fd, copy)
                except OSError as error:
                    assert error.errno in (errno.EAGAIN, errno.ELOOP, errno.EEXIST), error
            assert not list(target.rglob("secret"))
    finally:
        stop.set()
        thread.join()


def test_what_progress_raises_ends_the_copy(place: Path) -> None:
    for number in range(10):
        (place / f"source/{number}").write_bytes(b"x" * 4096)

    class Enough(Exception):
        pass

    def stop_soon(copied_bytes: int) -> None:
        if copied_bytes > 3 * 4096:
            raise Enough

    before = open_descriptors()
    with pytest.raises(Enough):
        copied(place, progress=stop_soon)
    assert open_descriptors() == before
    assert 0 < len(list((place / "target").iterdir())) < 10


def test_a_failure_names_its_place(place: Path) -> None:
    (place / "source/a/b").mkdir(parents=True)
    (place / "source/a/b/file").write_bytes(b"x")

    def fail(source: int, target: int, progress: Callable[[int], None]) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="a/b/file") as failed:
        copied(place, fail)
    assert failed.value.errno == errno.ENOSPC
