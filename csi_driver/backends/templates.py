"""Formatted images of a pool, one per filesystem, size and options, which new images are copied from; knows no volume.

mkfs costs a child process; a copy of what it wrote costs less than a millisecond, and a clone on a pool that can
reflink even less. A template is never grown: a small XFS keeps its small allocation groups for ever.
"""

from __future__ import annotations

import contextlib
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
        """Give their space back; one that is being made right now stays."""
        for name in self._finished():
            durable.unlink_if_there(self._pool.templates_fd, name)

    def _make(self, name: str, size_bytes: int, format_image: Format) -> int:
        room = self._pool.templates_fd
        temporary = f"{name}.{uuid.uuid4().hex}{_SUFFIX_NEW}"
        descriptor = os.open(temporary, _NEW, 0o600, dir_fd=room)
        try:
            crash_point("template.made")
            if btrfs.is_btrfs(descriptor):
                btrfs.set_nocow(descriptor)
            os.ftruncate(descriptor, size_bytes)
            format_image(f"{self._pool.directory}/{TEMPLATES}/{temporary}")
            os.fsync(descriptor)
            crash_point("template.formatted")
            # Opened before it has its name: from then on somebody who needs the space may drop it.
            finished = os.open(temporary, _READ, dir_fd=room)
            os.rename(temporary, name, src_dir_fd=room, dst_dir_fd=room)
            crash_point("template.kept")
        except BaseException:
            durable.unlink_if_there(room, temporary)
            raise
        finally:
            os.close(descriptor)
        self._drop_the_oldest()
        return finished

    def _drop_the_oldest(self) -> None:
        room = self._pool.templates_fd
        ages = []
        for name in self._finished():
            # Another thread may drop it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                ages.append((os.stat(name, dir_fd=room, follow_symlinks=False).st_mtime, name))
        for _, name in sorted(ages)[: max(0, len(ages) - _KEPT)]:
            durable.unlink_if_there(room, name)

    def _finished(self) -> list[str]:
        return [name for name in os.listdir(self._pool.templates_fd) if not name.endswith(_SUFFIX_NEW)]
