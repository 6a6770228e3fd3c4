"""A pool in a backing file: what an operator on a host with ext4 gets, and what happens to the file.

- It is made whole, with all its blocks, or refused with the numbers; its volumes are snapshot at once.
- It is mounted at the start, found again after a crash, after the end of a container and after a boot; there is never a
  second loop device over the file.
- It grows below volumes that are written to, and never takes what another pool was promised.
- A file that is missing, cut off or another one is not written to; other pools are served.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from csi_driver.app import parse_pool
from csi_driver.backends.backing_file import BackingFile
from csi_driver.errors import InvalidField
from csi_driver.pb import admin_pb2
from tests.backing.backed import Backed
from tests.harness import GIB, MIB, Code, Driver, Failure, PoolPlace, Workload, run
from tests.waiting import until

MakeDriver = Callable[..., Driver]


def served(backed: Backed, make_driver: MakeDriver, **options: object) -> Driver:
    return make_driver(backed.place, init_pools=False, **options)


def unserved(backed: Backed, make_driver: MakeDriver) -> str:
    """Why the pool is not served by a driver that starts now; that one is stopped."""
    driver = served(backed, make_driver)
    [found] = driver.call("NodeGetStorageHealth").backend_health
    assert driver.stop() == 0
    assert found.reason == "PoolUnavailable"
    return str(found.message)


def pool_of(driver: Driver, name: str = "default") -> dict[str, object]:
    table = run(*hostvol("pool", "list", "--output", "json", f"--endpoint={driver.endpoint}"))
    return next(row for row in json.loads(table) if row["name"] == name)


def hostvol(*words: str) -> list[str]:
    return [sys.executable, "-m", "csi_driver", *words]


def snapshot(driver: Driver, name: str, volume_id: str) -> str:
    made = driver.call("CreateSnapshot", name=name, source_volume_id=volume_id).snapshot
    assert made.ready_to_use
    return str(made.snapshot_id)


def test_an_ext4_host_cuts_mounted_volumes_at_once(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    assert backed.names() == {"hostvol-backing.img", "hostvol-backing.json", "pool"}
    backed.check()
    assert backed.image.stat().st_mode & 0o777 == 0o600
    assert not backed.is_mounted()
    assert not backed.loops()
    driver = served(backed, make_driver)
    row = pool_of(driver)
    assert (row["filesystem"], row["reflink"], row["backing_bytes"]) == ("xfs", True, GIB)
    assert row["backing_file"] == str(backed.image)
    life = Workload(driver, "data", size_bytes=300 * MIB)
    Path(life.up(), "written").write_bytes(os.urandom(MIB))
    cut = snapshot(driver, "cut", life.volume_id)
    driver.call("DeleteSnapshot", snapshot_id=cut)
    life.down()
    assert driver.stop() == 0
    # Volumes may be in use: the driver leaves the mount alone.
    assert backed.is_mounted()
    backed.unmount()
    backed.check()


def test_it_is_made_once(backed: Backed) -> None:
    backed.made()
    before = backed.image.stat()
    assert backed.init().returncode == 0
    larger = backed.init("2GiB")
    assert larger.returncode == 0
    assert "hostvol pool grow" in larger.stderr
    assert backed.hostvol("init", str(backed.directory)).returncode == 0
    inside = backed.hostvol("init", str(backed.mount_point))
    assert inside.returncode == 1
    assert f"name {backed.directory}" in inside.stderr
    after = backed.image.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


def test_a_lost_record_is_written_again(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    before = (backed.directory / "hostvol-backing.json").read_bytes()
    (backed.directory / "hostvol-backing.json").unlink()
    assert "without its record" in unserved(backed, make_driver)
    assert backed.hostvol("init", str(backed.directory)).returncode == 1
    assert backed.init("2GiB").returncode == 0
    assert (backed.directory / "hostvol-backing.json").read_bytes() == before


@pytest.mark.parametrize(
    ("size", "words"),
    [("100GiB", "107374182400 bytes asked"), ("299MiB", "at least 314572800"), ("3.99GiB", "can be granted")],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(backed: Backed, size: str, words: str) -> None:
    done = backed.init(size)
    assert done.returncode == 1
    assert words in done.stderr
    assert backed.names() == set()


def test_a_directory_with_anything_in_it_is_refused(backed: Backed) -> None:
    backed.directory.mkdir()
    (backed.directory / "letter").write_text("mine")
    done = backed.init()
    assert done.returncode == 1
    assert "'letter'" in done.stderr
    assert backed.names() == {"letter"}


def test_a_btrfs_is_refused(make_pool: Callable[..., PoolPlace]) -> None:
    done = Backed(make_pool("btrfs", GIB)).init("512MiB")
    assert done.returncode == 1
    assert "btrfs shares blocks by itself" in done.stderr


@pytest.mark.parametrize("how", ["restart", "new container", "boot"])
def test_it_is_found_again(backed: Backed, make_driver: MakeDriver, how: str) -> None:
    backed.made()
    driver = served(backed, make_driver)
    block = Workload(driver, "block", block=True, size_bytes=16 * MIB)
    block.up()
    Path(block.target()).write_bytes(b"before")
    mounted = Workload(driver, "mounted")
    Path(mounted.up(), "kept").write_text("before")
    device = backed.loops()
    driver.kill()
    if how == "new container":
        # Its mount namespace is gone, and volumes keep the filesystem alive.
        run("umount", "--lazy", str(backed.mount_point))
        assert backed.loops() == device
    if how == "boot":
        driver.clean_up()
        for loop in run("losetup", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
            if str(backed.mount_point) in loop:
                run("losetup", "-d", loop.split()[0])
        backed.unmount()
    driver.start()
    assert len(backed.loops()) == 1
    if how != "boot":
        assert backed.loops() == device
        assert Path(mounted.target(), "kept").read_text() == "before"
        assert Path(block.target()).read_bytes()[:6] == b"before"
    for life in (block, mounted):
        life.stage()
        life.publish()
    assert Path(mounted.target(), "kept").read_text() == "before"
    assert Path(block.target()).read_bytes()[:6] == b"before"
    snapshot(driver, "cut", mounted.volume_id)
    for life in (block, mounted):
        life.down()
    driver.stop()
    backed.unmount()
    backed.check()


def test_two_drivers_do_not_share_it(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    served(backed, make_driver)
    assert "another hostvol process serves it" in unserved(backed, make_driver)
    assert len(backed.loops()) == 1


def test_of_many_drivers_that_start_at_once_one_serves(backed: Backed, tmp_path: Path) -> None:
    backed.made()
    drivers = [Driver(tmp_path / f"one{number}", [backed.place], init_pools=False) for number in range(4)]
    for driver in drivers:
        driver.start(wait=False)
    try:
        for driver in drivers:
            driver.wait_ready()
        assert [pool_of(one)["state"] for one in drivers].count("ready") == 1
        assert len(backed.loops()) == 1
    finally:
        for driver in drivers:
            driver.kill()


def test_a_device_that_a_stranger_attached_is_used_and_a_second_refused(
    backed: Backed, make_driver: MakeDriver
) -> None:
    backed.made()
    strangers = [run("losetup", "--find", "--show", str(backed.image)).strip() for _ in range(2)]
    try:
        assert "is attached by /dev/loop" in unserved(backed, make_driver)
        run("losetup", "-d", strangers.pop())
        driver = served(backed, make_driver)
        assert backed.loops() == strangers
        driver.stop()
        run("umount", str(backed.mount_point))
    finally:
        for device in strangers:
            run("losetup", "-d", device)


@pytest.mark.parametrize("damage", ["missing", "cut off", "another"])
def test_a_file_that_is_not_what_it_was_is_refused_and_other_pools_are_served(
    backed: Backed, make_driver: MakeDriver, tmp_path: Path, damage: str
) -> None:
    backed.made()
    if damage == "missing":
        backed.image.rename(backed.directory / "aside")
    elif damage == "cut off":
        os.truncate(backed.image, 900 * MIB)
    else:
        backed.image.rename(backed.directory / "aside")
        backed.image.write_bytes(bytes(MIB))
        os.truncate(backed.image, GIB)
    plain = PoolPlace(tmp_path / "plain")
    driver = make_driver(plain, backed.place, init_pools=False, options=[",init=true", ""])
    told = {"missing": "cannot be opened", "cut off": "it was cut off", "another": "does not hold the xfs"}
    assert told[damage] in str(pool_of(driver, "pool1")["message"])
    assert not backed.is_mounted()
    assert not os.listdir(backed.mount_point)
    life = Workload(driver, "life")
    life.up()
    life.down()
    refused = Workload(driver, "refused", parameters={"pool": "pool1"})
    with pytest.raises(Failure) as failure:
        refused.create()
    assert failure.value.code is Code.UNAVAILABLE


def test_blocks_that_were_taken_out_of_it_are_given_back(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    driver = served(backed, make_driver)
    backed.trim()
    assert backed.image.stat().st_blocks * 512 < GIB // 2
    driver.restart()
    assert backed.image.stat().st_blocks * 512 >= GIB
    assert "they are given back" in driver.log()


def test_it_grows_below_a_writer(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    driver = served(backed, make_driver)
    life = Workload(driver, "life", size_bytes=500 * MIB)
    target = life.up()
    # The trap is taken when the pipe is through: none of it may write where the volume was.
    loop = "i=0; while true; do i=$((i+1)); echo $i | dd status=none conv=fsync of=$0/$((i % 50)); done"
    writer = subprocess.Popen(["sh", "-c", f"trap 'exit 0' TERM; {loop}", target])
    try:
        before = backed.filesystem_bytes()
        for size in ("1.5GiB", "2GiB"):
            done = backed.hostvol("grow", "default", size, f"--endpoint={driver.endpoint}")
            assert done.returncode == 0, done.stderr
        assert backed.filesystem_bytes() == before + GIB
        assert int(str(pool_of(driver)["size_bytes"])) == before + GIB
        again = backed.hostvol("grow", str(backed.directory), "2GiB", f"--endpoint={driver.endpoint}")
        assert again.returncode == 0, again.stderr
        for size, code in (("1GiB", "INVALID_ARGUMENT"), ("1TiB", "RESOURCE_EXHAUSTED")):
            done = backed.hostvol("grow", "default", size, f"--endpoint={driver.endpoint}")
            assert done.returncode == 1
            assert code in done.stderr
        assert writer.poll() is None
    finally:
        writer.send_signal(signal.SIGTERM)
        writer.wait(30)
    until(lambda: driver.code("NodeUnpublishVolume", volume_id=life.volume_id, target_path=target) is Code.OK, 60)
    life.down()
    large = Workload(driver, "large", size_bytes=1700 * MIB)
    large.create()
    driver.stop()
    backed.unmount()
    backed.check()


def test_without_a_driver_it_grows_as_well(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    done = backed.grow("2GiB")
    assert done.returncode == 0, done.stderr
    assert not backed.loops()
    assert not backed.is_mounted()
    backed.check()
    driver = served(backed, make_driver)
    assert int(str(pool_of(driver)["size_bytes"])) > 1900 * MIB


def test_what_a_pool_beside_it_was_promised_is_not_taken(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    beside = backed.directory.parent / "beside"
    driver = make_driver(backed.place, PoolPlace(beside), init_pools=False, options=["", ",init=true"])
    promised = Workload(driver, "promised", size_bytes=2 * GIB, parameters={"pool": "pool1"})
    promised.create()
    refused = backed.hostvol("grow", "default", "2.5GiB", f"--endpoint={driver.endpoint}")
    assert "RESOURCE_EXHAUSTED" in refused.stderr
    promised.delete()
    assert backed.hostvol("grow", "default", "2.5GiB", f"--endpoint={driver.endpoint}").returncode == 0
    not_backed = backed.hostvol("grow", "pool1", "2GiB", f"--endpoint={driver.endpoint}")
    assert "FAILED_PRECONDITION" in not_backed.stderr


def test_a_driver_makes_it_where_it_is_told_and_lets_it_grow(backed: Backed, make_driver: MakeDriver) -> None:
    driver = served(backed, make_driver, options=[",init=true,backing-file=600Mi"])
    assert pool_of(driver)["backing_bytes"] == 600 * MIB
    driver.stop()
    for setting, size in (("1Gi", GIB), ("600Mi", GIB), ("100Gi", GIB)):
        driver.options = [f",init=true,backing-file={setting}"]
        driver.start()
        assert pool_of(driver)["backing_bytes"] == size
        driver.stop()
    assert "keeps its size" in driver.log()


def test_a_driver_makes_none_that_takes_what_another_pool_promised(backed: Backed, make_driver: MakeDriver) -> None:
    beside = PoolPlace(backed.directory.parent / "beside")
    first = make_driver(beside)
    Workload(first, "promised", size_bytes=3500 * MIB).create()
    first.stop()
    for setting, told in (("600Mi", "can be granted"), ("100Mi", "at least 314572800")):
        driver = make_driver(
            backed.place,
            beside,
            init_pools=False,
            names=["backed", "default"],
            options=[f",init=true,backing-file={setting}", ""],
        )
        assert told in str(pool_of(driver, "backed")["message"])
        assert backed.names() == set()
        driver.stop()


def test_many_calls_to_grow_are_one_and_leave_nothing_open(backed: Backed, make_driver: MakeDriver) -> None:
    backed.made()
    driver = served(backed, make_driver)
    grow = driver.caller.admin_stub("GrowPool")

    def code_of(size_bytes: int) -> Code:
        try:
            grow(admin_pb2.GrowPoolRequest(name="default", size_bytes=size_bytes), timeout=60)
        except grpc.RpcError as error:
            return Code[error.code().name]
        return Code.OK

    assert code_of(GIB) is Code.OK
    before = len(os.listdir(f"/proc/{driver.pid}/fd"))
    with ThreadPoolExecutor(16) as threads:
        codes = Counter(threads.map(code_of, [GIB + 256 * MIB, GIB + 512 * MIB] * 32))
    assert set(codes) <= {Code.OK, Code.ABORTED, Code.INVALID_ARGUMENT}
    assert code_of(GIB + 512 * MIB) is Code.OK
    assert pool_of(driver)["backing_bytes"] == GIB + 512 * MIB
    until(lambda: len(os.listdir(f"/proc/{driver.pid}/fd")) <= before, 60)
    assert len(backed.loops()) == 1


def test_what_is_wrong_with_the_file_of_a_mounted_pool_is_told(backed: Backed) -> None:
    backed.made()
    held = BackingFile.open(str(backed.directory))
    assert held is not None
    held.mounted()
    assert held.problem() == ""
    backed.trim()
    assert "blocks are missing" in held.problem()
    held.tend()
    assert held.problem() == ""
    backed.image.rename(backed.directory / "aside")
    assert "cannot be opened" in held.problem()
    (backed.directory / "aside").rename(backed.image)
    held.close()


@pytest.mark.parametrize(
    "setting",
    ["backing-file=1Gi", "init=false,backing-file=1Gi", "init=true,backing-file=1GiB", "init=true,backing-file="],
)
def test_a_wrong_setting_is_refused_by_name(setting: str) -> None:
    with pytest.raises(InvalidField, match="backing-file"):
        parse_pool(f"default=/x,{setting}")
