"""One driver for all probes of a module: they only differ in what they ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.bad_requests import Given
from tests.conformance.node_volumes import KINDS, existing
from tests.harness import MIB, Driver, PoolPlace, Workload, run

NODE_ID = "probe-node"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A driver with two pools, which logs everything that it ever logs."""
    where = tmp_path_factory.mktemp("probe")
    pools = [PoolPlace(where / "pool"), PoolPlace(where / "second")]
    driver = Driver(
        where / "driver", pools, node_id=NODE_ID, names=["default", "second"], arguments=["--log-level=debug"]
    )
    with driver.serving():
        yield driver
    assert "Traceback" not in driver.log(), driver.log()


@pytest.fixture(scope="module")
def given(driver: Driver) -> Iterator[Given]:
    image = Workload(driver, "image", size_bytes=16 * MIB)
    device = Workload(driver, "device", size_bytes=8 * MIB, block=True)
    for workload in (image, device):
        workload.create()
        workload.stage()
    yield Given(driver, image, device)
    for workload in (image, device):
        workload.unstage()
        workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


@pytest.fixture
def image(driver: Driver) -> Iterator[Workload]:
    """A staged volume with a filesystem, taken down afterwards whatever was published of it."""
    with existing(driver, "image", **KINDS["ext4"]) as workload:
        workload.stage()
        yield workload


@pytest.fixture
def device(driver: Driver) -> Iterator[Workload]:
    """The same with a raw block volume."""
    with existing(driver, "device", **KINDS["block"]) as workload:
        workload.stage()
        yield workload


@pytest.fixture(scope="module")
def private_run() -> Iterator[None]:
    """The command stages below /run: one that nobody else sees."""
    run("mount", "-t", "tmpfs", "none", "/run")
    yield
    run("umount", "/run")
