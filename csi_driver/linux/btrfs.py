"""btrfs: its subvolumes, and what a filesystem says of itself; it knows no volume and no pool.

Every descriptor may be any file or directory of the filesystem unless it says otherwise, and stays the caller's.

Source: include/uapi/linux/btrfs.h, include/uapi/linux/btrfs_tree.h, fs/btrfs/ioctl.c.
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from typing import Final

from csi_driver.linux import statfs
from csi_driver.linux.attributes import InodeFlag, get_flags, set_flags
from csi_driver.linux.ioctl import exchange, io, ior, iow, iowr

MAGIC: Final = 0x94
BTRFS_SUPER_MAGIC: Final = 0x9123683E  # include/uapi/linux/magic.h
_FIRST_FREE_OBJECTID: Final = 256
# struct btrfs_ioctl_vol_args: fd, name
VOL_ARGS: Final = struct.Struct("=q4088s")
BTRFS_IOC_SUBVOL_CREATE: Final = iow(MAGIC, 14, VOL_ARGS.size)
BTRFS_IOC_SNAP_DESTROY: Final = iow(MAGIC, 15, VOL_ARGS.size)
_NAME_BYTES: Final = 255
BTRFS_IOC_SUBVOL_GETFLAGS: Final = ior(MAGIC, 25, 8)
BTRFS_IOC_SUBVOL_SETFLAGS: Final = iow(MAGIC, 26, 8)
SUBVOL_RDONLY: Final = 1 << 1
# struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
INO_LOOKUP: Final = struct.Struct("=QQ4080s")
BTRFS_IOC_INO_LOOKUP: Final = iowr(MAGIC, 18, INO_LOOKUP.size)
BTRFS_IOC_SYNC: Final = io(MAGIC, 8)
# max_id, num_devices, fsid, nodesize, sectorsize, clone_alignment, csum_type, csum_size, flags, generation, …
FS_INFO: Final = struct.Struct("=QQ16sIIIHHQQ960x")
BTRFS_IOC_FS_INFO: Final = ior(MAGIC, 31, FS_INFO.size)
_INFO_GENERATION: Final = 1 << 1


def is_btrfs(fd: int) -> bool:
    """Tell whether the descriptor is on btrfs.

    Raises:
        OSError: EBADF, ENOSYS.
    """
    return statfs.magic(fd) & 0xFFFFFFFF == BTRFS_SUPER_MAGIC


def create_subvolume(parent_fd: int, name: str) -> None:
    """Make an empty subvolume, mode 0755 less the umask, in the directory `parent_fd`.

    Not durable until the filesystem commits: fsync the parent or syncfs.

    Raises:
        OSError: EEXIST, ENOTTY where this is no btrfs, ENOSPC.
    """
    exchange(parent_fd, BTRFS_IOC_SUBVOL_CREATE, _vol_args(name))


def delete_subvolume(parent_fd: int, name: str) -> None:
    """Unlink a subvolume with all it holds; its space comes back later, when the cleaner is through.

    Raises:
        OSError: ENOENT; EINVAL or ENOTDIR when it is no subvolume; ENOTEMPTY when it holds another subvolume;
            EBUSY when it is a mount point; EPERM when it is the default subvolume.
    """
    exchange(parent_fd, BTRFS_IOC_SNAP_DESTROY, _vol_args(name))


def subvolume_id(fd: int) -> int:
    """Return the id of the subvolume that a file or directory lies in; ids are never used again.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    structure = bytearray(INO_LOOKUP.pack(0, _FIRST_FREE_OBJECTID, b""))
    exchange(fd, BTRFS_IOC_INO_LOOKUP, structure)
    identity: int = INO_LOOKUP.unpack(structure)[0]
    return identity


def is_subvolume(fd: int) -> bool:
    """Tell whether the descriptor is the top directory of a subvolume (or of the filesystem)."""
    return os.fstat(fd).st_ino == _FIRST_FREE_OBJECTID and is_btrfs(fd)


def ensure_writable(fd: int) -> None:
    """Make the subvolume whose top directory `fd` is writable, if it is a read-only snapshot.

    Raises:
        OSError: EINVAL when it is no top directory, EPERM while `btrfs send` reads it.
    """
    structure = bytearray(8)
    exchange(fd, BTRFS_IOC_SUBVOL_GETFLAGS, structure)
    flags = int.from_bytes(structure, "little")
    if flags & SUBVOL_RDONLY:
        exchange(fd, BTRFS_IOC_SUBVOL_SETFLAGS, bytearray((flags & ~SUBVOL_RDONLY).to_bytes(8, "little")))


def set_nocow(fd: int) -> None:
    """Let an empty file be written in place (`chattr +C`): preallocated space then stays enough for rewrites.

    Raises:
        OSError: EINVAL when the file is not empty (the kernel would ignore it) or the mount forbids it.
    """
    if os.fstat(fd).st_size:
        raise OSError(errno.EINVAL, "only an empty file can become NOCOW")
    set_flags(fd, get_flags(fd) | InodeFlag.NOCOW)
    if not get_flags(fd) & InodeFlag.NOCOW:
        raise OSError(errno.EINVAL, "the filesystem ignored NOCOW")


def commit(fd: int) -> None:
    """Commit the running transaction of the filesystem, and wait: the space of what was deleted is free afterwards.

    Raises:
        OSError: EROFS, EIO.
    """
    exchange(fd, BTRFS_IOC_SYNC, bytearray(8))


def filesystem_uuid(fd: int) -> str:
    """Return the UUID of the filesystem, the same for all its subvolumes, whose st_dev differ.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    return str(uuid.UUID(bytes=filesystem_info(fd)[2]))


def generation(fd: int) -> int:
    """Return the number of the filesystem's youngest transaction, which may still be running.

    Raises:
        OSError: ENOTTY where this is no btrfs; ENOSYS where the kernel does not tell (before Linux 5.10).
    """
    structure = bytearray(FS_INFO.pack(0, 0, b"", 0, 0, 0, 0, 0, _INFO_GENERATION, 0))
    exchange(fd, BTRFS_IOC_FS_INFO, structure)
    *_, flags, number = FS_INFO.unpack(structure)
    if not flags & _INFO_GENERATION:
        raise OSError(errno.ENOSYS, "the kernel does not tell the generation of a btrfs; it needs Linux 5.10")
    return int(number)


def filesystem_info(fd: int) -> tuple[int, int, bytes]:
    structure = bytearray(FS_INFO.size)
    exchange(fd, BTRFS_IOC_FS_INFO, structure)
    greatest, count, identity, *_ = FS_INFO.unpack(structure)
    return greatest, count, identity


def _vol_args(name: str) -> bytearray:
    encoded = os.fsencode(name)
    if not encoded or b"/" in encoded or encoded in {b".", b".."} or len(encoded) > _NAME_BYTES:
        raise OSError(errno.EINVAL, f"{name!r} is no name of a directory entry")
    return bytearray(VOL_ARGS.pack(0, encoded))
