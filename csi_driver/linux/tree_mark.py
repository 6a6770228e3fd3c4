"""A mark of a directory tree that every change to it changes; it knows no volume.

Each write, and each change of a name, an owner or an attribute, sets the time of change of a file or directory to the
present (inode(7), st_ctime), which nobody can set otherwise. So the mark is a sum over those of all that is in the
tree, with how many there are and which directory is the top: a copy of the tree has others. Reading changes none.
"""

from __future__ import annotations

import os
from typing import Final

# O_NOATIME: a look leaves no trace.
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_MASK: Final = (1 << 64) - 1


def mark(top_fd: int) -> str:
    """The mark of the directory `top_fd`, which nobody changes meanwhile. Any depth takes the same descriptors.

    Raises:
        OSError: EIO; ENOENT, ENOTDIR, ELOOP: somebody changes it.
    """
    found = os.fstat(top_fd)
    count, total = 1, found.st_ctime_ns
    here = os.open(".", _LIST, dir_fd=top_fd)
    try:
        above: list[list[str]] = []
        pending, times = _look(here)
        while True:
            count, total = count + len(times), total + sum(times)
            while not pending and above:
                here = _moved(here, "..")
                pending = above.pop()
            if not pending:
                return f"{found.st_ino:x}-{count:x}-{total & _MASK:x}"
            here = _moved(here, pending.pop())
            above.append(pending)
            pending, times = _look(here)
    finally:
        os.close(here)


def _look(dir_fd: int) -> tuple[list[str], list[int]]:
    """The directories in a directory, and the times of change of all that is in it."""
    directories, times = [], []
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            times.append(entry.stat(follow_symlinks=False).st_ctime_ns)
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
    return directories, times


def _moved(dir_fd: int, name: str) -> int:
    moved = os.open(name, _LIST, dir_fd=dir_fd)
    os.close(dir_fd)
    return moved
