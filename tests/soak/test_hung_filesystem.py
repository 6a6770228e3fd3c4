"""A filesystem that does not answer holds up nobody but its own callers.

- While statistics of a volume hang (its path leads to a FUSE filesystem that never answers), Probe, the statistics of
  other volumes and their whole lives go on; many repeated calls for the hung one do not change that.
- While every write to one pool hangs (its filesystem is frozen), the volumes of the other pool and Probe are served;
  also when more creations hang than a provisioner makes at once, each repeated.
- A pool whose filesystem fails every call (shut down, as after the loss of its disk) keeps a restarted driver from
  serving neither the other pools nor, if it is another driver's, its own.
- What hung is finished when the filesystem answers again: the identical call is OK, and nothing is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.harness import DIRECTORY, MIB, Code, Driver, PoolPlace, Workload, create_request
from tests.powercut import cut_power
from tests.soak.observing import (
    ProbeMeter,
    assert_nothing_remains,
    frozen,
    status_number,
    together,
    unanswering_filesystem,
)
from tests.waiting import until

# Kubelet gives up after minutes, the provisioner after 10 s; what is served beside a hang has to be far from both.
SOON_SECONDS = 2.0
PROBE_SECONDS = 1.0
# external-provisioner makes 100 calls at once and repeats each after its deadline; every loop over a pool may hang.
CREATIONS = 140
# More than there are threads for statistics.
HUNG_VOLUMES = 80


def statistics_of(workload: Workload, *, timeout: float = 30.0) -> Code:
    driver = workload.driver
    return driver.code(
        "NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target(), timeout=timeout
    )


def timed(step: Callable[[], object]) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


def is_created(driver: Driver, request: object) -> bool:
    return driver.code("CreateVolume", request) is Code.OK


def assert_ok(code: Code) -> None:
    assert code is Code.OK


def a_whole_life(driver: Driver, name: str, **options: Any) -> None:
    workload = Workload(driver, name, size_bytes=8 * MIB, **options)
    workload.up()
    assert statistics_of(workload) is Code.OK
    workload.down()


def test_statistics_that_hang_hold_up_neither_probe_nor_other_volumes(driver: Driver) -> None:
    hung = Workload(driver, "hung", parameters=DIRECTORY)
    well = Workload(driver, "well", size_bytes=8 * MIB)
    hung.up()
    well.up()
    with unanswering_filesystem(hung.target()) as abort, ProbeMeter(driver) as probes:
        waiting = [threading.Thread(target=statistics_of, args=(hung,)) for _ in range(100)]
        for thread in waiting:
            thread.start()
        # Callers that give up and come again, as kubelet does each minute.
        codes = together(100, lambda _: statistics_of(hung, timeout=1.0))
        assert set(codes) <= {Code.ABORTED, Code.DEADLINE_EXCEEDED}
        served = [timed(lambda: statistics_of(well)) for _ in range(20)]
        lives = [timed(lambda: a_whole_life(driver, "beside")) for _ in range(3)]
        assert statistics_of(well) is Code.OK
        assert any(thread.is_alive() for thread in waiting), "nothing hung"
        abort()
        for thread in waiting:
            thread.join(30)
            assert not thread.is_alive()
    print(f"{probes.report()}; other volumes' statistics: max {max(served) * 1000:.0f} ms; lives: {max(lives):.2f} s")
    assert not probes.failures
    assert max(probes.seconds) < PROBE_SECONDS
    assert max(served) < SOON_SECONDS
    assert max(lives) < 5 * SOON_SECONDS
    # The dead mount over the target is not the volume's: whoever put it there takes it away, then all goes on.
    assert statistics_of(hung) is Code.OK
    hung.down()
    well.down()
    assert_nothing_remains(driver)


def test_statistics_of_many_volumes_that_hang_hold_up_no_other_pool(
    make_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = make_driver(tmp_path / "pool", tmp_path / "other")
    well = Workload(driver, "well", size_bytes=8 * MIB, parameters={"pool": "pool1"})
    well.up()
    hung = [Workload(driver, f"hung-{number}", parameters=DIRECTORY) for number in range(HUNG_VOLUMES)]
    for workload in hung:
        workload.up()
    with ExitStack() as mounted, ProbeMeter(driver) as probes:
        aborts = [mounted.enter_context(unanswering_filesystem(workload.target())) for workload in hung]
        waiting = [threading.Thread(target=statistics_of, args=(workload,)) for workload in hung]
        for thread in waiting:
            thread.start()
        codes = together(HUNG_VOLUMES, lambda number: statistics_of(hung[number], timeout=1.0))
        assert set(codes) <= {Code.ABORTED, Code.DEADLINE_EXCEEDED}
        assert any(thread.is_alive() for thread in waiting), "nothing hung"
        served = [timed(lambda: assert_ok(statistics_of(well))) for _ in range(10)]
        listed = timed(lambda: driver.call("ListVolumes"))
        for abort in aborts:
            abort()
        for thread in waiting:
            thread.join(30)
            assert not thread.is_alive()
    print(f"{probes.report()}; others: statistics max {max(served) * 1000:.0f} ms, list {listed * 1000:.0f} ms")
    assert not probes.failures
    assert max(probes.seconds) < PROBE_SECONDS
    assert max(*served, listed) < SOON_SECONDS
    for workload in (*hung, well):
        workload.down()
    assert_nothing_remains(driver)


def test_a_pool_that_hangs_holds_up_no_other_pool(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    sick = make_pool("ext4", 512 * MIB)
    driver = make_driver(tmp_path / "pool", sick)
    there = Workload(driver, "there", parameters={**DIRECTORY, "pool": "pool1"})
    there.up()
    # The template is made before, or its mkfs would be what hangs.
    a_whole_life(driver, "before", parameters={"pool": "pool1"})
    requests = [
        create_request(f"held-{number}", MIB, parameters={**DIRECTORY, "pool": "pool1"}) for number in range(CREATIONS)
    ]
    assert sick.mount_point is not None
    with frozen(sick.mount_point), ProbeMeter(driver) as probes:
        codes = together(CREATIONS, lambda number: driver.code("CreateVolume", requests[number], timeout=1.0))
        assert set(codes) <= {Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE}, set(codes)
        assert Code.DEADLINE_EXCEEDED in codes, "nothing hung"
        repeated = [
            threading.Thread(target=driver.code, args=("CreateVolume", request), kwargs={"timeout": 30.0})
            for request in requests
        ]
        for thread in repeated:
            thread.start()
        lives = [timed(lambda: a_whole_life(driver, "beside")) for _ in range(3)]
        # Statistics of the hung pool itself: the kernel still knows how full it is.
        assert statistics_of(there, timeout=SOON_SECONDS) is Code.OK
        threads = status_number(driver.pid, "Threads")
        asked = timed(lambda: driver.call("GetCapacity"))
    for thread in repeated:
        thread.join(60)
        assert not thread.is_alive()
    print(f"{probes.report()}; lives beside it: max {max(lives):.2f} s; GetCapacity {asked:.2f} s; {threads} threads")
    assert not probes.failures
    assert max(probes.seconds) < PROBE_SECONDS
    assert max(lives) < 5 * SOON_SECONDS
    assert asked < SOON_SECONDS

    for request in requests:
        until(partial(is_created, driver, request), what="what hung is finished")
    there.down()
    for entry in driver.call("ListVolumes").entries:
        driver.call("DeleteVolume", volume_id=entry.volume.volume_id)
    assert_nothing_remains(driver)


def test_a_volume_whose_filesystem_hangs_holds_up_no_other_volume(driver: Driver) -> None:
    hung = Workload(driver, "hung", size_bytes=8 * MIB)
    hung.up()
    with frozen(Path(hung.target())), ProbeMeter(driver) as probes:
        writer = threading.Thread(target=Path(hung.target(), "note").write_text, args=("late",))
        writer.start()
        assert statistics_of(hung, timeout=SOON_SECONDS) is Code.OK
        lives = [timed(lambda: a_whole_life(driver, "beside")) for _ in range(3)]
        assert writer.is_alive(), "nothing hung"
        # Somebody writes there, so it is not taken down behind his back.
        code = driver.code("NodeUnpublishVolume", volume_id=hung.volume_id, target_path=hung.target(), timeout=5)
        assert code in {Code.ABORTED, Code.DEADLINE_EXCEEDED}
    writer.join(30)
    print(f"{probes.report()}; lives beside it: max {max(lives):.2f} s")
    assert not probes.failures
    assert max(probes.seconds) < PROBE_SECONDS
    assert Path(hung.target(), "note").read_text() == "late"
    until(
        lambda: driver.code("NodeUnpublishVolume", volume_id=hung.volume_id, target_path=hung.target()) is Code.OK,
        what="unpublished",
    )
    hung.down()
    assert_nothing_remains(driver)


def test_a_restart_beside_a_pool_that_fails_serves_the_other_pools(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    broken = make_pool("ext4", 512 * MIB)
    driver = make_driver(tmp_path / "pool", broken)
    lost = Workload(driver, "lost", size_bytes=8 * MIB, parameters={"pool": "pool1"})
    lost.up()
    well = Workload(driver, "well", size_bytes=8 * MIB)
    well.up()
    assert broken.mount_point is not None
    cut_power(str(broken.mount_point), flush_log=True)
    driver.restart()
    assert statistics_of(well) is Code.OK
    a_whole_life(driver, "beside")
    refused = create_request("another", 8 * MIB, parameters={"pool": "pool1"})
    assert driver.code("CreateVolume", refused) is Code.UNAVAILABLE
    # Neither gone nor deleted: it is there again when its disk is.
    for method in ("DeleteVolume", "ControllerGetVolume"):
        assert driver.code(method, volume_id=lost.volume_id) is Code.UNAVAILABLE
    assert driver.code("NodeStageVolume", lost.stage_request()) is Code.UNAVAILABLE
    well.down()
    assert list((driver.pool / "volumes").iterdir()) == []
    driver.stop()
    driver.clean_up()


def test_a_start_beside_another_drivers_failed_pool_is_no_different(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    broken = make_pool("ext4", 512 * MIB)
    other = make_driver(broken)
    Workload(other, "lost", size_bytes=4 * MIB, block=True).up()
    assert broken.mount_point is not None
    cut_power(str(broken.mount_point), flush_log=True)
    other.kill()
    driver = make_driver(tmp_path / "pool")
    a_whole_life(driver, "beside")
    assert_nothing_remains(driver)
