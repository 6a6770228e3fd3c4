"""What a new volume's content comes from: a snapshot or a living volume, held while it is copied; knows no request."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from csi_driver.backends import removal
from csi_driver.backends.increments import Base
from csi_driver.domain import cuts, unwritten
from csi_driver.domain.arrivals import Incoming
from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.copies import Copies
from csi_driver.domain.operations import Kind, Operation, Operations
from csi_driver.domain.origins import Described, Origin
from csi_driver.domain.pools import Pool, Pools
from csi_driver.domain.progress import Progress
from csi_driver.domain.stills import Stills
from csi_driver.errors import (
    InvalidField,
    OperationPending,
    OtherContent,
    SnapshotNotFound,
    SourceElsewhere,
    SourceNotFound,
    StreamDamaged,
    VolumeNotFound,
)
from csi_driver.faults import crash_point
from csi_driver.model import (
    AccessType,
    ContentSource,
    Snapshot,
    SourceKind,
    Volume,
    VolumeSpec,
    VolumeType,
    key_of,
    node_key,
)
from csi_driver.store import records

Value = TypeVar("Value", str, int)
_ONTO = "onto_id"

_Cut = Callable[[Origin, Volume, ExitStack], int]


class Sources:
    """The volumes and snapshots of this node as sources."""

    def __init__(
        self,
        node_id: str,
        pools: Pools,
        *,
        volumes: Catalogue,
        snapshots: SnapshotCatalogue,
        claims: Claims,
        copies: Copies,
        stills: Stills,
        operations: Operations,
    ) -> None:
        self._node_id = node_id
        self._pools = pools
        self._volumes = volumes
        self._snapshots = snapshots
        self._claims = claims
        self._copies = copies
        self._stills = stills
        self._operations = operations

    @contextmanager
    def held(self, source: ContentSource, deadline: float | None) -> Iterator[Origin]:
        """The source: neither deleted nor grown nor, where it matters, staged until this ends.

        Raises: SourceNotFound; SourceElsewhere; OperationPending while something else happens to it,
            or while a snapshot is not ready; VolumeDamaged; CopyFailed.
        """
        if self.is_elsewhere(source):
            raise SourceElsewhere(source.object_id, self._node_id)
        with ExitStack() as held:
            look_up = self._snapshot if source.kind is SourceKind.SNAPSHOT else self._volume
            try:
                origin = look_up(source.object_id, held, deadline)
            except (SnapshotNotFound, VolumeNotFound) as cause:
                raise SourceNotFound(f"volume_content_source.{source.kind}", source.object_id) from cause
            yield origin

    @contextmanager
    def based(self, incoming: Incoming, source: ContentSource) -> Iterator[None]:
        """The source is held as what the incoming stream is applied to.

        Raises: OtherContent when it is not what the stream is relative to; InvalidField for another node's; as `held`.
        """
        if self.is_elsewhere(source):
            raise InvalidField(_ONTO, source.object_id, f"a snapshot or volume of this node ({self._node_id})")
        with ExitStack() as held:
            try:
                # Whoever sends a stream does not wait until a snapshot is copied.
                origin = held.enter_context(self.held(source, time.monotonic()))
            except SourceNotFound as cause:
                raise SourceNotFound(_ONTO, source.object_id) from cause
            described = origin.described
            if origin.volume is not None:
                described = unwritten.known(origin.pool, origin.volume, origin.content_fd)
            _require_base(source.object_id, described, incoming)
            incoming.base = origin
            yield

    @property
    def is_complete(self) -> bool:
        """Whether all pools of this node are served."""
        return self._volumes.is_complete

    def is_elsewhere(self, source: ContentSource) -> bool:
        """Whether the source is another node's."""
        return key_of(source.object_id) not in ("", node_key(self._node_id))

    def still(self, source: ContentSource, deadline: float | None, held: ExitStack) -> Origin:
        """The source as of now, which does not change until `held` ends.

        Where blocks can be shared, a volume is cut and its users go on; elsewhere nobody can stage it meanwhile.

        Raises: as `held` and `fill`.
        """
        return self._still(source, deadline, held, _cut)[0]

    def consigned(
        self, source: ContentSource, deadline: float | None, held: ExitStack, name: str
    ) -> tuple[Origin, bool]:
        """As `still`; but what is cut, if anything (True), is `tmp/<name>` of the source's pool, and the caller's.

        Raises: as `still`; nothing is there then.
        """

        def cut(origin: Origin, volume: Volume, held: ExitStack) -> int:
            return _cut_named(origin, volume, held, name)

        return self._still(source, deadline, held, cut)

    def held_again(
        self, pool: Pool, source: ContentSource, volume_type: VolumeType, held: ExitStack, cut_name: str
    ) -> int:
        """The content that another process consigned: the cut of that name, or the source, which is held by claim.

        Raises: VolumeDamaged, RecordDamaged when it is gone; SourceBusy when it may have changed; OperationPending;
            OSError.
        """
        contents = pool.contents(volume_type)
        room_fd, object_id = pool.store.tmp_fd, cut_name
        is_snapshot = source.kind is SourceKind.SNAPSHOT
        if not cut_name:
            held.enter_context(self._claims.reading(("snapshot" if is_snapshot else "volume", source.object_id)))
            room_fd = pool.store.snapshots_fd if is_snapshot else pool.store.volumes_fd
            object_id = source.object_id
        content_fd = contents.open(room_fd, object_id)
        held.callback(os.close, content_fd)
        if not cut_name and not is_snapshot:
            volume = records.read_volume(room_fd, object_id, pool.store.path_of(object_id))
            cuts.require_at_rest(pool, contents, volume, content_fd)
        return content_fd

    def _still(self, source: ContentSource, deadline: float | None, held: ExitStack, cut: _Cut) -> tuple[Origin, bool]:
        with ExitStack() as looking:
            origin = looking.enter_context(self.held(source, deadline))
            if origin.volume is not None:
                contents = origin.pool.contents(origin.volume_type)
                if contents.can_share:
                    return dataclasses.replace(origin, content_fd=cut(origin, origin.volume, held)), True
                cuts.require_at_rest(origin.pool, contents, origin.volume, origin.content_fd)
            held.push(looking.pop_all())
        return origin, False

    def receive(self, volume: Volume, arrival: Incoming, object_fd: int) -> str:
        """The content of the volume that is being built in its directory, as it comes; returns its content_id.

        Raises: StreamDamaged; TransferInterrupted; CapacityOutOfRange, VolumeDamaged, OSError; with a base as `fill`.
        """
        contents = self._pools.of(volume).contents(volume.volume_type)
        with ExitStack() as held:
            held.enter_context(self._operations.running(_arriving(volume, arrival.progress)))
            base = None
            if arrival.base is not None:
                share = bool(volume.lineage)
                content_fd = self._readable(arrival.base, held, share=share)
                base = Base(content_fd, arrival.base.size_bytes, share)
            return contents.received(volume, arrival.stream, object_fd, arrival.progress, base)

    def fill(self, volume: Volume, origin: Origin, object_fd: int, *, share: bool) -> None:
        """The content of the volume that is being built in its directory.

        Raises: SourceBusy when it would be copied beside a writer; InsufficientForCut; CapacityOutOfRange,
            VolumeDamaged, OSError.
        """
        pool = self._pools.of(volume)
        contents = pool.contents(volume.volume_type)
        with ExitStack() as held:
            content_fd = self._readable(origin, held, share=share)
            what = f"volume {volume.volume_id}, from {volume.source.object_id if volume.source else '-'}"
            progress = Progress(what, 0 if share else contents.size_bytes(content_fd))
            with self._operations.running(_copying(volume, origin, progress)):
                contents.build(volume, content_fd, origin.size_bytes, object_fd, share=share, progress=progress)

    def _readable(self, origin: Origin, held: ExitStack, *, share: bool) -> int:
        if origin.volume is None:
            return origin.content_fd
        return self._prepared(origin, origin.volume, held, share=share)

    def _prepared(self, origin: Origin, volume: Volume, held: ExitStack, *, share: bool) -> int:
        """The content of a living volume, with all that was written before, so that it can be copied."""
        contents = origin.pool.contents(volume.volume_type)
        if share:
            cuts.flush(origin.pool, volume)
            cuts.admit(origin.pool, volume)
            crash_point("clone.flushed")
            return origin.content_fd
        if contents.can_share and not contents.is_at_rest(volume, origin.content_fd):
            cuts.flush(origin.pool, volume)
            cuts.admit(origin.pool, volume)
            still_fd = contents.still(volume, origin.content_fd)
            if still_fd is not None:
                held.callback(os.close, still_fd)
                return still_fd
        if self._stills.is_wanted(origin.pool, volume):
            still_fd = self._stills.copy(origin.pool, volume, origin.content_fd)
            held.callback(os.close, still_fd)
            return still_fd
        cuts.require_at_rest(origin.pool, contents, volume, origin.content_fd)
        return origin.content_fd

    def _snapshot(self, snapshot_id: str, held: ExitStack, deadline: float | None) -> Origin:
        self._snapshots.get(snapshot_id)
        self._copies.wait(snapshot_id, deadline)
        held.enter_context(self._claims.reading(("snapshot", snapshot_id)))
        snapshot = self._snapshots.get(snapshot_id)
        if not snapshot.is_ready:
            self._copies.require_under_way(snapshot)
            raise OperationPending(f"snapshot {snapshot_id}")
        pool = self._pools.get(snapshot.pool)
        content_fd = pool.contents(snapshot.volume_type).open(pool.store.snapshots_fd, snapshot_id)
        held.callback(os.close, content_fd)
        return Origin(pool, snapshot, snapshot.size_bytes, content_fd)

    def _volume(self, volume_id: str, held: ExitStack, deadline: float | None) -> Origin:
        self._volumes.persistent(volume_id)
        held.enter_context(self._claims.reading(("volume", volume_id)))
        volume = self._volumes.get(volume_id)
        pool = self._pools.of(volume)
        content_fd = pool.contents(volume.volume_type).open(pool.store.volumes_fd, volume_id)
        held.callback(os.close, content_fd)
        return Origin(pool, volume, volume.capacity_bytes, content_fd, volume)


