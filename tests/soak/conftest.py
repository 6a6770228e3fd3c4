"""Pools in memory for many thousand calls: one that cannot share blocks, and one in a backing file, which can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.backing.backed import Backed
from tests.harness import GIB, PoolPlace


@pytest.fixture
def plain(memory: Path) -> Iterator[PoolPlace]:
    """A directory on an ext4."""
    place = PoolPlace.make(memory / "plain", "ext4", 4 * GIB)
    yield place
    place.remove()


@pytest.fixture
def backed(memory: Path) -> Iterator[Backed]:
    """A pool of 1 GiB in a file on another ext4; whole and alone in its directory afterwards."""
    with ExitStack() as stack:
        below = PoolPlace.make(memory / "below", "ext4", 8 * GIB)
        stack.callback(below.remove)
        made = Backed(below)
        stack.callback(made.unmount)
        made.made()
        yield made
        made.unmount()
        made.check()
        assert made.names() == {"hostvol-backing.img", "hostvol-backing.json", "pool"}
