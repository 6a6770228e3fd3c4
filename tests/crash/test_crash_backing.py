"""The same for pools in backing files: killed at every step of their making, their mounting and their growth.

- A pool whose making was killed is made by the same command, with every block of its file, and nothing beside it.
- A growth that was killed is finished by the same command without a driver, and by the next start of one; a volume that
  was mounted meanwhile keeps its content, and there is one loop device over the file throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver import faults
from csi_driver.domain.pools import grow_unserved, initialise_backed_pool
from csi_driver.model import DEFAULT_DRIVER_NAME
from tests.backing.backed import Backed
from tests.crash.lane import CONTENT, numbered
from tests.crash.tally import Tally
from tests.harness import GIB, MIB, Driver, PoolPlace, Workload, admin_pools

MADE, GROWN = 600 * MIB, 900 * MIB
KILLED = -9


@pytest.fixture(scope="module")
def outer(tmp_path_factory: pytest.TempPathFactory, private_mounts: None) -> Iterator[Path]:
    """An ext4 for all cases."""
    place = PoolPlace.make(tmp_path_factory.mktemp("backing") / "outer", "ext4", 3 * GIB)
    assert place.mount_point is not None
    yield place.mount_point
    place.remove()


@pytest.fixture
def case(outer: Path, tmp_path: Path) -> Iterator[Callable[[], Backed]]:
    """Directories, one after the other; what was in the one before is gone then."""
    made: list[Backed] = []

    def clear() -> None:
        for one in made:
            one.unmount()
            one.image.unlink(missing_ok=True)
        made.clear()

    def new() -> Backed:
        clear()
        made.append(Backed(PoolPlace(outer / f"{tmp_path.name}-{new.count}")))  # type: ignore[attr-defined]
        new.count += 1  # type: ignore[attr-defined]
        return made[0]

    new.count = 0  # type: ignore[attr-defined]
    yield new
    clear()


def initialised(backed: Backed) -> Backed:
    initialise_backed_pool(str(backed.directory), DEFAULT_DRIVER_NAME, MADE)
    return backed


def passed(log: Path) -> list[str]:
    return numbered(log.read_text().split())


def met(tally: Tally, operation: str, points: list[str], *expected: str) -> None:
    assert {f"{name}:1" for name in expected} <= set(points)
    tally.meet(f"backing {operation}", points)


def init(backed: Backed, **environment: str) -> int:
    return backed.init(str(MADE), **environment).returncode


def grow(backed: Backed, **environment: str) -> int:
    return backed.grow(str(GROWN), **environment).returncode


def test_a_making_that_was_killed_is_made_again(case: Callable[[], Backed], tmp_path: Path, tally: Tally) -> None:
    log = tmp_path / "passed"
    assert init(case(), **{faults.CRASH_LOG: str(log)}) == 0
    steps = ("allocated", "formatted", "attached", "built", "placed", "recorded")
    met(tally, "init", passed(log), *(f"backing.{step}" for step in steps))
    for point in passed(log):
        backed = case()
        assert init(backed, **{faults.CRASH_AT: point}) == KILLED, point
        assert not backed.is_mounted()
        initialised(backed)
        assert backed.names() == {"hostvol-backing.img", "hostvol-backing.json", "pool"}, point
        assert backed.image.stat().st_size == MADE
        backed.check()
        assert not backed.loops(), point
        tally.count(held=True)


def test_a_growth_without_a_driver_that_was_killed_is_finished(
    case: Callable[[], Backed], tmp_path: Path, tally: Tally
) -> None:
    log = tmp_path / "passed"
    assert grow(initialised(case()), **{faults.CRASH_LOG: str(log)}) == 0
    met(tally, "grow", passed(log), *STEPS)
    for point in passed(log):
        backed = initialised(case())
        assert grow(backed, **{faults.CRASH_AT: point}) == KILLED, point
        assert grow_unserved(str(backed.directory), GROWN)
        assert backed.image.stat().st_size == GROWN
        assert b'"wanted_bytes":%d' % GROWN in (backed.directory / "hostvol-backing.json").read_bytes()
        backed.check()
        tally.count(held=True)


def test_a_growth_below_a_mounted_volume_that_was_killed_is_finished_by_the_next_start(
    case: Callable[[], Backed], tmp_path: Path, tally: Tally
) -> None:
    armed, log = tmp_path / "armed", tmp_path / "passed"
    environment = {faults.CRASH_AT: f"@{armed}", faults.CRASH_LOG: str(log)}

    def serve(number: int) -> tuple[Backed, Driver, Workload]:
        backed = initialised(case())
        driver = Driver(tmp_path / f"driver{number}", [backed.place], init_pools=False, environment=environment)
        driver.start()
        life = Workload(driver, "life")
        Path(life.up(), "content").write_bytes(CONTENT)
        log.write_text("")
        return backed, driver, life

    def grown(backed: Backed, driver: Driver) -> int:
        return backed.hostvol("grow", "default", str(GROWN), f"--endpoint={driver.endpoint}").returncode

    def end(driver: Driver, life: Workload, backed: Backed) -> None:
        [row] = admin_pools(driver)
        assert (row.backing_bytes, row.size_bytes > MADE) == (GROWN, True)
        assert len(backed.loops()) == 1
        assert Path(life.target(), "content").read_bytes() == CONTENT
        life.down()
        driver.stop()
        driver.clean_up()
        assert "unforeseen" not in driver.log()

    backed, driver, life = serve(0)
    assert grown(backed, driver) == 0
    points = passed(log)
    met(tally, "grow-served", points, *STEPS)
    end(driver, life, backed)
    for number, point in enumerate(points, 1):
        backed, driver, life = serve(number)
        armed.write_text(point)
        assert grown(backed, driver) == 1
        assert driver.wait_dead() == KILLED, point
        armed.unlink()
        driver.start()
        if point == "replace.written:1":
            # Before the intent was there.
            assert grown(backed, driver) == 0
        end(driver, life, backed)
        tally.count(held=True)


def test_a_start_that_was_killed_is_followed_by_one_that_serves(
    case: Callable[[], Backed], tmp_path: Path, tally: Tally
) -> None:
    log = tmp_path / "passed"
    driver = Driver(tmp_path / "driver", [initialised(case()).place], init_pools=False)
    driver.start(**{faults.CRASH_LOG: str(log)})
    driver.stop()
    points = [point for point in passed(log) if point.startswith("backing.")]
    met(tally, "start", points, "backing.attached", "backing.mounted")
    for point in points:
        backed = initialised(case())
        driver = Driver(tmp_path / point.replace(":", "-"), [backed.place], init_pools=False)
        driver.start(wait=False, **{faults.CRASH_AT: point})
        assert driver.wait_dead() == KILLED, point
        driver.start()
        assert len(backed.loops()) == 1
        driver.stop()
        tally.count(held=True)


STEPS = (
    "backing.attached",
    "backing.grow_intended",
    "backing.grow_allocated",
    "backing.grow_extended",
    "backing.filesystem_grown",
    "replace.renamed",
)
OPERATIONS = ("init", "grow", "grow-served", "start")
