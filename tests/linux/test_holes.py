"""Where a file has data, and holes made in it, against what the kernel says of the file.

- Data are found between any two places, and what was only preallocated is a hole.
- A range that is punched reads as zeros and takes no space; the size stays.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csi_driver.linux import holes

BLOCK = 64 << 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Data in the second and fourth of six blocks."""
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(6 * BLOCK)
        for block in (1, 3):
            os.pwrite(file.fileno(), os.urandom(BLOCK), block * BLOCK)
        os.posix_fallocate(file.fileno(), 5 * BLOCK, BLOCK)
        os.fsync(file.fileno())
    return path


def test_data_are_found_between_any_two_places(file: Path) -> None:
    with file.open("rb") as opened:
        fd = opened.fileno()
        assert list(holes.data_ranges(fd, 0, 5 * BLOCK)) == [(BLOCK, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK)]
        assert list(holes.data_ranges(fd, BLOCK + 1, 3 * BLOCK + 5)) == [
            (BLOCK + 1, 2 * BLOCK),
            (3 * BLOCK, 3 * BLOCK + 5),
        ]
        assert list(holes.data_ranges(fd, 4 * BLOCK, 5 * BLOCK)) == []
        assert list(holes.data_ranges(fd, 2 * BLOCK, 2 * BLOCK)) == []


def test_a_punched_range_is_a_hole(file: Path) -> None:
    before = file.stat()
    with file.open("r+b") as opened:
        holes.punch(opened.fileno(), BLOCK, BLOCK)
        assert list(holes.data_ranges(opened.fileno(), 0, 5 * BLOCK)) == [(3 * BLOCK, 4 * BLOCK)]
        assert os.pread(opened.fileno(), BLOCK, BLOCK) == bytes(BLOCK)
    assert file.stat().st_size == before.st_size
    assert file.stat().st_blocks < before.st_blocks
