"""Where a file differs from an earlier one, in its bytes and its holes; knows no stream and no snapshot.

Neither changes meanwhile. Two files differ where one has data and the other a hole, or both have data that are not the
same. Where extent maps say that both have their data in one place, nothing is read (block_ranges has the proof);
whatever they leave open is compared, so that no doubt makes a difference, and no difference is missed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from csi_driver.linux import block_ranges, holes
from csi_driver.linux.block_ranges import Range

_STEP_BYTES: Final = 1 << 20


def differing(base_fd: int, target_fd: int, *, by_place: bool) -> Iterator[Range]:
    """Where the target differs from the base, up to the target's end, in order; memory is constant.

    `by_place`: `block_ranges.can_be_told_apart`. Moves the file offsets.

    Raises:
        OSError: EIO; EOPNOTSUPP without FIEMAP.
    """
    base_end, end = os.fstat(base_fd).st_size, os.fstat(target_fd).st_size
    position = 0
    while position < end:
        ranges, until = [Range(position, end)], end
        if by_place:
            ranges, until = block_ranges.changed(base_fd, target_fd, base_end, position, end)
        for one in ranges:
            yield from _joined(_differing(base_fd, target_fd, base_end, one))
        position = until


def _differing(base_fd: int, target_fd: int, base_end: int, within: Range) -> Iterator[Range]:
    # The whole of its last block, which is to be a hole where the target has one.
    blocks_end = -(-base_end // block_ranges.BLOCK) * block_ranges.BLOCK
    olds = (
        (start, blocks_end if end == base_end else end)
        for start, end in holes.data_ranges(base_fd, within.start, min(within.end, base_end))
    )
    news = holes.data_ranges(target_fd, within.start, within.end)
    for start, end, in_old, in_new in _stretches(olds, news, within):
        if in_old and in_new:
            yield from _unequal(base_fd, target_fd, start, end)
        elif in_old or in_new:
            yield Range(start, end)


def _stretches(
    olds: Iterator[tuple[int, int]], news: Iterator[tuple[int, int]], within: Range
) -> Iterator[tuple[int, int, bool, bool]]:
    """The range in pieces, each with data in both files, in one of them or in none."""
    at, end = within
    behind = (end, end)
    old, new = next(olds, behind), next(news, behind)
    while at < end:
        in_old, in_new = old[0] <= at, new[0] <= at
        stop = min(old[in_old], new[in_new], end)
        yield at, stop, in_old, in_new
        old = next(olds, behind) if old[1] <= stop else old
        new = next(news, behind) if new[1] <= stop else new
        at = stop


def _unequal(base_fd: int, target_fd: int, start: int, end: int) -> Iterator[Range]:
    for at in range(start, end, _STEP_BYTES):
        count = min(_STEP_BYTES, end - at)
        old, new = (os.pread(fd, count, at).ljust(count, b"\0") for fd in (base_fd, target_fd))
        yield from block_ranges.unequal(old, new, at)


def _joined(ranges: Iterator[Range]) -> Iterator[Range]:
    """The same in as few as they are."""
    held: Range | None = None
    for one in ranges:
        if held is not None and held.end == one.start:
            held = Range(held.start, one.end)
            continue
        if held is not None:
            yield held
        held = one
    if held is not None:
        yield held
