"""What a careful reader would ask about snapshots and copies.

- Source and copies bear different UUIDs, with a journal to replay too; a second generation as well.
- A copy that is larger has a filesystem that is larger.
- Copies go to other pools: at once where both share a filesystem, from mounted images where the source's pool can, and
  otherwise from what is idle.
- A directory keeps everything that files are, subvolumes inside included; its copy has a limit of its own.
- A damaged record of a snapshot is quarantined, and costs nothing else.
- A volume whose blocks are shared can still be written over from end to end; a cut that would break this is refused.

(What is still being copied: see `test_copies_under_way`.)
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from csi_driver.pb import admin_pb2
from tests.driver.copying import (
    MakeDriver,
    MakePool,
    copied,
    copy_request,
    cut,
    fill,
    from_snapshot,
    from_volume,
    idle,
    image_of,
    read,
    snapshots,
    take_down,
    total_bytes,
    write,
)
from tests.harness import DIRECTORY, MIB, Code, Failure, PoolPlace, Workload, run
from tests.waiting import until


def uuids(workloads: list[Workload]) -> list[str]:
    return [run("blkid", "-p", "-s", "UUID", "-o", "value", image_of(one)).strip() for one in workloads]


@pytest.mark.parametrize("pool", ["xfs", "btrfs"])
@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("btrfs", 128 * MIB)])
def test_relatives_bear_different_uuids_over_generations(
    pool: str, fs_type: str, size_bytes: int, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(pool))
    source = Workload(driver, "source", fs_type=fs_type, size_bytes=size_bytes)
    source.up()
    write(source, "before")
    first = copied(source, "first", from_snapshot(cut(driver, source.volume_id).snapshot_id))
    second = copied(first, "second", from_volume(first.volume_id))
    third = copied(second, "third", from_snapshot(cut(driver, second.volume_id, "second cut").snapshot_id))
    family = [source, first, second, third]
    assert [read(one) for one in family] == ["before"] * 4
    for one in family:
        idle(one)
    assert len(set(uuids(family))) == 4, uuids(family)
    for one in family:
        one.stage()
        one.publish()
    assert [read(one) for one in family] == ["before"] * 4
    for one in family:
        take_down(one)


@pytest.mark.parametrize("pool", ["xfs", "host"])
@pytest.mark.parametrize(("fs_type", "size_bytes"), [("ext4", 64 * MIB), ("xfs", 300 * MIB), ("btrfs", 128 * MIB)])
def test_a_larger_copy_has_a_larger_filesystem(
    pool: str, fs_type: str, size_bytes: int, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(pool, size_bytes=4 << 30))
    source = Workload(driver, "source", fs_type=fs_type, size_bytes=size_bytes)
    source.up()
    write(source, "before")
    before = total_bytes(source)
    if pool == "host":
        idle(source)
    snapshot = cut(driver, source.volume_id)
    larger = copied(source, "larger", from_snapshot(snapshot.snapshot_id), size_bytes=4 * size_bytes)
    assert read(larger) == "before"
    assert total_bytes(larger) > 3.5 * before
    fill(larger, 2 * size_bytes // MIB * MIB)
    take_down(larger)
    if pool == "xfs":
        idle(source)
    source.delete()


def test_pools_on_one_filesystem_share_and_mounted_volumes_are_cloned_between(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("xfs")
    other = PoolPlace(place.directory.parent / "second")
    driver = make_driver(place, other, make_pool("host"))
    source = Workload(driver, "source", size_bytes=64 * MIB)
    source.up()
    write(source, "before")
    fill(source, 32 * MIB)
    for pool in ("pool1", "pool2"):
        clone = copied(source, f"to-{pool}", from_volume(source.volume_id), parameters={"pool": pool})
        assert read(clone) == "before"
        detail = driver.caller.admin_stub("GetVolume")(admin_pb2.GetVolumeRequest(volume_id=clone.volume_id))
        assert (detail.allocated_bytes > 30 * MIB) == (pool == "pool2"), "shared in the same filesystem"
        idle(clone)
        clone.delete()
    nowhere = copy_request(source, "nowhere", from_volume(source.volume_id), parameters={"pool": "nowhere"})
    assert driver.code("CreateVolume", nowhere) is Code.INVALID_ARGUMENT
    idle(source)
    source.delete()
    assert driver.files() == []


def test_a_mounted_directory_is_not_cloned_into_a_filesystem_of_its_own(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"), make_pool("host"))
    source = Workload(driver, "source", parameters=DIRECTORY)
    source.up()
    write(source, "before")
    elsewhere = {**DIRECTORY, "pool": "pool1"}
    with pytest.raises(Failure, match="own pool") as refused:
        driver.call("CreateVolume", copy_request(source, "clone", from_volume(source.volume_id), parameters=elsewhere))
    assert refused.value.code is Code.FAILED_PRECONDITION
    snapshot = cut(driver, source.volume_id)
    restored = copied(source, "restored", from_snapshot(snapshot.snapshot_id), parameters=elsewhere)
    assert read(restored) == "before"
    for one in (source, restored):
        idle(one)
        one.delete()


@pytest.mark.parametrize(
    ("pool", "parameters"),
    [("xfs", DIRECTORY), ("btrfs", DIRECTORY), ("btrfs", {"type": "directory"}), ("host", DIRECTORY)],
    ids=["xfs", "btrfs", "btrfs-quota", "ext4"],
)
def test_a_directory_keeps_everything_that_files_are(
    pool: str, parameters: dict[str, str], make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(pool))
    source = Workload(driver, "source", parameters=parameters)
    top = Path(source.up())
    (top / "deep/er").mkdir(parents=True)
    (top / "deep/file").write_bytes(b"x" * 9000)
    os.link(top / "deep/file", top / "second name")
    os.symlink("deep/file", top / "link")
    os.mkfifo(top / "pipe")
    os.chown(top / "deep/file", 1234, 4321)
    os.chmod(top / "deep/file", 0o4751)
    os.setxattr(top / "deep", "user.colour", b"red")
    os.chown(top, 0, 4321)
    os.chmod(top, 0o2775)
    if pool == "btrfs":
        run("btrfs", "subvolume", "create", str(top / "inner"))
        (top / "inner/file").write_text("inside a subvolume")
    if pool == "host":
        idle(source)
    snapshot = cut(driver, source.volume_id)
    clone = copied(source, "clone", from_volume(source.volume_id))
    restored = copied(source, "restored", from_snapshot(snapshot.snapshot_id))
    if pool == "host":
        source.stage()
        source.publish()

    def listing(one: Workload) -> str:
        described = run("find", one.target(), "-printf", "%P %y %m %U %G %s %T@ %n %l\\n")
        return "\n".join(sorted(line for line in described.splitlines() if not line.startswith(" d")))

    def without_sizes_of_directories(text: str) -> list[list[str]]:
        rows = [line.split(" ") for line in text.splitlines()]
        return [[*row[:5], "-", row[6], "-"] if row[1] == "d" else row for row in rows]

    expected = without_sizes_of_directories(listing(source))
    for one in (clone, restored):
        assert without_sizes_of_directories(listing(one)) == expected
        assert os.getxattr(f"{one.target()}/deep", "user.colour") == b"red"
        assert os.stat(f"{one.target()}/deep/file").st_ino == os.stat(f"{one.target()}/second name").st_ino
        assert (os.stat(one.target()).st_mode & 0o7777, os.stat(one.target()).st_gid) == (0o2775, 4321)
    for one in (source, clone, restored):
        idle(one)
        one.delete()
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    assert driver.files() == []


def test_the_copy_of_a_directory_has_a_limit_of_its_own(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("btrfs"))
    source = Workload(driver, "source", size_bytes=64 * MIB, parameters={"type": "directory"})
    source.up()
    fill(source, 16 * MIB)
    restored = copied(
        source, "restored", from_snapshot(cut(driver, source.volume_id).snapshot_id), size_bytes=128 * MIB
    )
    with pytest.raises(AssertionError, match="quota exceeded"):
        run("dd", "if=/dev/urandom", f"of={restored.target()}/more", "bs=1M", "count=200")
    assert os.path.getsize(f"{restored.target()}/more") > 90 * MIB
    fill(source, 16 * MIB)
    unlimited = Workload(driver, "unlimited", size_bytes=8 * MIB, parameters=DIRECTORY)
    unlimited.up()
    fill(unlimited, 32 * MIB)
    too_small = copy_request(unlimited, "small", from_volume(unlimited.volume_id), parameters={"type": "directory"})
    with pytest.raises(Failure, match="less than what the source holds") as refused:
        driver.call("CreateVolume", too_small)
    assert refused.value.code is Code.OUT_OF_RANGE
    for one in (source, restored, unlimited):
        idle(one)
        one.delete()


def test_a_damaged_record_of_a_snapshot_is_quarantined_and_costs_nothing_else(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"))
    source = Workload(driver, "source")
    source.create()
    good, bad = cut(driver, source.volume_id, "good"), cut(driver, source.volume_id, "bad")
    driver.stop()
    record = driver.pool / "snapshots" / bad.snapshot_id / "record.json"
    record.write_bytes(record.read_bytes().replace(b'"size_bytes":', b'"size_bites":'))
    driver.start()
    assert snapshots(driver) == [good]
    for method in ("GetSnapshot", "DeleteSnapshot"):
        with pytest.raises(Failure, match="damaged") as refused:
            driver.call(method, snapshot_id=bad.snapshot_id)
        assert refused.value.code is Code.FAILED_PRECONDITION
    for method, fields in (
        ("CreateSnapshot", {"name": "bad", "source_volume_id": source.volume_id}),
        ("CreateVolume", {"request": copy_request(source, "v", from_snapshot(bad.snapshot_id))}),
    ):
        assert driver.code(method, **fields) is Code.FAILED_PRECONDITION
    command = [".venv/bin/hostvol", "snapshot", "list", "--endpoint", driver.endpoint]
    root = Path(__file__).resolve().parents[2]
    table = subprocess.run([str(root / command[0]), *command[1:]], capture_output=True, text=True, check=True).stdout
    assert "quarantined" in table
    assert (driver.pool / "snapshots" / bad.snapshot_id / "disk.img").exists()
    source.delete()


@pytest.mark.parametrize("pool", ["xfs", "btrfs"])
@pytest.mark.parametrize("provisioning", ["thin", "thick"])
def test_a_volume_that_was_cut_can_be_written_over_and_a_cut_too_many_is_refused(
    pool: str, provisioning: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(pool, size_bytes=640 * MIB))
    source = Workload(driver, "source", block=True, size_bytes=150 * MIB, parameters={"provisioning": provisioning})
    target = source.up()

    def write_over() -> None:
        run("dd", "if=/dev/urandom", f"of={target}", "bs=1M", "count=150", "conv=fsync,notrunc")

    write_over()
    made: list[str] = []
    while True:
        try:
            made.append(cut(driver, source.volume_id, f"cut-{len(made)}").snapshot_id)
        except Failure as failure:
            assert failure.code is Code.RESOURCE_EXHAUSTED
            assert source.volume_id in failure.details
            break
        write_over()
    assert made, "not even one fits"
    driver.call("DeleteSnapshot", snapshot_id=made.pop())
    until(lambda: driver.code("CreateSnapshot", name="again", source_volume_id=source.volume_id) is Code.OK, 40)
    write_over()
    take_down(source)
