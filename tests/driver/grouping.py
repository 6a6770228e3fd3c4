"""What the tests of group snapshots share: volumes that are written in order, and cuts of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csi_driver.pb import csi_pb2
from tests.driver.copying import copy_request, from_snapshot
from tests.harness import MIB, Driver, PoolPlace, Workload

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]
SIZES = {"ext4": 32 * MIB, "xfs": 300 * MIB, "btrfs": 128 * MIB}
# Record N goes to the first file, and only then to the second; every hundredth is synced.
_WRITER = """
import json, os, select, sys, time
files = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) for path in sys.argv[1:]]
number, longest, errors = 0, 0.0, []
os.write(1, b"+")
while True:
    number += 1
    began = time.monotonic()
    try:
        for file in files:
            os.pwrite(file, b"%012d" % number, number % 4096 * 12)
            os.pwrite(file, b"%012d" % number, 1 << 20)
            if not number % 100:
                os.fsync(file)
    except OSError as error:
        errors.append(str(error))
        break
    longest = max(longest, time.monotonic() - began)
    if not number % 64 and select.select([0], [], [], 0)[0]:
        break
print(json.dumps({"written": number, "longest": longest, "errors": errors}))
"""


class Writer:
    """A process that writes numbered records to one file after the other until it is stopped."""

    def __init__(self, paths: Sequence[str]) -> None:
        command = [sys.executable, "-S", "-c", _WRITER, *paths]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.read(1) == b"+"
        self.report: dict[str, Any] = {}

    def stop(self) -> None:
        told, _ = self.process.communicate(b"x", timeout=60)
        self.report = json.loads(told)


@contextmanager
def writing(*places: str) -> Iterator[Writer]:
    """A writer while the block runs; it must have met no error."""
    writer = Writer([f"{place}/records" for place in places])
    try:
        yield writer
        writer.stop()
    finally:
        writer.process.kill()
        writer.process.wait()
    assert writer.report["errors"] == []
    assert writer.report["written"] > 100


def last_record(path: str) -> int:
    """The last record that a file holds."""
    with open(path, "rb") as file:
        file.seek(1 << 20)
        return int(file.read(12) or b"0")


def group_of(driver: Driver, *volumes: Workload, name: str = "group", **fields: Any) -> csi_pb2.VolumeGroupSnapshot:
    """A group snapshot of the volumes."""
    ids = [volume.volume_id for volume in volumes]
    return driver.call("CreateVolumeGroupSnapshot", name=name, source_volume_ids=ids, **fields).group_snapshot


def delete_group(driver: Driver, group: csi_pb2.VolumeGroupSnapshot) -> None:
    ids = [one.snapshot_id for one in group.snapshots]
    driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=group.group_snapshot_id, snapshot_ids=ids)


@contextmanager
def restored(like: Workload, snapshot_id: str, name: str) -> Iterator[Path]:
    """Where the content of a snapshot is mounted, for a moment."""
    copy = Workload(like.driver, name, like.block, like.fs_type, like.size_bytes, like.parameters)
    request = copy_request(like, name, from_snapshot(snapshot_id))
    copy.volume_id = like.driver.call("CreateVolume", request).volume.volume_id
    copy.stage()
    try:
        yield Path(copy.staging)
    finally:
        copy.unstage()
        copy.delete()
