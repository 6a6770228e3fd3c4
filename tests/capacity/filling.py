"""Volumes written full with bytes that nobody could guess, and read back from the disk; knows no driver."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.harness import MIB

_CHUNK = 4 * MIB


def noise(seed: str) -> Iterator[bytes]:
    """Chunks without end: the same for the same seed, incompressible, and unlike every other chunk."""
    base = hashlib.shake_128(seed.encode()).digest(_CHUNK)
    number = 0
    while True:
        # Each 4 KiB block bears the number of its chunk, so that no block stands for another one.
        stamped = bytearray(base)
        for offset in range(0, _CHUNK, 4096):
            stamped[offset : offset + 8] = number.to_bytes(8, "big")
        yield bytes(stamped)
        number += 1


def write_all(descriptor: int, seed: str, limit_bytes: int) -> int:
    """Write noise until ENOSPC, EDQUOT or `limit_bytes`; returns how many bytes were taken."""
    written = 0
    for chunk in noise(seed):
        part = memoryview(chunk)[: limit_bytes - written]
        while part:
            try:
                taken = os.write(descriptor, part)
            except OSError as error:
                if error.strerror in (os.strerror(28), os.strerror(122)):  # ENOSPC, EDQUOT
                    return written
                raise
            written += taken
            part = part[taken:]
        if written == limit_bytes:
            return written
    raise AssertionError("noise never ends")


def fill_file(path: str, seed: str, limit_bytes: int = 1 << 62) -> int:
    """Fill what a mounted volume has left through one new file, fsynced; returns its size."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, seed, limit_bytes)
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def fill_device(path: str, seed: str) -> int:
    """Write a whole block device, fsynced; returns its size."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        os.lseek(descriptor, 0, os.SEEK_SET)
        written = write_all(descriptor, seed, size)
        os.fsync(descriptor)
        assert written == size, f"{path}: {written} of {size} bytes were taken"
        return size
    finally:
        os.close(descriptor)


def holds(path: str, seed: str, size_bytes: int) -> bool:
    """Whether a file or device holds that noise, read from the disk and not from memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        left = size_bytes
        for chunk in noise(seed):
            expected = memoryview(chunk)[:left]
            while expected:
                found = os.read(descriptor, len(expected))
                if not found or found != expected[: len(found)]:
                    return False
                expected = expected[len(found) :]
                left -= len(found)
            if not left:
                return True
        return False
    finally:
        os.close(descriptor)


def occupy(path: Path, leave_bytes: int) -> int:
    """A stranger: allocate all of the filesystem at `path` but about `leave_bytes`; returns how much."""
    taken = 0
    step = 256 * MIB
    number = 0
    while step >= MIB:
        room = available(path.parent) - leave_bytes
        if room < step:
            step //= 2
            continue
        with open(f"{path}-{number}", "xb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, step)
                taken += step
            except OSError:
                os.truncate(file.fileno(), 0)
                step //= 2
        number += 1
    subprocess.run(["sync", "-f", str(path.parent)], check=True, timeout=60)
    return taken


def vacate(path: Path) -> None:
    """The stranger goes."""
    for file in path.parent.glob(f"{path.name}-*"):
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    subprocess.run(["sync", "-f", str(path.parent)], check=True, timeout=60)


def available(path: Path) -> int:
    """What statvfs says."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
