"""Mounts of volumes whose record is damaged: taken away when asked, since only mounts are touched; knows no record.

A pod whose volume cannot be unpublished never ends. What belongs to the volume is told by the kernel alone: the path of
the directory that is bound, or the backing file of the loop device.
"""

from __future__ import annotations

import os

from csi_driver.backends.attachments import IMAGE
from csi_driver.backends.directory import DATA
from csi_driver.domain.pools import Pools
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import TargetOccupied, VolumeInUse
from csi_driver.linux import loop, mountinfo
from csi_driver.store.pool import VOLUMES

_PATIENCE_SECONDS = 0.2


def unpublish(pools: Pools, volume_id: str, target_path: str) -> None:
    """The volume is not mounted at the target path, and the empty target is gone. Idempotent.

    Raises: TargetOccupied when something else is there; OSError.
    """
    with TargetPath.if_parent_exists(target_path, "target_path", pools) as target:
        if target is not None:
            _unmount(volume_id, _devices(volume_id), target)
            target.remove()


def unstage(pools: Pools, volume_id: str, staging_target_path: str) -> None:
    """The volume is not mounted at the staging path, and not attached. Idempotent.

    Raises: TargetOccupied when something else is there; VolumeInUse while it is mounted elsewhere; OSError.
    """
    devices = _devices(volume_id)
    with TargetPath.if_parent_exists(staging_target_path, "staging_target_path", pools) as target:
        if target is not None:
            _unmount(volume_id, devices, target)
    elsewhere = [entry.target for entry in mountinfo.read_mounts() if _is_of(volume_id, devices, entry)]
    if elsewhere:
        raise VolumeInUse(volume_id, f"still published at {', '.join(elsewhere)}; unpublish it first")
    for number, path in _devices(volume_id).items():
        image = os.stat(path)
        loop.detach(number, device=image.st_dev, inode=image.st_ino)


def _unmount(volume_id: str, devices: dict[int, str], target: TargetPath) -> None:
    needle = mountinfo.target_needle(target.path)
    for entry in [entry for entry in mountinfo.read_mounts(needle) if entry.target == target.path]:
        if not _is_of(volume_id, devices, entry):
            raise TargetOccupied(target.field, target.path, f"what is mounted there is not {volume_id}")
        target.unmount_patiently(_PATIENCE_SECONDS)


def _is_of(volume_id: str, devices: dict[int, str], entry: mountinfo.MountEntry) -> bool:
    if entry.root.endswith(f"/{VOLUMES}/{volume_id}/{DATA}"):
        return True
    paths = {loop.device_path(number) for number in devices}
    return entry.source in paths or f"/dev{entry.root}" in paths


def _devices(volume_id: str) -> dict[int, str]:
    """The loop devices over the volume's image, with the image's path."""
    tail = f"/{VOLUMES}/{volume_id}/{IMAGE}"
    return {number: path for number, path in loop.backing_paths() if path.endswith(tail)}
