"""How the remains of an object are cleared away, whichever kind it was and however far it was built; knows no volume.

What it clears lies under `tmp/` or `trash/`, where only renames of this driver put things. The record goes last, so a
removal that was cut short is repeated with the same knowledge.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from csi_driver.backends.directory import DATA
from csi_driver.errors import RecordDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import btrfs, btrfs_quota, quota, tree
from csi_driver.store import durable, records

_LIFTABLE: Final = frozenset({quota.ProjectQuotaState.ENFORCED, quota.ProjectQuotaState.COUNTED})


def clear(room_fd: int, name: str) -> None:
    """Nothing of `name` is left below `room_fd`, nor of its quota. Idempotent, also after a crash in its middle.

    Raises: OSError, when something inside is in use (EBUSY names a mount).
    """
    try:
        object_fd = durable.open_directory(name, dir_fd=room_fd)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        durable.unlink_if_there(room_fd, name)
        return
    try:
        _clear_data(object_fd, name)
    finally:
        os.close(object_fd)
    crash_point("clear.data_removed")
    tree.remove_tree(room_fd, name)
    crash_point("clear.removed")


def _clear_data(object_fd: int, name: str) -> None:
    try:
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
    except FileNotFoundError:
        _free_project(object_fd, name)
        return
    try:
        subvolume = btrfs.subvolume_id(data_fd) if btrfs.is_btrfs(data_fd) and btrfs.is_subvolume(data_fd) else 0
    finally:
        os.close(data_fd)
    if subvolume:
        _remove_subvolume(object_fd, subvolume)
    else:
        tree.remove_tree(object_fd, DATA)
    _free_project(object_fd, name)


def _remove_subvolume(object_fd: int, subvolume: int) -> None:
    try:
        btrfs.delete_subvolume(object_fd, DATA)
    except OSError as error:
        # A workload's own subvolumes inside: removed one by one with the rest of the tree.
        if error.errno not in (errno.ENOTEMPTY, errno.EPERM, errno.EROFS):
            raise
        tree.remove_tree(object_fd, DATA)
    crash_point("clear.subvolume_removed")
    if btrfs_quota.quota_enabled(object_fd):
        btrfs_quota.destroy_qgroup(object_fd, subvolume)


def _free_project(object_fd: int, name: str) -> None:
    """Lift the limit of the project that the record names; what a directory bears is the workload's to change."""
    try:
        content = durable.read_small(object_fd, records.RECORD, limit_bytes=1 << 14)
        project_id = int(records.unseal(content, "volume", name)["project_id"])
    except (FileNotFoundError, ValueError, KeyError, RecordDamaged):
        return
    # Where projects are only counted a limit can be lifted as well, and would be back in force after the next mount.
    if project_id and quota.project_quota_state(object_fd) in _LIFTABLE:
        quota.set_limit(object_fd, project_id, 0)
        crash_point("clear.project_freed")
