"""Volumes made larger, in two halves as CSI has them; knows no protocol.

Controller: claim -> compare -> promise the space -> extend what holds the bytes -> record. That is all for raw block
            and directories.
Node:       claim -> is it there? -> the device takes the size of its image, the filesystem that of its device.

Nothing ever shrinks. What the node's half could not do (an ext4 that may not grow while it is mounted, a node that was
down) is done by the next stage.
"""

from __future__ import annotations

import errno
import os

from csi_driver.domain import sizes
from csi_driver.domain.capabilities import require_capability
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.extension import Extension
from csi_driver.domain.mounts import VolumeMounts, open_shown
from csi_driver.domain.pools import Pool
from csi_driver.domain.small_btrfs import made_growable
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import CapacityOutOfRange, InvalidField, NoRoomToGrow, VolumeNotAtPath
from csi_driver.linux import mountinfo
from csi_driver.model import CapacityRange, Volume, VolumeCapability

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_FIELD = "volume_path"


class Growth:
    """The expansions of this node's volumes."""

    def __init__(self, mounts: VolumeMounts, catalogue: Catalogue, claims: Claims, extension: Extension) -> None:
        self._mounts = mounts
        self._pools = mounts.pools
        self._catalogue = catalogue
        self._claims = claims
        self._extension = extension

    def expand(
        self,
        volume_id: str,
        asked: CapacityRange,
        capability: VolumeCapability | None,
        deadline: float | None,
    ) -> Volume:
        """The volume has at least the size that is asked, durably; one that has it already stays as it is.

        A filesystem in it still has the old size: `expand_on_node`, or the next stage, lets it grow. Idempotent.

        Raises: VolumeNotFound; CapacityOutOfRange; CapabilityAbsent; NoRoomToGrow; GrowthRefused; OperationPending;
            UndoFailed.
        """
        with self._pools.of(self._catalogue.get(volume_id)).slot():
            return self._claims.run(
                ("volume", volume_id),
                ("expand", asked, capability),
                deadline,
                lambda: self._expand(self._catalogue.get(volume_id), asked, capability),
            )

    def expand_on_node(
        self,
        volume_id: str,
        path: str,
        asked: CapacityRange,
        capability: VolumeCapability | None,
        deadline: float | None,
    ) -> Volume:
        """The volume that is staged or published at `path` is as large for its users as it is. Idempotent.

        Raises: VolumeNotFound; VolumeNotAtPath; CapacityOutOfRange; CapabilityAbsent; GrowthRefused; VolumeBusy;
            OperationPending.
        """
        with self._pools.of(self._catalogue.get(volume_id)).slot():
            return self._claims.run(
                ("volume", volume_id),
                ("expand on node", path, asked, capability),
                deadline,
                lambda: self._expand_on_node(self._catalogue.get(volume_id), path, asked, capability),
            )

    def _expand(self, volume: Volume, asked: CapacityRange, capability: VolumeCapability | None) -> Volume:
        require_capability(volume, capability)
        pool = self._pools.of(volume)
        pool.require_present()
        if volume.growing_to_bytes or asked.required_bytes > volume.capacity_bytes:
            pool.require_writable()
        volume = self._extension.settle(volume)
        if not asked.limit_bytes:
            volume = made_growable(self._pools, self._extension, volume)
        to_bytes = sizes.choose_larger(volume, asked)
        if to_bytes > volume.capacity_bytes:
            volume = self._extended(pool, volume, to_bytes)
        if volume.is_block:
            # A device has nothing in it that has to grow: its users need no call of the node's half.
            pool.backend(volume).grow(volume, None)
        return volume

    def _extended(self, pool: Pool, volume: Volume, to_bytes: int) -> Volume:
        pool.backend(volume).require_extendable(volume, to_bytes)
        self._admit(pool, volume, to_bytes)
        try:
            return self._extension.extend(volume, to_bytes)
        except OSError as cause:
            raise _explained(cause, pool, volume, to_bytes) from cause

    @staticmethod
    def _admit(pool: Pool, volume: Volume, to_bytes: int) -> None:
        pool.promise(lambda: pool.ledger.admit_growth(volume, to_bytes, pool.overcommit))

    def _expand_on_node(
        self, volume: Volume, path: str, asked: CapacityRange, capability: VolumeCapability | None
    ) -> Volume:
        require_capability(volume, capability)
        self._require_shown(volume, path)
        volume = self._extension.settle(volume)
        sizes.require_reached(volume, asked)
        volume = made_growable(self._pools, self._extension, volume, asked.limit_bytes)
        backend = self._pools.backend(volume)
        if not volume.has_filesystem:
            backend.grow(volume, None)
            return volume
        # Through the staging mount where it is known: a publication may be read-only, which lets no filesystem grow.
        staged_at = self._mounts.state(volume.volume_id).staging_target_path
        mounted_fd = self._open_root(volume, staged_at or path)
        try:
            backend.grow(volume, mounted_fd)
        finally:
            os.close(mounted_fd)
        return volume

    def _require_shown(self, volume: Volume, path: str) -> None:
        """Refuse a path at which this volume is neither published nor staged."""
        with self._target(volume, path) as target:
            backend = self._pools.backend(volume)
            is_staged_at = target.path == self._mounts.state(volume.volume_id).staging_target_path
            # A raw block volume is mounted nowhere when it is staged.
            if not (volume.is_block and is_staged_at and backend.is_attached(volume)):
                os.close(open_shown(volume, backend, target))

    def _open_root(self, volume: Volume, path: str) -> int:
        """A readable descriptor, the caller's, of the root of this volume's mount."""
        with self._target(volume, path) as target:
            mounted_fd = target.open_mounted()
            if self._pools.backend(volume).shows(volume, mountinfo.observe(mounted_fd)):
                return mounted_fd
            os.close(mounted_fd)
            raise VolumeNotAtPath(volume.volume_id, path)

    def _target(self, volume: Volume, path: str) -> TargetPath:
        try:
            return TargetPath(path, _FIELD, self._pools)
        except InvalidField as cause:
            raise VolumeNotAtPath(volume.volume_id, path) from cause


def _explained(cause: OSError, pool: Pool, volume: Volume, to_bytes: int) -> Exception:
    if cause.errno in _NO_SPACE:
        grantable = pool.ledger.grantable_bytes(pool.overcommit)
        return NoRoomToGrow(volume.volume_id, pool.name, volume.capacity_bytes, to_bytes, grantable)
    if cause.errno == errno.EFBIG:
        return CapacityOutOfRange(
            f"capacity_range.required_bytes: {to_bytes} is more than a file can have in pool {pool.name}"
        )
    return cause
