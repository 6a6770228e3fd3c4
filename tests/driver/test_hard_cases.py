"""What a careful reader would ask about.

- A device that could not be detached stays the volume's own: nobody else's data ever appears at its target.
- A device that was taken away from under its publication blocks unstage and delete until it is unpublished.
- Whatever is mounted from inside a directory volume counts as a use of it.
- A volume in a pool that is not served is not "gone"; when the pool comes back, it is there.
- A pool that is full, failing or a copy costs itself alone, and is served when it is well again.
- Looking at volumes never makes them busy; many sizes at once never lose a template.
- A volume whose image is missing can be deleted; one whose record is damaged costs no memory.
- A pool is locked by its directory, and one that holds volumes is never given a new identity.
- Space that was just given back counts before a create is refused.
- A volume is deleted while it is staged, and the unstage that comes later is content.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from csi_driver.linux import ioctl
from tests import powercut
from tests.harness import (
    DIRECTORY,
    MIB,
    Code,
    Driver,
    Failure,
    PoolPlace,
    Workload,
    admin_volumes,
    backing_files,
    create_request,
    run,
)
from tests.waiting import until

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


def loop_of(volume_id: str) -> str | None:
    return next((device for device, path in backing_files() if volume_id in path), None)


def code_of(call: Callable[[], object]) -> Code:
    try:
        call()
    except Failure as failure:
        return failure.code
    return Code.OK


def write_first_bytes(target: str, content: bytes) -> None:
    with open(target, "r+b", buffering=0) as device:
        device.write(content.ljust(4096, b"\0"))
        os.fsync(device.fileno())


def test_a_device_that_was_held_during_unstage_never_shows_another_volumes_data(driver: Driver) -> None:
    first = Workload(driver, "first", block=True, size_bytes=8 * MIB)
    first.create()
    first.stage()
    device = loop_of(first.volume_id)
    assert device is not None
    holder = os.open(device, os.O_RDONLY)
    assert code_of(first.unstage) is Code.ABORTED
    first.stage()
    target = first.publish()
    os.close(holder)
    write_first_bytes(target, b"first")
    assert loop_of(first.volume_id) == device
    second = Workload(driver, "second", block=True, size_bytes=8 * MIB)
    write_first_bytes(second.up(), b"SECRET")
    with open(target, "rb") as device:
        assert device.read(5) == b"first"
    first.down()
    second.down()


def test_a_device_taken_away_from_under_its_publication_must_be_unpublished_first(driver: Driver) -> None:
    life = Workload(driver, "taken", block=True, size_bytes=8 * MIB)
    target = life.up()
    device = loop_of(life.volume_id)
    assert device is not None
    run("losetup", "-d", device)
    until(lambda: loop_of(life.volume_id) is None)
    assert code_of(life.unstage) is Code.FAILED_PRECONDITION
    assert code_of(life.delete) is Code.FAILED_PRECONDITION
    life.unpublish()
    assert not os.path.lexists(target)
    life.unstage()
    life.delete()
    assert (driver.mounts(), driver.files()) == ([], [])


@pytest.mark.parametrize("parameters", [DIRECTORY, {}], ids=["directory", "image"])
def test_a_mount_from_inside_a_volume_is_a_use_of_it(driver: Driver, parameters: dict[str, str]) -> None:
    life = Workload(driver, "inside", parameters=parameters)
    inner = Path(life.up(), "inner")
    inner.mkdir()
    (inner / "file").write_text("data")
    elsewhere = Path(driver.target("elsewhere"))
    elsewhere.mkdir()
    run("mount", "--bind", str(inner), str(elsewhere))
    life.unpublish()
    assert code_of(life.unstage) is Code.FAILED_PRECONDITION
    assert code_of(life.delete) is Code.FAILED_PRECONDITION
    assert (elsewhere / "file").read_text() == "data"
    run("umount", str(elsewhere))
    life.unstage()
    life.delete()


def test_a_volume_in_a_pool_that_is_not_served_is_not_gone(make_pool: MakePool, make_driver: MakeDriver) -> None:
    here, there = make_pool("host"), make_pool("ext4", size_bytes=512 * MIB)
    driver = make_driver(here, there, constants={"domain.startup._TRY_AGAIN_SECONDS": 0.5})
    life = Workload(driver, "there", parameters={"pool": "pool1"}, size_bytes=16 * MIB)
    life.create()
    driver.stop()
    run("umount", str(there.mount_point))
    driver.init_pools = False
    driver.start()
    assert driver.code("DeleteVolume", volume_id=life.volume_id) is Code.UNAVAILABLE
    assert driver.code("NodeUnpublishVolume", volume_id=life.volume_id, target_path=life.target()) is Code.UNAVAILABLE
    assert driver.code("CreateVolume", create_request("other", 16 * MIB)) is Code.OK
    assert os.listdir(there.mount_point or "") == []
    run("mount", "-o", "loop", str(there.image), str(there.mount_point))
    until(lambda: driver.code("ControllerGetVolume", volume_id=life.volume_id) is Code.OK, 30)
    life.delete()


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_full_pool_is_opened_and_can_be_emptied(fs_type: str, make_pool: MakePool, make_driver: MakeDriver) -> None:
    here, full = make_pool("host"), make_pool(fs_type, size_bytes=512 * MIB)
    driver = make_driver(here, full)
    life = Workload(driver, "in-full", parameters={"pool": "pool1", **DIRECTORY}, size_bytes=16 * MIB)
    life.create()
    driver.stop()
    assert full.mount_point is not None
    # The last 4 KiB of a btrfs may cost it its metadata, and then it turns read-only.
    fill(full.mount_point / "stranger", (MIB,) if fs_type == "btrfs" else (MIB, 4096))
    driver.start()
    assert driver.code("CreateVolume", create_request("other", 16 * MIB)) is Code.OK
    life.delete()
    os.unlink(full.mount_point / "stranger")


def fill(path: Path, pieces: tuple[int, ...]) -> None:
    """Write until there is no space, in ever smaller pieces."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in pieces:
        try:
            while True:
                os.write(descriptor, b"\xa5" * size)
        except OSError:
            pass
    os.close(descriptor)


