"""The paths that callers name, made safe and worded for them; knows no volume."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi_driver.domain.pools import Pools
from csi_driver.errors import InvalidField, TargetOccupied
from csi_driver.linux import mountinfo, paths
from csi_driver.linux.mount import MountFlag

_MADE_FOR_US = "an absolute path without `..`, outside every pool, whose parent exists"


class TargetPath(paths.Target):
    """A staging or target path: its parent is open, its last component is never followed.

    Every method raises InvalidField or TargetOccupied where the path, and OSError where the kernel is at fault.
    """

    __slots__ = ("field",)

    def __init__(self, path: str, field: str, pools: Pools) -> None:
        self.field = field
        try:
            super().__init__(path)
        except (ValueError, FileNotFoundError, NotADirectoryError) as cause:
            raise InvalidField(field, path, f"{_MADE_FOR_US} ({_reason(cause)})") from cause
        except OSError as cause:
            if cause.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise InvalidField(field, path, f"{_MADE_FOR_US} ({cause.strerror})") from cause
            raise
        # As mountinfo will name it, whatever links led here.
        self.path = os.path.join(os.readlink(f"/proc/self/fd/{self.parent_fd}"), self.name)
        for pool in pools.opened.values():
            if f"{self.path}/".startswith(f"{pool.store.directory}/"):
                self.close()
                raise InvalidField(field, path, f"a path outside the pool {pool.name}")

    @classmethod
    @contextmanager
    def if_parent_exists(cls, path: str, field: str, pools: Pools) -> Iterator[TargetPath | None]:
        """The path for an unmount or a look: None when even its parent is gone: nothing is mounted there."""
        try:
            target = cls(path, field, pools)
        except InvalidField as refused:
            if isinstance(refused.__cause__, FileNotFoundError | NotADirectoryError):
                yield None
                return
            raise
        with target:
            yield target

    def ensure_directory(self, mode: int = 0o750) -> bool:
        try:
            return super().ensure_directory(mode)
        except NotADirectoryError as cause:
            raise InvalidField(self.field, self.path, f"a directory or nothing ({cause.strerror})") from cause

    def ensure_file(self, mode: int = 0o640) -> bool:
        try:
            return super().ensure_file(mode)
        except FileExistsError as cause:
            raise InvalidField(self.field, self.path, f"an empty file or nothing ({cause.strerror})") from cause

    def open_empty_directory(self) -> int:
        """An O_PATH descriptor, the caller's, of the directory to mount on, which must be empty."""
        descriptor = os.open(
            self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parent_fd
        )
        try:
            with os.scandir(descriptor) as entries:
                content = next(entries, None)
        except BaseException:
            os.close(descriptor)
            raise
        if content is not None:
            os.close(descriptor)
            raise TargetOccupied(
                self.field, self.path, f"{content.name!r} is in it, and a mount would hide that; move it away"
            )
        return descriptor

    def open_empty_file(self) -> int:
        """An O_PATH descriptor, the caller's, of the empty regular file to mount on."""
        found = self.observe()
        if found is None or not found.is_file or found.size_bytes:
            raise TargetOccupied(self.field, self.path, "it is not an empty file; move it away")
        return self.open()

    def open_mounted(self) -> int:
        """A readable descriptor, the caller's, of the root directory of what is mounted here."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.name, flags, dir_fd=self.parent_fd)

    def require_no_mount(self, point: mountinfo.MountPoint | None) -> None:
        """Refuse a path at which something is mounted."""
        if point is not None and point.is_mount:
            raise TargetOccupied(self.field, self.path, "something is mounted there")

    def mount_flags(self) -> MountFlag:
        """The flags of the topmost mount here."""
        descriptor = self.open()
        try:
            return mountinfo.mount_flags(descriptor)
        finally:
            os.close(descriptor)

    def open_following(self) -> int | None:
        """An O_PATH descriptor, the caller's, through symbolic links, for looking only; None when there is nothing."""
        try:
            return os.open(self.name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self) -> bool:
        try:
            return super().remove()
        except OSError as cause:
            if cause.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise TargetOccupied(
                    self.field,
                    self.path,
                    f"not mounted, and its content is not ours to remove ({cause.strerror})",
                ) from cause
            raise


def _reason(cause: Exception) -> str:
    return cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause)
