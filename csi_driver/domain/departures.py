"""The contents of this node's objects that other nodes fetch; knows neither the way to them nor the form of the bytes.

A transfer begins with a cut of its source, or by holding it, and goes on with the same cut however often its way
breaks: what was sent last is kept, and sent again from where it arrived. What nobody fetches for some minutes is let
go; so is everything when the process ends, and whoever asks for the rest then is told to begin again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from csi_driver.domain.sources import Origin, Sources
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfers import LEASE_SECONDS, Piece, source_of
from csi_driver.errors import OperationPending, TooManyTransfers, TransferLost

if TYPE_CHECKING:
    from csi_driver.streams.header import Header

_log = logging.getLogger("hostvol.transfers")
_MOST: Final = 4
# What was sent whole waits only for the word that it has come.
_SENT_SECONDS: Final = 60.0
# More than gRPC's windows and the router can hold, so that whatever was lost on the way is still here.
_KEPT_PIECES: Final = 12


class Departures:
    """The transfers that leave this node."""

    def __init__(self, sources: Sources, throttle: Throttle, lease_seconds: float = LEASE_SECONDS) -> None:
        self.sent_bytes = 0
        self.stopped = threading.Event()
        self._sources = sources
        self._throttle = throttle
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._transfers: dict[str, Departure] = {}

    def count(self) -> int:
        """How many sources are held."""
        return len(self._transfers)

    def open(self, transfer_id: str, source_id: str, offset: int, deadline: float | None) -> Departure:
        """The transfer, ready to be read from `offset`; whoever read it before is cut off.

        Raises: TransferLost when it is not known any more; TooManyTransfers; what `Sources` raises.
        """
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            if offset:
                raise TransferLost(source_id, "its node has let the source go, or was restarted")
            transfer = self._begun(transfer_id, source_id, deadline)
        transfer.seek(offset)
        return transfer

    def get(self, transfer_id: str) -> Departure | None:
        """The transfer, if it is known."""
        return self._transfers.get(transfer_id)

    def end(self, transfer_id: str) -> None:
        """Nothing is held for the transfer any more. Idempotent."""
        with self._lock:
            transfer = self._transfers.pop(transfer_id, None)
        if transfer is not None:
            transfer.close()
            _log.info("transfer %s is over: %d bytes were sent", transfer_id, transfer.sent_bytes)

    def stop(self) -> None:
        """Let everything go."""
        self.stopped.set()
        for transfer_id in list(self._transfers):
            self.end(transfer_id)

    def _begun(self, transfer_id: str, source_id: str, deadline: float | None) -> Departure:
        self._end_earlier_runs(transfer_id)
        transfer = Departure(transfer_id, source_id, self._count, self._lapse)
        with self._lock:
            if transfer_id in self._transfers:
                raise OperationPending(f"transfer {transfer_id}")
            if len(self._transfers) >= _MOST:
                raise TooManyTransfers(_MOST)
            self._transfers[transfer_id] = transfer
        try:
            transfer.hold(self._sources, deadline)
        except BaseException:
            self.end(transfer_id)
            raise
        transfer.lease(self._lease_seconds)
        _log.info("transfer %s: %s is fetched by another node", transfer_id, source_id)
        return transfer

    def _end_earlier_runs(self, transfer_id: str) -> None:
        """A target that was started again knows nothing of what it fetched before."""
        node, run = transfer_id.split("-")[:2] if transfer_id.count("-") > 1 else (transfer_id, "")
        for other in list(self._transfers):
            if other.startswith(f"{node}-") and not other.startswith(f"{node}-{run}-"):
                self.end(other)

    def _count(self, count: int) -> None:
        self._throttle.pass_on(count, self.stopped)
        self.sent_bytes += count

    def _lapse(self, transfer: Departure) -> None:
        _log.warning("transfer %s: nobody fetches it any more, %s is let go", transfer.transfer_id, transfer.source_id)
        self.end(transfer.transfer_id)


class Departure:
    """One transfer: its source, and where it is."""

    def __init__(
        self, transfer_id: str, source_id: str, count: Callable[[int], None], lapse: Callable[[Departure], None]
    ) -> None:
        self.transfer_id = transfer_id
        self.source_id = source_id
        self.sent_bytes = 0
        self._count = count
        self._lapse = lapse
        self._held = ExitStack()
        self._lock = threading.Lock()
        self._chunks: Iterator[bytes] = iter(())
        self._kept: deque[Piece] = deque(maxlen=_KEPT_PIECES)
        self._sent_to = 0
        self._next = 0
        self._reader = 0
        self._lease_seconds = 0.0
        self._timer: threading.Timer | None = None
        self._is_closed = False

    def hold(self, sources: Sources, deadline: float | None) -> None:
        """Cut the source, or hold it."""
        origin = sources.still(source_of(self.source_id), deadline, self._held)
        contents = origin.pool.contents(origin.volume_type)
        # Of this cut: whatever else is sent of its source has other bytes.
        header = header_of(origin, self.source_id, self.transfer_id, self.source_id)
        self._chunks = self._held.enter_context(closing(contents.sent(header, origin.content_fd)))

    def lease(self, seconds: float) -> None:
        """Let go of it when nobody reads for so long."""
        self._lease_seconds = seconds
        self._rest()

    def seek(self, offset: int) -> None:
        """Send from here on.

        Raises: TransferLost when that is too far back.
        """
        with self._lock:
            if offset != self._sent_to and offset not in {piece.offset for piece in self._kept}:
                raise TransferLost(self.source_id, f"what stands at {offset} was sent long ago")
            self._next = offset
            self._reader += 1

    def pieces(self) -> Iterator[Piece]:
        """All from the place that was sought, to the end; shorter when another reader begins."""
        with self._lock:
            reader = self._reader
            self._wake()
        try:
            while (piece := self._piece(reader)) is not None:
                self._count(len(piece.data))
                self.sent_bytes += len(piece.data)
                yield piece
                if piece.is_last:
                    self._lease_seconds = min(self._lease_seconds, _SENT_SECONDS)
                    return
        finally:
            with self._lock:
                if reader == self._reader:
                    self._rest()

    def close(self) -> None:
        """Hold nothing any more. Idempotent."""
        with self._lock:
            self._is_closed = True
            self._reader += 1
            self._wake()
            self._held.close()

    def _piece(self, reader: int) -> Piece | None:
        with self._lock:
            if reader != self._reader:
                return None
            for piece in self._kept:
                if piece.offset == self._next:
                    break
            else:
                piece = self._produced()
            self._next = piece.offset + len(piece.data)
            return piece

    def _produced(self) -> Piece:
        data = next(self._chunks, b"")
        piece = Piece(self._sent_to, data, is_last=not data)
        self._sent_to += len(data)
        self._kept.append(piece)
        return piece

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        if self._is_closed or not self._lease_seconds:
            return
        self._wake()
        self._timer = threading.Timer(self._lease_seconds, self._lapse, (self,))
        self._timer.daemon = True
        self._timer.start()


def header_of(origin: Origin, source_id: str, content_id: str, name: str) -> Header:
    """What a stream of the source says of itself."""
    from csi_driver.streams.header import Header  # noqa: PLC0415 - most nodes never do this

    described = origin.described
    return Header(
        volume_type=origin.volume_type,
        access_type=described.access_type,
        fs_type=described.fs_type,
        size_bytes=origin.size_bytes,
        content_id=content_id,
        source_id=source_id,
        source_volume_id=source_id,
        name=name,
        created_at=time.time(),
        block_size=described.parameters.block_size,
        provisioning=described.parameters.provisioning,
        quota=described.parameters.quota,
        data_bytes=origin.pool.contents(origin.volume_type).size_bytes(origin.content_fd),
    )
