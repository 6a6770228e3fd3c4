"""Disks in memory: a cut costs what the filesystems do, not what the machine's disk takes to flush."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durability.disks import ClonedDisk, Disk, ShutDownDisk

DISKS: dict[str, Callable[[Path], Disk]] = {
    "ext4": lambda where: ShutDownDisk(where, "ext4"),
    "ext4-noauto_da_alloc": lambda where: ShutDownDisk(where, "ext4", "noauto_da_alloc"),
    "xfs": lambda where: ShutDownDisk(where, "xfs"),
    # Linux 6.18 fails to replay the log of some cuts ("failed to lookup inode", open_ctree -2): README, Limits.
    "btrfs": lambda where: ClonedDisk(where, "btrfs", "notreelog"),
}


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, memory: Path) -> Iterator[Disk]:
    made = DISKS[request.param](memory / "disk")
    yield made
    made.remove()
