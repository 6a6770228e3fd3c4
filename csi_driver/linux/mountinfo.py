"""What is mounted, read from the kernel; it knows no volume and changes nothing.

Two ways, by cost: `observe` and `mount_flags` look at one place (some microseconds, however many mounts
exist); `read_mounts` reads the table (the kernel alone needs two microseconds per mount) and is for
start-up, for finding all mounts of one device, and for messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Final

from csi_driver.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    SYS_STATX,
    declare,
)
from csi_driver.linux.mount import MountFlag

MOUNTINFO: Final = "/proc/self/mountinfo"

# include/uapi/linux/stat.h
STATX_TYPE_MODE: Final = 0x3
STATX_INO: Final = 0x100
STATX_SIZE: Final = 0x200
STATX_MNT_ID: Final = 0x1000
STATX_ATTR_MOUNT_ROOT: Final = 0x2000

# struct statx, of which only: attributes, mode, ino, size, rdev_major, rdev_minor, dev_major, dev_minor,
# mnt_id
STATX: Final = struct.Struct("=8xQ12xH2xQQ80xIIIIQ104x")

# bits/statvfs.h; the kernel's own copies are in include/linux/statfs.h
ST_NOSYMFOLLOW: Final = 0x2000
_ST_FLAGS: Final = (
    (os.ST_RDONLY, int(MountFlag.READ_ONLY)),
    (os.ST_NOSUID, int(MountFlag.NO_SUID)),
    (os.ST_NODEV, int(MountFlag.NO_DEV)),
    (os.ST_NOEXEC, int(MountFlag.NO_EXEC)),
    (os.ST_NODIRATIME, int(MountFlag.NO_DIRATIME)),
    (ST_NOSYMFOLLOW, int(MountFlag.NO_SYMLINK_FOLLOW)),
)

# What a call says about a mount whose filesystem is gone: shut down or its device failed (EIO), a server
# that forgot the handle (ESTALE), a FUSE daemon that died (ENOTCONN, ECONNABORTED).
DEAD_MOUNT_ERRNOS: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN, errno.EHOSTDOWN}
)

_statx = declare(SYS_STATX, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_MASK = STATX_TYPE_MODE | STATX_INO | STATX_SIZE | STATX_MNT_ID
_READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo; `target` is as this process sees it, `device` the superblock's os.makedev."""

    mount_id: int
    parent_id: int
    device: int
    root: str
    target: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Nothing can be written through this mount: it, or its superblock, is read-only."""
        return "ro" in self.options or "ro" in self.super_options


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One place in the tree, seen through whatever is mounted there.

    `device` and `inode` are st_dev and st_ino, which name the object on this machine: a bind shows those of
    its source. (On btrfs st_dev is the subvolume's, and not the device that mountinfo shows.)
    `special_device` is the device that a device node stands for; `mount_id` is that of mountinfo.
    """

    is_mount: bool
    device: int
    inode: int
    mode: int
    size_bytes: int
    special_device: int
    mount_id: int

    @property
    def is_directory(self) -> bool:
        """It is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """It is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_block_device(self) -> bool:
        """It is a block device's node."""
        return stat.S_ISBLK(self.mode)

    @property
    def is_symlink(self) -> bool:
        """It is a symbolic link itself, not what it points to."""
        return stat.S_ISLNK(self.mode)


def observe(place: int | str, *, dir_fd: int = AT_FDCWD) -> MountPoint:
    """Look at a descriptor (O_PATH is enough) or a path, not following a symbolic link at its end.

    One statx(2): no automount is triggered and mountinfo is not read.

    Raises:
        FileNotFoundError: there is nothing of that name.
        OSError: `is_dead_mount` says whether the filesystem mounted there has gone. (ext4 after a shutdown
            still answers from its cache.)
    """
    buffer = ctypes.create_string_buffer(STATX.size)
    if isinstance(place, int):
        _statx(place, b"", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, _MASK, buffer)
    else:
        _statx(dir_fd, os.fsencode(place), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, _MASK, buffer)
    return _mount_point(buffer.raw)


