"""Mounting and unmounting by descriptors; it knows no volume and decides nothing.

Everything here uses the mount API of Linux 5.2-5.12 (open_tree, move_mount, fsopen, mount_setattr), because:

* mount(2) with MS_BIND | MS_RDONLY in one call ignores MS_RDONLY: the bind stays writable until a second
  call, and whoever opens a file in between keeps a writable descriptor. Here the flags are set on a detached
  tree, which nobody can see, and only then is it attached.
* mount(2) takes paths, and a path can be exchanged for a symbolic link after it was checked. A descriptor
  cannot.
* mount(2) answers a wrong option with EINVAL and a line in the kernel's log; fsopen(2) hands that line to
  the caller.

The kernel never compares: a second bind at the same target succeeds, hides the first, and one unmount then
uncovers it again. Callers observe (`mountinfo.observe`) before they act.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Sequence
from typing import Final

from csi_driver.linux.libc import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    SYS_FSCONFIG,
    SYS_FSMOUNT,
    SYS_FSOPEN,
    SYS_MOUNT_SETATTR,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    check,
    declare,
    libc,
)

# include/uapi/linux/mount.h
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR__ATIME: Final = 0x70
UMOUNT_NOFOLLOW: Final = 8  # include/linux/fs.h

# struct mount_attr: attr_set, attr_clr, propagation, userns_fd
MOUNT_ATTR: Final = struct.Struct("=QQQQ")

_open_tree = declare(SYS_OPEN_TREE, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_move_mount = declare(SYS_MOVE_MOUNT, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_mount_setattr = declare(
    SYS_MOUNT_SETATTR, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t
)
_fsopen = declare(SYS_FSOPEN, ctypes.c_char_p, ctypes.c_uint)
_fsconfig = declare(SYS_FSCONFIG, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_fsmount = declare(SYS_FSMOUNT, ctypes.c_int, ctypes.c_uint, ctypes.c_uint)

_umount2 = libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_umount2.restype = ctypes.c_int
_umount2.errcheck = check  # type: ignore[assignment]

_MAX_LOG_LINES = 16
_LOG_LINE_BYTES = 1024


class MountFlag(enum.IntFlag):
    """Attributes of one mount (MOUNT_ATTR_* of include/uapi/linux/mount.h), not of the filesystem behind it.

    Access times are one value of three, not bits: RELATIME (0, the default), NO_ATIME or STRICT_ATIME.
    """

    READ_ONLY = 0x1
    NO_SUID = 0x2
    NO_DEV = 0x4
    NO_EXEC = 0x8
    RELATIME = 0x0
    NO_ATIME = 0x10
    STRICT_ATIME = 0x20
    NO_DIRATIME = 0x80
    NO_SYMLINK_FOLLOW = 0x200000


NO_FLAGS: Final = MountFlag(0)


def mount_filesystem(
    source: str,
    fs_type: str,
    target_fd: int,
    *,
    options: Sequence[str] = (),
    flags: MountFlag = NO_FLAGS,
) -> None:
    """Mount the filesystem on block device `source` over the directory behind `target_fd`.

    `options` are the filesystem's own, `key=value` or `key`. A read-only *superblock* is the option `ro`;
    `flags` set attributes of this one mount, and MountFlag.READ_ONLY leaves the superblock writable (its
    journal is replayed, another mount of it may write). `target_fd` may be O_PATH and stays the caller's. A
    target that is a mount already is covered by this one. Nothing is left behind on failure.

    Raises:
        OSError: with the kernel's errno; its text carries the lines that the kernel wrote for this mount.
            ENODEV: the kernel has no such filesystem. EBUSY: mounted elsewhere with another `ro`. EINVAL,
            EUCLEAN: no such filesystem on the device. EIO, ENXIO: no medium. EINVAL, ENOTDIR: the target is
            no directory.
    """
    attach(detached(source, fs_type, options=options, flags=flags), target_fd)


def detached(source: str, fs_type: str, *, options: Sequence[str] = (), flags: MountFlag = NO_FLAGS) -> int:
    """Mount the filesystem on block device `source` where nobody sees it; the caller's O_PATH descriptor of its root.

    It is unmounted when that descriptor, and the last one of a file in it, is closed, also by the end of the process.
    The rest is as in `mount`.

    Raises:
        OSError: as `mount`.
    """
    context = _fsopen(os.fsencode(fs_type), FSOPEN_CLOEXEC)
    try:
        _configure(context, source, options)
        return _fsmount(context, FSMOUNT_CLOEXEC, int(flags))
    except OSError as error:
        raise _explained(error, context, f"mount {fs_type} from {source}") from None
    finally:
        os.close(context)


def bind(source_fd: int, target_fd: int, *, flags: MountFlag = NO_FLAGS) -> None:
    """Show the directory, file or device node behind `source_fd` at `target_fd` also.

    Mounts below the source do not come along. The new mount has the attributes of the mount that the source
    lies on plus `flags` (an access-time flag replaces that mount's): an administrator's `nosuid` on the
    pool is never lifted. It is never visible without its flags. Both descriptors may be O_PATH and stay the
    caller's; a directory goes on a directory, everything else on a file. READ_ONLY on a device node protects
    the node alone: whoever opens it still writes to the device, which needs a read-only switch of its own.

    Raises:
        OSError: EINVAL: the source lies in another mount namespace or a bind of it is forbidden; ENOTDIR or
            EINVAL when one of the two is a directory and the other is not.
    """
    tree = _open_tree(source_fd, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    try:
        wanted = int(flags)
        if wanted:
            _mount_setattr(tree, b"", AT_EMPTY_PATH, _attributes(wanted), MOUNT_ATTR.size)
    except BaseException:
        os.close(tree)
        raise
    attach(tree, target_fd)


def cloned(path: str) -> int:
    """The mount at `path` once more, where nobody sees it, without those below; the caller's O_PATH descriptor of it.

    What is opened through it keeps the filesystem alive, and not the mount at `path` busy.

    Raises:
        OSError: ENOENT; EINVAL: nothing that may be bound is mounted there.
    """
    return _open_tree(AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)


def unmount(target: str, *, dir_fd: int | None = None) -> None:
    """Unmount the topmost mount at `target`, which is never followed when it is a symbolic link.

    With `dir_fd` (O_PATH is enough, it stays the caller's) `target` is one name in that directory:
    umount2(2) takes no descriptor, but it does resolve /proc/self/fd/N, and that leads to the directory
    itself even when its path has been exchanged. The last component must be a name: /proc/self/fd/N alone
    is a link, which UMOUNT_NOFOLLOW does not follow, and a descriptor of the mount itself would keep it
    busy. Never lazy: MNT_DETACH would say yes while a process still writes. When it returns, the last mount
    of a superblock has written everything and let go of its device (the kernel finishes that work before
    the call goes back to its caller).

    Raises:
        OSError: EBUSY: files are open, or something is mounted below; EINVAL: not a mount point (or a mount
            locked by an outer mount namespace); ENOENT: no such name.
        ValueError: `target` with `dir_fd` is not a plain name.
    """
    if dir_fd is not None:
        if "/" in target or target in ("", ".", ".."):
            raise ValueError(f"not a plain name: {target!r}")
        target = f"/proc/self/fd/{dir_fd}/{target}"
    _umount2(os.fsencode(target), UMOUNT_NOFOLLOW)


def attach(tree: int, target_fd: int) -> None:
    """Show the detached mount at the target, and close its descriptor; an unmoved mount goes with that.

    Raises:
        OSError: EINVAL, ENOTDIR: one of the two is a directory and the other is not.
    """
    try:
        _move_mount(tree, b"", target_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    finally:
        os.close(tree)


def _attributes(flags: int) -> bytes:
    # The kernel wants the whole access-time field cleared before one of its values is set, or says EINVAL.
    cleared = MOUNT_ATTR__ATIME if flags & MOUNT_ATTR__ATIME else 0
    return MOUNT_ATTR.pack(flags, cleared, 0, 0)


def _configure(context: int, source: str, options: Sequence[str]) -> None:
    _fsconfig(context, FSCONFIG_SET_STRING, b"source", os.fsencode(source), 0)
    for option in options:
        key, equals, value = option.partition("=")
        if equals:
            _fsconfig(context, FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value), 0)
        else:
            _fsconfig(context, FSCONFIG_SET_FLAG, os.fsencode(key), None, 0)
    _fsconfig(context, FSCONFIG_CMD_CREATE, None, None, 0)


def _explained(error: OSError, context: int, what: str) -> OSError:
    number = error.errno or errno.EIO
    text = f"{what}: {os.strerror(number)}"
    log = _context_log(context)
    return OSError(number, f"{text} (kernel: {'; '.join(log)})" if log else text)


def _context_log(context: int) -> list[str]:
    """Read what the kernel wrote about this mount."""
    # Documentation/filesystems/mount_api.rst: one line per read, marked `e `, `w ` or `i `, then ENODATA.
    lines: list[str] = []
    while len(lines) < _MAX_LOG_LINES:
        try:
            line = os.read(context, _LOG_LINE_BYTES)
        except OSError:
            break
        lines.append(os.fsdecode(line[2:]).strip())
    return lines
