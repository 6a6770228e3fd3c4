"""The contents of this node's objects that other nodes fetch; knows neither the way to them nor the form of the bytes.

A transfer begins with a cut of its source, or by holding it, and goes on with the same cut however often its way breaks
and whichever process sends: what was sent last is kept, and what is asked for besides is made once more from the cut,
byte for byte as it was. What nobody fetches for some minutes is let go, also what an earlier process left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Final

from csi_driver.domain.consignments import Consignment, Consignments
from csi_driver.domain.pools import Pool
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfers import LEASE_SECONDS, Piece
from csi_driver.errors import NotReady, OperationPending, TooManyTransfers, TransferLost

_log = logging.getLogger("hostvol.transfers")
_MOST: Final = 4
# What was sent whole waits only for the word that it has come.
_SENT_SECONDS: Final = 60.0
# What nobody has read for so long gives its place up to another one that wants it.
_YIELDS_SECONDS: Final = 60.0
# More than gRPC's windows and the router can hold, so that whatever was lost on the way is still here.
_KEPT_PIECES: Final = 12


class Departures:
    """The transfers that leave this node."""

    def __init__(self, consignments: Consignments, throttle: Throttle, lease_seconds: float = 0.0) -> None:
        """`lease_seconds`: what nobody reads for so long is let go; 0: LEASE_SECONDS."""
        self.sent_bytes = 0
        self.stopped = threading.Event()
        self._consignments = consignments
        self._throttle = throttle
        self._lease_seconds = lease_seconds or LEASE_SECONDS
        self._lock = threading.Lock()
        self._transfers: dict[str, Departure] = {}

    def count(self) -> int:
        """How many sources are held."""
        return len(self._transfers)

    def take_over(self, pool: Pool) -> None:
        """Hold again what an earlier process held; before the pool's volumes are served."""
        for consignment in self._consignments.left(pool):
            transfer = Departure(consignment.transfer_id, consignment.source_id, self._count, self._lapse)
            transfer.hold(consignment)
            self._transfers[transfer.transfer_id] = transfer
            transfer.lease(self._lease_seconds)
            _log.info("transfer %s: %s is held again", transfer.transfer_id, transfer.source_id)

    def open(self, transfer_id: str, source_id: str, offset: int, deadline: float | None) -> Departure:
        """The transfer, ready to be read from `offset`; whoever read it before is cut off.

        Raises: NotReady when a later process, or a pool that is not served yet, may know it; TransferLost when it is
            not known any more; TooManyTransfers; what `Sources` raises.
        """
        if self.stopped.is_set():
            raise NotReady("the driver is stopping; repeat the call")
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            if offset and not self._consignments.is_complete:
                raise NotReady(f"a pool of the node of {source_id} is not served yet; repeat the call")
            if offset:
                raise TransferLost(source_id, "its node has let the source go")
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
            transfer.end()
            _log.info("transfer %s is over: %d bytes were sent", transfer_id, transfer.sent_bytes)

    def break_off(self) -> None:
        """Nothing is sent any more; what is held stays so. Idempotent."""
        self.stopped.set()
        for transfer in list(self._transfers.values()):
            transfer.break_off()

    def stop(self) -> None:
        """Leave everything to the next process; nobody may be served any more who could change what is held."""
        self.break_off()
        with self._lock:
            transfers, self._transfers = list(self._transfers.values()), {}
        for transfer in transfers:
            transfer.leave()

    def _begun(self, transfer_id: str, source_id: str, deadline: float | None) -> Departure:
        self._end_earlier(transfer_id)
        self._make_room()
        transfer = Departure(transfer_id, source_id, self._count, self._lapse)
        with self._lock:
            if transfer_id in self._transfers:
                raise OperationPending(f"transfer {transfer_id}")
            if len(self._transfers) >= _MOST:
                raise TooManyTransfers(_MOST)
            self._transfers[transfer_id] = transfer
        try:
            transfer.hold(self._consignments.begin(transfer_id, source_id, deadline))
        except BaseException:
            self.end(transfer_id)
            raise
        transfer.lease(self._lease_seconds)
        _log.info("transfer %s: %s is fetched by another node", transfer_id, source_id)
        return transfer

    def _end_earlier(self, transfer_id: str) -> None:
        """A target that begins again what it had begun does not want what it had."""
        create, dot, _ = transfer_id.rpartition(".")
        for other in list(self._transfers):
            if other.startswith(f"{create}.") if dot else _is_of_earlier_run(other, transfer_id):
                self.end(other)

    def _make_room(self) -> None:
        """Where all places are taken, let go of the transfer that rests longest, if it does so for a while."""
        transfers = list(self._transfers.values())
        if len(transfers) < _MOST:
            return
        longest = max(transfers, key=Departure.rested_seconds)
        if longest.rested_seconds() > _YIELDS_SECONDS:
            self._lapse(longest)

    def _count(self, count: int) -> None:
        self._throttle.pass_on(count, self.stopped)
        self.sent_bytes += count

    def _lapse(self, transfer: Departure) -> None:
        _log.warning("transfer %s: nobody fetches it any more, %s is let go", transfer.transfer_id, transfer.source_id)
        self.end(transfer.transfer_id)


