"""Which blocks of a snapshot hold data, and in which two snapshots differ; knows no protocol and no extent map.

A list is made a window at a time, from the disk as it is then: nothing about it is ever stored. The snapshots are
claimed for the window only, some milliseconds: whoever takes the list slowly, or not at all, keeps nobody from
deleting them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from csi_driver.domain.catalogue import SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.pools import Pools
from csi_driver.errors import (
    HasNoBlocks,
    OffsetBeyondEnd,
    SnapshotNotFound,
    SnapshotUnfinished,
    SourceNotFound,
    Unrelated,
    VolumeDamaged,
)
from csi_driver.linux import block_ranges
from csi_driver.linux.block_ranges import Range, Told
from csi_driver.model import Snapshot, VolumeType

_BASE: Final = "base_snapshot_id"
_TARGET: Final = "target_snapshot_id"


@dataclass(frozen=True, slots=True)
class BlockList:
    """The blocks of a snapshot of `capacity_bytes`, in order, in windows of which some may be empty.

    Taking a window raises SourceNotFound when a snapshot is gone meanwhile, and OperationPending while it is deleted.
    """

    capacity_bytes: int
    windows: Iterator[list[Range]]


@dataclass(frozen=True, slots=True)
class _Named:
    """A snapshot that a request names in `field`."""

    field: str
    snapshot_id: str


class BlockLists:
    """The snapshots of this node, block by block."""

    def __init__(self, pools: Pools, snapshots: SnapshotCatalogue, claims: Claims) -> None:
        self._pools = pools
        self._snapshots = snapshots
        self._claims = claims

    def allocated(self, snapshot_id: str, starting_offset: int) -> BlockList:
        """The blocks that hold data and do not end before the offset; all others read as zeros.

        Raises: SourceNotFound; HasNoBlocks; SnapshotUnfinished; OffsetBeyondEnd.
        """
        named = _Named("snapshot_id", snapshot_id)
        size = self._checked(named, starting_offset).size_bytes

        def window(start: int) -> Told:
            with ExitStack() as held:
                return block_ranges.allocated(self._open(named, held), start, size)

        return BlockList(size, _windows(window, starting_offset, size))

    def changed(self, base_id: str, target_id: str, starting_offset: int) -> BlockList:
        """The blocks, not ending before the offset, in which the target may differ from the base: never one too few.

        Those that hold data in the base and none in the target are among them. What lies behind the base's end counts
        as zeros in it, and what lies behind the target's is left out.

        Raises: SourceNotFound; HasNoBlocks; SnapshotUnfinished; Unrelated; OffsetBeyondEnd.
        """
        base, target = _Named(_BASE, base_id), _Named(_TARGET, target_id)
        old, new = self._checked(base, 0), self._checked(target, starting_offset)
        require_related(_BASE, old, new)

        def window(start: int) -> Told:
            with ExitStack() as held:
                base_fd, target_fd = self._open(base, held), self._open(target, held)
                # Copies share no block with each other; all of them would be told.
                by_map = old.family == new.family and block_ranges.can_be_told_apart(base_fd, target_fd)
                tell = block_ranges.changed if by_map else block_ranges.compared
                return tell(base_fd, target_fd, old.size_bytes, start, new.size_bytes)

        return BlockList(new.size_bytes, _windows(window, starting_offset, new.size_bytes))

    def _checked(self, named: _Named, starting_offset: int) -> Snapshot:
        snapshot = self._found(named)
        if snapshot.volume_type is VolumeType.DIRECTORY:
            raise HasNoBlocks(named.field, snapshot.snapshot_id)
        if starting_offset > snapshot.size_bytes:
            raise OffsetBeyondEnd(starting_offset, snapshot.size_bytes)
        return snapshot

    def _found(self, named: _Named) -> Snapshot:
        try:
            snapshot = self._snapshots.get(named.snapshot_id)
        except SnapshotNotFound as cause:
            raise SourceNotFound(named.field, named.snapshot_id) from cause
        if not snapshot.is_ready:
            raise SnapshotUnfinished(named.field, named.snapshot_id)
        return snapshot

    def _open(self, named: _Named, held: ExitStack) -> int:
        """The image of a snapshot that nobody takes away until `held` ends."""
        self._found(named)
        held.enter_context(self._claims.reading(("snapshot", named.snapshot_id)))
        # Again: it may have been deleted before the claim was read.
        snapshot = self._found(named)
        pool = self._pools.get(snapshot.pool)
        content_fd = pool.contents(VolumeType.IMAGE).open(pool.store.snapshots_fd, named.snapshot_id)
        held.callback(os.close, content_fd)
        if os.fstat(content_fd).st_size < snapshot.size_bytes:
            raise VolumeDamaged(named.snapshot_id, "its image is shorter than its record says")
        return content_fd


def require_related(field: str, base: Snapshot, target: Snapshot) -> None:
    """Refuse to compare what was never the same.

    Raises: Unrelated.
    """
    if base.family != target.family and base.source_volume_id != target.source_volume_id:
        raise Unrelated(field, base.snapshot_id, base.source_volume_id, target.source_volume_id)


def _windows(window: Callable[[int], Told], starting_offset: int, size: int) -> Iterator[list[Range]]:
    start = starting_offset // block_ranges.BLOCK * block_ranges.BLOCK
    while start < size:
        told = window(start)
        # The block in which the offset lies is told, unless it is the end: then nothing is left.
        yield [one for one in told.ranges if one.end > starting_offset]
        start = told.until
