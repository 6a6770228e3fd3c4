"""Volumes that begin and end with one pod: a publish makes them, its unpublish deletes them; knows no protocol.

An ephemeral volume is an ordinary record whose name is the orchestrator's handle and which says that it is ephemeral.
It has one mount, at its target path, and for everything below it is staged there: the mount of a staging path of its
own would, in a container, be seen by nobody outside and die with the container.

Publish:   claim the handle -> made before? else count it against the pool's ceiling and create it -> stage it at the
           target path. A failure undoes what this call made, since after a final answer kubelet forgets the volume.
Unpublish: claim the handle -> unstage -> remove the empty target -> delete. Whatever step a crash left undone is done
           by the repetition, which kubelet owes to every volume it ever published, also after a reboot.

Nothing is deleted by inference: a volume that no unpublish comes for is told (`left`), and an operator deletes it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from csi_driver.domain import orphans, sizes
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.mounts import VolumeMounts, observe_alive
from csi_driver.domain.staging import Staging
from csi_driver.domain.targets import TargetPath
from csi_driver.domain.volumes import Volumes
from csi_driver.errors import (
    CapabilityExceeded,
    EphemeralCeiling,
    EphemeralForbidden,
    EphemeralUnfinished,
    HostvolError,
    RecordDamaged,
    UndoFailed,
    VolumeInUse,
    VolumeNotFound,
)
from csi_driver.faults import crash_point
from csi_driver.model import PoolName, Publication, Volume, VolumeCapability, VolumeSpec

_FIELD = "target_path"
# pkg/volume/csi of kubelet: SHA-256 of the pod's uid and the volume's name in it.
_KUBELETS_HANDLE = re.compile(r"csi-[0-9a-f]{64}")
_ENDED_KEPT = 1000
# A pod that starts, or comes back after a reboot, publishes sooner.
_LEFT_SECONDS = 900.0


class Ephemeral:
    """The inline ephemeral volumes of this node."""

    def __init__(
        self, mounts: VolumeMounts, staging: Staging, volumes: Volumes, catalogue: Catalogue, claims: Claims
    ) -> None:
        self._mounts = mounts
        self._pools = mounts.pools
        self._staging = staging
        self._volumes = volumes
        self._catalogue = catalogue
        self._claims = claims
        self._lock = threading.Lock()
        self._making: dict[str, tuple[PoolName, int]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._began = time.monotonic()

    def publish(self, spec: VolumeSpec, publication: Publication, deadline: float | None) -> None:
        """The volume called `spec.name` exists and is shown at the target path. Idempotent.

        When it fails for good, nothing of a volume that it made is left; one that was there before keeps its data.

        Raises: EphemeralForbidden, EphemeralCeiling, InsufficientCapacity, VolumeConflict, PublicationConflict,
            CapabilityExceeded, TargetOccupied, InvalidField, EphemeralUnfinished, OperationPending, UndoFailed.
        """
        call = ("publish", spec, publication)
        self._claims.run(_key(spec.name), call, deadline, lambda: self._publish(spec, publication, deadline))

    def unpublish(self, handle: str, target_path: str, deadline: float | None) -> None:
        """The volume is not mounted, the empty target is gone, and the volume with its data too. Idempotent.

        Raises: VolumeInUse while it is mounted anywhere else; VolumeBusy while files are open; TargetOccupied;
            NotReady while it may be in a pool that is not served; OperationPending.
        """
        call = ("unpublish", target_path)
        self._claims.run(_key(handle), call, deadline, lambda: self._unpublish(handle, target_path, deadline))

    def is_handle(self, volume_id: str) -> bool:
        """Whether an unpublish of that id is one of an ephemeral volume, be it there or gone already."""
        if self._catalogue.has(volume_id):
            return False
        if volume_id in self._ended or _KUBELETS_HANDLE.fullmatch(volume_id):
            return True
        try:
            return self.id_of(volume_id) != volume_id
        except RecordDamaged:
            return True

    def id_of(self, handle: str) -> str:
        """The id of the ephemeral volume with that handle; every other id as it is."""
        if self._catalogue.has(handle):
            return handle
        volume = self._catalogue.named(handle)
        return volume.volume_id if volume is not None and volume.is_ephemeral else handle

    def left(self) -> list[Volume]:
        """Those that are mounted nowhere, a quarter of an hour after they and this process began."""
        if time.monotonic() - self._began < _LEFT_SECONDS:
            return []
        before = time.time() - _LEFT_SECONDS
        old = [one for one in self._catalogue.all() if one.is_ephemeral and one.created_at < before]
        return [one for one in old if not self._claims.holds(_key(one.name)) and not self._is_mounted(one)]

    # publish

    def _publish(self, spec: VolumeSpec, publication: Publication, deadline: float | None) -> None:
        if self._catalogue.named(spec.name) is not None:
            self._publish_again(self._volumes.create(spec, deadline), publication, deadline)
            return
        self._require_free(publication.target_path)
        with self._counted(spec), ExitStack() as undo:
            volume = self._volumes.create(spec, deadline)
            undo.callback(self._undo, volume)
            crash_point("ephemeral.created")
            self._show(volume, publication, deadline)
            crash_point("ephemeral.shown")
            undo.pop_all()

    def _publish_again(self, volume: Volume, publication: Publication, deadline: float | None) -> None:
        """Show a volume that an earlier call, or an earlier boot, made."""
        mounted = self._targets(volume)
        with TargetPath(publication.target_path, _FIELD, self._pools) as target:
            if mounted and target.path not in mounted:
                raise CapabilityExceeded(
                    f"ephemeral volume {volume.volume_id} is published at {', '.join(mounted)}; it has one target path"
                )
        try:
            if not mounted:
                self._require_free(publication.target_path)
            self._show(volume, publication, deadline)
        except (HostvolError, OSError) as cause:
            if mounted:
                raise
            # Undone it would be a pod's data lost, and a final answer would have kubelet forget it.
            raise EphemeralUnfinished(volume.volume_id, cause) from cause

    def _show(self, volume: Volume, publication: Publication, deadline: float | None) -> None:
        self._staging.stage(volume.volume_id, publication.target_path, _as_staged(publication), deadline)

    def _require_free(self, path: str) -> None:
        """Refuse a target that could not be mounted on, before anything is made for it."""
        with TargetPath(path, _FIELD, self._pools) as target:
            point = observe_alive(target)
            target.require_no_mount(point)
            if point is not None:
                target.ensure_directory()
                os.close(target.open_empty_directory())

    @contextmanager
    def _counted(self, spec: VolumeSpec) -> Iterator[None]:
        """Count the volume against the ceiling of its pool while it is made, so that two at once do not pass it.

        Raises: EphemeralForbidden, EphemeralCeiling, InvalidField, NotReady.
        """
        pool = self._pools.get(spec.parameters.pool)
        if not pool.ephemeral_bytes:
            raise EphemeralForbidden(pool.name)
        size_bytes = sizes.planned_bytes(spec)
        with self._lock:
            held = self._held_bytes(pool.name)
            if held + size_bytes > pool.ephemeral_bytes:
                raise EphemeralCeiling(pool.name, size_bytes, held, pool.ephemeral_bytes)
            self._making[spec.name] = (pool.name, size_bytes)
        try:
            yield
        finally:
            with self._lock:
                del self._making[spec.name]

    def _held_bytes(self, pool: PoolName) -> int:
        there = {one.name: one.capacity_bytes for one in self._catalogue.all() if one.is_ephemeral and one.pool == pool}
        making = {name: size for name, (where, size) in self._making.items() if where == pool}
        return sum({**there, **making}.values())

    def _undo(self, volume: Volume) -> None:
        try:
            self._volumes.delete(volume.volume_id, None)
        except (HostvolError, OSError) as cause:
            raise UndoFailed(
                f"ephemeral volume {volume.volume_id} could be neither shown nor deleted: {cause}"
            ) from cause

    # unpublish

    def _unpublish(self, handle: str, path: str, deadline: float | None) -> None:
        try:
            volume = self._catalogue.named(handle)
        except RecordDamaged:
            self._unmount_damaged(handle, path)
            return
        if volume is None or not volume.is_ephemeral:
            with suppress(VolumeNotFound):
                # Not gone while it may be in a pool that is not served.
                self._catalogue.get(handle)
            self._remove_target(path)
            return
        self._require_nowhere_else(volume, path)
        self._staging.unstage(volume.volume_id, path, deadline)
        crash_point("ephemeral.unstaged")
        self._remove_target(path)
        crash_point("ephemeral.target_removed")
        self._volumes.delete(volume.volume_id, deadline)
        crash_point("ephemeral.deleted")
        self._remember_ended(handle)

    def _unmount_damaged(self, handle: str, path: str) -> None:
        """Let the pod end; the object stays in quarantine, as all whose record is damaged."""
        for volume_id, name in self._catalogue.quarantined_names().items():
            if name == handle:
                orphans.unpublish(self._pools, volume_id, path)

    def _require_nowhere_else(self, volume: Volume, path: str) -> None:
        with TargetPath.if_parent_exists(path, _FIELD, self._pools) as target:
            elsewhere = self._targets(volume) - {target.path if target is not None else path}
        if elsewhere:
            raise VolumeInUse(volume.volume_id, f"mounted at {', '.join(sorted(elsewhere))}; unmount it there first")

    def _remove_target(self, path: str) -> None:
        with TargetPath.if_parent_exists(path, _FIELD, self._pools) as target:
            if target is not None:
                target.require_no_mount(observe_alive(target))
                target.remove()

    def _remember_ended(self, handle: str) -> None:
        with self._lock:
            self._ended[handle] = None
            while len(self._ended) > _ENDED_KEPT:
                self._ended.popitem(last=False)

    # both

    def _targets(self, volume: Volume) -> set[str]:
        return {entry.target for entry in self._pools.backend(volume).mounts(volume)}

    def _is_mounted(self, volume: Volume) -> bool:
        # An image is attached exactly as long as it is mounted: sysfs is asked sooner than the whole mount table.
        return self._pools.backend(volume).is_attached(volume) or bool(self._targets(volume))


def _key(handle: str) -> tuple[str, str]:
    return ("ephemeral volume", handle)


def _as_staged(publication: Publication) -> VolumeCapability:
    """The capability with which the one mount is what the publication asks for."""
    capability = publication.capability
    if not publication.read_only or "ro" in capability.mount_flags:
        return capability
    return dataclasses.replace(capability, mount_flags=(*capability.mount_flags, "ro"))
