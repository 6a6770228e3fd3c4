"""A cluster for each test, ended and checked afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster


@pytest.fixture
def empty_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An API server; no controller and no node yet."""
    with closing(Cluster(tmp_path)) as cluster:
        yield cluster


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    """One controller, two nodes."""
    empty_cluster.begin()
    return empty_cluster


@pytest.fixture(scope="module")
def slow_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One controller, two nodes that send 16 MiB a second; one for all tests of a module."""
    with closing(Cluster(tmp_path_factory.mktemp("slow"))) as slow:
        slow.begin("--transfer-rate=16Mi")
        yield slow
