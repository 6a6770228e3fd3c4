"""Volumes made, found and taken away; knows no protocol, and leaves the bytes to the backends.

Create: claim the name -> compare with what bears it -> hold the source, if there is one -> promise the space -> build
        under `tmp/` -> rename into place.
Delete: claim the id -> refuse while in use -> rename into the trash -> clear away, unless it is retained.
Every step can be the last one before a crash: an object exists whole or not at all, and a start clears what is left.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import secrets
import time
import uuid
from contextlib import AbstractContextManager, ExitStack, nullcontext

from csi_driver.backends import removal
from csi_driver.domain import sizes, unwritten
from csi_driver.domain.arrivals import Arrivals, Incoming
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.disposal import Disposal
from csi_driver.domain.half_arrivals import HalfArrivals
from csi_driver.domain.origins import Origin
from csi_driver.domain.pools import Pool, Pools
from csi_driver.domain.sources import Sources, resolved
from csi_driver.domain.staging import Staging
from csi_driver.domain.trash import Trash, mark_of
from csi_driver.durations import human_seconds
from csi_driver.errors import (
    CapacityOutOfRange,
    InsufficientCapacity,
    OperationPending,
    TooManyTransfers,
    TopologyUnsatisfiable,
    TransferInterrupted,
    TransferLost,
    UndoFailed,
    VolumeConflict,
    VolumeNotFound,
)
from csi_driver.faults import crash_point
from csi_driver.model import CapacityRange, ContentSource, Volume, VolumeId, VolumeSpec, node_key
from csi_driver.store import durable, records

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Volumes:
    """The life of a volume from CreateVolume to DeleteVolume."""

    def __init__(
        self,
        node_id: str,
        pools: Pools,
        *,
        catalogue: Catalogue,
        claims: Claims,
        staging: Staging,
        sources: Sources,
        arrivals: Arrivals,
        half_arrivals: HalfArrivals,
        trash: Trash,
    ) -> None:
        self._node_id = node_id
        self._node_key = node_key(node_id)
        self._pools = pools
        self._catalogue = catalogue
        self._claims = claims
        self._staging = staging
        self._sources = sources
        self._arrivals = arrivals
        self._half_arrivals = half_arrivals
        self._trash = trash
        self._disposal = Disposal()

    def create(self, spec: VolumeSpec, deadline: float | None, *, is_accessible: bool = True) -> Volume:
        """A volume as `spec` asks, durable when this returns; `is_accessible`: its topology includes this node.

        Idempotent: the same spec again gives the same volume; while it is being built, the second call waits for it.

        Raises: VolumeConflict when the name is taken by another volume; InsufficientCapacity; CapacityOutOfRange;
            InvalidField; TopologyUnsatisfiable; OperationPending; UndoFailed; with a source, what `Sources` raises.
        """
        call = (spec, is_accessible)
        with self._pools.get(spec.parameters.pool).slot():
            try:
                return self._claims.run(
                    ("volume name", spec.name), call, deadline, lambda: self._create(spec, deadline, is_accessible)
                )
            except OperationPending as pending:
                raise self._arrivals.told(spec.name, pending) from pending

    def take_in(self, spec: VolumeSpec, incoming: Incoming, base: ContentSource | None = None) -> Volume:
        """A new volume with the content of a stream, durable when this returns; else nothing is left of it.

        `base`: what the stream is applied to, a copy of which the volume begins with.

        Raises: VolumeConflict when the name is taken; StreamDamaged; OtherContent when the base is not what the stream
            is relative to; as `create`.
        """
        with self._pools.get(spec.parameters.pool).slot():
            # Two streams are never the same call.
            return self._claims.run(
                ("volume name", spec.name), incoming, None, lambda: self._taken_in(spec, incoming, base)
            )

    def delete(self, volume_id: str, deadline: float | None) -> None:
        """The volume is gone when this returns, and its data, unless it is retained. Idempotent: an unknown id is gone.

        A volume that is only staged is unstaged first, since kubelet may never do it.

        Raises: VolumeInUse while it is published or held open; OperationPending; RecordDamaged.
        """
        with self._slot_of(volume_id):
            self._claims.run(("volume", volume_id), "delete", deadline, lambda: self._delete(volume_id))

    def retire(self, volume_id: str, deadline: float | None) -> None:
        """The volume is out of service, and lies in its pool's trash until an operator removes it. Idempotent.

        Raises: as `delete`.
        """
        with self._slot_of(volume_id):
            self._claims.run(("volume", volume_id), "retire", deadline, lambda: self._delete(volume_id, keep=True))

    def _create(self, spec: VolumeSpec, deadline: float | None, is_accessible: bool) -> Volume:
        existing = self._catalogue.named(spec.name)
        if existing is not None:
            if self._claims.holds(("volume", existing.volume_id)):
                raise OperationPending(f"volume {existing.volume_id}")
            _check_same(existing, spec, is_accessible)
            return existing
        if not is_accessible:
            raise TopologyUnsatisfiable(self._node_id)
        pool = self._pools.get(spec.parameters.pool)
        pool.require_writable()
        pool.require_retention(spec.parameters)
        if spec.source is None:
            return self._built(pool, self._planned(spec), None)
        if self._sources.is_elsewhere(spec.source):
            return self._arrived(pool, spec, spec.source)
        with self._sources.held(spec.source, deadline) as origin:
            planned = self._planned_copy(resolved(spec, origin), origin, shares=pool.shares_with(origin.pool))
            return self._built(pool, planned, origin)

    def _arrived(self, pool: Pool, spec: VolumeSpec, source: ContentSource) -> Volume:
        half = self._half_arrivals.get(spec.name)
        if half is not None and (half.pool is not pool or half.volume.source != source):
            self._arrivals.give_up(half)
            self._half_arrivals.drop(half)
            half = None
        try:
            with self._arrivals.begun(spec.name, source, half) as arrival:
                planned = self._planned_copy(resolved(spec, arrival), arrival, shares=False)
                if half is None:
                    return self._built(pool, planned, arrival)
                if not half.fits(planned):
                    raise TransferLost(source.object_id, "another volume was asked for by this name before")
                return self._completed(pool, half.volume, arrival)
        except (TransferInterrupted, TooManyTransfers):
            raise
        except BaseException:
            # The source has been told that nothing more is wanted.
            if half is not None:
                self._half_arrivals.drop(half)
            raise

    def _taken_in(self, spec: VolumeSpec, incoming: Incoming, base: ContentSource | None) -> Volume:
        existing = self._catalogue.named(spec.name)
        if existing is not None:
            raise VolumeConflict(spec.name, existing.volume_id, "content", "another one", "that of the stream")
        pool = self._pools.get(spec.parameters.pool)
        pool.require_writable()
        if base is None:
            return self._received(pool, spec, incoming)
        with self._sources.based(incoming, base):
            return self._received(pool, spec, incoming)

    def _received(self, pool: Pool, spec: VolumeSpec, incoming: Incoming) -> Volume:
        shares = incoming.base is not None and pool.shares_with(incoming.base.pool)
        planned = self._planned_copy(resolved(spec, incoming), incoming, shares=shares)
        if planned.fs_type == "btrfs":
            # Without a source it would be taken for a new one, which makes its own.
            planned = dataclasses.replace(planned, fs_uuid=str(uuid.uuid4()))
        return self._built(pool, planned, incoming)

    def _built(self, pool: Pool, planned: Volume, origin: Origin | Incoming | None) -> Volume:
        volume = pool.backend(planned).choose_identity(planned)
        self._admit(pool, volume)
        return self._completed(pool, volume, origin)

    def _completed(self, pool: Pool, volume: Volume, origin: Origin | Incoming | None) -> Volume:
        """The volume whose space is promised, built whole; what has come of it from another node is there already."""
        try:
            volume = self._build(pool, volume, origin)
        except BaseException:
            if not self._half_arrivals.has(volume):
                pool.ledger.forget(volume)
            raise
        # fallocate gave a thick one all it will need; a thin one is measured when that matters, and so is one that
        # shares blocks.
        owns_all = volume.is_thick and not volume.lineage
        pool.ledger.settle(volume, volume.capacity_bytes if owns_all else 0)
        self._catalogue.add(volume)
        if pool.ledger.is_overdrawn(pool.overcommit):
            # By the template that was made for it, after the promise.
            pool.images.drop_templates()
        return volume

    def _planned(self, spec: VolumeSpec) -> Volume:
        return Volume(
            volume_id=VolumeId(f"vol-{self._node_key}-{secrets.token_hex(8)}"),
            name=spec.name,
            capacity_bytes=sizes.planned_bytes(spec),
            access_type=spec.access_type,
            fs_type=spec.fs_type,
            parameters=spec.parameters,
            created_at=time.time(),
            pod=spec.pod,
        )

    def _planned_copy(self, spec: VolumeSpec, origin: Origin | Incoming, *, shares: bool) -> Volume:
        kind = (spec.parameters.volume_type, spec.access_type, spec.fs_type)
        capacity_bytes = sizes.choose_copy_capacity(
            spec.capacity_range,
            source_bytes=origin.size_bytes,
            minimum=sizes.minimum_bytes(*kind),
            grown_minimum=sizes.grown_minimum_bytes(*kind),
            maximum=sizes.maximum_bytes(*kind),
        )
        exactly = CapacityRange(capacity_bytes, capacity_bytes)
        planned = self._planned(dataclasses.replace(spec, capacity_range=exactly))
        return dataclasses.replace(
            planned, source=spec.source, lineage=origin.described.family if shares else planned.lineage
        )

    @staticmethod
    def _admit(pool: Pool, volume: Volume) -> None:
        pool.promise(lambda: pool.ledger.admit(volume, pool.overcommit))

    def _build(self, pool: Pool, volume: Volume, origin: Origin | Incoming | None) -> Volume:
        with ExitStack() as undo, ExitStack() as opened:
            undo.callback(self._undo_build, pool, volume)
            object_fd = self._opened(pool, volume, opened)
            try:
                if origin is None:
                    pool.backend(volume).build(volume, object_fd)
                elif isinstance(origin, Incoming):
                    content_id = self._sources.receive(volume, origin, object_fd)
                    if origin.is_named:
                        volume = unwritten.named(pool, volume, content_id)
                        records.replace_record(object_fd, volume)
                        crash_point("create.content_named")
                else:
                    self._sources.fill(volume, origin, object_fd, share=bool(volume.lineage))
            except TransferInterrupted:
                if isinstance(origin, Incoming) and origin.is_kept:
                    self._half_arrivals.keep(pool, volume)
                    undo.pop_all()
                raise
            except OSError as cause:
                raise _explained(cause, pool, volume) from cause
            crash_point("create.built")
            pool.store.commit(volume.volume_id, object_fd)
            crash_point("create.committed")
            undo.pop_all()
        self._half_arrivals.forget(volume)
        return volume

    def _opened(self, pool: Pool, volume: Volume, opened: ExitStack) -> int:
        """The directory in which the volume is built, with its record; another process may have made it."""
        if self._half_arrivals.has(volume):
            object_fd = durable.open_directory(volume.volume_id, dir_fd=pool.store.tmp_fd)
            opened.callback(os.close, object_fd)
            return object_fd
        object_fd = pool.store.begin(volume.volume_id)
        opened.callback(os.close, object_fd)
        crash_point("create.begun")
        # The record goes first: whoever clears a half-built object reads there which project id it took.
        records.write_volume(object_fd, volume)
        crash_point("create.recorded")
        return object_fd

    def _undo_build(self, pool: Pool, volume: Volume) -> None:
        self._half_arrivals.forget(volume)
        try:
            removal.clear(pool.store.tmp_fd, volume.volume_id)
        except OSError as cause:
            pool.clear_later(pool.store.tmp_fd, volume.volume_id)
            raise UndoFailed(
                f"volume {volume.name!r}: creation failed and {pool.store.building_path(volume.volume_id)} could not "
                f"be cleared: {cause}"
            ) from cause

    def _slot_of(self, volume_id: str) -> AbstractContextManager[None]:
        try:
            return self._pools.of(self._catalogue.get(volume_id)).slot()
        except VolumeNotFound:
            return nullcontext()

    def _delete(self, volume_id: str, *, keep: bool = False) -> None:
        try:
            volume = self._catalogue.get(volume_id)
        except VolumeNotFound:
            self._half_arrivals.delete(volume_id)
            self._disposal.clear(volume_id)
            return
        pool = self._pools.of(volume)
        pool.require_present()
        self._staging.withdraw(volume)
        crash_point("delete.withdrawn")
        mark = mark_of(volume, retired=keep)
        if mark is not None:
            self._keep(pool, volume, mark)
            return
        self._disposal.take(volume.volume_id, pool, pool.store.discard(volume.volume_id))
        self._catalogue.remove(volume)
        pool.ledger.forget(volume)
        crash_point("delete.discarded")
        self._disposal.clear(volume.volume_id)
        crash_point("delete.cleared")

    def _keep(self, pool: Pool, volume: Volume, mark: str) -> None:
        own_bytes = pool.filesystem.own_bytes_if_known(volume)
        trash_name = pool.store.discard(volume.volume_id, mark)
        self._trash.add(pool, trash_name, volume, own_bytes)
        self._catalogue.remove(volume)
        # What lies in the trash grows no more; what it still holds, the filesystem counts as used.
        pool.ledger.retire(volume, volume.promised_bytes if own_bytes is None else own_bytes)
        crash_point("delete.kept")
        self._trash.trim(pool)


def _explained(cause: OSError, pool: Pool, volume: Volume) -> Exception:
    if cause.errno in _NO_SPACE:
        return InsufficientCapacity(pool.name, volume.capacity_bytes, pool.ledger.grantable_bytes(pool.overcommit))
    if cause.errno == errno.EFBIG:
        return CapacityOutOfRange(
            f"capacity_range.required_bytes: {volume.capacity_bytes} is more than a file can have in pool {pool.name}"
        )
    return cause


def _lifecycle(one: Volume | VolumeSpec) -> str:
    return "ephemeral" if one.is_ephemeral else "persistent"


def _check_same(volume: Volume, spec: VolumeSpec, is_accessible: bool) -> None:
    """Refuse a spec that the existing volume of its name does not fulfil, naming the first difference."""
    asked, held = spec.parameters, volume.first_parameters
    differences = [
        ("accessibility_requirements", "this node", "this node" if is_accessible else "others"),
        ("lifecycle", _lifecycle(volume), _lifecycle(spec)),
        ("volume_capabilities (access type)", volume.access_type, spec.access_type),
        (
            "volume_capabilities (fs_type)",
            volume.fs_type,
            volume.fs_type if "fs_type" in spec.inherits else spec.fs_type,
        ),
        ("volume_content_source", _worded(volume.source), _worded(spec.source)),
        ("parameters.type", held.volume_type, asked.volume_type),
        ("parameters.pool", held.pool, asked.pool),
        ("parameters.provisioning", held.provisioning, asked.provisioning),
        ("parameters.mkfsOptions", held.mkfs_options, asked.mkfs_options),
        ("parameters.quota", held.quota, asked.quota),
        (
            "parameters.retention",
            human_seconds(held.retention_seconds),
            human_seconds(asked.retention_seconds),
        ),
        ("parameters.retentionPolicy", held.retention_policy, asked.retention_policy),
        (
            "parameters.blockSize",
            held.block_size,
            held.block_size if "block_size" in spec.inherits else asked.block_size,
        ),
    ]
    for field, is_held, is_asked in differences:
        if is_held != is_asked:
            raise VolumeConflict(volume.name, volume.volume_id, field, is_held, is_asked)
    if not sizes.satisfies(volume.capacity_bytes, spec.capacity_range):
        asked_range = f"{spec.capacity_range.required_bytes}..{spec.capacity_range.limit_bytes or 'any'} bytes"
        raise VolumeConflict(
            volume.name, volume.volume_id, "capacity_range", f"{volume.capacity_bytes} bytes", asked_range
        )


def _worded(source: ContentSource | None) -> str:
    return "none" if source is None else f"{source.kind} {source.object_id}"
