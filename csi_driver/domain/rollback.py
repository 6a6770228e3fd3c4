"""A snapshot put in the place of its volume's content, which goes to the trash and can come back from there.

Claim the volume -> is it unused? -> promise the space -> build a second content with the volume's record under `tmp/`
-> move it to the trash, marked -> the two change places in one rename -> the mark of what was there before tells that
an operator decides. A start tells by the record on which side of the exchange the process ended.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import secrets
from contextlib import ExitStack
from typing import Final

from csi_driver.backends import remains, removal
from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.origins import Origin
from csi_driver.domain.pools import Pool
from csi_driver.domain.sources import Sources
from csi_driver.domain.trash import Trash
from csi_driver.domain.undelete import Settle, require_unused
from csi_driver.errors import CapacityOutOfRange, InsufficientCapacity, RollbackRefused
from csi_driver.faults import crash_point
from csi_driver.model import ContentSource, SourceKind, Volume, VolumeId
from csi_driver.store import records
from csi_driver.store.pool import ROLLBACK

_log = logging.getLogger("hostvol.trash")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Rollback:
    """The rollbacks of this node's volumes."""

    def __init__(
        self,
        mounts: VolumeMounts,
        volumes: Catalogue,
        snapshots: SnapshotCatalogue,
        claims: Claims,
        settle: Settle,
        *,
        trash: Trash,
        sources: Sources,
    ) -> None:
        self._mounts = mounts
        self._pools = mounts.pools
        self._volumes = volumes
        self._snapshots = snapshots
        self._claims = claims
        self._settle = settle
        self._trash = trash
        self._sources = sources

    def rollback(self, volume_id: str, snapshot_id: str, deadline: float | None) -> tuple[Volume, str]:
        """The volume holds what its snapshot holds, at its own size; and the trash entry of what it held before.

        A second call does it again, and keeps what was written meanwhile as well.

        Raises: VolumeNotFound; SnapshotNotFound; RollbackRefused when it is no snapshot of the volume; VolumeInUse;
            InsufficientCapacity; OperationPending; CopyFailed.
        """
        with self._pools.of(self._volumes.persistent(volume_id)).slot():
            return self._claims.run(
                ("volume", volume_id),
                ("rollback", snapshot_id),
                deadline,
                lambda: self._rollback(volume_id, snapshot_id, deadline),
            )

    def _rollback(self, volume_id: str, snapshot_id: str, deadline: float | None) -> tuple[Volume, str]:
        volume = self._volumes.persistent(volume_id)
        pool = self._pools.of(volume)
        pool.require_writable()
        of_volume = self._snapshots.get(snapshot_id).source_volume_id
        if of_volume != volume_id:
            raise RollbackRefused(volume_id, f"{snapshot_id} is a snapshot of {of_volume}")
        require_unused(self._mounts, volume)
        volume = self._settle(volume)
        with self._sources.held(ContentSource(SourceKind.SNAPSHOT, snapshot_id), deadline) as origin:
            planned = _planned(pool, volume, origin)
            return planned, self._replaced(pool, volume, planned, origin)

    def _replaced(self, pool: Pool, volume: Volume, planned: Volume, origin: Origin) -> str:
        """The volume is as planned; returns the trash entry of what it was."""
        stand_in = dataclasses.replace(planned, volume_id=VolumeId(f"{volume.volume_id}.rollback"))
        pool.promise(lambda: pool.ledger.admit(stand_in, pool.overcommit))
        with ExitStack() as undo:
            undo.callback(pool.ledger.forget, stand_in)
            name = self._built(pool, planned, origin, undo)
            own_bytes = pool.filesystem.own_bytes_if_known(volume)
            remains.exchange(pool.store, volume.volume_id, name)
            undo.pop_all()
        crash_point("rollback.exchanged")
        pool.ledger.take_place(planned, stand_in, volume.promised_bytes if own_bytes is None else own_bytes)
        try:
            name = pool.store.mark_replaced(name)
        except OSError as cause:
            # The next start does it; what is in the trash says that it was replaced.
            _log.error("trash entry %s cannot be given its name: %s", name, cause)
        self._trash.add(pool, name, volume, own_bytes)
        self._volumes.replace(planned)
        crash_point("rollback.replaced")
        return name

    def _built(self, pool: Pool, planned: Volume, origin: Origin, undo: ExitStack) -> str:
        """The content that is to come, in the trash under a mark; `undo` takes it away again."""
        building = f"{planned.volume_id}.{planned.rollback}"
        undo.callback(_clear, pool, pool.store.tmp_fd, building)
        with ExitStack() as opened:
            object_fd = pool.store.begin(building)
            opened.callback(os.close, object_fd)
            crash_point("rollback.begun")
            records.write_volume(object_fd, planned)
            try:
                self._sources.fill(planned, origin, object_fd, share=bool(planned.lineage))
            except CapacityOutOfRange as cause:
                raise RollbackRefused(planned.volume_id, "it is smaller than what the snapshot holds") from cause
            except OSError as cause:
                if cause.errno not in _NO_SPACE:
                    raise
                grantable = pool.ledger.grantable_bytes(pool.overcommit)
                raise InsufficientCapacity(pool.name, planned.capacity_bytes, grantable) from cause
            os.fsync(object_fd)
        crash_point("rollback.built")
        name = pool.store.move_to_trash(building, planned.volume_id, f"{ROLLBACK}{planned.rollback}")
        undo.callback(_condemn, pool, name)
        crash_point("rollback.moved")
        return name


def _planned(pool: Pool, volume: Volume, origin: Origin) -> Volume:
    """The volume as it will be: with an identity of its own, since both contents can be on the machine."""
    source = ContentSource(SourceKind.SNAPSHOT, str(volume.volume_id))
    identified = pool.backend(volume).choose_identity(dataclasses.replace(volume, source=source))
    shares = pool.shares_with(origin.pool)
    return dataclasses.replace(
        identified,
        source=volume.source,
        lineage=origin.described.family if shares else "",
        rollback=secrets.token_hex(4),
        content_id="",
    )


def _clear(pool: Pool, room_fd: int, name: str) -> None:
    try:
        removal.clear(room_fd, name)
    except OSError as cause:
        _log.error("%s, left by a rollback, cannot be cleared yet: %s", name, cause)
        pool.clear_later(room_fd, name)


def _condemn(pool: Pool, name: str) -> None:
    """Take away what was built, unless it is the volume's content already (an exchange that could not be undone)."""
    where = f"{pool.store.directory}/trash/{name}"
    held = records.read_any(pool.store.trash_fd, name, where)
    if isinstance(held, Volume) and name.endswith(f"{ROLLBACK}{held.rollback}"):
        _clear(pool, pool.store.trash_fd, pool.store.condemn(name))
