"""A power cut for one mounted filesystem, by the kernel's own shutdown request; it knows ext4 and XFS.

After the cut nothing more reaches the device: every call on the filesystem fails with EIO. What was durable
is there again after unmounting and mounting.
"""

from __future__ import annotations

import os
from typing import Final

from csi_driver.linux import ioctl

# EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h) and XFS_IOC_GOINGDOWN (fs/xfs/libxfs/xfs_fs.h): one number, and one set
# of flags: *_GOING_FLAGS_LOGFLUSH and *_GOING_FLAGS_NOLOGFLUSH.
SHUTDOWN: Final = ioctl.ior(ord("X"), 125, 4)
LOG_FLUSHED: Final = 1
LOG_LOST: Final = 2


def cut_power(mount_point: str, flush_log: bool) -> None:
    """Stop all writes of the filesystem mounted at `mount_point`, from this instant.

    With `flush_log` what the log holds in memory is written first, so that only data that nobody synced is
    lost; without it everything since the last fsync may be, as when the power fails.

    Raises:
        OSError: ENOTTY: a filesystem that cannot do this; EPERM: without CAP_SYS_ADMIN.
    """
    fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flag = LOG_FLUSHED if flush_log else LOG_LOST
        ioctl.exchange(fd, SHUTDOWN, bytearray(flag.to_bytes(4, "little")))
    finally:
        os.close(fd)
