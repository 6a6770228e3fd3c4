"""Volumes staged and shown to workloads: observe, compare, act; knows no protocol.

What is mounted is asked of the kernel each time. The runtime state only remembers how it was asked for; it is written
before a mount and corrected after an unmount, so it may name a mount that is gone, but never misses one.

Stage:     claim -> observe the staging path -> the same: return, different: refuse -> remember -> attach and mount.
Publish:   claim -> staged? -> observe the target -> exclusive and elsewhere: refuse -> remember -> bind.
Unpublish: claim -> observe the target -> unmount -> remove the empty target -> forget.
Unstage:   claim -> other mounts? refuse -> unmount -> wait until the loop device is gone -> forget.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from contextlib import ExitStack

from csi_driver.backends import options
from csi_driver.domain.backend import Backend
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.pools import Pools
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import (
    CapabilityExceeded,
    InvalidField,
    NotStaged,
    PublicationConflict,
    TargetOccupied,
    VolumeBusy,
    VolumeInUse,
    VolumeNotAtPath,
)
from csi_driver.faults import crash_point
from csi_driver.linux import mount, mountinfo
from csi_driver.linux.mount import MountFlag
from csi_driver.model import AccessType, Publication, Usage, Volume, VolumeCapability, VolumeType
from csi_driver.store.runtime import RuntimeState


class Publishing:
    """The mounts of this node's volumes."""

    def __init__(self, pools: Pools, catalogue: Catalogue, claims: Claims) -> None:
        self._pools = pools
        self._catalogue = catalogue
        self._claims = claims
        self._states: dict[str, RuntimeState] = {}

    def restore(self, volume_id: str, state: RuntimeState) -> None:
        """Take over what an earlier process of this boot remembered."""
        self._states[volume_id] = state

    def state(self, volume_id: str) -> RuntimeState:
        """What is remembered of the volume; empty when it is not staged."""
        return self._states.get(volume_id) or RuntimeState()

    def stage(
        self, volume_id: str, staging_target_path: str, capability: VolumeCapability, deadline: float | None
    ) -> None:
        """The volume is mounted at the staging path (raw block: attached). Idempotent.

        Raises: VolumeNotFound, CapabilityExceeded, PublicationConflict, VolumeBusy, VolumeDamaged, InvalidField.
        """
        volume = self._catalogue.get(volume_id)
        check_capability(volume, capability)
        call = ("stage", staging_target_path, capability)
        self._claim(volume, call, deadline, lambda: self._stage(volume, staging_target_path, capability))

    def unstage(self, volume_id: str, staging_target_path: str, deadline: float | None) -> None:
        """The volume is neither mounted at the staging path nor attached. Idempotent; no data is deleted.

        Raises: VolumeNotFound; VolumeInUse while it is published; VolumeBusy while something holds it open.
        """
        volume = self._catalogue.get(volume_id)
        call = ("unstage", staging_target_path)
        self._claim(volume, call, deadline, lambda: self._unstage(volume, staging_target_path))

    def publish(
        self, volume_id: str, staging_target_path: str, publication: Publication, deadline: float | None
    ) -> None:
        """The staged volume is shown at the target path. Idempotent.

        Raises: VolumeNotFound, NotStaged, CapabilityExceeded, PublicationConflict, InvalidField.
        """
        volume = self._catalogue.get(volume_id)
        check_capability(volume, publication.capability)
        call = ("publish", staging_target_path, publication)
        self._claim(volume, call, deadline, lambda: self._publish(volume, staging_target_path, publication))

    def unpublish(self, volume_id: str, target_path: str, deadline: float | None) -> None:
        """The volume is not mounted at the target path, and the empty target is gone. Idempotent; no data is deleted.

        Raises: VolumeNotFound; VolumeBusy while files are open; PublicationConflict when something else is there.
        """
        volume = self._catalogue.get(volume_id)
        self._claim(volume, ("unpublish", target_path), deadline, lambda: self._unpublish(volume, target_path))

    def usage(self, volume_id: str, volume_path: str, deadline: float | None) -> Usage:
        """How full the volume is that is mounted at `volume_path`.

        One call per volume at a time asks the kernel, so that a filesystem that hangs holds one thread.

        Raises: VolumeNotFound; VolumeNotAtPath.
        """
        volume = self._catalogue.get(volume_id)
        key = ("statistics of volume", volume_id)
        with self._pools.of(volume).question():
            return self._claims.run(key, volume_path, deadline, lambda: self._usage(volume, volume_path))

    def withdraw(self, volume: Volume) -> None:
        """Unstage what is only staged, so that the volume can be deleted; the caller holds its claim.

        Raises: VolumeInUse while it is published or held open; VolumeBusy.
        """
        state = self.state(volume.volume_id)
        backend = self._pools.backend(volume)
        staged_at = state.staging_target_path
        published = [entry.target for entry in backend.mounts(volume) if entry.target != staged_at]
        if published:
            raise VolumeInUse(volume.volume_id, f"mounted at {', '.join(published)}")
        if staged_at:
            self._unstage(volume, staged_at)
        if backend.is_attached(volume):
            backend.release(volume)
        if backend.is_held(volume):
            raise VolumeInUse(volume.volume_id, "its image is open in another process or loop device")
        # What was remembered of mounts that somebody else took away.
        self._save(volume, RuntimeState())

    def _claim(self, volume: Volume, call: object, deadline: float | None, work: Callable[[], None]) -> None:
        with self._pools.of(volume).slot():
            self._claims.run(("volume", volume.volume_id), call, deadline, work)

    # stage

    def _stage(self, volume: Volume, path: str, capability: VolumeCapability) -> None:
        backend = self._backend_of_live(volume)
        with TargetPath(path, "staging_target_path", self._pools) as target:
            self._require_not_staged_elsewhere(volume, backend, target.path)
            self._unmount_if_dead(volume, backend, target)
            if self._already_staged(volume, backend, target, capability):
                made = self.state(volume.volume_id).made_staging_path
                self._remember_staging(volume, target.path, capability, made=made)
                return
            with ExitStack() as undo:
                undo.callback(self._undo_stage, volume, target)
                # Before it is made: a crash in between must not leave a path that nobody knows to be ours to remove.
                self._remember_staging(volume, target.path, capability, made=target.observe() is None)
                crash_point("stage.remembered")
                target.ensure_directory()
                crash_point("stage.path_made")
                self._mount_staging(volume, backend, target, capability)
                undo.pop_all()

    def _require_not_staged_elsewhere(self, volume: Volume, backend: Backend, path: str) -> None:
        held = self.state(volume.volume_id).staging_target_path
        if held in ("", path):
            return
        if volume.is_block:
            is_staged = backend.is_attached(volume)
        else:
            is_staged = any(entry.target == held for entry in backend.mounts(volume))
        if is_staged:
            raise CapabilityExceeded(f"volume {volume.volume_id} is staged at {held}; unstage it there first")

    def _mount_staging(
        self, volume: Volume, backend: Backend, target: TargetPath, capability: VolumeCapability
    ) -> None:
        target_fd = target.open_empty_directory()
        try:
            backend.stage(volume, target_fd, capability.mount_flags)
        finally:
            os.close(target_fd)
        crash_point("stage.staged")
        self._finish_stage(volume, backend, target)

    @staticmethod
    def _finish_stage(volume: Volume, backend: Backend, target: TargetPath) -> None:
        if volume.is_block:
            return
        mounted_fd = target.open_mounted()
        try:
            backend.finish_stage(volume, mounted_fd)
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
        if not self._same_staging(volume, target, capability):
            raise PublicationConflict(
                target.path, f"volume {volume.volume_id} is staged there with another volume_capability"
            )
        self._finish_stage(volume, backend, target)
        return True

    def _same_staging(self, volume: Volume, target: TargetPath, capability: VolumeCapability) -> bool:
        held = self.state(volume.volume_id).staging_capability
        if held is not None:
            return _same_access(held, capability)
        # Mounted by a process whose memory is lost: the kernel's flags are all that can be compared.
        return volume.is_block or target.mount_flags() == options.expected_flags(volume.fs_type, capability)

    def _remember_staging(self, volume: Volume, path: str, capability: VolumeCapability, *, made: bool) -> None:
        state = self.state(volume.volume_id)
        if (state.staging_target_path, state.staging_capability) == (path, capability):
            return
        state.made_staging_path = made or (state.made_staging_path and state.staging_target_path == path)
        state.staging_target_path, state.staging_capability = path, capability
        self._save(volume, state)

    def _undo_stage(self, volume: Volume, target: TargetPath) -> None:
        point = target.observe()
        if point is not None and point.is_mount:
            target.unmount()
        self._pools.backend(volume).release(volume)
        if self.state(volume.volume_id).made_staging_path:
            target.remove()
        self._forget_staging(volume)

    # unstage

    def _unstage(self, volume: Volume, path: str) -> None:
        backend = self._pools.backend(volume)
        with TargetPath.if_parent_exists(path, "staging_target_path", self._pools) as target:
            staged_at = target.path if target is not None else path
            if self.state(volume.volume_id).staging_target_path not in ("", staged_at):
                # Staged at another path: at this one nothing of the volume is left to undo.
                return
            self._require_unpublished(volume, backend, staged_at)
            if target is not None:
                self._unmount_staging(volume, backend, target)
        backend.release(volume)
        crash_point("unstage.released")
        self._forget_staging(volume)

    @staticmethod
    def _require_unpublished(volume: Volume, backend: Backend, staged_at: str) -> None:
        # An umount of the staging path would succeed and leave the filesystem alive below the publications.
        elsewhere = [entry.target for entry in backend.mounts(volume) if entry.target != staged_at]
        if elsewhere:
            raise VolumeInUse(volume.volume_id, f"still published at {', '.join(elsewhere)}; unpublish it first")

    def _unmount_staging(self, volume: Volume, backend: Backend, target: TargetPath) -> None:
        if not volume.is_block:
            self._unmount_all(volume, backend, target)
        crash_point("unstage.unmounted")
        if self.state(volume.volume_id).made_staging_path:
            target.remove()
            crash_point("unstage.path_removed")

    def _forget_staging(self, volume: Volume) -> None:
        # Whatever was published is gone as well: unstage looks before it comes here.
        self._save(volume, RuntimeState())

    # publish

    def _publish(self, volume: Volume, staging_target_path: str, publication: Publication) -> None:
        backend = self._backend_of_live(volume)
        self._require_staged(volume, backend, staging_target_path)
        with TargetPath(publication.target_path, "target_path", self._pools) as target:
            publication = dataclasses.replace(publication, target_path=target.path)
            self._require_no_staging_path(volume, target)
            self._unmount_if_dead(volume, backend, target)
            if self._already_published(volume, backend, target, publication):
                return
            self._require_compatible(volume, backend, publication)
            with ExitStack() as undo:
                undo.callback(self._forget_publication, volume, target.path)
                self._remember_publication(volume, publication)
                crash_point("publish.remembered")
                if target.ensure_file() if volume.is_block else target.ensure_directory():
                    undo.callback(target.remove)
                crash_point("publish.target_made")
                self._bind(volume, backend, staging_target_path, target, publication)
                crash_point("publish.bound")
                undo.pop_all()

    def _bind(
        self, volume: Volume, backend: Backend, staging: str, target: TargetPath, publication: Publication
    ) -> None:
        with ExitStack() as opened:
            source_fd = backend.device_fd(volume, read_only=publication.read_only)
            if source_fd is None:
                staged = opened.enter_context(TargetPath(staging, "staging_target_path", self._pools))
                source_fd = staged.open_mounted()
            opened.callback(os.close, source_fd)
            target_fd = target.open_empty_file() if volume.is_block else target.open_empty_directory()
            opened.callback(os.close, target_fd)
            mount.bind(source_fd, target_fd, flags=_publication_flags(volume, publication))

    def _require_staged(self, volume: Volume, backend: Backend, path: str) -> None:
        if not path:
            raise NotStaged(volume.volume_id, "")
        with TargetPath.if_parent_exists(path, "staging_target_path", self._pools) as target:
            if target is None:
                raise NotStaged(volume.volume_id, path)
            if self._is_staged_at(volume, backend, target):
                return
            state = self.state(volume.volume_id)
            if state.staging_target_path != target.path or state.staging_capability is None:
                raise NotStaged(volume.volume_id, path)
        # It was staged there and never unstaged to the end (a failed unstage, an unmount behind our back): kubelet
        # does not stage again before it publishes (kubernetes#106729), so repair what it rightly relies on.
        self._stage(volume, path, state.staging_capability)

    def _is_staged_at(self, volume: Volume, backend: Backend, target: TargetPath) -> bool:
        if volume.is_block:
            at = self.state(volume.volume_id).staging_target_path
            return at == target.path and backend.is_attached(volume)
        point = _observe_alive(target)
        return point is not None and point.is_mount and backend.shows(volume, point)

    def _require_no_staging_path(self, volume: Volume, target: TargetPath) -> None:
        if target.path == self.state(volume.volume_id).staging_target_path:
            raise InvalidField(target.field, target.path, "a path other than staging_target_path")

    def _already_published(
        self, volume: Volume, backend: Backend, target: TargetPath, publication: Publication
    ) -> bool:
        point = target.observe()
        if point is None or not point.is_mount:
            return False
        if not backend.shows(volume, point):
            raise TargetOccupied(target.field, target.path, "something else is mounted there")
        if not self._same_publication(volume, target, publication):
            raise PublicationConflict(
                target.path,
                f"volume {volume.volume_id} is published there with another volume_capability or readonly",
            )
        return True

    def _same_publication(self, volume: Volume, target: TargetPath, publication: Publication) -> bool:
        held = self.state(volume.volume_id).publications.get(target.path)
        if held is None:
            # Mounted by a process whose memory is lost.
            return volume.is_block or bool(target.mount_flags() & MountFlag.READ_ONLY) == publication.read_only
        return held.read_only == publication.read_only and _same_access(held.capability, publication.capability)

    def _require_compatible(self, volume: Volume, backend: Backend, publication: Publication) -> None:
        """Refuse a second publication that an access mode forbids, or that a block device cannot honour."""
        state = self.state(volume.volume_id)
        if not publication.capability.access_mode.is_exclusive and not state.publications:
            return
        mounted = {entry.target for entry in backend.mounts(volume)}
        for target_path in mounted - {publication.target_path, state.staging_target_path}:
            _require_side_by_side(volume, publication, target_path, state.publications.get(target_path))

    def _remember_publication(self, volume: Volume, publication: Publication) -> None:
        state = self.state(volume.volume_id)
        state.publications[publication.target_path] = publication
        self._save(volume, state)

    # unpublish

    def _unpublish(self, volume: Volume, path: str) -> None:
        backend = self._pools.backend(volume)
        with TargetPath.if_parent_exists(path, "target_path", self._pools) as target:
            if target is None:
                self._forget_publication(volume, path)
                return
            self._require_no_staging_path(volume, target)
            self._unmount_all(volume, backend, target)
            crash_point("unpublish.unmounted")
            target.remove()
            crash_point("unpublish.removed")
            self._forget_publication(volume, target.path)

    def _forget_publication(self, volume: Volume, path: str) -> None:
        state = self._states.get(volume.volume_id)
        if state is not None and state.publications.pop(path, None) is not None:
            self._save(volume, state)

    # usage

    def _usage(self, volume: Volume, path: str) -> Usage:
        backend = self._pools.backend(volume)
        try:
            with TargetPath(path, "volume_path", self._pools) as target:
                return self._usage_at(volume, backend, target)
        except InvalidField as cause:
            raise VolumeNotAtPath(volume.volume_id, path) from cause

    @staticmethod
    def _usage_at(volume: Volume, backend: Backend, target: TargetPath) -> Usage:
        # Kubelet asks for a block volume's path through a symbolic link of its own; looking is harmless.
        path_fd = target.open_following()
        if path_fd is None:
            raise VolumeNotAtPath(volume.volume_id, target.path)
        try:
            point = mountinfo.observe(path_fd)
            if not (point.is_mount or volume.is_block) or not backend.shows(volume, point):
                raise VolumeNotAtPath(volume.volume_id, target.path)
            return backend.usage(volume, path_fd)
        finally:
            os.close(path_fd)

    # shared

    def _backend_of_live(self, volume: Volume) -> Backend:
        pool = self._pools.of(volume)
        pool.require_present()
        return pool.backend(volume)

    def _save(self, volume: Volume, state: RuntimeState) -> None:
        if state.is_empty:
            self._states.pop(volume.volume_id, None)
        else:
            self._states[volume.volume_id] = state
        self._pools.of(volume).runtime.save(volume.volume_id, state)

    def _unmount_all(self, volume: Volume, backend: Backend, target: TargetPath) -> None:
        """Nothing of this volume is mounted at the target afterwards, also where mounts were stacked."""
        while True:
            if self._unmount_if_dead(volume, backend, target):
                continue
            point = target.observe()
            if point is None or not point.is_mount:
                return
            if not backend.shows(volume, point):
                raise TargetOccupied(target.field, target.path, f"what is mounted there is not {volume.volume_id}")
            _unmount(volume, target)

    def _unmount_if_dead(self, volume: Volume, backend: Backend, target: TargetPath) -> bool:
        """Take away a mount of this volume whose filesystem has gone; tell whether there was one."""
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


