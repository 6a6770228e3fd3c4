"""Pools on filesystems in memory, so that writing them full costs no disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durability.disks import unmount
from tests.harness import MIB, PoolPlace


@pytest.fixture
def make_small(memory: Path) -> Iterator[Callable[..., PoolPlace]]:
    """Filesystems of 768 MiB for pools: `make_small("xfs")`; whatever still lies on them is gone afterwards."""
    places: list[PoolPlace] = []

    def make(fs_type: str, size_bytes: int = 768 * MIB, **options: str) -> PoolPlace:
        place = PoolPlace.make(memory / f"pool{len(places)}", fs_type, size_bytes, **options)
        places.append(place)
        return place

    yield make
    for place in places:
        assert place.mount_point is not None
        unmount(place.mount_point)
