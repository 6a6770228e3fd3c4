"""Volumes staged: attached, and mounted once for all their publications; knows no protocol.

Stage:   claim -> observe the staging path -> the same: return, different: refuse -> remember -> attach and mount -> let
         it grow to its size, if it was expanded.
Unstage: claim -> mounts elsewhere? refuse -> unmount -> wait until the loop device is gone -> forget.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import OrderedDict
from contextlib import ExitStack

from csi_driver.domain import orphans
from csi_driver.domain.backend import Backend
from csi_driver.domain.capabilities import check_capability, same_access
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.extension import Extension
from csi_driver.domain.live_records import LiveRecords
from csi_driver.domain.mounts import VolumeMounts, observe_alive
from csi_driver.domain.pools import Pool
from csi_driver.domain.small_btrfs import made_growable
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import (
    CapabilityExceeded,
    GrowthRefused,
    NotStaged,
    PublicationConflict,
    RecordDamaged,
    TargetOccupied,
    VolumeInUse,
    VolumeNotFound,
)
from csi_driver.faults import crash_point
from csi_driver.linux.mount import MountFlag
from csi_driver.model import Volume, VolumeCapability, VolumeType
from csi_driver.store.runtime import RuntimeState

_log = logging.getLogger("hostvol.staging")
_FIELD = "staging_target_path"
_WITHDRAWN_KEPT = 1000


class Staging:
    """The staged volumes of this node."""

    def __init__(self, mounts: VolumeMounts, catalogue: Catalogue, claims: Claims, extension: Extension) -> None:
        self._mounts = mounts
        self._pools = mounts.pools
        self._catalogue = catalogue
        self._claims = claims
        self._extension = extension
        self._records = LiveRecords(catalogue)
        self._withdrawn: OrderedDict[str, str] = OrderedDict()

    def stage(self, volume_id: str, path: str, capability: VolumeCapability, deadline: float | None) -> None:
        """The volume is mounted at the staging path (raw block: attached). Idempotent.

        Raises: VolumeNotFound, CapabilityExceeded, PublicationConflict, TargetOccupied, VolumeBusy, VolumeDamaged,
            InvalidField, OperationPending.
        """
        call = ("stage", path, capability)
        with self._pools.of(self._catalogue.get(volume_id)).slot():
            self._claims.run(
                ("volume", volume_id),
                call,
                deadline,
                lambda: self.stage_claimed(self._catalogue.get(volume_id), path, capability),
            )

    def unstage(self, volume_id: str, path: str, deadline: float | None) -> None:
        """The volume is neither mounted at the staging path nor attached. Idempotent; no data is deleted.

        Raises: VolumeNotFound; VolumeInUse while it is published; VolumeBusy while something holds it open.
        """
        try:
            pool = self._pools.of(self._catalogue.get(volume_id))
        except VolumeNotFound:
            if self._withdrawn.get(volume_id) == path:
                # Deleted while it was staged: kubelet's own unstage comes later, and would be repeated for ever.
                return
            raise
        except RecordDamaged:
            orphans.unstage(self._pools, volume_id, path)
            return
        with pool.slot():
            self._claims.run(
                ("volume", volume_id),
                ("unstage", path),
                deadline,
                lambda: self._unstage(self._catalogue.get(volume_id), path),
            )

    def withdraw(self, volume: Volume) -> None:
        """Unstage what is only staged, so that the volume can be deleted; the caller holds its claim.

        Raises: VolumeInUse while it is published or held open; VolumeBusy.
        """
        backend = self._pools.backend(volume)
        staged_at = self._mounts.staging_path(volume)
        published = self._mounts.elsewhere(volume, backend, staged_at)
        if published:
            raise VolumeInUse(volume.volume_id, f"mounted at {', '.join(published)}")
        if staged_at:
            self._unstage(volume, staged_at)
            self._remember_withdrawn(volume, staged_at)
        if backend.is_attached(volume):
            backend.release(volume)
        if backend.is_held(volume):
            raise VolumeInUse(volume.volume_id, "its image is open in another process or loop device")
        # What was remembered of mounts that somebody else took away.
        self._mounts.save(volume, RuntimeState())

    def require_staged(self, volume: Volume, backend: Backend, path: str) -> None:
        """The volume is staged at `path`, as a publication needs it; what was staged and got lost is staged again.

        Raises: NotStaged; whatever staging raises.
        """
        if not path:
            raise NotStaged(volume.volume_id, "")
        with TargetPath.if_parent_exists(path, _FIELD, self._pools) as target:
            if target is None:
                raise NotStaged(volume.volume_id, path)
            if self._is_staged_at(volume, backend, target):
                return
            state = self._mounts.state(volume.volume_id)
            if state.staging_target_path != target.path or state.staging_capability is None:
                raise NotStaged(volume.volume_id, path)
        # It was staged there and never unstaged to the end (a failed unstage, an unmount behind our back): kubelet
        # does not stage again before it publishes (kubernetes#106729), so repair what it rightly relies on.
        self.stage_claimed(volume, path, state.staging_capability)

    def stage_claimed(self, volume: Volume, path: str, capability: VolumeCapability) -> None:
        """The same as `stage`, for a caller that holds the volume's claim."""
        check_capability(volume, capability)
        pool = self._pools.of(volume)
        pool.require_present()
        if volume.volume_type is VolumeType.IMAGE:
            # Attached as it is, a half-extended image would be a larger device than its volume.
            volume = made_growable(self._pools, self._extension, self._extension.settle(volume))
        backend = pool.backend(volume)
        with TargetPath(path, _FIELD, self._pools) as target:
            self._require_not_staged_elsewhere(volume, backend, target.path)
            volume = self._disowned(pool, volume)
            self._mounts.unmount_if_dead(volume, backend, target)
            if self._already_staged(volume, backend, target, capability):
                self._remember(volume, target.path, capability, made=False)
                return
            with ExitStack() as undo:
                undo.callback(self._undo_stage, volume, backend, target)
                # Before it is made: a crash in between must not leave a path that nobody knows to be ours to remove.
                self._remember(volume, target.path, capability, made=target.observe() is None)
                crash_point("stage.remembered")
                target.ensure_directory()
                crash_point("stage.path_made")
                self._mount(volume, backend, target, capability)
                undo.pop_all()

    def _disowned(self, pool: Pool, volume: Volume) -> Volume:
        """The volume is not known any more for what it was imported with: whoever uses it may change it."""
        if not volume.content_id:
            return volume
        volume = dataclasses.replace(volume, content_id="", content_mark="")
        self._records.remember(pool, volume)
        crash_point("stage.disowned")
        return volume

    def _require_not_staged_elsewhere(self, volume: Volume, backend: Backend, path: str) -> None:
        held = self._mounts.state(volume.volume_id).staging_target_path
        if held in ("", path):
            return
        if volume.is_block:
            is_staged = backend.is_attached(volume)
        else:
            is_staged = any(entry.target == held for entry in backend.mounts(volume))
        if is_staged:
            raise CapabilityExceeded(f"volume {volume.volume_id} is staged at {held}; unstage it there first")

    def _mount(self, volume: Volume, backend: Backend, target: TargetPath, capability: VolumeCapability) -> None:
        target_fd = target.open_empty_directory()
        try:
            backend.stage(volume, target_fd, capability.mount_flags)
        finally:
            os.close(target_fd)
        crash_point("stage.staged")
        self._finish(volume, backend, target)

    @staticmethod
    def _finish(volume: Volume, backend: Backend, target: TargetPath) -> None:
        if volume.is_block:
            backend.grow(volume, None)
            return
        mounted_fd = target.open_mounted()
        try:
            backend.finish_stage(volume, mounted_fd)
            backend.grow(volume, mounted_fd)
        except GrowthRefused as refused:
            # A smaller filesystem is no reason to keep a workload from its data; an expansion that asks is told.
            _log.warning("%s", refused)
        finally:
            os.close(mounted_fd)

    def _already_staged(
        self, volume: Volume, backend: Backend, target: TargetPath, capability: VolumeCapability
    ) -> bool:
        point = target.observe()
        if volume.is_block:
            target.require_no_mount(point)
            if not backend.is_attached(volume):
                return False
        elif point is None or not point.is_mount:
            return False
        elif not backend.shows(volume, point):
            raise TargetOccupied(target.field, target.path, "something else is mounted there")
        if not self._is_same(volume, target, capability):
            raise PublicationConflict(
                target.path, f"volume {volume.volume_id} is staged there with another volume_capability"
            )
        self._finish(volume, backend, target)
        return True

    def _is_same(self, volume: Volume, target: TargetPath, capability: VolumeCapability) -> bool:
        held = self._mounts.state(volume.volume_id).staging_capability
        if held is not None:
            return same_access(held, capability)
        # Mounted by a process whose memory is lost. Of the kernel's flags only this one is surely the request's: the
        # others may come from the pool's own mount.
        asked_read_only = "ro" in capability.mount_flags
        return volume.is_block or bool(target.mount_flags() & MountFlag.READ_ONLY) == asked_read_only

    def _is_staged_at(self, volume: Volume, backend: Backend, target: TargetPath) -> bool:
        if volume.is_block:
            at = self._mounts.state(volume.volume_id).staging_target_path
            return at == target.path and backend.is_attached(volume)
        point = observe_alive(target)
        return point is not None and point.is_mount and backend.shows(volume, point)

    def _remember(self, volume: Volume, path: str, capability: VolumeCapability, *, made: bool) -> None:
        state = self._mounts.state(volume.volume_id)
        if (state.staging_target_path, state.staging_capability) == (path, capability):
            return
        state.made_staging_path = made or (state.made_staging_path and state.staging_target_path == path)
        state.staging_target_path, state.staging_capability = path, capability
        self._mounts.save(volume, state)

    def _undo_stage(self, volume: Volume, backend: Backend, target: TargetPath) -> None:
        point = target.observe()
        if point is not None and point.is_mount and backend.shows(volume, point):
            target.unmount()
        state = self._mounts.state(volume.volume_id)
        if state.made_staging_path:
            target.remove()
        self._forget(volume)
        if not self._mounts.elsewhere(volume, backend, target.path):
            backend.release(volume)

    def _unstage(self, volume: Volume, path: str) -> None:
        backend = self._pools.backend(volume)
        with TargetPath.if_parent_exists(path, _FIELD, self._pools) as target:
            staged_at = target.path if target is not None else path
            if self._mounts.state(volume.volume_id).staging_target_path not in ("", staged_at):
                # Staged at another path: at this one nothing of the volume is left to undo.
                return
            # An umount of the staging path would succeed and leave the filesystem alive below the publications.
            elsewhere = self._mounts.elsewhere(volume, backend, staged_at)
            if elsewhere:
                raise VolumeInUse(volume.volume_id, f"still published at {', '.join(elsewhere)}; unpublish it first")
            if target is not None:
                self._unmount(volume, backend, target)
        backend.release(volume)
        crash_point("unstage.released")
        # Whatever was published is gone as well: it was looked for above.
        self._mounts.save(volume, RuntimeState())

    def _unmount(self, volume: Volume, backend: Backend, target: TargetPath) -> None:
        if not volume.is_block:
            self._mounts.unmount_all(volume, backend, target)
        crash_point("unstage.unmounted")
        if self._mounts.state(volume.volume_id).made_staging_path:
            target.remove()
            crash_point("unstage.path_removed")

    def _forget(self, volume: Volume) -> None:
        state = self._mounts.state(volume.volume_id)
        state.staging_target_path, state.staging_capability, state.made_staging_path = "", None, False
        self._mounts.save(volume, state)

    def _remember_withdrawn(self, volume: Volume, path: str) -> None:
        self._withdrawn[volume.volume_id] = path
        while len(self._withdrawn) > _WITHDRAWN_KEPT:
            self._withdrawn.popitem(last=False)
