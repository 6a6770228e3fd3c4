"""Inside the machine: a filesystem with project quotas and a driver on it, the same for all modules of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Driver
from tests.uml.directories import DISKS, running
from tests.uml.quotas import mounted
from tests.waiting import until


@pytest.fixture(scope="session", params=DISKS)
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    kind: str = request.param
    with mounted(tmp_path_factory.mktemp(kind), kind, "prjquota", disk=DISKS[kind]) as path:
        yield path


@pytest.fixture(scope="session")
def one_driver(filesystem: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with running(tmp_path_factory.mktemp("driver"), filesystem / "pool") as driver:
        yield driver


@pytest.fixture
def driver(one_driver: Driver) -> Iterator[Driver]:
    """A driver without volumes; a test that passed leaves no mount, no loop device and no file."""
    yield one_driver
    assert (one_driver.mounts(), one_driver.loops()) == ([], [])
    until(lambda: one_driver.files() == [], what=one_driver.files)