def resolved(spec: VolumeSpec, origin: Origin | Incoming) -> VolumeSpec:
    """The spec with what it leaves to its source.

    Raises: InvalidField naming what differs and cannot be converted.
    """
    source, asked = origin.described, spec.parameters
    if asked.volume_type is not origin.volume_type:
        raise InvalidField("parameters.type", asked.volume_type, f"{origin.volume_type}, as the source is")
    if source.access_type is AccessType.BLOCK and spec.access_type is AccessType.MOUNT:
        # Its owner could have written anything there, and the kernel trusts what it mounts.
        raise InvalidField(
            "volume_capabilities",
            spec.access_type,
            "block: what was made from a raw block volume is never mounted as a filesystem",
        )
    if spec.access_type is AccessType.MOUNT:
        spec = dataclasses.replace(spec, fs_type=_inherited(spec, "fs_type", spec.fs_type, source.fs_type))
    block_size = _inherited(spec, "block_size", asked.block_size, source.parameters.block_size)
    return dataclasses.replace(spec, parameters=dataclasses.replace(asked, block_size=block_size))


def _require_base(object_id: str, held: Described, incoming: Incoming) -> None:
    """Refuse to apply a stream to anything but what it is relative to.

    Raises: OtherContent; StreamDamaged when it says that it is of another kind than that.
    """
    header = incoming.stream.header
    if header.base_id not in held.content_ids:
        raise OtherContent(object_id, sorted(held.content_ids), header.base_id)
    parameters = held.parameters
    is_same = (
        (header.volume_type, header.access_type, header.fs_type, header.block_size)
        == (parameters.volume_type, held.access_type, held.fs_type, parameters.block_size)
    )  # fmt: skip
    if not is_same:
        raise StreamDamaged("it is of another kind than its base")