@pytest.mark.parametrize("fs_type", ["xfs", "ext4"])
def test_a_pool_whose_disk_fails_costs_itself_alone(fs_type: str, make_pool: MakePool, make_driver: MakeDriver) -> None:
    here, broken = make_pool("host"), make_pool(fs_type, size_bytes=512 * MIB)
    driver = make_driver(here, broken)
    driver.stop()
    descriptor = os.open(broken.mount_point or "", os.O_RDONLY)
    ioctl.exchange(descriptor, powercut.SHUTDOWN, bytearray((1).to_bytes(4, "little")))
    os.close(descriptor)
    driver.start()
    assert driver.code("CreateVolume", create_request("here", 16 * MIB)) is Code.OK
    assert driver.code("CreateVolume", create_request("there", 16 * MIB, parameters={"pool": "pool1"})) is not Code.OK


def test_a_copy_of_a_pool_is_refused(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    driver.stop()
    shutil.copytree(tmp_path / "pool", tmp_path / "copy")
    driver.pools = [driver.pools[0], PoolPlace(tmp_path / "copy")]
    driver.start()
    until(lambda: "is it a copy?" in driver.log())
    assert driver.code("CreateVolume", create_request("one", 16 * MIB)) in (Code.OK, Code.UNAVAILABLE)


def test_looking_at_volumes_never_makes_them_busy(driver: Driver) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            admin_volumes(driver)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    codes: Counter[Code] = Counter()
    try:
        for number in range(60):
            life = Workload(driver, f"looked-at-{number}", block=True, size_bytes=4 * MIB)
            life.create()
            codes.update(code_of(step) for step in (life.stage, life.unstage, life.delete))
    finally:
        stop.set()
        for looker in lookers:
            looker.join()
    assert codes == {Code.OK: 180}


def test_more_sizes_at_once_than_templates_are_kept(driver: Driver) -> None:
    codes: list[Code] = []

    def create(number: int) -> None:
        codes.append(driver.code("CreateVolume", create_request(f"size-{number}", (16 + number) * MIB)))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) == {Code.OK}
    assert len(os.listdir(driver.pool / "templates")) <= 16


def test_a_volume_whose_image_is_missing_can_be_deleted(driver: Driver) -> None:
    life = Workload(driver, "hollow")
    life.create()
    os.unlink(driver.pool / "volumes" / life.volume_id / "disk.img")
    assert code_of(life.stage) is Code.INTERNAL
    life.delete()
    assert driver.files() == []


