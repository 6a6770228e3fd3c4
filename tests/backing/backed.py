"""A directory with a pool in a backing file, and the commands that make it and let it grow."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.harness import PoolPlace, backing_files, hostvol, run
from tests.waiting import until


@dataclass
class Backed:
    """One directory, which may hold a pool in a file."""

    place: PoolPlace

    @property
    def directory(self) -> Path:
        return self.place.directory

    @property
    def image(self) -> Path:
        return self.directory / "hostvol-backing.img"

    @property
    def mount_point(self) -> Path:
        return self.directory / "pool"

    def hostvol(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`hostvol pool …`."""
        return hostvol("pool", *words, **environment)

    def init(self, size: str = "1GiB", **environment: str) -> subprocess.CompletedProcess[str]:
        return self.hostvol("init", "--backing-file", size, str(self.directory), **environment)

    def made(self, size: str = "1GiB") -> PoolPlace:
        """The pool, made now."""
        done = self.init(size)
        assert done.returncode == 0, done.stderr
        return self.place

    def grow(self, size: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.hostvol("grow", str(self.directory), size, **environment)

    def loops(self) -> list[str]:
        """The loop devices over the file, finished or not."""
        return [device for device, path in backing_files() if path.startswith(str(self.image))]

    def is_mounted(self) -> bool:
        return f" {self.mount_point} " in Path("/proc/self/mountinfo").read_text()

    def unmount(self) -> None:
        """As for a host that goes down."""
        if self.is_mounted():
            run("umount", str(self.mount_point))
        until(lambda: not self.loops(), 60, what=self.loops)

    def filesystem_bytes(self) -> int:
        """What the mounted filesystem says that it has, its log left out."""
        space = os.statvfs(self.mount_point)
        return space.f_blocks * space.f_frsize

    def trim(self) -> None:
        """fstrim; XFS does not wait for the last of the discards that it sends."""
        run("fstrim", str(self.mount_point))
        until(self._is_still, 60)

    def _is_still(self) -> bool:
        before = self.image.stat().st_blocks
        time.sleep(0.5)
        return self.image.stat().st_blocks == before

    def check(self) -> None:
        """The filesystem in the file is sound, and every block of the file is there."""
        run("xfs_repair", "-n", "-f", str(self.image))
        found = self.image.stat()
        assert found.st_blocks * 512 >= found.st_size

    def names(self) -> set[str]:
        return set(os.listdir(self.directory)) - {"lost+found"}
