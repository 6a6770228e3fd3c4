"""Directories for pools on real filesystems, the system's own tools, and mounts that nobody else sees."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csi_driver.linux import libc

MIB = 1 << 20
GIB = 1 << 30
CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h


def leave_mount_namespace() -> None:
    """Give this process mounts that nobody else sees, and that see nobody else's."""
    unshare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, use_errno=True)(("unshare", libc.libc))
    libc.check(unshare(CLONE_NEWNS), unshare, ())
    run("mount", "--make-rprivate", "/")


def run(*command: str, check: bool = True) -> str:
    """Run one of the system's own tools and return what it prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
    return done.stdout


@dataclass
class PoolPlace:
    """A directory for a pool; with a filesystem of its own, in an image beside it, unless it is the machine's."""

    directory: Path
    mount_point: Path | None = None
    image: Path | None = None

    @classmethod
    def make(cls, where: Path, fs_type: str, size_bytes: int, mkfs: str = "", mount: str = "") -> PoolPlace:
        where.mkdir(parents=True)
        if fs_type == "host":
            return cls(where / "pool")
        image, mount_point = where / "filesystem.img", where / "mnt"
        with image.open("xb") as file:
            file.truncate(size_bytes)
        force = {"ext4": "-F", "xfs": "-f", "btrfs": "-f"}[fs_type]
        run(f"mkfs.{fs_type}", "-q", force, *mkfs.split(), "--", str(image))
        mount_point.mkdir()
        run("mount", "-o", f"loop{',' if mount else ''}{mount}", str(image), str(mount_point))
        return cls(mount_point / "pool", mount_point, image)

    @property
    def content(self) -> Path:
        """Where the pool's rooms are: in a filesystem of their own if they lie in a backing file."""
        inner = self.directory / "pool"
        return inner if (self.directory / "hostvol-backing.json").exists() else self.directory

    def remove(self) -> None:
        """Unmount and delete."""
        if self.mount_point is not None and self.image is not None:
            run("umount", str(self.mount_point))
            self.image.unlink()


def place(where: PoolPlace | Path) -> PoolPlace:
    """A bare directory as a place."""
    return where if isinstance(where, PoolPlace) else PoolPlace(where)


def backing_files() -> Iterator[tuple[str, str]]:
    """Every attached loop device with the path of its backing file; no device is opened."""
    for device in os.listdir("/sys/block"):
        with contextlib.suppress(OSError):
            yield f"/dev/{device}", Path(f"/sys/block/{device}/loop/backing_file").read_text().rstrip("\n")
