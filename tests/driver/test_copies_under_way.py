"""Snapshots and volumes whose bytes are still being copied, in a pool that cannot share blocks.

- While a volume is being copied it is neither staged nor deleted nor expanded; the list tells how far it is; the same
  call joins; a delete of the snapshot ends the copy; a start finishes it.
- A pool that fills up in the middle of a copy leaves nothing half-done, and the numbers are told.
- One volume is copied several times at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import admin_pb2
from tests.driver.copying import (
    MakeDriver,
    MakePool,
    copied,
    copy_request,
    cut,
    from_snapshot,
    from_volume,
    snapshots,
    take_down,
    total_bytes,
    written,
)
from tests.harness import GIB, MIB, Code, Driver, Failure, PoolPlace, create_request, run
from tests.waiting import until


class Cutting(threading.Thread):
    """CreateSnapshot in the background, until the snapshot is in the list."""

    def __init__(self, driver: Driver, volume_id: str) -> None:
        super().__init__()
        self.driver = driver
        self.volume_id = volume_id
        self.code: Code | None = None
        self.start()
        until(lambda: snapshots(driver), what="the snapshot is in the list", every=0.0)

    def run(self) -> None:
        self.code = self.driver.code("CreateSnapshot", name="cut", source_volume_id=self.volume_id)


@contextmanager
def frozen(place: PoolPlace) -> Iterator[None]:
    """Nothing is written to the pool's filesystem meanwhile."""
    run("fsfreeze", "--freeze", str(place.mount_point))
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", str(place.mount_point))


def admin_snapshot(driver: Driver, name: str) -> Any:
    return driver.caller.admin_stub("GetSnapshot")(admin_pb2.GetSnapshotRequest(name=name), timeout=20)


def test_a_volume_that_is_copied_is_held_and_the_copy_is_told_joined_and_finished(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", size_bytes=3 << 30)
    driver = make_driver(place)
    source = written(driver, 400 * MIB)
    cutting = Cutting(driver, source.volume_id)
    with frozen(place):
        [snapshot] = snapshots(driver)
        assert not snapshot.ready_to_use
        detail = admin_snapshot(driver, "cut")
        assert detail.state == "copying"
        assert 0 <= detail.copied_bytes < detail.copy_bytes
        assert detail.copy_bytes >= 400 * MIB
        assert driver.code("NodeStageVolume", source.stage_request()) is Code.ABORTED
        assert driver.code("DeleteVolume", volume_id=source.volume_id) is Code.ABORTED
        joined = driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id).snapshot
        assert joined == snapshot
        early = copy_request(source, "early", from_snapshot(snapshot.snapshot_id))
        assert driver.code("CreateVolume", early, timeout=0.5) in (Code.ABORTED, Code.DEADLINE_EXCEEDED)
    cutting.join()
    assert cutting.code is Code.OK
    until(lambda: all(one.ready_to_use for one in snapshots(driver)), 60)
    assert admin_snapshot(driver, "cut").state == "ready"
    source.stage()
    source.publish()
    restored = copied(source, "restored", from_snapshot(snapshot.snapshot_id))
    assert run("cmp", f"{source.target()}/bulk", f"{restored.target()}/bulk") == ""
    for one in (source, restored):
        take_down(one)


def test_a_copy_that_is_cut_short_by_a_kill_is_finished_by_the_next_start(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=3 << 30))
    source = written(driver, 400 * MIB)
    cutting = Cutting(driver, source.volume_id)
    driver.restart()
    cutting.join()
    [snapshot] = snapshots(driver)
    until(lambda: all(one.ready_to_use for one in snapshots(driver)), 60)
    assert driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id).snapshot.ready_to_use
    restored = copied(source, "restored", from_snapshot(snapshot.snapshot_id))
    source.stage()
    source.publish()
    assert run("cmp", f"{source.target()}/bulk", f"{restored.target()}/bulk") == ""
    until(lambda: not [path for path in driver.files() if path.startswith("tmp/")])
    take_down(source)
    take_down(restored)


