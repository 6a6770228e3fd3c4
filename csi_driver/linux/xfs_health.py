"""What a mounted XFS knows to be damaged in itself; knows no volume.

XFS counts no errors. What it finds corrupt it remembers until it is unmounted: of the filesystem as a whole and of each
allocation group (Linux 6.9; before, only what a scrub found). Files that are damaged by themselves are not in this.

Source: fs/xfs/libxfs/xfs_fs.h, fs/xfs/xfs_health.c, fs/xfs/libxfs/xfs_ag.c (xfs_ag_get_geometry).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from csi_driver.linux import ioctl, mount, mountinfo

# struct xfs_fsop_geom, of which only: agcount, sick
GEOMETRY: Final = struct.Struct("=12xI96xI140x")
XFS_IOC_FSGEOMETRY: Final = ioctl.ior(ord("X"), 126, GEOMETRY.size)
# struct xfs_ag_geometry, of which only: ag_number, sick
GROUP: Final = struct.Struct("=I16xI104x")
XFS_IOC_AG_GEOMETRY: Final = ioctl.iowr(ord("X"), 61, GROUP.size)
_MOST_GROUPS: Final = 1024
# A group whose headers cannot even be read: EFSCORRUPTED, EFSBADCRC.
_DAMAGED: Final = frozenset({errno.EUCLEAN, errno.EBADMSG})


def is_sick(entry: mountinfo.MountEntry) -> bool:
    """Whether the XFS behind a mount knows of damage; False where it cannot be asked.

    Reads the headers of allocation groups, for which it may wait as long as the disk, or a writer, lets it. Whoever
    unmounts it meanwhile is not kept from it.

    Raises:
        OSError: EIO.
    """
    root_fd = _root(entry)
    if root_fd < 0:
        return False
    try:
        geometry = bytearray(GEOMETRY.size)
        ioctl.exchange(root_fd, XFS_IOC_FSGEOMETRY, geometry)
        groups, sick = GEOMETRY.unpack(geometry)
        return bool(sick) or any(_is_group_sick(root_fd, number) for number in range(min(groups, _MOST_GROUPS)))
    finally:
        os.close(root_fd)


def _is_group_sick(root_fd: int, number: int) -> bool:
    group = bytearray(GROUP.pack(number, 0))
    try:
        ioctl.exchange(root_fd, XFS_IOC_AG_GEOMETRY, group)
    except OSError as error:
        if error.errno in _DAMAGED:
            return True
        raise
    return bool(GROUP.unpack(group)[1])


def _root(entry: mountinfo.MountEntry) -> int:
    """A descriptor, the caller's, of the directory that is mounted; -1 where there is none, or another by now.

    In a mount of its own: a file that is open keeps the mount busy that it was opened in.
    """
    try:
        tree = mount.cloned(entry.target)
    except OSError:
        return -1
    try:
        root_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    except NotADirectoryError:
        return -1
    finally:
        os.close(tree)
    if os.fstat(root_fd).st_dev == entry.device:
        return root_fd
    os.close(root_fd)
    return -1
