"""Filesystems on image files, made and mounted with the system's own tools in the tests' private mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MIB = 1 << 20
MKFS = {
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=1"],
    "xfs": ["mkfs.xfs", "-q"],
}
SIZES = {"btrfs": 512 * MIB, "ext4": 256 * MIB, "xfs": 384 * MIB}


def run(*command: str | Path) -> str:
    """Run a tool to its end and return what it printed."""
    arguments = [str(word) for word in command]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=120).stdout


def output(*command: str) -> str:
    """Return what the system's own tool says, in its own language."""
    environment = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"}
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return result.stdout


def allocated(path: str) -> int:
    """How many bytes the file takes."""
    return os.stat(path).st_blocks * 512


@contextmanager
def mounted(
    directory: Path, fs_type: str, *, size: int = 0, options: list[str] | None = None, devices: int = 1
) -> Iterator[Path]:
    """Make a filesystem under `directory` on so many loop devices, and mount it for a while."""
    target = directory / "mounted"
    target.mkdir()
    with ExitStack() as stack:
        loops = [_loop(stack, directory / f"image{number}", size or SIZES[fs_type]) for number in range(devices)]
        run(*MKFS[fs_type], *(options or []), *loops)
        run("mount", loops[0], target)
        stack.callback(run, "umount", target)
        yield target


def _loop(stack: ExitStack, image: Path, size: int) -> str:
    with open(image, "wb") as file:
        file.truncate(size)
    device = run("losetup", "--find", "--show", image).strip()
    stack.callback(run, "losetup", "--detach", device)
    return device


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Hold a descriptor for a while."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)
