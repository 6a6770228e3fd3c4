"""A whole tree charged to one project; it knows no limit and no volume.

For a tree that nobody uses: while only a part of it bears the project, the kernel refuses renames and links between
that part and the rest (EXDEV).

The tree may be hostile. Nothing is opened before it is known to be a file or a directory, no symbolic link is followed,
no mount point crossed. Special files and symbolic links keep their project: they have no blocks worth counting.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from csi_driver.linux.attributes import ProjectAttributes, set_project_attributes
from csi_driver.linux.paths import open_beneath

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


def charge_tree(top_fd: int, project_id: int, *, inherited: bool) -> None:
    """Charge a directory and everything in it to a project, which new entries inherit or do not. Idempotent.

    Nothing is synced.

    Raises:
        OSError: EDQUOT or ENOSPC when the project has a limit; ENAMETOOLONG: a path of more than 4095 bytes is inside;
            EPERM for what may not be changed (immutable on ext4); as set_project_attributes.
    """
    pending = ["."]
    while pending:
        path = pending.pop()
        directory_fd = _charged(top_fd, path, project_id, inherited=inherited)
        try:
            with os.scandir(directory_fd) as entries:
                for entry in entries:
                    below = f"{path}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(below)
                    elif entry.is_file(follow_symlinks=False):
                        os.close(_charged(top_fd, below, project_id, inherited=False))
        finally:
            os.close(directory_fd)


def _charged(top_fd: int, path: str, project_id: int, *, inherited: bool) -> int:
    """A descriptor, the caller's, of the file or directory, which is charged now."""
    seen = open_beneath(top_fd, path, _LOOK, cross_mounts=False)
    try:
        if stat.S_IFMT(os.fstat(seen).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise FileNotFoundError(path)
        fd = os.open(f"/proc/self/fd/{seen}", _READ)
    finally:
        os.close(seen)
    try:
        set_project_attributes(fd, ProjectAttributes(project_id, inherited))
    except BaseException:
        os.close(fd)
        raise
    return fd
