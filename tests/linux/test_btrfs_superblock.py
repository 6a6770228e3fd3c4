"""A btrfs's UUID exchanged in an image that nobody has mounted.

- For each checksum that mkfs offers, btrfs check finds nothing, and both are mounted side by side with their content.
- What was fsynced just before an image was cut is there after the exchange: the log is replayed.
- A second exchange changes the UUID again, and nothing else that counts.
- Whatever is not a whole superblock is left as it is.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import btrfs, btrfs_superblock, reflink
from csi_driver.linux.xxhash64 import xxhash64
from tests.image_mounts import formatted_image, mounted
from tests.linux.conftest import fails_with, opened, run

from .filesystem_images import mounted as mounted_filesystem


@pytest.fixture(scope="module")
def outer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A filesystem whose files share blocks."""
    with mounted_filesystem(tmp_path_factory.mktemp("outer"), "xfs") as path:
        yield path


def exchanged(image: str) -> str:
    wanted = str(uuid.uuid4())
    with opened(image, os.O_RDWR) as fd:
        btrfs_superblock.write_uuid(fd, wanted)
    return wanted


def cut(image: str, twin: str) -> str:
    with opened(image, os.O_RDONLY) as source, opened(twin, os.O_RDWR | os.O_CREAT) as target:
        reflink.clone_file(source, target)
    return twin


def filesystem_uuid(target: str) -> str:
    with opened(target, os.O_RDONLY) as fd:
        return btrfs.filesystem_uuid(fd)


@pytest.mark.parametrize("checksum", ["crc32c", "xxhash", "sha256", "blake2"])
def test_source_and_copy_are_mounted_side_by_side(outer: Path, checksum: str) -> None:
    image, before = formatted_image(outer / f"{checksum}.img", "btrfs", 128 << 20, ("--csum", checksum))
    with mounted(image, "btrfs") as target:
        Path(target, "file").write_text("content")
        os.sync()
        twin = cut(image, f"{image}.twin")
        wanted = exchanged(twin)
        with mounted(twin, "btrfs") as other:
            assert (filesystem_uuid(target), filesystem_uuid(other)) == (before, wanted)
            assert Path(other, "file").read_text() == "content"
    for path in (image, twin):
        run("btrfs", "check", "--readonly", path)
        os.unlink(path)


def test_what_was_fsynced_before_the_cut_is_replayed(outer: Path) -> None:
    image, _ = formatted_image(outer / "log.img", "btrfs", 128 << 20)
    with mounted(image, "btrfs") as target:
        os.sync()
        for number in range(20):
            with opened(f"{target}/{number}", os.O_WRONLY | os.O_CREAT) as fd:
                os.write(fd, b"x" * 100)
                os.fsync(fd)
        twin = cut(image, f"{image}.twin")
    exchanged(twin)
    with mounted(twin, "btrfs") as other:
        assert sorted(int(name) for name in os.listdir(other)) == list(range(20))
    run("btrfs", "check", "--readonly", twin)


def test_a_second_exchange_keeps_the_uuid_of_the_trees(tmp_path: Path) -> None:
    image, first = formatted_image(tmp_path / "disk.img", "btrfs", 128 << 20)
    exchanged(image)
    second = exchanged(image)
    shown = run("btrfs", "inspect-internal", "dump-super", "-a", image)
    assert shown.count(second) == shown.count(first) // 2 == 2
    with mounted(image, "btrfs") as target:
        assert filesystem_uuid(target) == second


def test_a_superblock_whose_checksum_does_not_match_is_left_alone(tmp_path: Path) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", "btrfs", 128 << 20)
    with opened(image, os.O_RDWR) as fd:
        os.pwrite(fd, b"\xff", btrfs_superblock.OFFSETS[0] + 0x130)
        before = os.pread(fd, 128 << 10, 0)
        with fails_with(errno.EINVAL):
            btrfs_superblock.write_uuid(fd, str(uuid.uuid4()))
        assert os.pread(fd, 128 << 10, 0) == before


def test_an_empty_file_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "empty.img", os.O_RDWR | os.O_CREAT) as fd:
        with fails_with(errno.EINVAL):
            btrfs_superblock.write_uuid(fd, str(uuid.uuid4()))
        assert os.fstat(fd).st_size == 0


def test_the_hash_is_that_of_its_specification() -> None:
    # doc/xxhash_spec.md has no vectors; these are of xxhsum 0.8.
    assert xxhash64(b"") == 0xEF46DB3751D8E999
    assert xxhash64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxhash64(b"abc") == 0x44BC2CF5AD770999
