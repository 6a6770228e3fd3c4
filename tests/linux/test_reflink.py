"""Copies that share blocks or keep holes: same content, no more space, and a probe that tells the truth."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.linux import btrfs, extents, reflink

from .filesystem_images import MIB, mounted, opened, run

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture
def place(filesystem: Path) -> Iterator[Path]:
    path = filesystem / "place"
    path.mkdir()
    yield path
    run("rm", "--recursive", "--", path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def can_reflink(place: Path) -> bool:
    """What cp finds out by itself."""
    (place / "a").write_bytes(b"x" * 4096)
    try:
        run("cp", "--reflink=always", place / "a", place / "b")
    except Exception:
        return False
    finally:
        for name in ("a", "b"):
            (place / name).unlink(missing_ok=True)
    return True


def test_the_number_is_that_of_the_header() -> None:
    assert reflink.FICLONE == 0x40049409


def test_the_probe_agrees_with_cp_and_leaves_nothing(place: Path) -> None:
    with opened(place) as fd:
        assert reflink.probe(fd) is can_reflink(place)
    assert os.listdir(place) == []


def test_xfs_without_reflink_is_found_out(tmp_path: Path) -> None:
    with mounted(tmp_path, "xfs", options=["-m", "reflink=0"]) as path, opened(path) as fd:
        assert reflink.probe(fd) is False


def test_tmpfs_and_filesystems_without_unnamed_files_are_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("/dev/shm") as fd:
        assert reflink.probe(fd) is False
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a filesystem without it answers: EISDIR
    with opened(tmp_path) as fd:
        assert reflink.probe(fd) is can_reflink(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_clone_has_the_content_and_takes_no_space(place: Path) -> None:
    (place / "source").write_bytes(os.urandom(3 * MIB + 17))
    with opened(place / "source") as source, opened(place / "clone", NEW) as clone:
        if not can_reflink(place):
            with pytest.raises(OSError, match="not supported"):
                reflink.clone_file(source, clone)
            return
        reflink.clone_file(source, clone)
        assert extents.allocated_bytes(clone, sync=True).exclusive == 0
    assert digest(place / "clone") == digest(place / "source")


def test_a_clone_across_filesystems_or_without_reflink_is_refused(place: Path, tmp_path: Path) -> None:
    with opened(place / "source", NEW) as source, opened(tmp_path / "target", NEW) as target:
        os.pwrite(source, b"data", 0)
        with pytest.raises(OSError, match=r"Invalid cross-device link|not supported"):
            reflink.clone_file(source, target)


def test_a_nocow_clone_on_btrfs_needs_a_nocow_target(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs") as path, opened(path / "source", NEW) as source:
        btrfs.set_nocow(source)
        os.pwrite(source, b"x" * MIB, 0)
        with opened(path / "plain", NEW) as plain, pytest.raises(OSError, match="Invalid argument"):
            reflink.clone_file(source, plain)
        with opened(path / "same", NEW) as same:
            btrfs.set_nocow(same)
            reflink.clone_file(source, same)


@pytest.fixture
def holed(place: Path) -> Path:
    """A file with data, a hole, preallocated space, data at an odd place and a hole at its end."""
    path = place / "source"
    with opened(path, NEW) as fd:
        os.pwrite(fd, os.urandom(MIB), 0)
        os.posix_fallocate(fd, 16 * MIB, MIB)
        os.pwrite(fd, os.urandom(20 * MIB + 123), 40 * MIB + 7)
        os.ftruncate(fd, 128 * MIB + 1)
        os.fsync(fd)
    return path


def test_a_sparse_copy_has_the_content_the_size_and_the_holes(holed: Path) -> None:
    steps: list[int] = []
    with opened(holed) as source, opened(holed.parent / "copy", NEW) as target:
        copied = reflink.copy_sparse(source, target, progress=steps.append)
        found = extents.allocated_bytes(target, sync=True)
    assert digest(holed.parent / "copy") == digest(holed)
    assert 21 * MIB <= copied < 22 * MIB
    assert found.total <= copied + MIB
    assert steps == sorted(steps)
    assert steps[-1] == copied
    assert all(later - sooner <= 16 * MIB for sooner, later in zip([0, *steps], steps, strict=False))


def test_a_sparse_copy_without_copy_file_range_is_the_same(holed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> int:
        raise OSError(18, "injected")

    monkeypatch.setattr(os, "copy_file_range", missing)
    with opened(holed) as source, opened(holed.parent / "copy", NEW) as target:
        reflink.copy_sparse(source, target)
        found = extents.allocated_bytes(target, sync=True)
    assert digest(holed.parent / "copy") == digest(holed)
    assert found.exclusive == found.total < 23 * MIB


def test_a_copy_that_copies_short_pieces_is_complete(holed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.copy_file_range

    def short(source: int, target: int, count: int, *offsets: int) -> int:
        return 0 if offsets[0] % 3 == 0 else real(source, target, min(count, 70_001), *offsets)

    monkeypatch.setattr(os, "copy_file_range", short)
    with opened(holed) as source, opened(holed.parent / "copy", NEW) as target:
        reflink.copy_sparse(source, target)
    assert digest(holed.parent / "copy") == digest(holed)


def test_empty_and_wholly_sparse_files_are_copied(place: Path) -> None:
    for number, size in enumerate((0, 1, 64 * MIB)):
        with opened(place / f"s{number}", NEW) as source, opened(place / f"t{number}", NEW) as target:
            os.ftruncate(source, size)
            reflink.copy_sparse(source, target)
            assert os.fstat(target).st_size == size
            assert os.fstat(target).st_blocks == 0


def test_a_target_with_content_is_refused(place: Path) -> None:
    with opened(place / "source", NEW) as source, opened(place / "target", NEW) as target:
        os.pwrite(target, b"data", 0)
        with pytest.raises(OSError, match="not empty"):
            reflink.copy_sparse(source, target)


def test_what_progress_raises_ends_the_copy(holed: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(copied: int) -> None:
        raise CancelledError

    with opened(holed) as source, opened(holed.parent / "copy", NEW) as target, pytest.raises(CancelledError):
        reflink.copy_sparse(source, target, progress=cancel)


def test_a_source_that_shrinks_is_an_error(holed: Path) -> None:
    source, target = os.open(holed, os.O_RDWR), os.open(holed.parent / "copy", NEW)
    with pytest.raises(OSError, match="shorter"):
        reflink.copy_sparse(source, target, progress=lambda copied: os.ftruncate(source, 41 * MIB))
    os.close(source)
    os.close(target)


def test_copied_data_shares_nothing_and_keeps_the_targets_own_blocks(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(8 << 20)
        for offset in (0, 3 << 20, (8 << 20) - 4096):
            os.pwrite(file.fileno(), os.urandom(4096), offset)
    with target.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 8 << 20)
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    target_fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        assert reflink.copy_data(source_fd, target_fd) >= 3 * 4096
    finally:
        os.close(source_fd)
        os.close(target_fd)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 >= 8 << 20


def test_an_unnamed_copy_shares_blocks_and_leaves_no_name(place: Path) -> None:
    (place / "file").write_bytes(os.urandom(MIB))
    can_share = can_reflink(place)
    before = sorted(os.listdir(place))
    with opened(place / "file", os.O_RDWR) as source, opened(place) as directory:
        if not can_share:
            with pytest.raises(OSError):
                reflink.clone_unnamed(source, directory)
            return
        copy = reflink.clone_unnamed(source, directory)
        try:
            os.pwrite(source, b"after", 0)
            assert os.pread(copy, 5, 0) != b"after"
            assert os.fstat(copy).st_nlink == 0
            assert sorted(os.listdir(place)) == before
        finally:
            os.close(copy)


def test_two_directories_of_one_filesystem_can_share_and_two_filesystems_cannot(place: Path, tmp_path: Path) -> None:
    (place / "other").mkdir()
    with opened(place) as one, opened(place / "other") as other, opened(tmp_path) as elsewhere:
        assert reflink.probe(one, other) == reflink.probe(one)
        assert not reflink.probe(one, elsewhere)


@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"], indirect=True)
def test_a_clone_of_many_extents_goes_before_ordinary_threads_unless_it_takes_long(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = []
    ioctl = fcntl.ioctl

    def spy(fd: int, request: int, *arguments: Any) -> Any:
        if request == reflink.FICLONE:
            policies.append(os.sched_getscheduler(0))
        return ioctl(fd, request, *arguments)

    monkeypatch.setattr(fcntl, "ioctl", spy)
    with opened(place / "source", NEW) as source, opened(place) as directory:
        for number in range(3):
            os.pwrite(source, b"x" * 4096, number * 8192)
        os.fsync(source)
        cost = reflink.cost(source)
        assert cost.extents == extents.extent_count(source) >= 3
        assert 0 < cost.seconds < 0.001
        for expected in (reflink.Cost(1000, 0.017), cost, reflink.Cost(100_000, 0.6), None):
            os.close(reflink.clone_unnamed(source, directory, expected))
    assert policies == [os.SCHED_RR | os.SCHED_RESET_ON_FORK, *[os.SCHED_OTHER] * 3]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
