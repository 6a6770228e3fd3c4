"""Filesystems whose power can be cut while a driver works on them; knows no driver and no volume.

Why this is a power cut. Between a file and its disk stand two memories: the filesystem's (page cache, the log that is
not written yet) and the disk's own write cache. A cut throws the first away, and that is the one which a driver
empties with fsync.

- ext4 and XFS: the shutdown request stops the filesystem from sending anything down from that instant; with the log
  not flushed, all it had in memory is gone at the unmount. The image below it lies in another filesystem's page cache,
  which outlives the cut like a platter: what was sent down before is there, what was not is not. Nothing that could
  reach the image afterwards was waiting for an fsync: a journal writes its home blocks only after its commit is down.
- btrfs knows no such request. Its image lies on an XFS that can reflink, and one FICLONE of it takes everything the
  loop device had written at one instant, and nothing of what btrfs still holds in memory, since nobody asked btrfs to
  sync. The copy is what the disk would hold; the original is thrown away.

An answer that comes after the cut is none, since nobody is there to give it when the power is really gone: a btrfs
whose image was cloned goes on working, and an XFS that was shut down even says that the fsync of a directory was done.

What it does not show is a disk that lies about its cache: everything sent down counts as durable, flush or not. The
filesystem sends those flushes, when somebody asks it with fsync.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from csi_driver.backends.backing_file import BackingFile
from csi_driver.domain.pools import initialise_backed_pool
from csi_driver.linux import reflink
from csi_driver.model import DEFAULT_DRIVER_NAME
from tests.harness import GIB, PoolPlace, backing_files, run
from tests.powercut import cut_power
from tests.waiting import until

# Room for all volumes that the callers may have at once, each grown to twice its size; what is not written takes none.
SIZE_BYTES = 12 * GIB
_UNMOUNT_SECONDS = 20.0


class Disk(ABC):
    """A filesystem in an image, mounted, with a place for a pool on it."""

    def __init__(self, where: Path, fs_type: str, mount: str = "") -> None:
        self.fs_type = fs_type
        self.mount_options = mount
        self.place = PoolPlace.make(where, fs_type, SIZE_BYTES, mount=mount)

    @property
    def mount_point(self) -> Path:
        assert self.place.mount_point is not None
        return self.place.mount_point

    @property
    def image(self) -> Path:
        assert self.place.image is not None
        return self.place.image

    @abstractmethod
    def cut(self) -> None:
        """Cut the power now."""

    def recover(self) -> None:
        """Mount what the cut left. Nothing may use the filesystem any more."""
        unmount(self.mount_point)
        wait_until_released(self.image)
        self.replace_image()
        options = f"loop,{self.mount_options}" if self.mount_options else "loop"
        run("mount", "-o", options, str(self.image), str(self.mount_point))

    def replace_image(self) -> None:  # noqa: B027 - most disks keep their image
        """Put in the image's place what the disk would hold."""

    def remove(self) -> None:
        """Unmount and delete."""
        unmount(self.mount_point)
        self.image.unlink()


class ShutDownDisk(Disk):
    """ext4 or XFS, which can be told to send nothing more."""

    def cut(self) -> None:
        cut_power(str(self.mount_point), flush_log=False)


class BackedDisk(ShutDownDisk):
    """ext4 with a pool in a backing file; it is the ext4 that the power is cut below."""

    def __init__(self, where: Path) -> None:
        super().__init__(where, "ext4")
        self.backed = self.mount_point / "backed"
        initialise_backed_pool(str(self.backed), DEFAULT_DRIVER_NAME, 2 * SIZE_BYTES // 3)
        self.fs_type = "xfs"
        self.place = PoolPlace(self.backed / "pool", self.place.mount_point, self.place.image)
        self.mount_backed()

    def mount_backed(self) -> None:
        """What a driver does when it starts."""
        held = BackingFile.open(str(self.backed))
        assert held is not None
        held.mounted()
        held.close()

    def recover(self) -> None:
        self.unmount_backed()
        super().recover()
        self.mount_backed()

    def remove(self) -> None:
        self.unmount_backed()
        super().remove()

    def unmount_backed(self) -> None:
        unmount(self.backed / "pool")
        wait_until_released(self.backed / "hostvol-backing.img")


class ClonedDisk(Disk):
    """Any filesystem, its image on an XFS that is cloned at the cut."""

    def __init__(self, where: Path, fs_type: str, mount: str = "") -> None:
        self.outer = PoolPlace.make(where / "outer", "xfs", 2 * SIZE_BYTES)
        assert self.outer.mount_point is not None
        self._copy = self.outer.mount_point / "copy.img"
        super().__init__(self.outer.mount_point / "inner", fs_type, mount)

    def cut(self) -> None:
        with self.image.open("rb") as source, self._copy.open("xb") as target:
            reflink.clone_file(source.fileno(), target.fileno())

    def replace_image(self) -> None:
        os.replace(self._copy, self.image)

    def remove(self) -> None:
        super().remove()
        self.outer.remove()


def unmount(mount_point: Path) -> None:
    """A plain umount, repeated while the last user is still on its way out."""
    ends = time.monotonic() + _UNMOUNT_SECONDS
    while True:
        done = subprocess.run(["umount", str(mount_point)], check=False, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        if "busy" not in done.stderr or time.monotonic() > ends:
            raise AssertionError(done.stderr)
        time.sleep(0.02)


def wait_until_released(image: Path) -> None:
    """Wait until no loop device shows the image: whoever has one open for a moment (mke2fs opens all) delays its end.

    Of two devices with one btrfs the kernel would mount the older: the disk from before the cut, and the next cut would
    be one of a file that nobody writes to.
    """
    until(lambda: str(image) not in (path for _, path in backing_files()), _UNMOUNT_SECONDS, f"{image} is detached")
