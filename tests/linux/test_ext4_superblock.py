"""An ext4's UUID exchanged in an image that nobody has mounted.

- blkid and dumpe2fs see the new UUID, and e2fsck finds nothing to complain of.
- The kernel mounts it and reports the same UUID.
- Whatever is not a superblock that can be kept right is left as it is.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import pytest

from csi_driver.linux import ext4_superblock, filesystem
from tests.image_mounts import formatted_image, mounted
from tests.linux.conftest import opened, run


@pytest.fixture
def ext4(tmp_path: Path) -> str:
    return formatted_image(tmp_path / "disk.img", "ext4", 1 << 30)[0]


def test_the_tools_and_the_kernel_see_the_new_uuid(ext4: str) -> None:
    wanted = str(uuid.uuid4())
    with opened(ext4, os.O_RDWR) as fd:
        assert ext4_superblock.write_uuid(fd, wanted)
    assert run("blkid", "-p", "-s", "UUID", "-o", "value", ext4).strip() == wanted
    assert f"Filesystem UUID:          {wanted}" in run("dumpe2fs", "-h", ext4)
    run("e2fsck", "-fn", ext4)
    with mounted(ext4, "ext4") as target, opened(target, os.O_RDONLY) as fd:
        assert filesystem.get_ext4_uuid(fd) == wanted
    run("e2fsck", "-fn", ext4)


def test_a_superblock_whose_checksum_does_not_match_is_left_alone(ext4: str) -> None:
    with opened(ext4, os.O_RDWR) as fd:
        os.pwrite(fd, b"\xff", ext4_superblock.OFFSET + 0x78)
        before = os.pread(fd, 4096, 0)
        assert not ext4_superblock.write_uuid(fd, str(uuid.uuid4()))
        assert os.pread(fd, 4096, 0) == before


def test_a_filesystem_without_a_checksum_seed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "plain.img"
    path.write_bytes(b"")
    os.truncate(path, 64 << 20)
    run("mkfs.ext4", "-q", "-F", "-O", "^metadata_csum_seed,metadata_csum", str(path))
    with opened(path, os.O_RDWR) as fd:
        assert not ext4_superblock.write_uuid(fd, str(uuid.uuid4()))


def test_a_journal_that_waits_for_its_replay_keeps_the_superblock(ext4: str) -> None:
    # Its replay may bring back an older copy of the same block.
    with mounted(ext4, "ext4") as target, opened(f"{target}/file", os.O_WRONLY | os.O_CREAT) as file:
        os.fsync(file)
        cut = shutil.copy(ext4, f"{ext4}.cut")
    with opened(cut, os.O_RDWR) as fd:
        assert not ext4_superblock.write_uuid(fd, str(uuid.uuid4()))
    run("e2fsck", "-fp", cut, check=False)
    with opened(cut, os.O_RDWR) as fd:
        assert ext4_superblock.write_uuid(fd, str(uuid.uuid4()))
    run("e2fsck", "-fn", cut)


def test_an_empty_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    path.write_bytes(b"")
    with opened(path, os.O_RDWR) as fd:
        assert not ext4_superblock.write_uuid(fd, str(uuid.uuid4()))
    assert path.stat().st_size == 0
