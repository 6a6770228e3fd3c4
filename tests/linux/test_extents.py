"""Measuring what a file holds: every byte once, shared ones apart, 10,000 images in a second."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from csi_driver.linux import btrfs, extents
from csi_driver.linux.extents import Allocation, Extent, allocated_bytes, extent_count, mapped

from .filesystem_images import MIB, mounted, opened, run

BLOCK = 4096
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def reflink_filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


def disk_usage(path: Path) -> int:
    """What du says, in bytes."""
    return int(run("du", "--block-size=1", path).split()[0])


def test_structures_and_numbers_are_those_of_the_headers() -> None:
    assert (extents.FIEMAP.size, extents.EXTENT.size) == (32, 56)
    assert extents.FS_IOC_FIEMAP == 0xC020660B


def test_an_empty_and_a_sparse_file_hold_nothing(filesystem: Path) -> None:
    with opened(filesystem / "sparse", NEW) as fd:
        assert allocated_bytes(fd) == Allocation(0, 0, 0)
        os.ftruncate(fd, 64 * MIB)
        assert allocated_bytes(fd) == allocated_bytes(fd, sync=True) == Allocation(0, 0, 0)


def test_preallocated_space_counts_also_behind_the_end(filesystem: Path) -> None:
    with opened(filesystem / "thick", NEW) as fd:
        os.posix_fallocate(fd, 0, 8 * MIB)
        found = allocated_bytes(fd)
        assert found.total == found.exclusive == 8 * MIB == disk_usage(filesystem / "thick")
        run("fallocate", "--keep-size", "--length", str(9 * MIB), filesystem / "thick")
        assert allocated_bytes(fd).exclusive == 9 * MIB


def test_written_data_is_exclusive_once_it_has_a_place(filesystem: Path) -> None:
    with opened(filesystem / "written", NEW) as fd:
        os.pwrite(fd, b"x" * MIB, 0)
        os.pwrite(fd, b"x" * MIB, 32 * MIB)
        assert allocated_bytes(fd).exclusive <= 2 * MIB
        found = allocated_bytes(fd, sync=True)
        assert (found.total, found.exclusive) == (2 * MIB, 2 * MIB)
        assert found.total == disk_usage(filesystem / "written")
        assert extent_count(fd) == found.extents == 2


def test_a_map_longer_than_a_batch_is_read_to_its_end(filesystem: Path) -> None:
    pieces = 3000
    with opened(filesystem / "fragmented", NEW) as fd:
        for number in range(pieces):
            os.pwrite(fd, b"x" * BLOCK, number * 2 * BLOCK)
        found = allocated_bytes(fd, sync=True)
        # XFS preallocates behind the end and keeps what later writes skip: there are more than were written.
        listed = re.findall(r"^ *\d+:", run("filefrag", "-v", filesystem / "fragmented"), re.MULTILINE)
        assert found.extents == extent_count(fd) == len(listed) >= pieces
        assert found.total == found.exclusive
        # du counts the blocks of the map as well.
        assert found.total <= disk_usage(filesystem / "fragmented") <= found.total * 1.02


def items(mount_point: Path, inode: int) -> int:
    """What the filesystem's own tool counts in its trees, of the default subvolume."""
    os.sync()
    device = run("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", mount_point).strip()
    tree = run("btrfs", "inspect-internal", "dump-tree", "-t", "5", device)
    return len(re.findall(rf"item \d+ key \({inode} EXTENT_DATA ", tree))


def test_neighbours_on_btrfs_are_counted_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path, "btrfs") as place, opened(place / "written", NEW) as fd:
        assert extent_count(fd) == 0
        os.pwrite(fd, b"x" * 1000, 0)
        os.fsync(fd)
        # So little is inside metadata, in an item of another length.
        assert extent_count(fd) == items(place, os.fstat(fd).st_ino) == 1
        btrfs.set_nocow(other := os.open(place / "image", NEW))
        try:
            for number in range(400):
                os.pwrite(other, b"x" * BLOCK, number * BLOCK)
                os.fdatasync(other)
            counted = extent_count(other)
            # More than one answer of the kernel holds, and each is one for the map.
            assert counted == items(place, os.fstat(other).st_ino) >= 400
            assert allocated_bytes(other).extents < 40
            monkeypatch.setattr(extents, "MANY", 350)
            assert extent_count(other) == 350
        finally:
            os.close(other)