def _is_of_earlier_run(other: str, transfer_id: str) -> bool:
    """Whether the other one is of a process before this one's, of a target whose ids are NODE-RUN-NUMBER."""
    if transfer_id.count("-") < 2:
        return False
    node, run = transfer_id.split("-")[:2]
    return other.startswith(f"{node}-") and not other.startswith(f"{node}-{run}-")


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
        self._lock = threading.Lock()
        self._consignment: Consignment | None = None
        self._chunks: Generator[bytes] | None = None
        self._kept: deque[Piece] = deque(maxlen=_KEPT_PIECES)
        self._produced_to = 0
        self._is_produced = False
        self._next = 0
        self._reader = 0
        self._lease_seconds = 0.0
        self._timer: threading.Timer | None = None
        self._rests_since = 0.0
        self._is_closed = False

    def hold(self, consignment: Consignment) -> None:
        """This is what is sent.

        Raises: TransferLost when the transfer is over already.
        """
        with self._lock:
            if not self._is_closed:
                self._consignment = consignment
                self._rewind()
                return
        consignment.let_go()
        raise TransferLost(self.source_id, "its target does not want it any more")

    def rested_seconds(self) -> float:
        """How long nobody has read it; 0 while somebody does."""
        with self._lock:
            return time.monotonic() - self._rests_since if self._timer is not None else 0.0

    def lease(self, seconds: float) -> None:
        """Let go of it when nobody reads for so long."""
        with self._lock:
            self._lease_seconds = seconds
            self._rest()

    def seek(self, offset: int) -> None:
        """Send from here on.

        Raises: TransferLost when the content has no such place; OperationPending while it is not held yet.
        """
        with self._lock:
            if self._consignment is None:
                raise OperationPending(f"transfer {self.transfer_id}")
            if self._is_produced and offset > self._produced_to:
                raise TransferLost(self.source_id, f"it has no byte {offset}")
            if offset < self._produced_to and self._kept_at(offset) is None:
                self._rewind()
            self._next = offset
            self._reader += 1
            # Whoever asked may never come to read.
            self._rest()

    def pieces(self) -> Iterator[Piece]:
        """All from the place that was sought, to the end; shorter when another reader begins.

        Raises: TransferLost when the content has no such place; OSError.
        """
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

    def break_off(self) -> None:
        """Whoever reads it is cut off."""
        with self._lock:
            self._reader += 1

    def end(self) -> None:
        """Hold nothing any more. Idempotent."""
        consignment = self._closed()
        if consignment is not None:
            consignment.let_go()

    def leave(self) -> None:
        """Hold nothing any more in this process. Idempotent."""
        consignment = self._closed()
        if consignment is not None:
            consignment.leave()

    def _closed(self) -> Consignment | None:
        with self._lock:
            self._is_closed = True
            self._reader += 1
            self._wake()
            if self._chunks is not None:
                self._chunks.close()
            consignment, self._consignment = self._consignment, None
            return consignment

    def _piece(self, reader: int) -> Piece | None:
        while True:
            with self._lock:
                if reader != self._reader:
                    return None
                piece = self._kept_at(self._next) or self._produced()
                behind = piece.offset + len(piece.data)
                if piece.is_last and self._next > behind:
                    raise TransferLost(self.source_id, f"it has no byte {self._next}")
                # Else it is made only to come to what is wanted.
                if piece.is_last or behind > self._next:
                    piece = replace(piece, offset=self._next, data=piece.data[self._next - piece.offset :])
                    self._next = behind
                    return piece

    def _kept_at(self, offset: int) -> Piece | None:
        for piece in self._kept:
            if piece.offset <= offset < piece.offset + len(piece.data) or (piece.is_last and piece.offset == offset):
                return piece
        return None

    def _produced(self) -> Piece:
        assert self._chunks is not None
        try:
            data = next(self._chunks, b"")
        except BaseException:
            # What has failed would pass for the end the next time.
            self._rewind()
            raise
        piece = Piece(self._produced_to, data, is_last=not data)
        self._produced_to += len(data)
        self._is_produced = piece.is_last
        self._kept.append(piece)
        return piece

    def _rewind(self) -> None:
        assert self._consignment is not None
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = self._consignment.sent()
        self._kept.clear()
        self._produced_to, self._is_produced = 0, False

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        if self._is_closed or not self._lease_seconds:
            return
        self._wake()
        self._rests_since = time.monotonic()
        self._timer = threading.Timer(self._lease_seconds, self._lapse, (self,))
        self._timer.daemon = True
        self._timer.start()
