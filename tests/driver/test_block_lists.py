"""Lists of blocks through the whole driver, for raw block volumes and filesystems on pools that share blocks or do not.

- The listed bytes of a snapshot, over zeros, are the snapshot; the listed changes, over the base, are the target: also
  where the volume grew between, and from any offset on.
- Between two cuts of a mounted filesystem few blocks change.
- Snapshots of a volume and of its clone are of one family: what they share is not listed.
- What is shared is named by at most twice what was written; what was copied exactly, however much it holds.
- A reader that takes its time keeps nobody from deleting the snapshot, and hears then that it is gone.
- Every message is within its bounds; a mebibyte in a tebibyte is listed at once.
- `hostvol snapshot blocks` prints the same. An image that is shorter than it should be is told as damaged.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.driver.copying import copied, cut, from_snapshot
from tests.harness import MIB, Code, Driver, Failure, PoolPlace, Workload, run

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]
BLOCK = 4096
SIZE = 16 * MIB
GIB = 1 << 30
Ranges = list[tuple[int, int]]


def allocated(driver: Driver, snapshot_id: str, **fields: Any) -> Ranges:
    return ranges_of(driver.call("GetMetadataAllocated", snapshot_id=snapshot_id, **fields))


def delta(driver: Driver, base_id: str, target_id: str, **fields: Any) -> Ranges:
    return ranges_of(driver.call("GetMetadataDelta", base_snapshot_id=base_id, target_snapshot_id=target_id, **fields))


def ranges_of(messages: list[Any]) -> Ranges:
    assert messages, "the size is told even where nothing is listed"
    assert {message.block_metadata_type for message in messages} == {csi_pb2.BlockMetadataType.VARIABLE_LENGTH}
    assert len({message.volume_capacity_bytes for message in messages}) == 1
    found = [(one.byte_offset, one.size_bytes) for message in messages for one in message.block_metadata]
    end = 0
    for start, size in found:
        assert start % BLOCK == 0
        assert size > 0
        assert start >= end
        end = start + size
    assert end <= messages[0].volume_capacity_bytes
    return found


def image(driver: Driver, snapshot: csi_pb2.Snapshot) -> Path:
    return driver.pool / "snapshots" / snapshot.snapshot_id / "disk.img"


def made_of(base: bytes, target: bytes, ranges: Ranges) -> bytes:
    made = bytearray(base[: len(target)].ljust(len(target), b"\0"))
    for start, size in ranges:
        made[start : start + size] = target[start : start + size]
    return bytes(made)


def scribble(workload: Workload, random: Random, times: int) -> int:
    """Write to the published device, durably; returns the bytes."""
    fd = os.open(workload.target(), os.O_WRONLY)
    size = os.lseek(fd, 0, os.SEEK_END)
    for _ in range(times):
        os.pwrite(fd, random.randbytes(BLOCK), random.randrange(size // BLOCK) * BLOCK)
    os.fsync(fd)
    os.close(fd)
    return times * BLOCK


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs", "host"])
@pytest.mark.parametrize("parameters", [{}, {"provisioning": "thick"}], ids=["thin", "thick"])
def test_a_device_is_backed_up_block_by_block(
    make_pool: MakePool, make_driver: MakeDriver, fs_type: str, parameters: dict[str, str]
) -> None:
    seed = SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    random = Random(seed)
    driver = make_driver(make_pool(fs_type))
    workload = Workload(driver, "device", block=True, size_bytes=SIZE, parameters=parameters)
    workload.create()

    def written(times: int, name: str) -> tuple[csi_pb2.Snapshot, int]:
        workload.stage()
        workload.publish()
        count = scribble(workload, random, times)
        # Where blocks are shared, below the writer.
        early = cut(driver, workload.volume_id, name) if fs_type != "host" else None
        workload.unpublish()
        workload.unstage()
        return early or cut(driver, workload.volume_id, name), count

    base, first_bytes = written(200, "base")
    old = image(driver, base).read_bytes()
    whole = allocated(driver, base.snapshot_id, max_results=3)
    assert made_of(b"", old, whole) == old
    # Thick is preallocated: what was never written is no data. (ext4 writes zeros around what is written.)
    assert fs_type == "host" or sum(size for _, size in whole) <= first_bytes
    workload.expand(SIZE + 4 * MIB)
    target, changed_bytes = written(100, "target")
    new = image(driver, target).read_bytes()
    assert len(new) == SIZE + 4 * MIB
    listed = delta(driver, base.snapshot_id, target.snapshot_id)
    assert made_of(old, new, listed) == new
    assert sum(size for _, size in listed) <= 2 * changed_bytes
    backwards = delta(driver, target.snapshot_id, base.snapshot_id)
    assert made_of(new, old, backwards) == old
    assert delta(driver, base.snapshot_id, base.snapshot_id) == []
    for offset in (1, BLOCK - 1, BLOCK, random.randrange(len(new)), len(new) - 1, len(new)):
        rest = delta(driver, base.snapshot_id, target.snapshot_id, starting_offset=offset, max_results=7)
        assert all(start + size > offset for start, size in rest)
        kept = {at for start, size in listed for at in range(start, start + size, BLOCK) if at + BLOCK > offset}
        assert {at for start, size in rest for at in range(start, start + size, BLOCK)} == kept


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_a_filesystem_changes_little_between_two_cuts(
    make_pool: MakePool, make_driver: MakeDriver, fs_type: str
) -> None:
    driver = make_driver(make_pool(fs_type))
    workload = Workload(driver, "files", size_bytes=64 * MIB)
    target = Path(workload.up())
    (target / "large").write_bytes(os.urandom(20 * MIB))
    base = cut(driver, workload.volume_id, "base")
    (target / "small").write_bytes(os.urandom(BLOCK))
    later = cut(driver, workload.volume_id, "later")
    listed = delta(driver, base.snapshot_id, later.snapshot_id)
    old, new = (image(driver, one).read_bytes() for one in (base, later))
    assert made_of(old, new, listed) == new
    assert BLOCK <= sum(size for _, size in listed) < 2 * MIB
    printed = run(
        *(
            sys.executable,
            "-m",
            "csi_driver",
            "snapshot",
            "blocks",
            "later",
            "--base",
            "base",
            "--endpoint",
            driver.endpoint,
        )
    ).splitlines()
    assert [tuple(map(int, line.split())) for line in printed] == listed
    printed_json = run(
        sys.executable,
        "-m",
        "csi_driver",
        "snapshot",
        "blocks",
        "later",
        "--output=json",
        "--endpoint",
        driver.endpoint,
    )
    fields = [(one["byte_offset"], one["size_bytes"]) for one in json.loads(printed_json)]
    assert fields == allocated(driver, later.snapshot_id)
    workload.down()


def test_a_clone_is_told_apart_from_its_source(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs"))
    workload = Workload(driver, "source", block=True, size_bytes=SIZE)
    workload.up()
    scribble(workload, Random(1), 500)
    base = cut(driver, workload.volume_id, "base")
    clone = copied(workload, "clone", from_snapshot(base.snapshot_id))
    changed_bytes = scribble(clone, Random(2), 10)
    target = cut(driver, clone.volume_id, "target")
    listed = delta(driver, base.snapshot_id, target.snapshot_id)
    old, new = (image(driver, one).read_bytes() for one in (base, target))
    assert made_of(old, new, listed) == new
    assert sum(size for _, size in listed) <= 2 * changed_bytes
    os.truncate(image(driver, target), SIZE - BLOCK)
    assert driver.code(
        "GetMetadataDelta", base_snapshot_id=base.snapshot_id, target_snapshot_id=target.snapshot_id
    ) is (Code.INTERNAL)


def fragmented(path: Path, extents: int, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)
        step = size // extents // BLOCK * BLOCK
        for number in range(extents):
            os.pwrite(file.fileno(), b"x" * BLOCK, number * step)
        os.fsync(file.fileno())


def memory_bytes(driver: Driver) -> int:
    with open(f"/proc/{driver.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_a_slow_reader_keeps_nobody_from_deleting(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs"))
    volume_id = Workload(driver, "many", block=True, size_bytes=GIB).create()
    fragmented(driver.pool / "volumes" / volume_id / "disk.img", 20000, GIB)
    snapshot = cut(driver, volume_id, "cut")
    request = csi_pb2.GetMetadataAllocatedRequest(snapshot_id=snapshot.snapshot_id, max_results=1)
    with_reader = driver.caller.stub("GetMetadataAllocated")(request, timeout=60)
    next(with_reader)
    # The stream has filled what fits between the two, and waits for its reader with nothing held.
    ends = time.monotonic() + 30
    while (code := driver.code("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)) is not Code.OK:
        assert code is Code.ABORTED
        assert time.monotonic() < ends
    with pytest.raises(Exception, match="is not on this node"):
        list(with_reader)
    with pytest.raises(Failure, match="is not on this node"):
        allocated(driver, snapshot.snapshot_id)


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_a_terabyte_takes_seconds_and_no_memory(make_pool: MakePool, make_driver: MakeDriver, fs_type: str) -> None:
    driver = make_driver(make_pool(fs_type, size_bytes=4 * GIB), options=[",overcommit=1000"], forked=False)
    volume_id = Workload(driver, "large", block=True, size_bytes=1024 * GIB).create()
    path = driver.pool / "volumes" / volume_id / "disk.img"
    fragmented(path, 20000, 1024 * GIB)
    base = cut(driver, volume_id, "base")
    with open(path, "r+b") as file:
        for number in range(100):
            os.pwrite(file.fileno(), b"y" * BLOCK, number * GIB + 512 * MIB)
        os.fsync(file.fileno())
    target = cut(driver, volume_id, "target")
    delta(driver, base.snapshot_id, base.snapshot_id)
    before, began = memory_bytes(driver), time.monotonic()
    listed = delta(driver, base.snapshot_id, target.snapshot_id)
    changes_seconds, began = time.monotonic() - began, time.monotonic()
    messages = driver.call("GetMetadataAllocated", snapshot_id=target.snapshot_id, max_results=1 << 30)
    whole_seconds = time.monotonic() - began
    print(f"{changes_seconds:.2f} s for the changes, {whole_seconds:.2f} s for 20,000 extents of 1 TiB")
    assert 100 <= len(listed) <= 200
    assert len(ranges_of(messages)) >= 20000
    assert max(message.ByteSize() for message in messages) < MIB
    assert max(changes_seconds, whole_seconds) < 30
    assert memory_bytes(driver) - before < 32 * MIB
