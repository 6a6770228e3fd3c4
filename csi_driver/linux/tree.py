"""Removal of a directory tree whose contents are hostile; it knows names and inodes, and nothing of what they
are.

The tree is flattened instead of walked: a directory that is not empty loses its files, and its subdirectories
are renamed up into the top, where their turn comes. So any depth takes three descriptors and no memory, and
an interrupted removal goes on from whatever is left.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from csi_driver.linux import btrfs
from csi_driver.linux.attributes import (
    InodeFlag,
    ProjectAttributes,
    clear_flags,
    get_project_attributes,
    set_project_attributes,
)
from csi_driver.linux.libc import SYS_OPENAT2, declare
from csi_driver.linux.mountinfo import read_mounts, target_needle

# include/uapi/linux/openat2.h: struct open_how (flags, mode, resolve)
OPEN_HOW: Final = struct.Struct("=QQQ")
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
_RESOLVE: Final = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH

_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_WRONG_KIND: Final = frozenset({errno.EISDIR, errno.ENOTDIR})
_NO_ATTRIBUTES: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
# A rename up that the filesystem refuses: another project, subvolume or encryption policy; no room for one
# more entry.
_CANNOT_RENAME_UP: Final = frozenset({errno.EXDEV, errno.EMLINK, errno.ENOSPC, errno.EDQUOT})
# How deep directories are emptied where they stand. Only filesystems inside filesystems (subvolumes) need a
# level.
_DEEPEST: Final = 32

_openat2 = declare(SYS_OPENAT2, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)


def remove_tree(parent_fd: int, name: str) -> None:
    """Remove the file or directory `name` of the directory `parent_fd` with all it holds.

    Follows no symbolic link and crosses no mount point. Immutable and append-only flags that stand in the way
    are cleared, nested btrfs subvolumes (read-only ones too) removed. Whoever can still write into the tree
    can keep it from ending. Nothing is synced.

    Idempotent: what is gone already, all of it or a part, is fine.

    Raises:
        OSError: EBUSY naming the mount point inside, before anything is removed; whatever else stops it,
            naming the place as it is then.
    """
    if not name or "/" in name or name in {".", ".."}:
        raise OSError(errno.EINVAL, "no name of a directory entry", name)
    if _remove_entry(parent_fd, name, is_directory=True, is_inside=False):
        return
    with _opened_directory(parent_fd, name) as top:
        if _holds_a_directory(top):
            _refuse_mounts(_path(parent_fd, name))
        if btrfs.is_subvolume(top) and _delete_subvolume(parent_fd, name):
            return
        _Removal(top).empty(top)
    if not _remove_entry(parent_fd, name, is_directory=True, is_inside=False):
        raise OSError(errno.ENOTEMPTY, "somebody still writes into it", _path(parent_fd, name))


class _Removal:
    """One tree on its way out; `top` is its highest directory, where subdirectories are renamed to."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._is_btrfs = btrfs.is_btrfs(top)
        self._prefix = f".removed-{secrets.token_hex(8)}-"
        self._renamed = 0
        self._depth = 0

    def empty(self, directory: int) -> None:
        """Remove all that is in a directory, flattening it into itself."""
        self._depth += 1
        for name, is_directory in _entries_until_empty(directory):
            if not _remove_entry(directory, name, is_directory=is_directory):
                self._dissolve(directory, name)
        self._depth -= 1

    def _dissolve(self, parent: int, name: str) -> None:
        """Remove a directory that is not empty; its subdirectories land in `parent`."""
        if not self._is_subvolume(parent, name):
            with _opened_directory(parent, name) as directory:
                self._hollow(directory, parent)
        elif _delete_subvolume(parent, name):
            return
        elif parent != self._top:
            # It holds further subvolumes. Emptied here they would nest without bound, at the top they do not.
            self._rename_up(parent, name, self._top)
            return
        else:
            self._empty_in_place(parent, name)
        _remove_entry(parent, name, is_directory=True)

    def _hollow(self, directory: int, attic: int) -> None:
        for name, is_directory in _entries_until_empty(directory):
            if _remove_entry(directory, name, is_directory=is_directory):
                continue
            if not (self._is_subvolume(directory, name) and _delete_subvolume(directory, name)):
                self._rename_up(directory, name, attic)

    def _rename_up(self, directory: int, name: str, attic: int) -> None:
        self._renamed += 1
        rename = functools.partial(
            os.rename, name, f"{self._prefix}{self._renamed}", src_dir_fd=directory, dst_dir_fd=attic
        )
        try:
            _despite_flags(rename, directory, name)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _CANNOT_RENAME_UP or self._depth >= _DEEPEST:
                raise _located(error, directory, name) from error
            # Once cleared, the next look at the directory finds the name again and renames it.
            if not _is_inheritance_cleared(attic):
                self._empty_in_place(directory, name)

    def _empty_in_place(self, parent: int, name: str) -> None:
        with _opened_directory(parent, name) as directory:
            self.empty(directory)

    def _is_subvolume(self, parent: int, name: str) -> bool:
        if not self._is_btrfs:
            return False
        with _opened(parent, name, os.O_PATH | os.O_NOFOLLOW) as fd:
            return btrfs.is_subvolume(fd)


