"""Project quotas of XFS and ext4 through quotactl_fd(2); it knows project ids and bytes, and no volume.

Both filesystems answer the generic commands (Q_GETQUOTA, Q_SETQUOTA), so there is one path. Every descriptor
may be any file or directory of the filesystem (O_PATH is not enough for set_project), and stays the caller's.

What a limit is worth: XFS holds root to it and says ENOSPC; ext4 says EDQUOT, and lets whoever has
CAP_SYS_RESOURCE write on (fs/quota/dquot.c, ignore_hardlimit).

Source: include/uapi/linux/quota.h, include/uapi/linux/dqblk_xfs.h, fs/quota/quota.c; quotactl_fd is Linux
5.14.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

from csi_driver.linux.attributes import ProjectAttributes, get_project_attributes, set_project_attributes
from csi_driver.linux.libc import SYS_QUOTACTL_FD, declare

PRJQUOTA: Final = 2
Q_GETINFO: Final = 0x800005
Q_GETQUOTA: Final = 0x800007
Q_SETQUOTA: Final = 0x800008
Q_XGETQSTATV: Final = (ord("X") << 8) + 8

QIF_BLIMITS: Final = 1
QIF_DQBLKSIZE: Final = 1024
FS_QSTATV_VERSION1: Final = 1
FS_QUOTA_PDQ_ACCT: Final = 1 << 4
FS_QUOTA_PDQ_ENFD: Final = 1 << 5

GREATEST_PROJECT_ID: Final = 0xFFFFFFFE  # (projid_t)-1 means "none"

# struct if_dqblk: bhardlimit, bsoftlimit, curspace, ihardlimit, isoftlimit, curinodes, btime, itime, valid.
# Limits are counted in blocks of QIF_DQBLKSIZE, curspace in bytes.
DQBLK: Final = struct.Struct("=QQQQQQQQI4x")
# struct fs_quota_statv begins with qs_version and, after a byte of padding, qs_flags.
STATV: Final = struct.Struct("=bxH156x")
# struct if_dqinfo
DQINFO: Final = struct.Struct("=QQII")

_quotactl = declare(SYS_QUOTACTL_FD, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p)


class ProjectQuotaState(enum.Enum):
    """How far project quotas are on. Only ENFORCED limits anything."""

    UNSUPPORTED = "the kernel or the filesystem has no project quotas"
    OFF = "the filesystem could count projects and is mounted (or was made) without it"
    COUNTED = "projects are counted and limits are not enforced"
    ENFORCED = "limits are enforced"


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """What a project may take and takes: bytes (limit 0: none), and files, directories included."""

    limit_bytes: int
    used_bytes: int
    inodes_used: int


def project_quota_enforced(fd: int) -> bool:
    """Tell whether limits of projects hold on the filesystem of `fd`; False on whatever has no project
    quotas.

    Raises:
        OSError: EPERM (a seccomp filter), EBADF.
    """
    return project_quota_state(fd) is ProjectQuotaState.ENFORCED


def project_quota_state(fd: int) -> ProjectQuotaState:
    """Tell how far project quotas are on, and if not, at whose door it lies.

    One thing no call tells: ext4 also needs the quota format (module quota_v2, CONFIG_QFMT_V2). Where that is missing
    the answer is OFF, and a filesystem with the `project` feature cannot be mounted for writing.

    UNSUPPORTED: a kernel without quotactl_fd or without quotas for this filesystem, or another filesystem; no
    mount option helps. OFF: XFS mounted without `prjquota`, or ext4 without the `quota` and `project`
    features. COUNTED: ext4 that has the features and was mounted without `prjquota`, or XFS with
    `pqnoenforce`.

    Raises:
        OSError: as project_quota_enforced.
    """
    flags = _state_flags(fd)
    if flags & FS_QUOTA_PDQ_ENFD:
        return ProjectQuotaState.ENFORCED
    if flags & FS_QUOTA_PDQ_ACCT:
        return ProjectQuotaState.COUNTED
    return ProjectQuotaState.OFF if _is_known_to_kernel(fd) else ProjectQuotaState.UNSUPPORTED


def get_project(fd: int) -> int:
    """Return the project that a file or directory is charged to; 0 is everything without a project.

    Raises:
        OSError: ENOTTY or EOPNOTSUPP on a filesystem without projects.
    """
    return get_project_attributes(fd).project_id


def set_project(fd: int, project_id: int) -> None:
    """Charge a file or directory to a project; what is created in the directory later is charged there too.

    What a directory holds already keeps its project: call this while it is empty.

    Raises:
        OSError: EINVAL for an id outside 1 … GREATEST_PROJECT_ID, EOPNOTSUPP on ext4 without the `project`
            feature.
    """
    _check_project(project_id)
    # XFS keeps no PROJINHERIT on a file, ext4 keeps it and lsattr shows it: set it where it means something.
    inherited = stat.S_ISDIR(os.fstat(fd).st_mode)
    set_project_attributes(fd, ProjectAttributes(project_id, inherited))


def usage(fd: int, project_id: int) -> QuotaUsage:
    """Return a project's limit and usage, 0 for a project that nothing was ever charged to.

    Used bytes include what is reserved for data in memory (delayed allocation), so there is nothing to sync
    first.

    Raises:
        OSError: EINVAL for a bad id, ENOSYS or ESRCH where projects are not counted.
    """
    _check_project(project_id)
    buffer = bytearray(DQBLK.size)
    try:
        _call(fd, Q_GETQUOTA, project_id, buffer)
    except FileNotFoundError:  # XFS: no quota record was ever written for this id
        return QuotaUsage(0, 0, 0)
    limit_blocks, _, used_bytes, _, _, inodes_used, *_ = DQBLK.unpack(buffer)
    return QuotaUsage(limit_blocks * QIF_DQBLKSIZE, used_bytes, inodes_used)


def set_limit(fd: int, project_id: int, limit_bytes: int) -> None:
    """Let a project hold at most `limit_bytes` (no soft limit, no grace); 0 removes the limit.

    The interface counts in KiB and XFS rounds up to its blocks, so the limit is rounded down to whole
    filesystem blocks (never below 1 KiB): a project cannot hold more than was asked. A limit below the
    present usage is accepted, and only stops growth.

    Raises:
        OSError: EINVAL for a bad id or a limit that rounds to nothing; ENOSYS or ESRCH where projects are not
            counted; EROFS, EPERM.
    """
    _check_project(project_id)
    block = max(QIF_DQBLKSIZE, os.fstatvfs(fd).f_frsize)
    limit_blocks = limit_bytes // block * (block // QIF_DQBLKSIZE)
    if limit_bytes and limit_blocks <= 0:
        raise OSError(errno.EINVAL, f"a limit of {limit_bytes} bytes is less than one block of {block}")
    _call(fd, Q_SETQUOTA, project_id, bytearray(DQBLK.pack(limit_blocks, 0, 0, 0, 0, 0, 0, 0, QIF_BLIMITS)))


def is_free(fd: int, project_id: int) -> bool:
    """Tell whether a project id may be given to somebody: it has no limit, no bytes and no file bears it.

    Raises:
        OSError: as usage.
    """
    return usage(fd, project_id) == QuotaUsage(0, 0, 0)


def _state_flags(fd: int) -> int:
    buffer = bytearray(STATV.pack(FS_QSTATV_VERSION1, 0))
    try:
        _call(fd, Q_XGETQSTATV, 0, buffer)
    except OSError as error:
        # ENOSYS: no quota of any type is on, or none is compiled in. EINVAL: this filesystem knows no
        # projects.
        if error.errno in {errno.ENOSYS, errno.EINVAL}:
            return 0
        raise
    flags: int = STATV.unpack(buffer)[1]
    return flags


def _is_known_to_kernel(fd: int) -> bool:
    try:
        _call(fd, Q_GETINFO, 0, bytearray(DQINFO.size))
    except OSError as error:
        # quota_getinfo: ESRCH once the filesystem has quota operations and project accounting is off.
        return error.errno == errno.ESRCH
    return True


def _call(fd: int, command: int, project_id: int, buffer: bytearray) -> None:
    holder = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    _quotactl(fd, command << 8 | PRJQUOTA, project_id, ctypes.cast(holder, ctypes.c_char_p))


def _check_project(project_id: int) -> None:
    # Project 0 is everybody without a project: on XFS its limit is the default of all others.
    if not 1 <= project_id <= GREATEST_PROJECT_ID:
        raise OSError(errno.EINVAL, f"{project_id} is no project id (1 to {GREATEST_PROJECT_ID})")