def test_a_delete_ends_the_copy_and_lets_the_volume_go(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=3 << 30))
    source = written(driver, 400 * MIB)
    cutting = Cutting(driver, source.volume_id)
    [snapshot] = snapshots(driver)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    cutting.join()
    assert cutting.code in (Code.OK, Code.NOT_FOUND, Code.ABORTED)
    assert snapshots(driver) == []
    source.delete()
    assert driver.files() == []


def take_all_but(place: PoolPlace, left_bytes: int) -> Path:
    """A stranger takes the pool's space at once."""
    stranger = Path(str(place.mount_point)) / "stranger"
    space = os.statvfs(str(place.mount_point))
    with stranger.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - left_bytes)
    return stranger


def test_a_pool_that_fills_up_in_the_middle_of_a_snapshots_copy_keeps_nothing_of_it(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", size_bytes=3 << 30)
    driver = make_driver(place)
    source = written(driver, 500 * MIB)
    before = driver.files()
    cutting = Cutting(driver, source.volume_id)
    stranger = take_all_but(place, 100 * MIB)
    cutting.join()
    until(lambda: not snapshots(driver), 60)
    until(lambda: driver.files() == before, 10, what=driver.files)
    with pytest.raises(Failure, match="can be granted") as refused:
        driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    stranger.unlink()
    assert driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id).snapshot.snapshot_id
    until(lambda: all(one.ready_to_use for one in snapshots(driver)), 60)


def test_a_pool_that_fills_up_in_the_middle_of_a_volumes_copy_keeps_nothing_of_it(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", size_bytes=4 << 30)
    driver = make_driver(place)
    source = written(driver, 500 * MIB)
    before = driver.files()
    request = copy_request(source, "clone", from_volume(source.volume_id))
    failures: list[Failure] = []

    def clone() -> None:
        try:
            driver.call("CreateVolume", request)
        except Failure as failure:
            failures.append(failure)

    cloning = threading.Thread(target=clone)
    cloning.start()
    while not any(path.startswith("tmp/") and path.endswith("disk.img") for path in driver.files()):
        assert cloning.is_alive()
    stranger = take_all_but(place, 100 * MIB)
    cloning.join()
    assert [failure.code for failure in failures] == [Code.RESOURCE_EXHAUSTED]
    assert "can be granted" in failures[0].details
    assert driver.files() == before
    stranger.unlink()
    assert driver.call("CreateVolume", request).volume.content_source == from_volume(source.volume_id)


def test_a_volume_that_is_copied_does_not_grow_and_one_that_grew_is_copied_whole(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", size_bytes=6 << 30)
    driver = make_driver(place)
    source = written(driver, 400 * MIB)
    cutting = Cutting(driver, source.volume_id)
    with frozen(place):
        assert driver.code("ControllerExpandVolume", source.expand_request(GIB)) is Code.ABORTED
    cutting.join()
    until(lambda: all(one.ready_to_use for one in snapshots(driver)), 60)
    [snapshot] = snapshots(driver)
    assert snapshot.size_bytes == source.size_bytes
    assert driver.call("ControllerExpandVolume", source.expand_request(GIB)).capacity_bytes == GIB
    source.size_bytes = GIB
    later = cut(driver, source.volume_id, "later")
    assert later.size_bytes == GIB
    copy = copied(source, "copy", from_snapshot(later.snapshot_id))
    assert total_bytes(copy) > 900 * MIB
    assert (
        driver.code(
            "CreateVolume", copy_request(source, "small", from_snapshot(later.snapshot_id), size_bytes=800 * MIB)
        )
        is Code.OUT_OF_RANGE
    )
    take_down(copy)


def test_two_volumes_are_cloned_from_one_at_the_same_time(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=3 << 30))
    source = written(driver, 200 * MIB)
    codes: list[Code] = []

    def clone(number: int) -> None:
        request = copy_request(source, f"clone-{number}", from_volume(source.volume_id))
        codes.append(driver.code("CreateVolume", request))

    threads = [threading.Thread(target=clone, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [Code.OK] * 3
    assert driver.code("DeleteVolume", volume_id=source.volume_id) is Code.OK
    assert driver.code("CreateVolume", create_request("fresh")) is Code.OK
