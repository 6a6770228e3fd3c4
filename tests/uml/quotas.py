"""Filesystems on the machine's disks, who writes to them until he may not, and what their quotas report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
NOBODY = 65534
MKFS = {
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"],
}
WRITER = """
import os, sys
os.chdir(sys.argv[1])
if sys.argv[2] != "0":
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
way, name = sys.argv[3:5]
try:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND * (way == "append"), 0o600)
    for step in range(1 << 20):
        if way == "fallocate":
            os.posix_fallocate(fd, step << 20, 1 << 20)
        elif way == "files":
            os.close(os.open(f"{name}-{step}", os.O_RDWR | os.O_CREAT, 0o600))
            with open(f"{name}-{step}", "wb") as file:
                file.write(b"x" * 70_000)
        elif way == "sparse":
            os.pwrite(fd, b"x" * 5000, step * 100_000)
        else:
            os.write(fd, b"x" * 65_536)
        if step % 16 == 0:
            os.fsync(fd)
except OSError as error:
    print(error.errno)
"""


def run(*command: str | Path) -> str:
    arguments = [str(word) for word in command]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=120).stdout


@contextmanager
def mounted(place: Path, kind: str, options: str, *, disk: str, mkfs: Sequence[str] = ()) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    run(*(mkfs or MKFS[kind]), disk)
    run("mount", "-t", kind, "-o", options, disk, place)
    try:
        yield place
    finally:
        run("umount", place)


def write(path: Path, user: int, way: str, name: str = "file") -> int:
    """Write until it fails, as somebody else; return the errno."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", WRITER, path, str(user), way, name],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return int(done.stdout)


def reported(filesystem: Path, project_id: int) -> tuple[int, int]:
    """(used, hard limit) in bytes, as xfs_quota tells, which is another implementation of both interfaces."""
    report = run("xfs_quota", "-f", "-x", "-c", "report -p -b -n -N", filesystem)
    for line in report.splitlines():
        if line.startswith(f"#{project_id} "):
            words = line.split()
            return int(words[1]) * 1024, int(words[3]) * 1024
    return 0, 0


@contextmanager
def open_directory(path: Path | str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
