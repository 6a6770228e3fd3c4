"""An inode's attribute flags and project, as chattr(1) shows them; it knows nothing of quotas and of who owns
the file.

Source: include/uapi/linux/fs.h, Documentation/filesystems/ext4 and xfs(5). Descriptors stay the caller's.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from csi_driver.linux.ioctl import exchange, ior, iow

# FS_IOC_*FLAGS are declared with long, and every filesystem reads and writes an int.
_FLAGS: Final = struct.Struct("=I4x")
FS_IOC_GETFLAGS: Final = ior(ord("f"), 1, 8)
FS_IOC_SETFLAGS: Final = iow(ord("f"), 2, 8)

# struct fsxattr: fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize, fsx_pad
_FSXATTR: Final = struct.Struct("=IIIII8x")
FS_IOC_FSGETXATTR: Final = ior(ord("X"), 31, _FSXATTR.size)
FS_IOC_FSSETXATTR: Final = iow(ord("X"), 32, _FSXATTR.size)
FS_XFLAG_PROJINHERIT: Final = 0x200


class InodeFlag(enum.IntFlag):
    """FS_*_FL: the flags of an inode that this driver reads or changes; others pass through unchanged."""

    IMMUTABLE = 0x10
    APPEND = 0x20
    NOCOW = 0x800000


@dataclass(frozen=True, slots=True)
class ProjectAttributes:
    """The project an inode is charged to, and whether what is created in it starts there too."""

    project_id: int
    inherited: bool


def get_flags(fd: int) -> int:
    """Return the FS_*_FL flags of a file or directory.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP on a filesystem without flags.
    """
    structure = bytearray(_FLAGS.size)
    exchange(fd, FS_IOC_GETFLAGS, structure)
    flags: int = _FLAGS.unpack(structure)[0]
    return flags


def set_flags(fd: int, flags: int) -> None:
    """Replace the FS_*_FL flags of a file or directory; a kernel may drop silently what it cannot set.

    Raises:
        OSError: EPERM without CAP_LINUX_IMMUTABLE for the flags that need it, EOPNOTSUPP.
    """
    exchange(fd, FS_IOC_SETFLAGS, bytearray(_FLAGS.pack(flags)))


def clear_flags(fd: int, unwanted: int) -> bool:
    """Clear the given flags; tell whether one of them was set.

    Raises:
        OSError: as get_flags and set_flags.
    """
    flags = get_flags(fd)
    if not flags & unwanted:
        return False
    set_flags(fd, flags & ~unwanted)
    return True


def get_project_attributes(fd: int) -> ProjectAttributes:
    """Return the project of a file or directory.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP on a filesystem without projects.
    """
    xflags, _, _, project_id, _ = _read_fsxattr(fd)
    return ProjectAttributes(project_id, bool(xflags & FS_XFLAG_PROJINHERIT))


def set_project_attributes(fd: int, wanted: ProjectAttributes) -> None:
    """Charge a file or directory, not what is in it already, to a project; all other attributes stay.

    Raises:
        OSError: EOPNOTSUPP on ext4 made without the `project` feature, EINVAL outside the first user
            namespace, EDQUOT or ENOSPC when the project has no room for it.
    """
    xflags, extent_size, extents, _, cow_extent_size = _read_fsxattr(fd)
    xflags = xflags | FS_XFLAG_PROJINHERIT if wanted.inherited else xflags & ~FS_XFLAG_PROJINHERIT
    content = _FSXATTR.pack(xflags, extent_size, extents, wanted.project_id, cow_extent_size)
    exchange(fd, FS_IOC_FSSETXATTR, bytearray(content))


def _read_fsxattr(fd: int) -> tuple[int, int, int, int, int]:
    structure = bytearray(_FSXATTR.size)
    exchange(fd, FS_IOC_FSGETXATTR, structure)
    return _FSXATTR.unpack(structure)