def check_capability(volume: Volume, capability: VolumeCapability) -> None:
    """Refuse a capability that the volume does not have.

    Raises: CapabilityExceeded naming the field.
    """
    if capability.access_type is not volume.access_type:
        raise CapabilityExceeded(
            f"volume_capability: volume {volume.volume_id} is a {volume.access_type} volume, asked was "
            f"{capability.access_type}"
        )
    if capability.fs_type and volume.volume_type is VolumeType.IMAGE and capability.fs_type != volume.fs_type:
        raise CapabilityExceeded(
            f"volume_capability.mount.fs_type: volume {volume.volume_id} holds {volume.fs_type}, asked was "
            f"{capability.fs_type!r}"
        )
    if capability.access_type is AccessType.MOUNT:
        options.checked(volume.fs_type, capability.mount_flags)


def _same_access(held: VolumeCapability, asked: VolumeCapability) -> bool:
    """Whether two capabilities ask for the same; an empty fs_type means the volume's own."""
    return (held.access_mode, held.mount_flags) == (asked.access_mode, asked.mount_flags)


def _require_side_by_side(volume: Volume, publication: Publication, other_path: str, other: Publication | None) -> None:
    """Refuse `publication` beside the one at `other_path` (None: published by a process whose memory is lost)."""
    modes = {publication.capability.access_mode, *([other.capability.access_mode] if other else [])}
    exclusive = [mode for mode in modes if mode.is_exclusive]
    if exclusive:
        raise CapabilityExceeded(
            f"volume {volume.volume_id} is published at {other_path}; access mode {exclusive[0]} allows one target path"
        )
    if volume.is_block and other is not None and other.read_only != publication.read_only:
        raise CapabilityExceeded(
            f"block volume {volume.volume_id} is published at {other_path} with readonly={other.read_only}; a device "
            "is read-only for all or for nobody"
        )


def _publication_flags(volume: Volume, publication: Publication) -> MountFlag:
    wanted = MountFlag.READ_ONLY if publication.read_only else MountFlag(0)
    if volume.is_block:
        # A device node under nodev could not be opened.
        return wanted
    return wanted | options.checked(volume.fs_type, publication.capability.mount_flags).flags


def _observe_alive(target: TargetPath) -> mountinfo.MountPoint | None:
    try:
        return target.observe()
    except OSError as error:
        if mountinfo.is_dead_mount(error):
            return None
        raise


def _unmount(volume: Volume, target: TargetPath) -> None:
    try:
        target.unmount()
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise VolumeBusy(volume.volume_id, f"files below {target.path} are open") from error
        raise
