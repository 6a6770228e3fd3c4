"""What all tests share: mounts of their own, pools on every filesystem, a driver in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import harness

# Tests that may be skipped in CI as well: the beginning of their node id, and why. What a kernel lacks is no reason
# where User-Mode Linux has it.
MAY_BE_SKIPPED_IN_CI: dict[str, str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: nobody reads there which tool was missing."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that is skipped as a whole."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    if report.nodeid.startswith(tuple(MAY_BE_SKIPPED_IN_CI)):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{reason}: in CI nothing is skipped; scripts/setup --test installs what is missing"


@pytest.fixture(scope="session", autouse=True)
def private_mounts() -> None:
    """Leave the machine's mount namespace for one whose mounts nobody else sees."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("these tests mount and attach: run them as root")
        pytest.skip("mounts and loop devices need root")
    harness.leave_mount_namespace()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs for images of disks."""
    where = tmp_path / "memory"
    where.mkdir()
    harness.run("mount", "-t", "tmpfs", "-o", "size=75%", "tmpfs", str(where))
    yield where
    harness.run("umount", str(where))


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[Callable[..., harness.PoolPlace]]:
    """Make directories on filesystems of their own: `make_pool("xfs", size_bytes=…)`; unmounted afterwards."""
    places: list[harness.PoolPlace] = []

    def make(fs_type: str = "host", size_bytes: int = 2 << 30, **options: str) -> harness.PoolPlace:
        place = harness.PoolPlace.make(tmp_path / f"pool{len(places)}", fs_type, size_bytes, **options)
        places.append(place)
        return place

    with ExitStack() as stack:
        yield make
        for place in reversed(places):
            stack.callback(place.remove)


@pytest.fixture
def make_driver(tmp_path: Path) -> Iterator[Callable[..., harness.Driver]]:
    """Start drivers; each is stopped afterwards, and must not have logged an unforeseen failure."""
    drivers: list[harness.Driver] = []

    def make(*pools: harness.PoolPlace | Path, **options: object) -> harness.Driver:
        driver = harness.Driver(tmp_path / f"driver{len(drivers)}", [harness.place(pool) for pool in pools], **options)
        drivers.append(driver)
        driver.start()
        return driver

    with ExitStack() as stack:
        yield make
        for driver in reversed(drivers):
            stack.callback(driver.clean_up)
            stack.callback(driver.stop)
    for driver in drivers:
        assert "unforeseen" not in driver.log(), driver.log()


@pytest.fixture
def driver(tmp_path: Path, make_driver: Callable[..., harness.Driver]) -> harness.Driver:
    """A driver with one pool on the machine's own filesystem."""
    return make_driver(tmp_path / "pool")