def test_every_part_of_the_map_has_its_places(filesystem: Path) -> None:
    with opened(filesystem / "parts", NEW) as fd:
        for number in range(1500):
            os.pwrite(fd, b"x" * BLOCK, number * 2 * BLOCK)
        whole = list(mapped(fd, sync=True))
        assert len(whole) >= 1500
        places = places_of(whole)
        assert set(range(0, 3000 * BLOCK, 2 * BLOCK)) <= places.keys()
        random = Random(5)
        for _ in range(50):
            start, end = sorted(random.randrange(3001) * BLOCK for _ in range(2))
            found = list(mapped(fd, start=start, end=end))
            assert all(start <= one.logical < one.end <= end for one in found)
            assert places_of(found) == {at: place for at, place in places.items() if start <= at < end}
        assert list(mapped(fd, start=BLOCK, end=BLOCK)) == []


def places_of(found: list[Extent]) -> dict[int, int]:
    """Where each block that is no hole lies."""
    data = [one for one in found if not one.is_unwritten]
    assert all(one.has_place for one in data)
    return {one.logical + at: one.physical + at for one in data for at in range(0, one.length, BLOCK)}


def test_extents_say_what_they_are(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs") as path:
        with opened(path / "prealloc", NEW) as fd:
            os.posix_fallocate(fd, 0, MIB)
            assert [one.is_unwritten for one in mapped(fd, sync=True)] == [True]
            os.pwrite(fd, b"x" * MIB, 0)
            assert [(one.is_unwritten, one.is_shared) for one in mapped(fd, sync=True)] == [(False, False)]
            with opened(path / "clone", NEW) as clone:
                fcntl.ioctl(clone, 0x40049409, fd)
                assert [one.is_shared for one in mapped(clone, sync=True)] == [True]
                assert [one.physical for one in mapped(clone)] == [one.physical for one in mapped(fd)]
        with opened(path / "memory", NEW) as fd:
            os.pwrite(fd, b"x" * MIB, 0)
            assert not any(one.has_place for one in mapped(fd))
            assert all(one.has_place for one in mapped(fd, sync=True))
        with opened(path / "inline", NEW) as fd:
            os.pwrite(fd, b"small", 0)
            assert [one.has_place for one in mapped(fd, sync=True)] == [False]
        run("mount", "--options", "remount,compress-force=zstd", path)
        with opened(path / "compressed", NEW) as fd:
            os.pwrite(fd, b"x" * MIB, 0)
            assert {one.has_place for one in mapped(fd, sync=True)} == {False}


def test_shared_extents_are_total_and_not_exclusive(reflink_filesystem: Path) -> None:
    path = reflink_filesystem
    with opened(path / "source", NEW) as source, opened(path / "clone", NEW) as clone:
        os.pwrite(source, b"x" * 4 * MIB, 0)
        os.fsync(source)
        fcntl.ioctl(clone, 0x40049409, source)
        for fd in (source, clone):
            found = allocated_bytes(fd, sync=True)
            assert (found.total, found.exclusive) == (4 * MIB, 0)
        os.pwrite(clone, b"y" * MIB, 0)
        assert allocated_bytes(clone, sync=True).exclusive == MIB
        # du counts both, so it says 8 MiB of the 5 that are taken.
        os.ftruncate(clone, 0)
        os.fsync(clone)
    run("sync", "--file-system", path)
    with opened(path / "source") as source:
        assert allocated_bytes(source, sync=True).exclusive == 4 * MIB


def test_compressed_and_inline_data_is_not_exclusive(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs") as path:
        run("mount", "--options", "remount,compress-force=zstd", path)
        with opened(path / "compressed", NEW) as fd, opened(path / "inline", NEW) as inline:
            os.pwrite(fd, b"x" * MIB, 0)
            assert allocated_bytes(fd, sync=True).exclusive == 0
            assert allocated_bytes(fd).total == MIB
            os.pwrite(inline, b"small", 0)
            assert allocated_bytes(inline, sync=True).exclusive == 0


def test_a_filesystem_without_maps_is_an_error(tmp_path: Path) -> None:
    with opened("/dev/shm", os.O_RDWR | os.O_TMPFILE) as fd:
        os.pwrite(fd, b"x" * BLOCK, 0)
        with pytest.raises(OSError, match="not supported"):
            allocated_bytes(fd)


def test_ten_thousand_images_are_measured_in_a_second(filesystem: Path) -> None:
    count = 1000
    with opened(filesystem) as directory:
        for number in range(count):
            with opened(filesystem / f"image{number}", NEW) as fd:
                os.ftruncate(fd, 64 * MIB)
                for piece in range(4):
                    os.pwrite(fd, b"x" * BLOCK, piece * MIB)
        run("sync", "--file-system", filesystem)
        start = time.perf_counter()
        for number in range(count):
            fd = os.open(f"image{number}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            assert allocated_bytes(fd) == Allocation(4 * BLOCK, 4 * BLOCK, 4)
            os.close(fd)
        each = (time.perf_counter() - start) / count
    print(f"{filesystem.parent.name}: {each * 1e6:.1f} us for open, map of 4 extents, close")
    assert each < 300e-6, "10,000 in one second on a quiet machine leaves 100 us each"
