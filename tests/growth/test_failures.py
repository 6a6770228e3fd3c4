"""An expansion that the kernel refuses in its middle leaves the volume as it was, or is finished by the next call.

The refusals are injected by strace into the running driver: a full disk at the allocation, an error at the truncation,
at the fsync of the image, at the rename of the record; once, or until the disk is well again.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import MIB, Code, Driver, Failure, Workload
from tests.waiting import until

THICK = {"provisioning": "thick"}


@contextlib.contextmanager
def refusing(driver: Driver, call: str, error: str, when: str, log: Path) -> Iterator[None]:
    """The kernel answers a system call of the driver with an error, at the passages that `when` names."""
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:error={error}:when={when}", "-p", str(driver.pid)]
    tracer = subprocess.Popen(command)
    try:
        until(lambda: f"TracerPid:\t{tracer.pid}" in Path(f"/proc/{driver.pid}/status").read_text())
        # Its other threads are seized one after the other.
        time.sleep(0.2)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(30)
    assert "INJECTED" in log.read_text(), "nothing was refused"


def code_of_growing(workload: Workload, size_bytes: int) -> Code:
    try:
        workload.expand(size_bytes)
    except Failure as failure:
        return failure.code
    return Code.OK


def check_unchanged(workload: Workload, size_bytes: int) -> None:
    """The volume has its old size in every place, and nothing is intended any more."""
    driver, where = workload.driver, workload.driver.pool / "volumes" / workload.volume_id
    told = driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes
    assert told == size_bytes
    image = (where / "disk.img").stat()
    assert image.st_size == size_bytes
    assert image.st_blocks * 512 <= size_bytes + MIB
    assert "growing_to_bytes" not in (where / "record.json").read_text()


@pytest.mark.parametrize(
    ("call", "error", "parameters", "code"),
    [
        ("fallocate", "ENOSPC", THICK, Code.RESOURCE_EXHAUSTED),
        ("fallocate", "EFBIG", THICK, Code.OUT_OF_RANGE),
        ("ftruncate", "EIO", {}, Code.INTERNAL),
        ("ftruncate", "ENOSPC", {}, Code.RESOURCE_EXHAUSTED),
        ("renameat", "ENOSPC", {}, Code.RESOURCE_EXHAUSTED),
        ("renameat", "EIO", {}, Code.INTERNAL),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_once_is_taken_back(
    driver: Driver, tmp_path: Path, *, call: str, error: str, parameters: dict[str, str], code: Code
) -> None:
    workload = Workload(driver, "refused", size_bytes=16 * MIB, parameters=parameters)
    workload.up()
    with refusing(driver, call, error, "1", tmp_path / "log"):
        assert code_of_growing(workload, 64 * MIB) is code
    check_unchanged(workload, 16 * MIB)
    assert workload.expand(64 * MIB) == 64 * MIB
    workload.down()


@pytest.mark.parametrize("passage", [1, 2, 3, 4, 5])
def test_an_fsync_that_fails_is_no_acknowledgement(driver: Driver, tmp_path: Path, passage: int) -> None:
    # Intent, directory of the record, image, record, its directory.
    workload = Workload(driver, "unsynced", size_bytes=16 * MIB)
    workload.create()
    with refusing(driver, "fsync", "EIO", str(passage), tmp_path / "log"):
        assert code_of_growing(workload, 64 * MIB) is Code.INTERNAL
    check_unchanged(workload, 16 * MIB)
    assert workload.expand(64 * MIB) == 64 * MIB
    workload.delete()


def test_what_can_be_neither_finished_nor_taken_back_is_finished_by_the_next_call_or_start(
    driver: Driver, tmp_path: Path
) -> None:
    workloads = [Workload(driver, f"stuck-{number}", size_bytes=16 * MIB) for number in range(3)]
    for workload in workloads:
        workload.create()
    with refusing(driver, "ftruncate", "EIO", "1+", tmp_path / "log"):
        for workload in workloads:
            assert code_of_growing(workload, 64 * MIB) is Code.ABORTED
    called, staged, started = workloads
    assert called.expand(64 * MIB) == 64 * MIB
    staged.stage()
    assert staged.expand(1) == 64 * MIB
    driver.restart()
    assert started.expand(1) == 64 * MIB
    for workload in workloads:
        assert (driver.pool / "volumes" / workload.volume_id / "disk.img").stat().st_size == 64 * MIB
        workload.unstage()
        workload.delete()
