"""The mounts of this node's volumes, and what is remembered of the requests behind them; knows no request.

What is mounted is asked of the kernel each time. The runtime state only remembers how it was asked for; it is written
before a mount and corrected after an unmount, so it may name a mount that is gone, but never misses one.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from csi_driver.domain.backend import Backend
from csi_driver.domain.pools import Pools
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import TargetOccupied, VolumeBusy, VolumeNotAtPath
from csi_driver.linux import mountinfo
from csi_driver.linux.loop import is_loop_device
from csi_driver.model import Volume
from csi_driver.store.runtime import RuntimeState

_PATIENCE_SECONDS: Final = 0.2


class VolumeMounts:
    """Where volumes are mounted; the caller holds the claim of the volume that it asks about."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools
        self._states: dict[str, RuntimeState] = {}

    def restore(self, volume_id: str, state: RuntimeState) -> None:
        """Take over what an earlier process of this boot remembered."""
        self._states[volume_id] = state

    def state(self, volume_id: str) -> RuntimeState:
        """What is remembered of the volume; empty when it is not staged."""
        return self._states.get(volume_id) or RuntimeState()

    def staging_path(self, volume: Volume) -> str:
        """Where the volume is staged and no workload sees it; empty for an ephemeral one, staged at its target path."""
        return "" if volume.is_ephemeral else self.state(volume.volume_id).staging_target_path

    def save(self, volume: Volume, state: RuntimeState) -> None:
        """Remember `state`, or forget the volume when it is empty."""
        if state.is_empty:
            self._states.pop(volume.volume_id, None)
        else:
            self._states[volume.volume_id] = state
        self.pools.of(volume).runtime.save(volume.volume_id, state)

    def elsewhere(self, volume: Volume, backend: Backend, staged_at: str) -> list[str]:
        """Everywhere but at its staging path that the volume is mounted."""
        found = {entry.target for entry in backend.mounts(volume)}
        if volume.is_block:
            # The node of a device that was taken away from under its publication is still there, and the number will
            # be given to another volume: such a target has to go first.
            found |= {target for target in self.state(volume.volume_id).publications if _is_loop_mount(target)}
        return sorted(found - {staged_at})

    def unmount_all(self, volume: Volume, backend: Backend, target: TargetPath) -> None:
        """Nothing of this volume is mounted at the target afterwards, also where mounts were stacked.

        Raises: TargetOccupied when something else is mounted there; VolumeBusy while files are open.
        """
        while True:
            if self.unmount_if_dead(volume, backend, target):
                continue
            point = target.observe()
            if point is None or not point.is_mount:
                return
            if not backend.shows(volume, point) and not self._is_stale_device(volume, target, point):
                raise TargetOccupied(target.field, target.path, f"what is mounted there is not {volume.volume_id}")
            _unmount(volume, target)

    def unmount_if_dead(self, volume: Volume, backend: Backend, target: TargetPath) -> bool:
        """Take away a mount of this volume whose filesystem has gone; tell whether there was one.

        Raises: TargetOccupied when what is dead is not this volume; VolumeBusy.
        """
        try:
            target.observe()
        except OSError as error:
            if not mountinfo.is_dead_mount(error):
                raise
        else:
            return False
        if not any(entry.target == target.path for entry in backend.mounts(volume)):
            raise TargetOccupied(target.field, target.path, f"a dead mount that is not {volume.volume_id} is there")
        _unmount(volume, target)
        return True

    def _is_stale_device(self, volume: Volume, target: TargetPath, point: mountinfo.MountPoint) -> bool:
        """Whether this is the device node that the volume was published with, whoever has the device now."""
        remembered = target.path in self.state(volume.volume_id).publications
        return volume.is_block and remembered and is_loop_device(point.special_device)


def open_shown(volume: Volume, backend: Backend, target: TargetPath) -> int:
    """An O_PATH descriptor, the caller's, of what is at the target: this volume, mounted or as a device.

    Through symbolic links: kubelet asks for a block volume's path by one of its own, and looking is harmless.

    Raises: VolumeNotAtPath.
    """
    path_fd = target.open_following()
    if path_fd is None:
        raise VolumeNotAtPath(volume.volume_id, target.path)
    try:
        point = mountinfo.observe(path_fd)
        if not (point.is_mount or volume.is_block) or not backend.shows(volume, point):
            raise VolumeNotAtPath(volume.volume_id, target.path)
    except BaseException:
        os.close(path_fd)
        raise
    return path_fd


def observe_alive(target: TargetPath) -> mountinfo.MountPoint | None:
    """What is at the target; None also when it is a mount whose filesystem has gone."""
    try:
        return target.observe()
    except OSError as error:
        if mountinfo.is_dead_mount(error):
            return None
        raise


def _is_loop_mount(path: str) -> bool:
    try:
        point = mountinfo.observe(path)
    except OSError:
        return False
    return point.is_mount and point.is_block_device and is_loop_device(point.special_device)


def _unmount(volume: Volume, target: TargetPath) -> None:
    try:
        # Patient, since a look at the volume's statistics holds it for some microseconds.
        target.unmount_patiently(_PATIENCE_SECONDS)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise VolumeBusy(volume.volume_id, f"files below {target.path} are open") from error
        raise
