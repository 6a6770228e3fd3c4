"""Parameters of volumes changed while they live (a VolumeAttributesClass); knows no protocol.

claim -> compare -> can the volume be held so? -> promise what that takes -> record the intent -> make it so -> record.

- `provisioning` thick: every hole of the image is allocated, under its users. Cut short it stays thin, keeps the blocks
  that it got, and the repetition goes on. Thin: nothing is promised beyond others any more; blocks stay.
- `quota` required: the directory is limited to its size, unless it holds more already. None: the limit is lifted, and
  the volume is outside all accounting.
- `retention`, `retentionPolicy`: what is to become of the volume once it is deleted, within the pool's ceiling.
"""

from __future__ import annotations

import dataclasses
import errno

from csi_driver.domain.amendment import Amendment
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.extension import Extension
from csi_driver.domain.ledger import is_counted
from csi_driver.domain.operations import Kind, Operation, Operations
from csi_driver.domain.pools import Pool, Pools
from csi_driver.domain.progress import Progress
from csi_driver.errors import InsufficientCapacity, InvalidField
from csi_driver.model import ParameterChanges, Volume, VolumeType

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_ONLY_FOR = {"provisioning": VolumeType.IMAGE, "quota": VolumeType.DIRECTORY}


class Modification:
    """The modifications of this node's volumes."""

    def __init__(
        self,
        pools: Pools,
        catalogue: Catalogue,
        claims: Claims,
        extension: Extension,
        amendment: Amendment,
        *,
        operations: Operations,
    ) -> None:
        self._operations = operations
        self._pools = pools
        self._catalogue = catalogue
        self._claims = claims
        self._extension = extension
        self._amendment = amendment

    def modify(self, volume_id: str, changes: ParameterChanges, deadline: float | None) -> Volume:
        """The volume has the parameters that are asked, durably; one that has them already stays as it is. Idempotent.

        Raises: VolumeNotFound; InvalidField for what such a volume does not have; ModificationRefused;
            InsufficientCapacity; OperationPending; UndoFailed.
        """
        with self._pools.of(self._catalogue.get(volume_id)).slot():
            return self._claims.run(
                ("volume", volume_id),
                ("modify", changes),
                deadline,
                lambda: self._modify(self._catalogue.get(volume_id), changes),
            )

    def _modify(self, volume: Volume, changes: ParameterChanges) -> Volume:
        require_fitting(volume.volume_type, changes)
        pool = self._pools.of(volume)
        pool.require_present()
        volume = self._amendment.settle(self._extension.settle(volume))
        to = changes.applied_to(volume.parameters)
        if to == volume.parameters:
            return volume
        pool.require_writable()
        if to.retention_seconds > volume.parameters.retention_seconds:
            pool.require_retention(to)
        volume = pool.backend(volume).require_changeable(volume, to)
        wanted = dataclasses.replace(volume, parameters=to)
        _admit(pool, volume, wanted)
        progress = Progress(f"volume {volume.volume_id}", volume.capacity_bytes)
        try:
            with self._operations.running(Operation(Kind.MODIFICATION, volume.volume_id, volume.name, "", progress)):
                amended = self._amendment.amend(volume, to, progress)
        except BaseException as cause:
            _give_back(pool, volume)
            if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
                raise _no_space(pool, volume) from cause
            raise
        _settle(pool, amended)
        return amended


def require_fitting(volume_type: VolumeType, changes: ParameterChanges) -> None:
    """Refuse what volumes of another type have.

    Raises: InvalidField naming the key.
    """
    for key, kind in _ONLY_FOR.items():
        value = getattr(changes, key)
        if value is not None and volume_type is not kind:
            raise InvalidField(f"mutable_parameters.{key}", value, f"only for a volume with type {kind}")


def _admit(pool: Pool, volume: Volume, wanted: Volume) -> None:
    if is_counted(wanted) and not is_counted(volume):
        own_bytes = pool.filesystem.own_bytes(wanted)
        pool.promise(lambda: pool.ledger.admit_used(wanted, own_bytes, pool.overcommit))
    elif wanted.is_thick and not volume.is_thick:
        pool.promise(lambda: pool.ledger.admit_whole(volume))


def _give_back(pool: Pool, volume: Volume) -> None:
    """The books have the volume as it was."""
    if not is_counted(volume):
        pool.ledger.forget(volume)


def _settle(pool: Pool, volume: Volume) -> None:
    if not is_counted(volume):
        pool.ledger.forget(volume)
        return
    try:
        own_bytes = pool.filesystem.own_bytes(volume)
    except OSError:
        own_bytes = 0
    pool.ledger.settle(volume, own_bytes)


def _no_space(pool: Pool, volume: Volume) -> InsufficientCapacity:
    grantable = pool.ledger.grantable_bytes(pool.overcommit)
    return InsufficientCapacity(pool.name, volume.capacity_bytes, grantable)
