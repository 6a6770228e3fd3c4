"""What is wrong with volumes and pools is told, with its cause, by the four health RPCs, and the healthy are not in it.

- A healthy volume has no trouble and is in no list; an unknown one is NOT_FOUND, an ephemeral one nobody's.
- An image or directory that is missing, cut, deleted or replaced below its mount is DATA_LOSS.
- What the kernel has found is told: errors that ext4 counts, an ext4 that went read-only, an ext4 or XFS that was shut
  down; a mount that was asked to be read-only is none.
- A volume that is published while no loop device holds its image is INACCESSIBLE.
- A quarantined record is a cause, not NOT_FOUND; so is a pool that is not served.
- A pool that is full, unmounted, read-only or shut down is told of itself and of its volumes; a thick volume does not
  suffer from a full pool.
- A frozen pool keeps no health RPC from answering. Of a filesystem that does not answer that is told, of no other.
- A trouble that is gone is not told any more. Lists have pages.
- Troubles are in the metrics.
- A btrfs with a log tree below a pool is told at the start.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.pb import csi_pb2
from tests.cluster.cluster import free_port
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, PoolPlace, Workload, create_request, run
from tests.health.asking import (
    GONE,
    LOOK,
    LOST,
    OFTEN,
    WORSE,
    device,
    image,
    listed,
    published,
    storage,
    troubles,
    wait_listed,
)
from tests.powercut import cut_power
from tests.soak.observing import frozen, unanswering_filesystem
from tests.waiting import until

MakeDriver = Callable[..., Driver]
MakePool = Callable[..., PoolPlace]


def test_the_healthy_are_not_told(driver: Driver) -> None:
    workload = published(driver)
    published_directory = Workload(driver, "d", parameters=DIRECTORY)
    published_directory.create()
    assert troubles(driver, published_directory.volume_id) == {}
    assert listed(driver) == {}
    unknown = workload.volume_id[:-4] + "0000"
    for method in ("ControllerGetVolumeHealth", "NodeGetVolumeHealth"):
        assert driver.code(method, volume_id=unknown) is Code.NOT_FOUND
        assert driver.code(method) is Code.INVALID_ARGUMENT
    relative = {"volume_id": workload.volume_id, "volume_publish_path": "here"}
    assert driver.code("NodeGetVolumeHealth", **relative) is Code.INVALID_ARGUMENT
    assert driver.code("ControllerListVolumeHealth", max_entries=-1) is Code.INVALID_ARGUMENT
    assert driver.code("ControllerListVolumeHealth", starting_token="?") is Code.ABORTED


def test_lost_content_is_told_until_it_is_there_again(driver: Driver) -> None:
    held = [Workload(driver, f"v{number}") for number in range(3)]
    missing, cut, fine = held
    gone = Workload(driver, "d", parameters=DIRECTORY)
    for one in (*held, gone):
        one.create()
    aside = image(missing).with_name("aside")
    image(missing).rename(aside)
    os.truncate(image(cut), MIB)
    data = driver.pool / "volumes" / gone.volume_id / "data"
    data.rmdir()
    assert troubles(driver, missing.volume_id) == {"ContentMissing": LOST}
    assert troubles(driver, cut.volume_id) == {"ImageShort": LOST}
    assert troubles(driver, gone.volume_id) == {"ContentMissing": LOST}
    expected = {
        missing.volume_id: {"ContentMissing"},
        cut.volume_id: {"ImageShort"},
        gone.volume_id: {"ContentMissing"},
    }
    wait_listed(driver, expected)
    first = driver.call("ControllerListVolumeHealth", max_entries=2)
    rest = driver.call("ControllerListVolumeHealth", max_entries=2, starting_token=first.next_token)
    assert [one.volume_id for one in (*first.entries, *rest.entries)] == sorted(expected)
    assert (len(first.entries), rest.next_token) == (2, "")
    aside.rename(image(missing))
    os.truncate(image(cut), cut.size_bytes)
    data.mkdir()
    for one in (*held, gone):
        assert troubles(driver, one.volume_id) == {}
    wait_listed(driver, {})
    assert fine.volume_id


def test_an_image_that_is_deleted_below_its_mount_is_told(driver: Driver) -> None:
    workload = published(driver)
    aside = image(workload).with_name("aside")
    os.link(image(workload), aside)
    image(workload).unlink()
    assert troubles(driver, workload.volume_id) == {"ImageDeleted": LOST}
    with image(workload).open("xb") as other:
        other.truncate(workload.size_bytes)
    assert troubles(driver, workload.volume_id) == {"ImageDeleted": LOST}
    aside.rename(image(workload))


def test_errors_that_ext4_counts_are_told_and_its_going_read_only(driver: Driver) -> None:
    workload = published(driver, flags=["errors=remount-ro"])
    trigger = Path("/sys/fs/ext4", Path(device(workload)).name, "trigger_fs_error")
    trigger.write_text("a test")
    # The kernel counts in a work queue.
    until(lambda: troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE, "FilesystemReadOnly": WORSE})


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_filesystem_that_was_shut_down_is_told(driver: Driver, fs_type: str) -> None:
    workload = published(driver, fs_type=fs_type, size_bytes=320 * MIB)
    cut_power(workload.staging, flush_log=True)
    assert troubles(driver, workload.volume_id) == {"FilesystemShutDown": GONE}


def test_a_mount_that_was_asked_to_be_read_only_is_healthy(driver: Driver) -> None:
    workload = published(driver, flags=["ro"])
    run("mount", "--options", "remount,ro", workload.staging)
    assert troubles(driver, workload.volume_id) == {}


def test_a_volume_that_lost_its_device_below_a_publication_is_told(driver: Driver) -> None:
    workload = published(driver)
    run("umount", workload.target())
    run("umount", workload.staging)
    until(lambda: "DeviceGone" in troubles(driver, workload.volume_id))
    assert troubles(driver, workload.volume_id) == {"DeviceGone": GONE}


def test_a_quarantined_record_is_a_cause(driver: Driver) -> None:
    workload = Workload(driver, "v")
    workload.create()
    driver.kill()
    record = image(workload).with_name("record.json")
    record.write_bytes(record.read_bytes()[:-9])
    driver.start()
    assert troubles(driver, workload.volume_id) == {"RecordQuarantined": GONE}
    assert listed(driver) == {workload.volume_id: {"RecordQuarantined"}}


def test_a_volume_of_a_pool_that_is_not_served_is_inaccessible(
    tmp_path: Path, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", size_bytes=300 * MIB)
    driver = make_driver(tmp_path / "other", place, init_pools=True)
    workload = Workload(driver, "v", parameters={"pool": "pool1"})
    workload.create()
    driver.stop()
    driver.init_pools = False
    run("umount", str(place.mount_point))
    driver.start()
    health = driver.call("ControllerGetVolumeHealth", volume_id=workload.volume_id).volume_health
    assert [(one.status, one.reason) for one in health.health_statuses] == [(GONE, "PoolUnavailable")]
    assert "pool1" in health.health_statuses[0].message
    assert storage(driver) == {"PoolUnavailable": csi_pb2.STORAGE_UNREACHABLE}
    run("mount", "--options", "loop", str(place.image), str(place.mount_point))


def test_a_pool_in_trouble_is_told_of_itself_and_of_its_volumes(make_pool: MakePool, make_driver: MakeDriver) -> None:
    place = make_pool("ext4", size_bytes=512 * MIB)
    driver = make_driver(place, constants=OFTEN, arguments=[f"--http-address=127.0.0.1:{(port := free_port())}"])
    thin, thick = Workload(driver, "thin"), Workload(driver, "thick", parameters={"provisioning": "thick"})
    for one in (thin, thick):
        one.create()
    assert storage(driver) == {}
    assert place.mount_point is not None
    filler = place.mount_point / "stranger"
    space = os.statvfs(place.mount_point)
    with filler.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 16 * MIB)
    assert troubles(driver, thin.volume_id) == {"PoolFull": WORSE}
    assert troubles(driver, thick.volume_id) == {}
    until(lambda: storage(driver) == {"PoolFull": csi_pb2.STORAGE_DEGRADED}, LOOK)
    wait_listed(driver, {thin.volume_id: {"PoolFull"}})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert 'hostvol_unhealthy_volumes{reason="PoolFull"} 1.0' in answer.read().decode()
    filler.unlink()
    run("mount", "--options", "remount,ro", str(place.mount_point))
    assert troubles(driver, thin.volume_id) == {"PoolReadOnly": WORSE}
    assert driver.call("GetCapacity").available_capacity == 0
    assert driver.code("CreateVolume", create_request("more")) is Code.UNAVAILABLE
    run("mount", "--options", "remount,rw", str(place.mount_point))
    assert troubles(driver, thin.volume_id) == {}
    run("umount", "--lazy", str(place.mount_point))
    assert "PoolDetached" in troubles(driver, thin.volume_id)
    run("mount", "--options", "loop", str(place.image), str(place.mount_point))


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_pool_that_was_shut_down_is_told(make_pool: MakePool, make_driver: MakeDriver, fs_type: str) -> None:
    place = make_pool(fs_type, size_bytes=512 * MIB)
    driver = make_driver(place)
    workload = Workload(driver, "v")
    workload.create()
    cut_power(str(place.mount_point), flush_log=True)
    assert troubles(driver, workload.volume_id)["PoolShutDown"] == GONE


def test_a_frozen_pool_keeps_no_health_call_from_answering(make_pool: MakePool, make_driver: MakeDriver) -> None:
    place = make_pool("xfs", size_bytes=GIB)
    driver = make_driver(place)
    workload = published(driver)
    with frozen(Path(str(place.mount_point))):
        assert troubles(driver, workload.volume_id) == {}
        assert listed(driver) == {}
        assert storage(driver) == {}


def test_a_filesystem_that_does_not_answer_is_told_and_no_other(driver: Driver) -> None:
    hung, fine = Workload(driver, "hung", fs_type="xfs", size_bytes=300 * MIB), Workload(driver, "fine")
    for one in (hung, fine):
        one.create()
        one.stage()
    with unanswering_filesystem(hung.staging):
        assert troubles(driver, hung.volume_id) == {"NotAnswering": GONE}
        wait_listed(driver, {hung.volume_id: {"NotAnswering"}})
        assert troubles(driver, fine.volume_id) == {}


@pytest.mark.parametrize("options", ["", "notreelog"])
def test_a_log_tree_below_a_pool_is_told(make_pool: MakePool, make_driver: MakeDriver, options: str) -> None:
    driver = make_driver(make_pool("btrfs", size_bytes=512 * MIB, mount=options))
    assert ("without notreelog" in driver.log()) is not bool(options)
