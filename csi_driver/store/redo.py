"""Blocks that a file is about to get, written down before they are written; knows nothing of what the file holds.

A change of many blocks that must be made as a whole: the log is made durable, then the blocks are written, then the log
goes. Whoever uses the file carries out a log that he finds, which does no harm twice, and never uses the file before.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from csi_driver.errors import RecordDamaged, UndoFailed
from csi_driver.faults import crash_point
from csi_driver.store import durable

_MAGIC = b"hostvol redo 1\n\0"
_ENTRY = struct.Struct("<QI")
_DIGEST_BYTES = hashlib.sha256().digest_size
_LARGEST_BYTES = 1 << 20
# The end of the name of a log that is being written, and counts for nothing.
UNFINISHED = ".new"

Block = tuple[int, bytes]


def write(dir_fd: int, name: str, blocks: Iterable[Block]) -> None:
    """Write down what a file is to hold at which offset, durably; the log counts from then on.

    Raises: OSError: ENOSPC; there is no log then. UndoFailed: there is one, which has to be carried out.
    """
    temporary = f"{name}{UNFINISHED}"
    durable.unlink_if_there(dir_fd, temporary)
    try:
        with open(durable.create(dir_fd, temporary), "wb") as file:
            _write_entries(file, blocks)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        durable.unlink_if_there(dir_fd, temporary)
        raise
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    try:
        os.fsync(dir_fd)
    except OSError as cause:
        raise UndoFailed(f"redo log {name}: written, and not durable ({cause}); repeat the call") from cause
    crash_point("redo.written")


def first(dir_fd: int, name: str) -> Block | None:
    """What the log says first; None when there is no log.

    Raises: RecordDamaged; OSError.
    """
    try:
        log_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    with open(log_fd, "rb") as file:
        return next(_entries(file, name), None)


def drop(dir_fd: int, name: str) -> None:
    """The log counts no more, durably. Idempotent."""
    durable.unlink_if_there(dir_fd, name)
    os.fsync(dir_fd)


def carry_out(dir_fd: int, name: str, target_fd: int) -> bool:
    """Write what the log says to the file, durably, and remove the log; False when there is none. Idempotent.

    Raises: RecordDamaged: the log is not whole, which a crash alone cannot cause; OSError: the log stays.
    """
    try:
        log_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    with open(log_fd, "rb") as file:
        for _ in _entries(file, name):
            pass
        file.seek(0)
        for offset, content in _entries(file, name):
            os.pwrite(target_fd, content, offset)
    os.fsync(target_fd)
    crash_point("redo.carried_out")
    os.unlink(name, dir_fd=dir_fd)
    # Carried out again after the file was used, it would destroy what came later.
    os.fsync(dir_fd)
    crash_point("redo.removed")
    return True


def _write_entries(file: BinaryIO, blocks: Iterable[Block]) -> None:
    digest = hashlib.sha256(_MAGIC)
    file.write(_MAGIC)
    for offset, content in blocks:
        for part in (_ENTRY.pack(offset, len(content)), content):
            digest.update(part)
            file.write(part)
    end = _ENTRY.pack(0, 0)
    digest.update(end)
    file.write(end + digest.digest())


def _entries(file: BinaryIO, where: str) -> Iterator[Block]:
    """Every entry; the last of them is followed by a digest of all, which is compared.

    Raises: RecordDamaged.
    """
    magic = file.read(len(_MAGIC))
    digest = hashlib.sha256(magic)
    while magic == _MAGIC:
        header = file.read(_ENTRY.size)
        digest.update(header)
        if len(header) < _ENTRY.size:
            break
        offset, length = _ENTRY.unpack(header)
        if not length:
            if file.read(_DIGEST_BYTES) == digest.digest():
                return
            break
        content = file.read(min(length, _LARGEST_BYTES))
        digest.update(content)
        yield offset, content
    raise RecordDamaged(where, "it is not a whole redo log")
