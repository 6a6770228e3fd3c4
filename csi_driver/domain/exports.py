"""Contents as streams to whoever asks for them, and new volumes from such streams; knows neither request nor disk."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csi_driver.domain import sizes
from csi_driver.domain.arrivals import Incoming
from csi_driver.domain.block_lists import BlockLists, require_related
from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue
from csi_driver.domain.origins import Origin
from csi_driver.domain.sources import Sources
from csi_driver.domain.streaming import header_of
from csi_driver.domain.transfers import source_of
from csi_driver.domain.volumes import Volumes
from csi_driver.errors import InvalidField, SnapshotNotFound, StreamDamaged, VolumeNotFound
from csi_driver.model import (
    BLOCK_BYTES,
    AccessType,
    CapacityRange,
    ContentSource,
    PoolName,
    Provisioning,
    QuotaPolicy,
    SourceKind,
    Volume,
    VolumeSpec,
    VolumeType,
)

if TYPE_CHECKING:
    from csi_driver.streams.header import Header

_DEFAULT_POOL = PoolName("default")
_MAX_NAME_BYTES = 128


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a new volume has otherwise than what was exported; empty: as that."""

    name: str = ""
    pool: str = ""
    provisioning: str = ""
    quota: str = ""
    size_bytes: int = 0
    # Of a snapshot or volume that has the content which the stream is relative to.
    onto_id: str = ""


class Exports:
    """The volumes and snapshots of this node, going out and coming in."""

    def __init__(
        self,
        sources: Sources,
        volumes: Volumes,
        catalogue: Catalogue,
        snapshots: SnapshotCatalogue,
        block_lists: BlockLists,
    ) -> None:
        self._sources = sources
        self._block_lists = block_lists
        self._volumes = volumes
        self._catalogue = catalogue
        self._snapshots = snapshots

    def stream(self, object_id: str, deadline: float | None) -> Generator[bytes]:
        """The content of a volume or snapshot as of now, in pieces of at most 1 MiB; it is held until this ends.

        Raises: VolumeNotFound, SnapshotNotFound; SourceBusy where a volume in use cannot be cut; what `Sources` raises;
            OSError: EIO.
        """
        source = source_of(object_id)
        is_snapshot = source.kind is SourceKind.SNAPSHOT
        name = self._snapshots.get(object_id).name if is_snapshot else self._catalogue.get(object_id).name
        # A snapshot has the same bytes for ever, a volume only in this stream.
        content_id = object_id if is_snapshot else f"{object_id}-{secrets.token_hex(8)}"
        with ExitStack() as held:
            origin = self._sources.still(source, deadline, held)
            contents = origin.pool.contents(origin.volume_type)
            header = header_of(origin, object_id, content_id, name)
            yield from held.enter_context(closing(contents.sent(header, origin.content_fd)))

    def changes(self, snapshot_id: str, base_id: str, deadline: float | None) -> Generator[bytes]:
        """What makes the content of the base that of the snapshot, likewise; both are held.

        Raises: SnapshotNotFound; Unrelated; what `Sources` raises; OSError: EIO.
        """
        for field, object_id in (("id", snapshot_id), ("base_id", base_id)):
            if source_of(object_id).kind is not SourceKind.SNAPSHOT:
                raise InvalidField(field, object_id, "a snapshot: only what does not change can be compared")
            self._snapshots.get(object_id)
        with ExitStack() as held:
            origin = held.enter_context(self._sources.held(source_of(snapshot_id), deadline))
            base = held.enter_context(self._sources.held(source_of(base_id), deadline))
            whole = header_of(origin, snapshot_id, snapshot_id, self._snapshots.get(snapshot_id).name)
            header = dataclasses.replace(whole, base_id=base_id, data_bytes=0)
            made = self._tree_changes if origin.volume_type is VolumeType.DIRECTORY else self._image_changes
            yield from made(header, origin, base)

    def _image_changes(self, header: Header, origin: Origin, base: Origin) -> Iterator[bytes]:
        from csi_driver.streams import images  # noqa: PLC0415 - most nodes never do this

        blocks = self._block_lists.changed(header.base_id, header.content_id, 0)
        yield from images.changes(header, origin.content_fd, itertools.chain.from_iterable(blocks.windows))

    def _tree_changes(self, header: Header, origin: Origin, base: Origin) -> Iterator[bytes]:
        from csi_driver.streams import trees  # noqa: PLC0415 - as above

        require_related("base_id", self._snapshots.get(header.base_id), self._snapshots.get(header.content_id))
        shares = origin.described.family == base.described.family
        yield from trees.changes(header, origin.content_fd, base.content_fd, shares=shares)

    def take_in(self, chunks: Iterator[bytes], options: ImportOptions) -> Volume:
        """A new volume with the content of a stream; nothing is left unless the whole stream came.

        Raises: StreamDamaged; InvalidField; what `Volumes.take_in` raises; whatever the chunks raise.
        """
        incoming = Incoming(f"volume {options.name or 'of a stream'}")
        incoming.read_header(chunks)
        incoming.stream.may_be_followed = True
        base = source_of(options.onto_id) if options.onto_id else None
        pool = PoolName(options.pool) or (self._pool_of(base) if base is not None else _DEFAULT_POOL)
        return self._volumes.take_in(_spec(incoming, options, pool), incoming, base)

    def _pool_of(self, source: ContentSource) -> PoolName:
        """Where a copy of it takes no time."""
        try:
            if source.kind is SourceKind.SNAPSHOT:
                return self._snapshots.get(source.object_id).pool
            return self._catalogue.get(source.object_id).pool
        except (SnapshotNotFound, VolumeNotFound):
            # The import will tell.
            return _DEFAULT_POOL


