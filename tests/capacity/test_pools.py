"""Several pools on one node, what a directory must be to be one, and which sizes a volume may have.

- A volume goes to the pool that its class names; a pool that the node does not have is INVALID_ARGUMENT.
- A directory without its identity file is refused, and the others are served. A node all of whose pools are refused
  serves too, says why, and has them back without a restart; only a container that has none for ten minutes ends.
  Where a disk is not mounted, nothing is written.
- Where every pool is refused because of what the driver was told (a path that is not there or no directory, another
  driver's name) it ends with code 1 and a sentence.
- A pool of another driver and a pool that another process serves are refused.
- `hostvol pool init` can be repeated, and refuses a directory that holds something.
- Sizes: 1 GiB by default, whole blocks, never above the limit nor below what the filesystem needs; huge ones are
  refused with the code that says why, and leave nothing.
- GetCapacity answers for the pool, the topology and the kind that it is asked about.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.harness import (
    DIRECTORY,
    GIB,
    MIB,
    Code,
    Driver,
    Failure,
    PoolPlace,
    Workload,
    capability,
    create_request,
    hostvol,
    run,
)
from tests.waiting import until

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]
IDENTITY = "hostvol-pool.json"
LARGEST = (1 << 63) - 1


def content(directory: Path) -> set[str]:
    """Everything below, templates aside: they are made and dropped as needed."""
    found = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    return {path for path in found if not path.startswith("templates/")}


def refusal(driver: Driver) -> str:
    """Why a driver that has no pool at all serves none; and that it serves nevertheless."""
    found = driver.call("NodeGetStorageHealth").backend_health
    assert [(one.reason, one.status) for one in found] == [("PoolUnavailable", csi_pb2.STORAGE_UNREACHABLE)]
    assert driver.code("CreateVolume", create_request("refused", 4096)) is Code.UNAVAILABLE
    assert driver.call("GetCapacity").available_capacity == 0
    return str(found[0].message)


def start_and_fail(driver: Driver) -> str:
    """Start a driver that must end by itself with code 1; returns what it says."""
    driver.start(wait=False)
    assert driver.wait_dead() == 1
    said = driver.log().splitlines()
    assert "Traceback" not in driver.log()
    return said[-1]


# Routing


def test_a_volume_goes_to_the_pool_that_its_class_names(tmp_path: Path, make_driver: MakeDriver) -> None:
    pools = {name: tmp_path / name for name in ("default", "fast", "slow")}
    driver = make_driver(*pools.values(), names=list(pools))
    wanted = {"default": {}, "fast": {"pool": "fast"}, "slow": {"pool": "slow"}}
    for name, parameters in wanted.items():
        volume_id = Workload(driver, f"in-{name}", block=True, parameters=parameters).create()
        holders = [other for other, directory in pools.items() if (directory / "volumes" / volume_id).exists()]
        assert holders == [name]
    listed = {entry.volume.volume_id for entry in driver.call("ListVolumes").entries}
    assert len(listed) == 3
    driver.restart()
    assert {entry.volume.volume_id for entry in driver.call("ListVolumes").entries} == listed
    for volume_id in listed:
        driver.call("DeleteVolume", volume_id=volume_id)
    assert driver.files() == []


def test_a_name_is_one_volume_in_all_pools(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "one", tmp_path / "two", names=["one", "two"])
    Workload(driver, "volume", block=True, parameters={"pool": "one"}).create()
    with pytest.raises(Failure, match=r"ALREADY_EXISTS.*parameters\.pool"):
        Workload(driver, "volume", block=True, parameters={"pool": "two"}).create()


@pytest.mark.parametrize("pool", ["other", "", "../default", "Default", "a" * 64])
def test_a_pool_that_the_node_does_not_have_is_refused_by_name(driver: Driver, pool: str) -> None:
    with pytest.raises(Failure, match=r"parameters\.pool") as failure:
        Workload(driver, "volume", block=True, parameters={"pool": pool}).create()
    assert failure.value.code is Code.INVALID_ARGUMENT
    assert driver.files() == []


def test_a_pool_that_only_other_nodes_have_has_no_capacity_here(driver: Driver) -> None:
    answer = driver.call("GetCapacity", parameters={"pool": "other"})
    assert (answer.available_capacity, answer.maximum_volume_size.value) == (0, 0)
    for pool in ("", "../default", "Default", "a" * 64):
        with pytest.raises(Failure, match=r"parameters\.pool") as failure:
            driver.call("GetCapacity", parameters={"pool": pool})
        assert failure.value.code is Code.INVALID_ARGUMENT


# What a directory must be


def test_a_pool_without_identity_is_refused_and_the_others_are_served(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "one", tmp_path / "two", names=["one", "two"])
    ids = {name: Workload(driver, name, block=True, parameters={"pool": name}).create() for name in ("one", "two")}
    driver.kill()
    identity = tmp_path / "two" / IDENTITY
    kept = identity.read_bytes()
    identity.unlink()
    before = content(tmp_path / "two")
    driver.init_pools = False
    driver.start()
    assert [entry.volume.volume_id for entry in driver.call("ListVolumes").entries] == [ids["one"]]
    with pytest.raises(Failure, match=f"pool two.*{IDENTITY}") as failure:
        Workload(driver, "more", block=True, parameters={"pool": "two"}).create()
    assert failure.value.code is Code.UNAVAILABLE, "it may come back: nothing final"
    assert driver.call("GetCapacity", parameters={"pool": "two"}).available_capacity == 0
    Workload(driver, "more", block=True, parameters={"pool": "one"}).create()
    shown = hostvol("pool", "list", "--endpoint", driver.endpoint, "--output", "json")
    assert {row["name"]: row["state"] for row in json.loads(shown.stdout)} == {"one": "ready", "two": "unavailable"}
    assert content(tmp_path / "two") == before
    identity.write_bytes(kept)
    driver.restart()
    assert len(driver.call("ListVolumes").entries) == 3


def test_the_volumes_of_a_refused_pool_are_not_taken_for_deleted(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "one", tmp_path / "two", names=["one", "two"])
    volume_id = Workload(driver, "kept", block=True, parameters={"pool": "two"}).create()
    driver.kill()
    (tmp_path / "two" / IDENTITY).rename(tmp_path / "identity")
    driver.init_pools = False
    driver.start()
    code = driver.code("DeleteVolume", volume_id=volume_id)
    driver.kill()
    (tmp_path / "identity").rename(tmp_path / "two" / IDENTITY)
    driver.start()
    listed = [entry.volume.volume_id for entry in driver.call("ListVolumes").entries]
    assert code is not Code.OK, "the orchestrator forgets it, and it is still there"
    assert listed == [volume_id]


def test_a_driver_that_was_told_only_wrong_pools_says_why_and_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    pools = [PoolPlace(tmp_path / "missing"), PoolPlace(tmp_path / "file")]
    for init_pools, told in ((False, pools), (True, pools[1:])):
        said = start_and_fail(Driver(tmp_path / "driver", told, init_pools=init_pools))
        assert said.startswith("hostvol: ")
        assert str(tmp_path) in said
    assert not (tmp_path / "missing").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_node_all_of_whose_pools_are_refused_says_why_and_has_them_back_without_a_restart(
    make_pool: MakePool, tmp_path: Path, make_driver: MakeDriver
) -> None:
    """One disk is not mounted, of another the identity is damaged, a third path is not there at all."""
    disk = make_pool("ext4", 512 * MIB)
    damaged, missing = tmp_path / "damaged", tmp_path / "missing"
    constants = {"domain.startup._TRY_AGAIN_SECONDS": 0.5, "app._POOLLESS_SECONDS": 0.1}
    driver = make_driver(disk, damaged, missing, constants=constants)
    kept = Workload(driver, "kept", block=True).create()
    assert driver.stop() == 0
    identity, sound = damaged / IDENTITY, (damaged / IDENTITY).read_bytes()
    identity.write_bytes(sound[:-9])
    missing.rename(tmp_path / "aside")
    run("umount", str(disk.mount_point))
    disk.directory.mkdir()
    driver.init_pools = False
    driver.start()
    [told] = driver.call("NodeGetStorageHealth").backend_health
    assert (told.reason, told.status) == ("PoolUnavailable", csi_pb2.STORAGE_UNREACHABLE)
    assert all(words in told.message for words in ("Is its disk mounted?", "is damaged", "No such file"))
    health = driver.call("ControllerGetVolumeHealth", volume_id=kept).volume_health
    assert [(one.status, one.reason) for one in health.health_statuses] == [(csi_pb2.INACCESSIBLE, "PoolUnavailable")]
    for pool in ("default", "pool1", "pool2"):
        parameters = {"pool": pool}
        assert driver.code("CreateVolume", create_request("x", 4096, parameters=parameters)) is Code.UNAVAILABLE
        assert driver.call("GetCapacity", parameters=parameters).available_capacity == 0
    assert driver.code("DeleteVolume", volume_id=kept) is Code.UNAVAILABLE, "it is not said to be gone"
    assert content(disk.directory) == set()
    run("mount", "-o", "loop", str(disk.image), str(disk.mount_point))
    identity.write_bytes(sound)
    (tmp_path / "aside").rename(missing)
    until(lambda: not driver.call("NodeGetStorageHealth").backend_health, 60)
    assert [entry.volume.volume_id for entry in driver.call("ListVolumes").entries] == [kept]
    Workload(driver, "back", block=True, parameters={"pool": "pool2"}).create()


def test_a_container_that_has_had_no_pool_for_long_ends_so_that_another_sees_the_mounts(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    node = Driver(tmp_path, [PoolPlace(tmp_path / "pool")], init_pools=False).command()[3:]
    script = "import sys\nfrom csi_driver import app\napp._POOLLESS_SECONDS = 0.5\napp.main(sys.argv[1:])\n"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, *node]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "may see other mounts" in done.stderr.splitlines()[-1]
    assert str(tmp_path / "pool") in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_where_a_disk_is_not_mounted_nothing_is_written(fs_type: str, make_pool: MakePool, tmp_path: Path) -> None:
    disk = make_pool(fs_type, 512 * MIB)
    assert disk.mount_point is not None
    driver = Driver(tmp_path / "driver", [PoolPlace(disk.mount_point), PoolPlace(tmp_path / "other")])
    driver.start()
    volume_id = Workload(driver, "volume", block=True).create()
    assert driver.stop() == 0
    run("umount", str(disk.mount_point))
    driver.init_pools = False
    driver.start()
    assert driver.code("CreateVolume", create_request("more", 4096)) is Code.UNAVAILABLE
    assert driver.stop() == 0
    assert content(disk.mount_point) == set()
    run("mount", "-o", "loop", str(disk.image), str(disk.mount_point))
    driver.start()
    assert [entry.volume.volume_id for entry in driver.call("ListVolumes").entries] == [volume_id]
    assert driver.stop() == 0


def test_a_disk_that_is_unmounted_under_the_driver_is_not_written_to(tmp_path: Path, make_driver: MakeDriver) -> None:
    """A tmpfs over the directory stands for the empty mount point: the path leads elsewhere than at the start."""
    driver = make_driver(tmp_path / "pool")
    run("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "pool"))
    try:
        assert driver.code("CreateVolume", create_request("volume", 4096)) is Code.UNAVAILABLE
        assert content(tmp_path / "pool") == set()
    finally:
        run("umount", str(tmp_path / "pool"))
    Workload(driver, "volume", block=True).create()


def test_a_pool_of_another_driver_is_refused(tmp_path: Path) -> None:
    assert hostvol("pool", "init", str(tmp_path / "pool"), "--driver-name", "other.example").returncode == 0
    before = content(tmp_path / "pool")
    for init_pools in (False, True):
        driver = Driver(tmp_path / "driver", [PoolPlace(tmp_path / "pool")], init_pools=init_pools)
        assert "other.example" in start_and_fail(driver)
    assert content(tmp_path / "pool") == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 100, b"x" * 5000])
def test_a_pool_with_a_damaged_identity_is_refused_and_left_alone(
    tmp_path: Path, make_driver: MakeDriver, damage: bytes
) -> None:
    assert hostvol("pool", "init", str(tmp_path / "pool")).returncode == 0
    (tmp_path / "pool" / IDENTITY).write_bytes(damage)
    driver = make_driver(tmp_path / "pool")
    assert IDENTITY in refusal(driver)
    assert (tmp_path / "pool" / IDENTITY).read_bytes() == damage


def test_a_second_driver_on_the_same_pool_is_refused(tmp_path: Path, make_driver: MakeDriver) -> None:
    first = make_driver(tmp_path / "pool")
    second = make_driver(tmp_path / "pool")
    assert "another hostvol process" in refusal(second)
    assert second.stop() == 0
    # Also under another path, and while it serves a pool of its own beside it.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("mount", "--bind", str(tmp_path / "pool"), str(elsewhere))
    second = Driver(tmp_path / "third", [PoolPlace(elsewhere), PoolPlace(tmp_path / "own")])
    second.start()
    assert second.code("CreateVolume", create_request("volume", 4096)) is Code.UNAVAILABLE
    assert second.stop() == 0
    Workload(first, "volume", block=True).create()
    first.kill()
    second.start()
    assert len(second.call("ListVolumes").entries) == 1, "the lock goes with the process that held it"
    assert second.stop() == 0
    run("umount", str(elsewhere))


def test_a_symbolic_link_is_no_pool(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    said = start_and_fail(Driver(tmp_path / "driver", [PoolPlace(tmp_path / "link")]))
    assert str(tmp_path / "link") in said
    assert content(tmp_path / "real") == set()


def test_one_directory_under_two_names_is_refused(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "driver", [PoolPlace(tmp_path / "pool"), PoolPlace(tmp_path / "pool")])
    driver.start()
    assert driver.call("GetCapacity").available_capacity
    assert driver.call("GetCapacity", parameters={"pool": "pool1"}).available_capacity == 0
    assert driver.stop() == 0


# hostvol pool init


def test_pool_init_makes_a_private_directory_a_pool_and_can_be_repeated(tmp_path: Path) -> None:
    pool = tmp_path / "some" / "pool"
    first = hostvol("pool", "init", str(pool))
    assert first.returncode == 0, first.stderr
    assert pool.stat().st_mode & 0o777 == 0o700
    identity = (pool / IDENTITY).read_bytes()
    again = hostvol("pool", "init", str(pool))
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (pool / IDENTITY).read_bytes() == identity
    other = hostvol("pool", "init", str(pool), "--driver-name", "other.example")
    assert (other.returncode, other.stdout) == (1, "")
    assert "csi.hostvol.dev" in other.stderr


def test_pool_init_takes_an_empty_disk_with_its_lost_and_found(make_pool: MakePool) -> None:
    disk = make_pool("ext4", 64 * MIB)
    assert (disk.mount_point / "lost+found").is_dir()  # type: ignore[operator]
    assert hostvol("pool", "init", str(disk.mount_point)).returncode == 0


@pytest.mark.parametrize("what", ["file", "directory", "hidden"])
def test_pool_init_refuses_a_directory_that_holds_something(tmp_path: Path, what: str) -> None:
    pool = tmp_path / "pool"
    pool.mkdir(mode=0o755)
    stranger = pool / (".hidden" if what == "hidden" else what)
    stranger.mkdir() if what == "directory" else stranger.write_text("precious")
    refused = hostvol("pool", "init", str(pool))
    assert refused.returncode == 1
    assert stranger.name in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert content(pool) == {stranger.name}
    assert pool.stat().st_mode & 0o777 == 0o755


def test_pool_init_refuses_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    refused = hostvol("pool", "init", str(tmp_path / "file"))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert (tmp_path / "file").read_text() == "precious"


# Sizes


def create(driver: Driver, name: str, required: int = 0, limit: int = 0, **kind: object) -> int:
    """Create, look at what is there, delete; returns the capacity that was answered."""
    asked = capability(block=bool(kind.get("block")), fs_type=str(kind.get("fs_type", "")))
    request = create_request(name, required, limit, volume_capabilities=[asked], parameters=kind.get("parameters", {}))
    volume = driver.call("CreateVolume", request).volume
    image = driver.pool / "volumes" / volume.volume_id / "disk.img"
    if image.exists():
        assert image.stat().st_size == volume.capacity_bytes
    driver.call("DeleteVolume", volume_id=volume.volume_id)
    return int(volume.capacity_bytes)


@pytest.mark.parametrize(
    ("required", "limit", "given"),
    [
        (0, 0, GIB),
        (0, 64 * MIB, 64 * MIB),
        (0, 64 * MIB + 4095, 64 * MIB),
        (0, LARGEST, GIB),
        (1, 0, 4096),
        (4096, 4096, 4096),
        (4097, 0, 8192),
        (4097, 8192, 8192),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
    ],
)
def test_a_block_volume_has_what_was_asked_in_whole_blocks(
    driver: Driver, required: int, limit: int, given: int
) -> None:
    assert create(driver, "volume", required, limit, block=True) == given


@pytest.mark.parametrize(
    ("fs_type", "minimum"), [("", 8 * MIB), ("ext4", 8 * MIB), ("xfs", 300 * MIB), ("btrfs", 109 * MIB)]
)
def test_a_filesystem_has_at_least_what_it_needs_and_can_be_used_then(
    driver: Driver, fs_type: str, minimum: int
) -> None:
    assert create(driver, "small", 1, fs_type=fs_type) == minimum
    assert create(driver, "exact", minimum, minimum, fs_type=fs_type) == minimum
    answer = driver.call("GetCapacity", volume_capabilities=[capability(fs_type=fs_type)])
    assert answer.minimum_volume_size.value == minimum
    with pytest.raises(Failure, match="limit_bytes") as failure:
        create(driver, "limited", 1, minimum - 1, fs_type=fs_type)
    assert failure.value.code is Code.OUT_OF_RANGE
    workload = Workload(driver, "used", fs_type=fs_type, size_bytes=minimum)
    Path(workload.up(), "file").write_text("it fits")
    workload.down()


@pytest.mark.parametrize(("required", "limit"), [(4097, 4097), (1, 4095), (0, 4095), (0, 1), (4095, 4095)])
def test_a_limit_below_whole_blocks_is_out_of_range(driver: Driver, required: int, limit: int) -> None:
    with pytest.raises(Failure, match="limit_bytes") as failure:
        create(driver, "volume", required, limit, block=True)
    assert failure.value.code is Code.OUT_OF_RANGE
    assert driver.files() == []


@pytest.mark.parametrize("required", [LARGEST, LARGEST - 4096, 1 << 60, 1 << 50, 1 << 45])
@pytest.mark.parametrize(
    "kind",
    [
        {"block": True},
        {},
        {"fs_type": "xfs"},
        {"fs_type": "btrfs"},
        {"block": True, "parameters": {"provisioning": "thick"}},
        {"parameters": DIRECTORY},
    ],
    ids=["block", "ext4", "xfs", "btrfs", "thick", "directory"],
)
def test_a_huge_volume_is_refused_and_leaves_nothing(driver: Driver, required: int, kind: dict[str, Any]) -> None:
    with pytest.raises(Failure) as failure:
        create(driver, "huge", required, **kind)
    assert failure.value.code in (Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED)
    assert driver.files() == []
    assert driver.call("Probe").ready.value


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (-LARGEST - 1, 0), (2, 1), (LARGEST, LARGEST - 1)])
def test_a_range_that_is_none_is_invalid(driver: Driver, required: int, limit: int) -> None:
    with pytest.raises(Failure, match="capacity_range") as failure:
        create(driver, "volume", required, limit, block=True)
    assert failure.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_more_than_a_pool_has_is_exhausted_and_names_what_can_be_granted(
    fs_type: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(fs_type, 512 * MIB))
    can = driver.call("GetCapacity", volume_capabilities=[capability(block=True)]).available_capacity
    for kind in ({"block": True}, {}, {"parameters": {"provisioning": "thick"}}):
        with pytest.raises(Failure, match=str(can)) as failure:
            create(driver, "volume", GIB, **kind)
        assert failure.value.code is Code.RESOURCE_EXHAUSTED
    assert driver.files() == []


# GetCapacity


def test_capacity_is_asked_of_one_pool(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("ext4", 256 * MIB), make_pool("ext4", 512 * MIB))
    small = driver.call("GetCapacity").available_capacity
    large = driver.call("GetCapacity", parameters={"pool": "pool1"}).available_capacity
    assert 0 < small < 256 * MIB < large < 512 * MIB


def test_capacity_elsewhere_is_nothing(driver: Driver) -> None:
    here = driver.call("NodeGetInfo").accessible_topology
    assert driver.call("GetCapacity", accessible_topology=here).available_capacity > 0
    key = next(iter(here.segments))
    for segments in ({key: "another-node"}, {"topology.example/zone": "a"}, {key: here.segments[key], "zone": "a"}):
        answer = driver.call("GetCapacity", accessible_topology={"segments": segments})
        assert answer.available_capacity == 0


def test_capacity_below_the_minimum_of_a_filesystem_is_nothing(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("ext4", 256 * MIB))
    block = driver.call("GetCapacity", volume_capabilities=[capability(block=True)])
    xfs = driver.call("GetCapacity", volume_capabilities=[capability(fs_type="xfs")])
    assert 0 < block.available_capacity < 300 * MIB
    assert (block.minimum_volume_size.value, xfs.minimum_volume_size.value) == (4096, 300 * MIB)
    assert (xfs.available_capacity, xfs.maximum_volume_size.value) == (0, 0)
    assert driver.code("CreateVolume", create_request("x", 1, volume_capabilities=[capability(fs_type="xfs")])) is (
        Code.RESOURCE_EXHAUSTED
    )


def test_capacity_for_a_directory_without_quota_is_what_it_could_fill(driver: Driver) -> None:
    answer = driver.call("GetCapacity", parameters=DIRECTORY)
    found = os.statvfs(driver.pool)
    assert 0 < answer.available_capacity < found.f_bavail * found.f_frsize


def test_capacity_for_what_the_pool_cannot_hold_is_nothing_or_refused(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    """A directory with a quota where the filesystem enforces none: no create would be granted a byte."""
    driver = make_driver(make_pool("ext4", 256 * MIB))
    parameters = {"type": "directory"}
    refused = driver.code("CreateVolume", create_request("volume", 4096, parameters=parameters))
    assert refused is Code.INVALID_ARGUMENT
    try:
        granted = driver.call("GetCapacity", parameters=parameters).available_capacity
    except Failure as failure:
        assert failure.code is Code.INVALID_ARGUMENT
    else:
        assert granted == 0


@pytest.mark.parametrize(
    "parameters", [{"size": "1"}, {"type": "tape"}, {"provisioning": "fat"}, {"quota": "none"}, {"blockSize": "1"}]
)
def test_a_question_about_a_class_that_cannot_be_is_invalid(driver: Driver, parameters: dict[str, str]) -> None:
    assert driver.code("GetCapacity", parameters=parameters) is Code.INVALID_ARGUMENT


def test_an_empty_pool_after_all_its_volumes_are_gone_is_as_before(driver: Driver) -> None:
    before = content(driver.pool)
    for number in range(3):
        create(driver, f"volume-{number}", 16 * MIB)
    assert content(driver.pool) == before
    shutil.rmtree(driver.pool / "templates")
    (driver.pool / "templates").mkdir(mode=0o700)
