"""Blocks that a file has before anything is written to them; stat(2) is the judge."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.linux import allocation
from tests.harness import MIB, PoolPlace

SIZE = 8 * MIB


@pytest.fixture(params=["ext4", "xfs"])
def file(request: pytest.FixtureRequest, make_pool: Callable[..., PoolPlace]) -> Path:
    place = make_pool(request.param, 400 * MIB)
    assert place.mount_point is not None
    made = place.mount_point / "file"
    made.write_bytes(b"kept")
    return made


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_blocks_come_without_a_size_and_go_again(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    allocation.allocate(fd, 0, SIZE)
    allocation.allocate(fd, 0, SIZE)
    assert (file.stat().st_size, file.read_bytes()) == (4, b"kept")
    assert blocks(file) >= SIZE
    allocation.drop_behind_end(fd)
    assert blocks(file) < MIB
    os.close(fd)


def test_a_hole_is_seen_and_filled(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    os.ftruncate(fd, SIZE)
    assert not allocation.is_whole(fd)
    allocation.allocate(fd, 0, SIZE)
    assert allocation.is_whole(fd)
    assert file.read_bytes() == b"kept" + bytes(SIZE - 4)
    os.close(fd)


def test_what_does_not_fit_says_so_and_goes_again(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    with pytest.raises(OSError, match="No space") as failure:
        allocation.allocate(fd, 0, 1 << 40)
    assert failure.value.errno == errno.ENOSPC
    allocation.drop_behind_end(fd)
    assert blocks(file) < MIB
    os.close(fd)
