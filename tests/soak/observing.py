"""What the soak tests look at and hold still: mounts, descriptors, children, frozen and unanswering filesystems."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from csi_driver.linux import libc
from csi_driver.linux.ioctl import iowr
from tests.harness import Code, Driver, Failure
from tests.waiting import until

# include/uapi/linux/fs.h
FIFREEZE = iowr(ord("X"), 119, 4)
FITHAW = iowr(ord("X"), 120, 4)
# include/uapi/linux/fuse.h
_FUSE_IN_HEADER = struct.Struct("<IIQQIIIHH")
_FUSE_OUT_HEADER = struct.Struct("<IiQ")
_FUSE_INIT_OUT = struct.Struct("<IIIIHHIIHHIIHHIIIII")
_FUSE_INIT = 26


def mount_table(below: Path) -> list[tuple[str, bool]]:
    """Every mount below a directory, in the order of mounting: (mount point, read-only), as mountinfo tells."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4].startswith(f"{below}/"):
            found.append((fields[4], "ro" in fields[5].split(",")))
    return found


def mount_ids(target: str) -> list[str]:
    """The ids of the mounts stacked at a path."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[0] for line in lines if line.split()[4] == target]


def state_files(driver: Driver) -> list[Path]:
    """The files in which the driver remembers what this boot has staged."""
    return [path for path in (driver.home / "state" / "volumes").rglob("*") if path.is_file()]


def remains(driver: Driver) -> dict[str, list[str]]:
    """Everything that volumes leave on a machine, by kind; all empty once they are gone."""
    return {
        "mounts": driver.mounts(),
        "loop devices": driver.loops(),
        "files": driver.files(),
        "state files": [str(path) for path in state_files(driver)],
        "targets": [str(path) for path in (driver.home / "targets").glob("*")],
    }


def assert_nothing_remains(driver: Driver) -> None:
    """Oracles: mountinfo, sysfs, the pools' own directories."""
    left = {kind: found for kind, found in remains(driver).items() if found}
    assert not left, left


def status_number(pid: int, name: str) -> int:
    """A number of /proc/PID/status (Threads; VmRSS in KiB)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in the status of {pid}")


def descriptors(pid: int) -> list[str]:
    """What every open descriptor of a process leads to."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(found)


def children(pid: int) -> list[tuple[int, str]]:
    """The children of a process with their command names."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            numbers = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            found += [(int(child), Path(f"/proc/{child}/comm").read_text().strip()) for child in numbers]
    return found


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@dataclass
class HeldCreate:
    """A CreateVolume whose mkfs is stopped by SIGSTOP: a creation that takes as long as the test likes."""

    child: int
    caller: threading.Thread
    outcome: list[Code] = field(default_factory=list)

    def release(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGCONT)


@contextlib.contextmanager
def held_create(driver: Driver, request: Callable[[int], object], *, timeout: float = 60.0) -> Iterator[HeldCreate]:
    """Begin a create of a btrfs volume and stop the mkfs that the driver starts for it; let it go at the end.

    `request` gives the request of the n-th attempt: an mkfs that was too fast to be stopped is tried again by another
    name. Only a child that has become mkfs is stopped: before its exec it shares the driver's memory and locks.
    """
    for attempt in range(20):
        outcome: list[Code] = []
        caller = threading.Thread(target=_create, args=(driver, request(attempt), timeout, outcome))
        caller.start()
        child = _stop_mkfs(driver.pid, caller)
        if child is None:
            caller.join()
            continue
        held = HeldCreate(child, caller, outcome)
        try:
            yield held
        finally:
            held.release()
            caller.join(60)
        return
    raise AssertionError("no mkfs could be stopped in 20 attempts")


def _create(driver: Driver, request: object, timeout: float, outcome: list[Code]) -> None:
    outcome.append(driver.code("CreateVolume", request, timeout=timeout))


def _stop_mkfs(pid: int, caller: threading.Thread) -> int | None:
    while caller.is_alive():
        for child, command in children(pid):
            if command == "mkfs.btrfs":
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    os.kill(child, signal.SIGSTOP)
                    until(partial(_is_stopped, child), 2.0, "the mkfs stands still", every=0.005)
                    return child
    return None


@contextlib.contextmanager
def frozen(mount_point: Path) -> Iterator[None]:
    """A filesystem in which every write waits, as on a disk that does not answer; thawed at the end, come what may."""
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(descriptor, FITHAW, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def unanswering_filesystem(mount_point: str) -> Iterator[Callable[[], None]]:
    """Mount a FUSE filesystem that answers its INIT and then nothing; yields what makes every waiter fail at once.

    Closing its only descriptor aborts the connection, also when the test process dies.
    """
    mount = ctypes.CFUNCTYPE(
        *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p),
        use_errno=True,
    )(("mount", libc.libc))
    umount2 = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, use_errno=True)(("umount2", libc.libc))
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    is_open = True

    def abort() -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            os.close(device)

    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
        libc.check(mount(b"silence", mount_point.encode(), b"fuse", 0, options.encode()), mount, ())
        try:
            request = os.read(device, 1 << 16)
            _, operation, unique, *_ = _FUSE_IN_HEADER.unpack_from(request)
            assert operation == _FUSE_INIT
            answer = _FUSE_INIT_OUT.pack(7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            os.write(device, _FUSE_OUT_HEADER.pack(_FUSE_OUT_HEADER.size + len(answer), 0, unique) + answer)
            yield abort
        finally:
            abort()
            # The driver may have taken the dead mount away itself.
            umount2(mount_point.encode(), 0)
    finally:
        abort()


class ProbeMeter:
    """Calls Probe over and over in a thread of its own, and says how long the answers took."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []
        self.failures: list[str] = []

    def __enter__(self) -> ProbeMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            began = time.perf_counter()
            try:
                assert self._driver.call("Probe", timeout=10).ready.value
            except (Failure, AssertionError) as failure:
                self.failures.append(str(failure))
            self.seconds.append(time.perf_counter() - began)

    def report(self) -> str:
        return (
            f"{len(self.seconds)} Probes: p50 {statistics.median(self.seconds) * 1000:.1f} ms, "
            f"max {max(self.seconds) * 1000:.1f} ms"
        )


def together(count: int, call: Callable[[int], Code]) -> list[Code]:
    """Make `count` calls at the same instant, each in a thread of its own; their codes."""
    barrier = threading.Barrier(count)
    codes: list[Code] = []

    def run(number: int) -> None:
        barrier.wait(30)
        codes.append(call(number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(codes) == count, "some calls were never answered"
    return codes
