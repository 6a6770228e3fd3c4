"""Directories on an ext4 of their own, for pools in backing files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.backing.backed import Backed
from tests.harness import GIB, PoolPlace


@pytest.fixture
def backed(make_pool: Callable[..., PoolPlace]) -> Iterator[Backed]:
    """An empty directory on an ext4 of 4 GiB; what is mounted in it is unmounted afterwards."""
    made = Backed(make_pool("ext4", 4 * GIB))
    yield made
    made.unmount()
    assert made.loops() == []