def _spec(incoming: Incoming, options: ImportOptions, pool: PoolName) -> VolumeSpec:
    header = incoming.stream.header
    is_mounted = incoming.access_type is AccessType.MOUNT
    _check_base(header, options)
    if len(options.name.encode()) > _MAX_NAME_BYTES:
        raise InvalidField("name", f"{len(options.name)} characters", f"at most {_MAX_NAME_BYTES} bytes")
    kind = (incoming.volume_type, incoming.access_type, header.fs_type)
    if not sizes.minimum_bytes(*kind) <= header.size_bytes <= sizes.maximum_bytes(*kind):
        raise StreamDamaged("no volume of its kind can have the size in its header")
    if header.size_bytes % BLOCK_BYTES:
        raise StreamDamaged("the size in its header is not one of whole blocks")
    if bool(header.fs_type) != (header.is_image and is_mounted) or not (header.is_image or is_mounted):
        raise StreamDamaged("what its header says of its kind does not fit together")
    parameters = dataclasses.replace(
        incoming.parameters,
        pool=pool,
        provisioning=Provisioning(options.provisioning or header.provisioning),
        quota=QuotaPolicy(options.quota or header.quota),
    )
    if options.provisioning and incoming.volume_type is VolumeType.DIRECTORY:
        raise InvalidField("provisioning", options.provisioning, "nothing for a directory")
    if options.quota and incoming.volume_type is VolumeType.IMAGE:
        raise InvalidField("quota", options.quota, "nothing for an image")
    return VolumeSpec(
        name=options.name or header.name,
        capacity_range=CapacityRange(required_bytes=options.size_bytes),
        access_type=incoming.access_type,
        fs_type=incoming.fs_type,
        parameters=parameters,
    )


def _check_base(header: Header, options: ImportOptions) -> None:
    """A whole stream stands alone, a relative one on what it is applied to."""
    if header.start:
        raise InvalidField(
            "stream", f"one from byte {header.start} on", "a whole one, and behind it those relative to it"
        )
    if header.base_id and not options.onto_id:
        wanted = "a whole one, and behind it those relative to it, or applied --onto what it is relative to"
        raise InvalidField("stream", f"relative to {header.base_id}", wanted)
    if options.onto_id and not header.base_id:
        raise InvalidField("stream", "a whole one", f"one that is relative to what {options.onto_id} holds (--onto)")