_FIELDS = {"fs_type": "volume_capabilities.mount.fs_type", "block_size": "parameters.blockSize"}


def _arriving(volume: Volume, progress: Progress) -> Operation:
    kind, source_id = (Kind.FETCH, volume.source.object_id) if volume.source else (Kind.IMPORT, "")
    return Operation(kind, volume.volume_id, volume.name, source_id, progress)


def _copying(volume: Volume, origin: Origin, progress: Progress) -> Operation:
    kind = Kind.ROLLBACK if volume.rollback else Kind.RESTORE if origin.volume is None else Kind.CLONE
    source_id = origin.described.object_id if isinstance(origin.described, Snapshot | Volume) else ""
    return Operation(kind, volume.volume_id, volume.name, source_id, progress)


def _inherited(spec: VolumeSpec, name: str, asked: Value, held: Value) -> Value:
    if name not in spec.inherits and asked != held:
        raise InvalidField(_FIELDS[name], asked, f"{held}, as the source has it")
    return held


def _cut(origin: Origin, volume: Volume, held: ExitStack) -> int:
    """The content of a living volume as of now, sharing its blocks, for as long as `held` lasts."""
    pool = origin.pool
    contents = pool.contents(volume.volume_type)
    cuts.flush(pool, volume)
    cuts.admit(pool, volume)
    still_fd = contents.still(volume, origin.content_fd)
    if still_fd is None:
        still_fd = _cut_in_tmp(origin, volume, held)
    held.callback(os.close, still_fd)
    crash_point("transfer.cut")
    return still_fd


def _cut_named(origin: Origin, volume: Volume, held: ExitStack, name: str) -> int:
    """As `_cut`, but it stays under `tmp/` when `held` ends."""
    pool = origin.pool
    cuts.flush(pool, volume)
    cuts.admit(pool, volume)
    with ExitStack() as undo:
        undo.callback(_clear, pool, name)
        still_fd = _shared_in_tmp(origin, volume, name)
        held.callback(os.close, still_fd)
        crash_point("transfer.cut")
        undo.pop_all()
    return still_fd


def _cut_in_tmp(origin: Origin, volume: Volume, held: ExitStack) -> int:
    """For what cannot be without a name; cleared at the next start, should this process not come to it."""
    name = f"{volume.volume_id}.{secrets.token_hex(4)}"
    held.callback(_clear, origin.pool, name)
    return _shared_in_tmp(origin, volume, name)


def _shared_in_tmp(origin: Origin, volume: Volume, name: str) -> int:
    pool = origin.pool
    object_fd = pool.store.begin(name)
    try:
        cuts.share(pool, volume, origin.content_fd, object_fd)
    finally:
        os.close(object_fd)
    return pool.contents(volume.volume_type).open(pool.store.tmp_fd, name)


def _clear(pool: Pool, name: str) -> None:
    try:
        removal.clear(pool.store.tmp_fd, name)
    except OSError:
        pool.clear_later(pool.store.tmp_fd, name)
