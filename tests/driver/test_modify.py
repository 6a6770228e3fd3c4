"""ControllerModifyVolume: parameters that change while a volume is used, on every kind of pool.

- A thin image becomes thick under its writer: all is allocated, no byte changes, the promise is there to the last byte.
- A thick one becomes thin and keeps its blocks; a directory gets its limit, and loses it, at once.
- The same again is OK and changes nothing; the name still means the volume, as it was asked for.
- What cannot change is refused by name with the remedy, all keys at once, and nothing else of the request happens.
- A thick volume can be written to its end though a stranger has filled the pool.
- What the pool cannot give is refused with numbers; what a directory holds beyond its size, likewise.
- A create takes the mutable parameters, which go before those of its class.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.probing import refused, traces
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, PodVolume, PoolPlace, Workload, create_request

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]
LIMITED = {"type": "directory"}
WRITER = """
import os, sys
fd, number = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 0
while not os.path.exists(sys.argv[1] + ".stop"):
    os.pwrite(fd, number.to_bytes(8, "big") * 512, (number * 7919 % 4096) * 4096)
    os.fsync(fd)
    number += 1
    if number == 10:
        print("writing", flush=True)
print(number)
"""


def modify(volume: Workload, **mutable: str) -> None:
    volume.driver.call("ControllerModifyVolume", volume_id=volume.volume_id, mutable_parameters=mutable)


def image_of(volume: Workload) -> Path:
    return volume.driver.pool / "volumes" / volume.volume_id / "disk.img"


def told(volume: Workload, field: str) -> Any:
    return getattr(volume.driver.call("GetVolume", volume_id=volume.volume_id), field)


def pool_of(driver: Driver) -> Any:
    [pool] = driver.call("ListPools").pools
    return pool


@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("block", [False, True], ids=["filesystem", "block"])
def test_a_thin_image_is_allocated_whole_under_its_writer(
    fs: str, block: bool, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(fs, 1 * GIB))
    volume = Workload(driver, "thin", block=block, size_bytes=128 * MIB)
    target = volume.up()
    place = target if block else f"{target}/file"
    stop = Path(f"{place}.stop")
    with subprocess.Popen((sys.executable, "-c", WRITER, place), stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert image_of(volume).stat().st_blocks * 512 < 100 * MIB
        for _ in range(2):
            modify(volume, provisioning="thick")
        assert image_of(volume).stat().st_blocks * 512 >= 128 * MIB
        stop.touch()
        written = int(writer.communicate(timeout=60)[0])
    assert written >= 10
    latest = {number * 7919 % 4096: number for number in range(written)}
    with open(place, "rb") as file:
        for index, number in latest.items():
            file.seek(index * 4096)
            assert file.read(4096) == number.to_bytes(8, "big") * 512
    assert told(volume, "provisioning") == "thick"
    if block:
        stop.unlink()
    # What is allocated is promised no more: the books and the disk agree.
    assert pool_of(driver).promised_bytes <= 16 * MIB
    driver.restart()
    assert told(volume, "provisioning") == "thick"
    volume.down()
    assert driver.files() == []


def test_a_thick_image_becomes_thin_and_keeps_its_blocks(driver: Driver) -> None:
    volume = Workload(driver, "thick", size_bytes=32 * MIB, parameters={"provisioning": "thick"})
    volume.create()
    blocks = image_of(volume).stat().st_blocks
    modify(volume, provisioning="thin")
    assert told(volume, "provisioning") == "thin"
    assert image_of(volume).stat().st_blocks == blocks
    volume.create()
    driver.restart()
    assert told(volume, "provisioning") == "thin"
    # The name stands for what was asked under it, which is not what there is now.
    other = create_request("thick", 32 * MIB, parameters={"provisioning": "thin"})
    refused(driver, "CreateVolume", Code.ALREADY_EXISTS, "provisioning", request=other)
    modify(volume, provisioning="thick")
    volume.delete()


def test_nothing_happens_when_the_volume_has_what_is_asked_already(driver: Driver) -> None:
    volume = Workload(driver, "same", size_bytes=16 * MIB)
    volume.create()
    before = traces(driver)
    modify(volume, provisioning="thin")
    modify(volume)
    modify(volume, **{"csi.storage.k8s.io/pvc/name": "data"})
    assert traces(driver) == before
    volume.delete()


def test_a_directory_is_limited_and_freed_while_it_is_used(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("btrfs", 1 * GIB))
    volume = Workload(driver, "free", size_bytes=16 * MIB, parameters=DIRECTORY)
    target = Path(volume.up())
    (target / "much").write_bytes(b"m" * 20 * MIB)
    sync(target)
    words = ("mutable_parameters.quota", str(16 * MIB), "expand it")
    fields = {"volume_id": volume.volume_id, "mutable_parameters": {"quota": "required"}}
    refused(driver, "ControllerModifyVolume", Code.FAILED_PRECONDITION, *words, **fields)
    (target / "much").write_bytes(b"l" * 4 * MIB)
    sync(target)
    promised = pool_of(driver).promised_bytes
    modify(volume, quota="required")
    assert pool_of(driver).promised_bytes - promised in range(10 * MIB, 13 * MIB)
    with pytest.raises(OSError, match="quota"):
        (target / "more").write_bytes(os.urandom(14 * MIB))
    (target / "more").unlink()
    driver.restart()
    assert told(volume, "quota") == "required"
    modify(volume, quota="none")
    (target / "more").write_bytes(os.urandom(14 * MIB))
    sync(target)
    assert pool_of(driver).promised_bytes == promised
    volume.create()
    volume.down()


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    subprocess.run(("sync", "-f", str(path)), check=True)


def test_a_directory_is_not_limited_where_nothing_enforces_it(driver: Driver) -> None:
    volume = Workload(driver, "free", size_bytes=16 * MIB, parameters=DIRECTORY)
    volume.create()
    before = traces(driver)
    fields = {"volume_id": volume.volume_id, "mutable_parameters": {"quota": "required"}}
    refused(driver, "ControllerModifyVolume", Code.FAILED_PRECONDITION, "mutable_parameters.quota", "pool", **fields)
    assert traces(driver) == before
    volume.delete()


@pytest.mark.parametrize(
    ("mutable", "words"),
    [
        ({"iops": "9", "colour": "red", "provisioning": "thick"}, ("colour, iops", "provisioning, quota")),
        ({"pool": "fast"}, ("pool", "clone it")),
        ({"type": "directory"}, ("type", "copy the files")),
        ({"mkfsOptions": "-m 0"}, ("mkfsOptions", "copy the files")),
        ({"blockSize": "512"}, ("blockSize",)),
        ({"retention": "90"}, ("mutable_parameters.retention", "7d")),
        ({"provisioning": "fat"}, ("mutable_parameters.provisioning", "thin, thick")),
        ({"provisioning": "thick", "quota": "none"}, ("mutable_parameters.quota", "directory")),
    ],
)
def test_what_cannot_change_is_refused_by_name(mutable: dict[str, str], words: tuple[str, ...], driver: Driver) -> None:
    volume = Workload(driver, "stays", size_bytes=16 * MIB)
    volume.create()
    before = traces(driver)
    fields = {"volume_id": volume.volume_id, "mutable_parameters": mutable}
    refused(driver, "ControllerModifyVolume", Code.INVALID_ARGUMENT, *words, **fields)
    assert traces(driver) == before
    request = create_request("never", 16 * MIB, mutable_parameters=mutable)
    assert driver.code("CreateVolume", request) is Code.INVALID_ARGUMENT
    volume.delete()
    refused(driver, "ControllerModifyVolume", Code.NOT_FOUND, volume.volume_id, **fields)


def test_an_overcommitted_pool_gives_no_more_than_it_has(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs", 512 * MIB), options=[",overcommit=4"])
    volume = Workload(driver, "large", size_bytes=900 * MIB)
    target = Path(volume.up())
    (target / "file").write_bytes(b"f" * MIB)
    fields = {"volume_id": volume.volume_id, "mutable_parameters": {"provisioning": "thick"}}
    words = ("bytes asked", "can be granted")
    refused(driver, "ControllerModifyVolume", Code.RESOURCE_EXHAUSTED, *words, **fields)
    assert told(volume, "provisioning") == "thin"
    assert image_of(volume).stat().st_blocks * 512 < 200 * MIB
    volume.down()
    assert pool_of(driver).promised_bytes == 0


@pytest.mark.parametrize("fs", ["ext4", "xfs", "btrfs"])
def test_a_thick_volume_can_be_written_when_a_stranger_has_taken_the_rest(
    fs: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool(fs, 1 * GIB)
    driver = make_driver(place)
    volume = Workload(driver, "kept", block=True, size_bytes=128 * MIB)
    target = volume.up()
    thin = Workload(driver, "thin", size_bytes=256 * MIB)
    thin.create()
    modify(volume, provisioning="thick")
    stranger = fill(place)
    fields = {"volume_id": thin.volume_id, "mutable_parameters": {"provisioning": "thick"}}
    refused(driver, "ControllerModifyVolume", Code.RESOURCE_EXHAUSTED, "can be granted", **fields)
    assert image_of(thin).stat().st_blocks * 512 < 64 * MIB
    subprocess.run(("dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=128", "oflag=direct"), check=True)
    stranger.unlink()
    modify(thin, provisioning="thick")
    thin.delete()
    volume.down()


def fill(place: PoolPlace) -> Path:
    """A stranger's file that takes all that the pool's filesystem has."""
    assert place.mount_point is not None
    path = place.mount_point / "stranger"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"s" * MIB)
    subprocess.run(("sync", "-f", str(path)), check=True)
    return path


def test_a_create_takes_mutable_parameters_before_those_of_its_class(driver: Driver) -> None:
    request = create_request(
        "with attributes", 32 * MIB, parameters={"provisioning": "thin"}, mutable_parameters={"provisioning": "thick"}
    )
    volume_id = driver.call("CreateVolume", request).volume.volume_id
    assert driver.call("CreateVolume", request).volume.volume_id == volume_id
    volume = Workload(driver, "with attributes", volume_id=volume_id)
    assert told(volume, "provisioning") == "thick"
    assert image_of(volume).stat().st_blocks * 512 >= 32 * MIB
    asked: dict[str, Any] = {"volume_id": volume_id, "volume_capabilities": [volume.capability]}
    answer = driver.call("ValidateVolumeCapabilities", **asked, mutable_parameters={"provisioning": "thick"})
    assert dict(answer.confirmed.mutable_parameters) == {"provisioning": "thick"}
    answer = driver.call("ValidateVolumeCapabilities", **asked, mutable_parameters={"provisioning": "thin"})
    assert not answer.HasField("confirmed")
    driver.call("DeleteVolume", volume_id=volume_id)


def test_a_volume_that_shares_blocks_stays_what_it_is_and_grows_thick(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs", 1 * GIB))
    volume = Workload(driver, "cut", size_bytes=64 * MIB, block=True)
    target = volume.up()
    subprocess.run(("dd", "if=/dev/urandom", f"of={target}", "bs=1M", "count=8", "oflag=direct"), check=True)
    snapshot_id = driver.call("CreateSnapshot", name="before", source_volume_id=volume.volume_id).snapshot.snapshot_id
    before = hashlib.sha256(Path(target).read_bytes()).digest()
    modify(volume, provisioning="thick")
    assert hashlib.sha256(Path(target).read_bytes()).digest() == before
    assert volume.expand(96 * MIB) == 96 * MIB
    assert image_of(volume).stat().st_blocks * 512 >= 96 * MIB
    driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
    volume.down()


def test_a_volume_is_kept_when_it_is_deleted_as_was_said_last(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool", options=[",retention=7d"])
    kept, gone = (Workload(driver, name, size_bytes=16 * MIB) for name in ("kept", "gone"))
    kept.create()
    gone.parameters = {"retention": "1d", "retentionPolicy": "yield"}
    gone.create()
    fields = {"volume_id": kept.volume_id, "mutable_parameters": {"retention": "8d"}}
    refused(driver, "ControllerModifyVolume", Code.INVALID_ARGUMENT, "retention", "7d", **fields)
    modify(kept, retention="7d", provisioning="thick")
    modify(gone, retention="0s")
    driver.restart()
    for volume in (kept, gone):
        volume.create()
        volume.delete()
    [entry] = driver.call("ListTrash").entries
    assert entry.object_id == kept.volume_id
    driver.call("PurgeTrash", entry=entry.entry)
    assert driver.files() == []


def test_many_callers_of_one_change_have_one_effect(driver: Driver) -> None:
    volume = Workload(driver, "asked by many", size_bytes=256 * MIB)
    volume.create()
    codes: list[Code] = []
    fields = {"volume_id": volume.volume_id, "mutable_parameters": {"provisioning": "thick"}}
    callers = [
        threading.Thread(target=lambda: codes.append(driver.code("ControllerModifyVolume", **fields)))
        for _ in range(16)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert Code.OK in codes
    assert set(codes) <= {Code.OK, Code.ABORTED}
    assert told(volume, "provisioning") == "thick"
    volume.delete()


def test_an_ephemeral_volume_is_not_there_to_be_modified(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool", options=[",ephemeral=64Mi"])
    inline = PodVolume(driver, "pod", {"size": "8Mi"})
    inline.publish()
    fields = {"volume_id": inline.held().volume_id, "mutable_parameters": {"provisioning": "thick"}}
    refused(driver, "ControllerModifyVolume", Code.NOT_FOUND, **fields)
    inline.unpublish()