def _remove_entry(parent: int, name: str, *, is_directory: bool, is_inside: bool = True) -> bool:
    """Remove one entry; False: it is a directory that is not empty. The kind may be guessed wrong."""
    for call in (os.rmdir, os.unlink) if is_directory else (os.unlink, os.rmdir):
        try:
            _despite_flags(functools.partial(call, name, dir_fd=parent), parent, name, is_inside=is_inside)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in _NOT_EMPTY:
                return False
            if error.errno not in _WRONG_KIND:
                raise _located(error, parent, name) from error
        else:
            return True
    return False


def _delete_subvolume(parent: int, name: str) -> bool:
    """Delete a subvolume; False when it holds others, and then it can be written to."""
    try:
        btrfs.delete_subvolume(parent, name)
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise _located(error, parent, name) from error
        with _opened_directory(parent, name) as directory:
            btrfs.ensure_writable(directory)
        return False
    return True


def _despite_flags(change: Callable[[], None], parent: int, name: str, *, is_inside: bool = True) -> None:
    """Make the change; when flags forbid it, clear those of the entry and, inside, of its directory."""
    try:
        change()
    except OSError as error:
        # EPERM is of flags (may_delete in fs/namei.c); modes would say EACCES, and do not bind root.
        if error.errno != errno.EPERM:
            raise
        cleared = is_inside and _is_cleared(parent)
        with _opened(parent, name, os.O_PATH | os.O_NOFOLLOW) as entry:
            cleared = _is_entry_cleared(entry) or cleared
        if not cleared:
            raise
        change()


def _is_entry_cleared(entry: int) -> bool:
    # Only these two can be opened without waking a driver or waiting for a peer.
    if stat.S_IFMT(os.fstat(entry).st_mode) not in {stat.S_IFREG, stat.S_IFDIR}:
        return False
    fd = os.open(f"/proc/self/fd/{entry}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _is_cleared(fd)
    finally:
        os.close(fd)


def _is_cleared(fd: int) -> bool:
    """Clear the flags that forbid deletion; tell whether there were any."""
    try:
        return clear_flags(fd, InodeFlag.IMMUTABLE | InodeFlag.APPEND)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return False
        raise


def _is_inheritance_cleared(directory: int) -> bool:
    """Let a directory take entries of any project; tell whether PROJINHERIT made it refuse some."""
    try:
        found = get_project_attributes(directory)
        if found.inherited:
            set_project_attributes(directory, ProjectAttributes(found.project_id, inherited=False))
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return False
        raise
    return found.inherited


def _entries_until_empty(directory: int) -> Iterator[tuple[str, bool]]:
    """Yield (name, is a directory) of what a directory holds, again and again until it holds nothing.

    Names are removed and added while they are read, which readdir may miss.
    """
    found = True
    while found:
        found = False
        with os.scandir(directory) as entries:
            for entry in entries:
                found = True
                yield entry.name, entry.is_dir(follow_symlinks=False)


def _holds_a_directory(directory: int) -> bool:
    with os.scandir(directory) as entries:
        return any(entry.is_dir(follow_symlinks=False) for entry in entries)


def _refuse_mounts(path: str) -> None:
    """Look before anything is removed: later the kernel says EBUSY too, when a part is gone already."""
    below = f"{path}/"
    for entry in read_mounts(target_needle(below)[:-1]):
        if entry.target.startswith(below):
            raise OSError(errno.EBUSY, "a mount point is inside", entry.target)


@contextmanager
def _opened(parent: int, name: str, flags: int) -> Iterator[int]:
    how = OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE)
    try:
        fd = _openat2(parent, os.fsencode(name), how, len(how))
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "it is a mount point", _path(parent, name)) from error
        raise _located(error, parent, name) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _opened_directory(parent: int, name: str) -> AbstractContextManager[int]:
    return _opened(parent, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _located(error: OSError, parent: int, name: str) -> OSError:
    """The same failure with the whole path in it: a name alone does not tell an operator where to look."""
    return OSError(error.errno, error.strerror, _path(parent, name))


def _path(parent: int, name: str) -> str:
    return os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)