def test_a_damaged_record_costs_no_memory_however_often_it_is_asked_for(
    tmp_path: Path, make_driver: MakeDriver
) -> None:
    driver = make_driver(tmp_path / "pool", forked=False)
    life = Workload(driver, "damaged")
    life.create()
    driver.stop()
    (driver.pool / "volumes" / life.volume_id / "record.json").write_text("{}")
    driver.start()

    def ask(times: int) -> int:
        for _ in range(times):
            assert driver.code("ControllerGetVolume", volume_id=life.volume_id) is Code.FAILED_PRECONDITION
        return int(psutil.Process(driver.pid).memory_info().rss)

    settled = ask(1000)
    assert ask(2000) - settled < 2 * MIB


def test_a_pool_that_lost_its_identity_is_neither_shared_nor_made_anew(driver: Driver, make_driver: MakeDriver) -> None:
    Workload(driver, "held").create()
    os.unlink(driver.pool / "hostvol-pool.json")
    command = ["init", str(driver.pool)]
    refused = subprocess.run([*hostvol(), "pool", *command], check=False, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "another hostvol process holds it" in refused.stderr
    driver.stop()
    refused = subprocess.run([*hostvol(), "pool", *command], check=False, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr


def hostvol() -> list[str]:
    return [sys.executable, "-m", "csi_driver"]


def test_an_unstage_after_the_delete_that_did_it_is_content(driver: Driver) -> None:
    life = Workload(driver, "quick")
    life.create()
    life.stage()
    staging = life.staging
    driver.call("DeleteVolume", volume_id=life.volume_id)
    driver.call("NodeUnstageVolume", volume_id=life.volume_id, staging_target_path=staging)
    assert driver.code("NodeUnstageVolume", volume_id=life.volume_id, staging_target_path="/other") is Code.NOT_FOUND


def test_memory_of_the_boot_that_is_lost_loses_no_protection(driver: Driver) -> None:
    life = Workload(driver, "forgotten", block=True, size_bytes=8 * MIB)
    target = life.up()
    driver.kill()
    shutil.rmtree(driver.home / "state")
    driver.start()
    life.stage()
    life.publish()
    assert code_of(lambda: life.publish(1, readonly=True)) is Code.FAILED_PRECONDITION
    write_first_bytes(target, b"still writable")
    assert code_of(life.delete) is Code.FAILED_PRECONDITION
    life.down()


def test_a_directory_on_a_pool_mounted_noatime_can_be_staged_again_without_memory(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=256 * MIB, mount="noatime"))
    life = Workload(driver, "again", parameters=DIRECTORY, size_bytes=16 * MIB)
    life.up()
    driver.kill()
    shutil.rmtree(driver.home / "state")
    driver.start()
    life.stage()
    life.publish()
    life.down()


@pytest.mark.parametrize("kind", [{}, {"block": True}, {"parameters": DIRECTORY}], ids=["image", "block", "directory"])
def test_a_workload_on_a_volume_whose_record_is_damaged_can_end(driver: Driver, kind: dict[str, object]) -> None:
    life = Workload(driver, "ending", **kind)  # type: ignore[arg-type]
    target = life.up()
    driver.kill()
    record = driver.pool / "volumes" / life.volume_id / "record.json"
    record.write_bytes(record.read_bytes().replace(b"capacity", b"Capacity"))
    driver.start()
    assert code_of(life.publish) is Code.FAILED_PRECONDITION
    assert code_of(life.unstage) is Code.FAILED_PRECONDITION
    life.unpublish()
    life.unpublish()
    assert not os.path.lexists(target)
    life.unstage()
    life.unstage()
    assert driver.mounts() == []
    until(lambda: loop_of(life.volume_id) is None)
    assert record.exists()
    assert driver.code("CreateVolume", create_request("ending")) is Code.FAILED_PRECONDITION


def test_what_was_deleted_counts_before_a_create_is_refused(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("btrfs", size_bytes=1024 * MIB))
    room = driver.call("GetCapacity").available_capacity
    for turn in range(3):
        life = Workload(
            driver, f"large-{turn}", block=True, size_bytes=room - 8 * MIB, parameters={"provisioning": "thick"}
        )
        life.create()
        life.delete()
