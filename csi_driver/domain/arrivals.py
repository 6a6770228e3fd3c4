"""The contents of other nodes' objects that this node fetches for its new volumes; knows no connection and no disk.

A break of the way is waited out and the content taken up where it is, unseen by whoever reads it. What has come is
kept with a journal of it, and the repeated create goes on with that, also in another process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from csi_driver.domain.half_arrivals import HalfArrival
from csi_driver.domain.progress import Progress
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfers import PATIENCE_SECONDS, Carrier, Piece
from csi_driver.errors import (
    HostvolError,
    OperationPending,
    SourceElsewhere,
    StreamDamaged,
    TooManyTransfers,
    TransferInterrupted,
    TransferLost,
    TransferUnderWay,
)
from csi_driver.model import AccessType, ContentSource, VolumeParameters, VolumeType
from csi_driver.store import durable

if TYPE_CHECKING:
    from csi_driver.domain.origins import Origin
    from csi_driver.streams.frames import Reader
    from csi_driver.streams.journal import Journal

_log = logging.getLogger("hostvol.transfers")
_MOST: Final = 2
_FIRST_PATIENCE_SECONDS: Final = 3.0
_FIRST_BACKOFF_SECONDS: Final = 0.2
_LAST_BACKOFF_SECONDS: Final = 5.0
# Well within a source's lease.
_RENEWAL_SECONDS: Final = 60.0


class Arrivals:
    """The transfers that come to this node."""

    def __init__(self, node_id: str, throttle: Throttle) -> None:
        self.received_bytes = 0
        self._node_id = node_id
        self._throttle = throttle
        self._carrier: Carrier | None = None
        self._under_way: dict[str, Arrival] = {}

    def use(self, carrier: Carrier) -> None:
        """There is a way to other nodes from now on."""
        self._carrier = carrier

    def count(self) -> int:
        """How many contents are on their way."""
        return len(self._under_way)

    def give_up(self, half: HalfArrival) -> None:
        """Tell the source of what has come that nothing more of it is wanted."""
        if self._carrier is None or half.volume.source is None:
            return
        try:
            journal = _journal(half.volume.name, half)
        except (TransferLost, OSError):
            return  # its lease ends
        journal.close()
        self._carrier.end(journal.transfer_id, half.volume.source.object_id)

    @contextmanager
    def begun(self, name: str, source: ContentSource, half: HalfArrival | None) -> Iterator[Arrival]:
        """The content of the source for the volume of that name, which it has described by now; `half`: its beginning.

        Raises: SourceElsewhere without a way to its node; TooManyTransfers; TransferInterrupted when that node is not
            reached in some minutes; StreamDamaged; TransferLost when what comes is not the rest of what has come; what
            a Carrier raises.
        """
        if self._carrier is None:
            raise SourceElsewhere(source.object_id, self._node_id)
        if len(self._under_way) >= _MOST:
            raise TooManyTransfers(_MOST)
        journal = _journal(name, half)
        arrival = self._under_way[name] = Arrival(self._carrier, source.object_id, journal, name, self._count)
        try:
            with closing(arrival):
                arrival.begin()
                yield arrival
            _log.info("volume %s: its content came from %s: %d bytes", name, source.object_id, arrival.come_bytes)
        except StreamDamaged as damage:
            if not journal.is_resumed:
                raise
            raise TransferLost(
                source.object_id, f"what came now is not the rest of what had come: {damage}"
            ) from damage
        finally:
            del self._under_way[name]

    def told(self, name: str, pending: OperationPending) -> Exception:
        """What whoever waited for the volume hears: how far its content is, when it is on its way."""
        arrival = self._under_way.get(name)
        if arrival is None:
            return pending
        return TransferUnderWay(name, arrival.source_id, arrival.progress.copied_bytes, arrival.progress.total_bytes)

    def _count(self, count: int) -> None:
        assert self._carrier is not None
        self._throttle.pass_on(count, self._carrier.stopped)
        self.received_bytes += count


class Incoming:
    """One content that comes as a stream: what it is, and the stream, to be read once from its beginning to its end.

    `base`: what a relative one is applied to.
    """

    # Whether the volume is remembered as having the content that the stream names.
    is_named = True

    def __init__(self, what: str) -> None:
        self.progress = Progress(what, 0)
        self.stream: Reader
        self.base: Origin | None = None

    def read_header(self, chunks: Iterator[bytes], journal: Journal | None = None) -> None:
        """Read what the stream says of itself; `journal` is told all that comes.

        Raises: StreamDamaged; whatever the chunks raise.
        """
        from csi_driver.streams.frames import Reader  # noqa: PLC0415 - most nodes never do this

        self.stream = Reader(chunks, journal)
        self.progress.total_bytes = self.stream.header.data_bytes

    @property
    def is_kept(self) -> bool:
        """Whether what has come can be gone on with, should it end here."""
        return self.stream.journal is not None and self.stream.journal.is_kept

    @property
    def is_resumed(self) -> bool:
        """Whether a part of it lies where it is built."""
        return self.stream.journal is not None and self.stream.journal.is_resumed

    @property
    def size_bytes(self) -> int:
        return self.stream.header.size_bytes

    @property
    def volume_type(self) -> VolumeType:
        return self.parameters.volume_type

    @property
    def described(self) -> Incoming:
        """What the source is: this, too, tells it."""
        return self

    @property
    def access_type(self) -> AccessType:
        return AccessType(self.stream.header.access_type)

    @property
    def fs_type(self) -> str:
        return self.stream.header.fs_type

    @property
    def parameters(self) -> VolumeParameters:
        header = self.stream.header
        return VolumeParameters(volume_type=VolumeType(header.volume_type), block_size=header.block_size)

    @property
    def family(self) -> str:
        """That of its base; else none: blocks are shared on one node only."""
        return self.base.described.family if self.base is not None else ""


class Arrival(Incoming):
    """One content on its way from another node."""

    # Nothing will ever be relative to what a transfer sends.
    is_named = False

    def __init__(
        self, carrier: Carrier, source_id: str, journal: Journal, name: str, count: Callable[[int], None]
    ) -> None:
        super().__init__(f"volume {name}, from {source_id} on another node")
        self.source_id = source_id
        self._carrier = carrier
        self._count = count
        self._transfer_id = journal.transfer_id
        self._journal = journal
        self._is_interrupted = False
        self.come_bytes = 0
        self._moved_at = time.monotonic()
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._chunks = self._all_chunks()

    def begin(self) -> None:
        """Ask for it, and read what it says of itself."""
        self.read_header(self._chunks, self._journal)

    def close(self) -> None:
        """It is whole, or given up, or will be gone on with."""
        self._chunks.close()
        will_go_on = self._is_interrupted and self._journal.is_kept
        self._journal.close()
        if not will_go_on:
            self._carrier.end(self._transfer_id, self.source_id)

    def _all_chunks(self) -> Generator[bytes]:
        if self._journal.is_resumed:
            for chunk in self._journal.replayed():
                self.come_bytes += len(chunk)
                self._renew()
                yield chunk
            _log.info("%s: %d bytes are here, the rest is fetched", self.source_id, self.come_bytes)
            self._moved_at = time.monotonic()
            if self._journal.is_whole:
                return
        while True:
            try:
                with closing(self._pieces()) as pieces:
                    for piece in pieces:
                        if piece.is_last:
                            return
                        yield piece.data
                raise TransferInterrupted("the content ended before its end")
            except TransferInterrupted as cause:
                self._wait(cause)

    def _renew(self) -> None:
        """Now and then have a byte sent, so that the source does not let go while what has come is read."""
        if time.monotonic() < self._moved_at + _RENEWAL_SECONDS:
            return
        with suppress(HostvolError):
            next(iter(self._carrier.fetch(self._transfer_id, self.source_id, 1)), None)
        self._moved_at = time.monotonic()

    def _pieces(self) -> Generator[Piece]:
        for piece in self._carrier.fetch(self._transfer_id, self.source_id, self.come_bytes):
            if piece.offset != self.come_bytes:
                raise TransferInterrupted(f"byte {self.come_bytes} was due, byte {piece.offset} came")
            self.come_bytes += len(piece.data)
            self._count(len(piece.data))
            self._moved_at, self._backoff = time.monotonic(), _FIRST_BACKOFF_SECONDS
            yield piece

    def _wait(self, cause: TransferInterrupted) -> None:
        """Let some time pass before the next try.

        Raises: TransferInterrupted when there is none to be.
        """
        # What has not begun has nothing to lose: the repeated call begins it.
        patience_seconds = PATIENCE_SECONDS if self.come_bytes else _FIRST_PATIENCE_SECONDS
        if time.monotonic() > self._moved_at + patience_seconds:
            self._is_interrupted = True
            raise TransferInterrupted(f"{self.source_id} does not arrive: {cause}") from cause
        if self._backoff == _FIRST_BACKOFF_SECONDS:
            _log.warning("%s: interrupted after %d bytes: %s", self.source_id, self.come_bytes, cause)
        if self._carrier.stopped.wait(self._backoff):
            self._is_interrupted = True
            raise TransferInterrupted("the driver is stopping; repeat the call") from cause
        self._backoff = min(self._backoff * 2, _LAST_BACKOFF_SECONDS)


def _journal(name: str, half: HalfArrival | None) -> Journal:
    """The journal of what comes for the volume of that name.

    Raises: TransferLost when that of what has come is none; OSError.

    The source knows by the part before the dot that what this create had begun before is not wanted any more.
    """
    from csi_driver.streams.journal import Journal  # noqa: PLC0415 - most nodes never do this

    if half is None:
        return Journal(f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.{secrets.token_hex(8)}")
    object_fd = durable.open_directory(half.volume.volume_id, dir_fd=half.pool.store.tmp_fd)
    try:
        return Journal.resumed(object_fd)
    except ValueError as cause:
        raise TransferLost(half.volume.volume_id, f"the journal of what had come is none: {cause}") from cause
    finally:
        os.close(object_fd)
