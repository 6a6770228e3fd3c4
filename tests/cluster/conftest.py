"""A cluster for each test, ended and checked afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster


@pytest.fixture
def empty_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An API server; no controller and no node yet."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.end()


@pytest.fixture
def cluster(empty_cluster: Cluster) -> Cluster:
    """One controller, two nodes."""
    empty_cluster.add_controller()
    for name in ("node-a", "node-b"):
        empty_cluster.prepare_node(name).start()
    for name in ("node-a", "node-b"):
        empty_cluster.wait_attached(name)
    return empty_cluster


@pytest.fixture(scope="module")
def slow_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One controller, two nodes that send 16 MiB a second; one for all tests of a module."""
    slow = Cluster(tmp_path_factory.mktemp("slow"))
    slow.add_controller()
    for name in ("node-a", "node-b"):
        node = slow.prepare_node(name)
        node.arguments = [*node.arguments, "--transfer-rate=16Mi"]
        node.start()
    for name in ("node-a", "node-b"):
        slow.wait_attached(name)
    yield slow
    slow.end()