def mount_flags(fd: int) -> MountFlag:
    """Return the flags of the mount that the descriptor (O_PATH is enough) lies on.

    READ_ONLY is also set when only the superblock is read-only. One fstatfs(2).

    Raises:
        OSError: see `is_dead_mount`.
    """
    found = os.fstatvfs(fd).f_flag
    flags = 0
    for kernel_bit, flag in _ST_FLAGS:
        if found & kernel_bit:
            flags |= flag
    if found & os.ST_NOATIME:
        flags |= MountFlag.NO_ATIME
    elif not found & os.ST_RELATIME:
        flags |= MountFlag.STRICT_ATIME
    return MountFlag(flags)


def is_dead_mount(error: OSError) -> bool:
    """Say whether the error means that the filesystem behind a mount has gone; it can still be unmounted."""
    return error.errno in DEAD_MOUNT_ERRNOS


def device_needle(device: int) -> bytes:
    """Return the bytes that every mountinfo line of this device contains (and hardly any other)."""
    return b" %d:%d " % (os.major(device), os.minor(device))


def source_needle(source: str) -> bytes:
    """Return the bytes that every mountinfo line with this source contains."""
    return b" " + re.sub(rb"[ \t\n\\#]", _octal, os.fsencode(source)) + b" "


def target_needle(target: str) -> bytes:
    """Return the bytes that every mountinfo line of a mount at this canonical absolute path contains."""
    return b" " + re.sub(rb"[ \t\n\\]", _octal, os.fsencode(target)) + b" "


def read_mounts(*needles: bytes, pid: int | None = None) -> list[MountEntry]:
    """Return the mounts whose line contains one of the needles, in their order; without needles, all.

    Only matching lines are parsed: that costs some microseconds each, a search for bytes nearly nothing. A
    needle can match by accident (a source may be named anything), so callers compare the fields. `pid`
    reads another process's table.

    Raises:
        OSError: /proc is not there, or the process is gone.
    """
    table = read_table(pid)
    if not needles:
        # Not splitlines(): a carriage return in a path is not escaped by the kernel.
        return [_parse(line) for line in table.split(b"\n") if line]
    return [_parse(line) for line in _matching_lines(table, needles)]


def read_table(pid: int | None = None) -> bytes:
    """Return mountinfo as bytes.

    The kernel hands out at most one page per read(2), whatever the buffer, and lets go of its lock in
    between, so this is no snapshot: a mount made or removed meanwhile may be in it or not. A mount that
    existed all the time is in it (once): since Linux 5.8 the position is a cursor in the list, since 6.8
    the mount's unique number.
    """
    fd = os.open(MOUNTINFO if pid is None else f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, _READ_BYTES):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _mount_point(buffer: bytes) -> MountPoint:
    attributes, mode, inode, size, rdev_major, rdev_minor, major, minor, mount_id = STATX.unpack(buffer)
    return MountPoint(
        bool(attributes & STATX_ATTR_MOUNT_ROOT),
        os.makedev(major, minor),
        inode,
        mode,
        size,
        os.makedev(rdev_major, rdev_minor),
        mount_id,
    )


def _matching_lines(table: bytes, needles: tuple[bytes, ...]) -> list[bytes]:
    starts: set[int] = set()
    for needle in needles:
        at = table.find(needle)
        while at >= 0:
            starts.add(table.rfind(b"\n", 0, at) + 1)
            end = table.find(b"\n", at)
            at = table.find(needle, end) if end >= 0 else -1
    return [table[start : table.find(b"\n", start)] for start in sorted(starts)]


def _parse(line: bytes) -> MountEntry:
    # Documentation/filesystems/proc.rst, 3.5: a variable number of optional fields ends at the single hyphen.
    fields = line.split(b" ")
    tail = fields.index(b"-", 6)
    major, _, minor = fields[2].partition(b":")
    return MountEntry(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=os.makedev(int(major), int(minor)),
        root=_decode(fields[3]),
        target=_decode(fields[4]),
        options=tuple(_decode(fields[5]).split(",")),
        fs_type=_decode(fields[tail + 1]),
        source=_decode(fields[tail + 2]),
        super_options=tuple(_decode(b" ".join(fields[tail + 3 :])).split(",")),
    )


def _decode(field: bytes) -> str:
    if b"\\" in field:
        field = _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), field)
    return os.fsdecode(field)


def _octal(match: re.Match[bytes]) -> bytes:
    # fs/proc_namespace.c: seq_path escapes " \t\n\\", mangle() the hash sign also.
    return b"\\%03o" % match[0][0]
