"""Formatted images of a pool, one per filesystem, size and options, which new images are copied from; knows no volume.

mkfs costs a child process; a copy of what it wrote costs less than a millisecond, and a clone on a pool that can
reflink even less. A template is never grown: a small XFS keeps its small allocation groups for ever.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable

from csi_driver.faults import crash_point
from csi_driver.linux import btrfs
from csi_driver.store import durable
from csi_driver.store.pool import TEMPLATES, PoolDirectory

_KEPT = 16
_SUFFIX_NEW = ".new"
_FORMAT_SECONDS = 900.0
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Format = Callable[[str], None]


def template_name(fs_type: str, size_bytes: int, options: str) -> str:
    """The file name of a template; whatever changes the bytes that mkfs writes is part of it."""
    digest = hashlib.sha256(options.encode()).hexdigest()[:16]
    return f"{fs_type}-{size_bytes}-{digest}.img"


class Templates:
    """The templates of one pool; they can be deleted at any time and are made again."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        for name in os.listdir(pool.templates_fd):
            if name.endswith(_SUFFIX_NEW):
                durable.unlink_if_there(pool.templates_fd, name)

    def open(self, name: str, size_bytes: int, format_image: Format) -> int:
        """A read-only descriptor, the caller's, of the template `name`, made by `format_image(path)` if it is missing.

        Safe under concurrent callers: one makes it, the others wait.
        """
        try:
            return os.open(name, _READ, dir_fd=self._pool.templates_fd)
        except FileNotFoundError:
            pass
        with self._locks[name]:
            try:
                return os.open(name, _READ, dir_fd=self._pool.templates_fd)
            except FileNotFoundError:
                return self._make(name, size_bytes, format_image)

    def drop_all(self) -> None:
        """Give their space back."""
        for name in os.listdir(self._pool.templates_fd):
            durable.unlink_if_there(self._pool.templates_fd, name)

    def _make(self, name: str, size_bytes: int, format_image: Format) -> int:
        room = self._pool.templates_fd
        temporary = f"{name}.{uuid.uuid4().hex}{_SUFFIX_NEW}"
        self._drop_the_oldest()
        descriptor = os.open(temporary, _NEW, 0o600, dir_fd=room)
        try:
            crash_point("template.made")
            if btrfs.is_btrfs(descriptor):
                btrfs.set_nocow(descriptor)
            os.ftruncate(descriptor, size_bytes)
            format_image(f"{self._pool.directory}/{TEMPLATES}/{temporary}")
            os.fsync(descriptor)
            crash_point("template.formatted")
            os.rename(temporary, name, src_dir_fd=room, dst_dir_fd=room)
            crash_point("template.kept")
        except BaseException:
            os.close(descriptor)
            durable.unlink_if_there(room, temporary)
            raise
        os.close(descriptor)
        return os.open(name, _READ, dir_fd=room)

    def _drop_the_oldest(self) -> None:
        room = self._pool.templates_fd
        with os.scandir(room) as entries:
            found = sorted((entry.stat(follow_symlinks=False).st_mtime, entry.name) for entry in entries)
        for _, name in found[: max(0, len(found) + 1 - _KEPT)]:
            durable.unlink_if_there(room, name)
