"""Snapshots taken again and again below a writer that fsyncs numbered records, inside ext4, XFS and btrfs, and raw.

- Every volume that is made from one mounts, holds every record that was acknowledged before the call, in order and
  without a hole, and is sound when it is unmounted.
- The same holds for clones of the mounted volume.
- The writer is never refused a write, and waits for no cut longer than its budget.

HOSTVOL_CUTS says how many snapshots are taken of each kind.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.driver.copying import copied, cut, from_snapshot, from_volume, take_down
from tests.harness import MIB, Driver, PoolPlace, Workload

CUTS = int(os.environ.get("HOSTVOL_CUTS", "12"))
RECORD_BYTES = 4096
# A block volume has so many places for records, which are written in turn.
PLACES = 1024
KINDS = {
    "ext4": {"fs_type": "ext4", "size_bytes": 64 * MIB},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 160 * MIB},
    "block": {"block": True, "size_bytes": 16 * MIB},
}


def record(number: int) -> bytes:
    return number.to_bytes(8, "big") * (RECORD_BYTES // 8)


@dataclass
class Writer(threading.Thread):
    """Writes records one after the other, each fsynced before it is acknowledged; starts a new file now and then."""

    target: str
    is_block: bool
    acknowledged: int = 0
    longest_seconds: float = 0.0
    failure: str = ""
    _stop_asked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                began = time.monotonic()
                self._write(self.acknowledged + 1)
                self.acknowledged += 1
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
        except OSError as error:
            self.failure = str(error)

    def end(self) -> None:
        self._stop_asked.set()
        self.join(30)

    def _write(self, number: int) -> None:
        if self.is_block:
            descriptor = os.open(self.target, os.O_WRONLY | os.O_CLOEXEC)
            offset = number % PLACES * RECORD_BYTES
        else:
            descriptor = os.open(f"{self.target}/{number // 500}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            offset = number % 500 * RECORD_BYTES
        try:
            os.pwrite(descriptor, record(number), offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def records_in(workload: Workload) -> list[int]:
    """The numbers that are whole in a published volume, in order; every other place must be empty."""
    found = []
    for content in contents_of(workload):
        for start in range(0, len(content), RECORD_BYTES):
            block = content[start : start + RECORD_BYTES]
            number = int.from_bytes(block[:8], "big")
            if number:
                assert block == record(number), f"record {number} is torn"
                found.append(number)
            else:
                assert not block.strip(b"\0")
    return sorted(found)


def contents_of(workload: Workload) -> list[bytes]:
    if workload.block:
        with open(workload.target(), "rb") as device:
            return [device.read(PLACES * RECORD_BYTES)]
    contents = []
    for name in os.listdir(workload.target()):
        if name.isdigit():
            with open(f"{workload.target()}/{name}", "rb") as file:
                contents.append(file.read())
    return contents


def check(copy: Workload, acknowledged: int) -> None:
    found = records_in(copy)
    assert found, "no record at all"
    last = found[-1]
    assert last >= acknowledged, f"{acknowledged} was fsynced before the cut, {last} is the last one there"
    first = max(1, last - PLACES + 1) if copy.block else 1
    assert found == list(range(first, last + 1)), "there is a hole"


@pytest.mark.parametrize("pool", ["xfs", "btrfs"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_holds_what_was_acknowledged_before(
    kind: str, pool: str, make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(make_pool(pool))
    source = Workload(driver, "source", **KINDS[kind])  # type: ignore[arg-type]
    writer = Writer(source.up(), source.block)
    writer.start()
    while writer.acknowledged < 20:
        assert writer.is_alive(), writer.failure
    for number in range(CUTS):
        acknowledged = writer.acknowledged
        if number % 4 == 3:
            copy = copied(source, f"copy-{number}", from_volume(source.volume_id))
        else:
            snapshot = cut(driver, source.volume_id, f"cut-{number}")
            copy = copied(source, f"copy-{number}", from_snapshot(snapshot.snapshot_id))
            driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
        check(copy, acknowledged)
        take_down(copy)
    writer.end()
    print(
        f"{kind} on {pool}: {CUTS} cuts, {writer.acknowledged} records, longest {writer.longest_seconds * 1000:.0f} ms"
    )
    assert not writer.failure
    check(source, writer.acknowledged)
    take_down(source)
