"""Volumes shown to workloads: observe, compare, act; knows no protocol.

Publish:   claim -> staged? -> observe the target -> exclusive and elsewhere: refuse -> remember -> bind.
Unpublish: claim -> observe the target -> unmount -> remove the empty target -> forget.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack

from csi_driver.backends import options
from csi_driver.domain import orphans
from csi_driver.domain.backend import Backend
from csi_driver.domain.capabilities import check_capability, same_access
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.staging import Staging
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import (
    CapabilityExceeded,
    InvalidField,
    NotStaged,
    PublicationConflict,
    RecordDamaged,
    TargetOccupied,
)
from csi_driver.faults import crash_point
from csi_driver.linux import mount, mountinfo
from csi_driver.linux.mount import MountFlag
from csi_driver.model import Publication, Volume

_FIELD = "target_path"


class Publishing:
    """The publications of this node's volumes."""

    def __init__(self, mounts: VolumeMounts, staging: Staging, catalogue: Catalogue, claims: Claims) -> None:
        self._mounts = mounts
        self._pools = mounts.pools
        self._staging = staging
        self._catalogue = catalogue
        self._claims = claims

    def publish(
        self, volume_id: str, staging_target_path: str, publication: Publication, deadline: float | None
    ) -> None:
        """The staged volume is shown at the target path. Idempotent.

        Raises: VolumeNotFound, NotStaged, CapabilityExceeded, PublicationConflict, TargetOccupied, InvalidField,
            OperationPending.
        """
        call = ("publish", staging_target_path, publication)
        with self._pools.of(self._catalogue.get(volume_id)).slot():
            self._claims.run(
                ("volume", volume_id),
                call,
                deadline,
                lambda: self._publish(self._catalogue.get(volume_id), staging_target_path, publication),
            )

    def unpublish(self, volume_id: str, target_path: str, deadline: float | None) -> None:
        """The volume is not mounted at the target path, and the empty target is gone. Idempotent; no data is deleted.

        Raises: VolumeNotFound; VolumeBusy while files are open; TargetOccupied when something else is there.
        """
        try:
            pool = self._pools.of(self._catalogue.get(volume_id))
        except RecordDamaged:
            orphans.unpublish(self._pools, volume_id, target_path)
            return
        with pool.slot():
            self._claims.run(
                ("volume", volume_id),
                ("unpublish", target_path),
                deadline,
                lambda: self._unpublish(self._catalogue.get(volume_id), target_path),
            )

    def _publish(self, volume: Volume, staging_target_path: str, publication: Publication) -> None:
        check_capability(volume, publication.capability)
        pool = self._pools.of(volume)
        pool.require_present()
        backend = pool.backend(volume)
        self._staging.require_staged(volume, backend, staging_target_path)
        with TargetPath(publication.target_path, _FIELD, self._pools) as target:
            publication = dataclasses.replace(publication, target_path=target.path)
            self._require_no_staging_path(volume, target)
            self._mounts.unmount_if_dead(volume, backend, target)
            if self._already_published(volume, backend, target, publication):
                return
            self._require_compatible(volume, backend, publication)
            with ExitStack() as undo:
                undo.callback(self._forget, volume, target.path)
                self._remember(volume, publication)
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
            # Looked at through the descriptor that is bound: a staging path that was unmounted meanwhile is a directory
            # of the machine, which no workload may see.
            if not backend.shows(volume, mountinfo.observe(source_fd)):
                raise NotStaged(volume.volume_id, staging)
            target_fd = target.open_empty_file() if volume.is_block else target.open_empty_directory()
            opened.callback(os.close, target_fd)
            mount.bind(source_fd, target_fd, flags=_mount_flags(volume, publication))

    def _require_no_staging_path(self, volume: Volume, target: TargetPath) -> None:
        if target.path == self._mounts.state(volume.volume_id).staging_target_path:
            raise InvalidField(target.field, target.path, "a path other than staging_target_path")

    def _already_published(
        self, volume: Volume, backend: Backend, target: TargetPath, publication: Publication
    ) -> bool:
        point = target.observe()
        if point is None or not point.is_mount:
            return False
        if not backend.shows(volume, point):
            raise TargetOccupied(target.field, target.path, "something else is mounted there")
        if not self._is_same(volume, backend, target, publication):
            raise PublicationConflict(
                target.path,
                f"volume {volume.volume_id} is published there with another volume_capability or readonly",
            )
        return True

    def _is_same(self, volume: Volume, backend: Backend, target: TargetPath, publication: Publication) -> bool:
        held = self._mounts.state(volume.volume_id).publications.get(target.path)
        if held is not None:
            return held.read_only == publication.read_only and same_access(held.capability, publication.capability)
        # Mounted by a process whose memory is lost.
        if volume.is_block:
            return backend.is_device_read_only(volume) == publication.read_only
        return bool(target.mount_flags() & MountFlag.READ_ONLY) == publication.read_only

    def _require_compatible(self, volume: Volume, backend: Backend, publication: Publication) -> None:
        """Refuse a second publication that an access mode forbids, or that a block device cannot honour."""
        state = self._mounts.state(volume.volume_id)
        if not (publication.capability.access_mode.is_exclusive or state.publications or volume.is_block):
            return
        for target_path in self._mounts.elsewhere(volume, backend, state.staging_target_path):
            if target_path == publication.target_path:
                continue
            other = state.publications.get(target_path)
            _require_shareable(volume, publication, target_path, other)
            if volume.is_block and backend.is_device_read_only(volume) != publication.read_only:
                raise CapabilityExceeded(
                    f"block volume {volume.volume_id} is published at {target_path} with readonly="
                    f"{not publication.read_only}; a device is read-only for all or for nobody"
                )

    def _remember(self, volume: Volume, publication: Publication) -> None:
        state = self._mounts.state(volume.volume_id)
        state.publications[publication.target_path] = publication
        self._mounts.save(volume, state)

    def _unpublish(self, volume: Volume, path: str) -> None:
        backend = self._pools.backend(volume)
        with TargetPath.if_parent_exists(path, _FIELD, self._pools) as target:
            if target is None:
                self._forget(volume, path)
                return
            self._require_no_staging_path(volume, target)
            self._mounts.unmount_all(volume, backend, target)
            crash_point("unpublish.unmounted")
            target.remove()
            crash_point("unpublish.removed")
            self._forget(volume, target.path)

    def _forget(self, volume: Volume, path: str) -> None:
        state = self._mounts.state(volume.volume_id)
        if state.publications.pop(path, None) is not None:
            self._mounts.save(volume, state)


def _require_shareable(volume: Volume, publication: Publication, other_path: str, other: Publication | None) -> None:
    """Refuse `publication` beside the one at `other_path` (None: published by a process whose memory is lost)."""
    modes = {publication.capability.access_mode, *([other.capability.access_mode] if other else [])}
    exclusive = [mode for mode in modes if mode.is_exclusive]
    if exclusive:
        raise CapabilityExceeded(
            f"volume {volume.volume_id} is published at {other_path}; access mode {exclusive[0]} allows one target path"
        )


def _mount_flags(volume: Volume, publication: Publication) -> MountFlag:
    wanted = MountFlag.READ_ONLY if publication.read_only else MountFlag(0)
    if volume.is_block:
        # A device node under nodev could not be opened.
        return wanted
    return wanted | options.checked(volume.fs_type, publication.capability.mount_flags).flags
