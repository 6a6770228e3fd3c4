"""Contents carried between this node and its routers, each by an RPC of its own; knows no volume and no form of bytes.

Both ways are dialled from here (proto/peer.proto): Fetch brings another node's content, Offer sends ours to the router
that asked for it down its stream.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, Final

import grpc
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi_driver.cluster.link import LinkOptions, Proof, open_channel
from csi_driver.domain.arrivals import Arrivals
from csi_driver.domain.departures import Departure, Departures
from csi_driver.domain.transfers import Piece
from csi_driver.errors import (
    HostvolError,
    SourceElsewhere,
    SourceNotFound,
    SourceRefused,
    TransferInterrupted,
    TransferLost,
)
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.transfers")
_PEER: Final = f"/{peer_pb2.DESCRIPTOR.services_by_name['Peer'].full_name}"
_TICKET: Final = "hostvol-ticket"
_END_SECONDS: Final = 10.0
_Code: Final = grpc.StatusCode


class Ferry:
    """This node's end of all transfers (Carrier)."""

    def __init__(self, options: LinkOptions, node_id: str, departures: Departures) -> None:
        self.stopped = threading.Event()
        # Where the routers are; given by whoever keeps the streams to them.
        self.addresses: Callable[[], Collection[str]] = tuple
        self._options = options
        self._node_id = node_id
        self._departures = departures
        self._lock = threading.Lock()
        self._calls: set[Any] = set()

    def stop(self) -> None:
        """End everything that is on its way. What is held stays held."""
        self.stopped.set()
        self._departures.break_off()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def fetch(self, transfer_id: str, source_id: str, offset: int) -> Iterator[Piece]:
        """The content from the first router that gives it.

        Raises: as Carrier.
        """
        request = peer_pb2.FetchRequest(transfer_id=transfer_id, source_id=source_id, offset=offset)
        failures: list[HostvolError] = []
        for address in self.addresses():
            try:
                yield from self._fetched(address, request)
            except (TransferInterrupted, SourceElsewhere) as cause:
                # The router that was asked for the volume may be another one, or a newer one.
                failures.append(cause)
                if request.offset != offset:
                    break
            else:
                return
        passing = [one for one in failures if isinstance(one, TransferInterrupted)]
        raise (passing or failures or [TransferInterrupted("no router is attached")])[0]

    def end(self, transfer_id: str, source_id: str) -> None:
        """Tell the source; one that does not hear of it lets go by itself."""
        request = peer_pb2.FetchRequest(transfer_id=transfer_id, source_id=source_id, ended=True)
        for address in self.addresses():
            with suppress(HostvolError):
                for _ in self._fetched(address, request, _END_SECONDS):
                    pass
                return

    def offer(self, ticket: str, transfer_id: str, address: str) -> None:
        """Send the content to the router at the address, in a thread of its own."""
        departure = self._departures.get(transfer_id)
        if departure is not None:
            name = f"offer {departure.source_id}"
            threading.Thread(target=self._offer, args=(ticket, departure, address), name=name, daemon=True).start()

    def _fetched(
        self, address: str, request: peer_pb2.FetchRequest, timeout_seconds: float | None = None
    ) -> Iterator[Piece]:
        try:
            proof = Proof.read(self._options)
            with open_channel(address, self._options, proof) as channel:
                fetch = channel.unary_stream(
                    f"{_PEER}/Fetch",
                    request_serializer=peer_pb2.FetchRequest.SerializeToString,
                    response_deserializer=peer_pb2.Part.FromString,
                )
                call = fetch(request, metadata=proof.metadata, timeout=timeout_seconds)
                try:
                    self._begins(call)
                    for part in call:
                        piece = _checked(part, request.source_id)
                        request.offset = piece.offset + len(piece.data)
                        yield piece
                finally:
                    self._calls.discard(call)
                    call.cancel()
        except grpc.RpcError as error:
            raise self._explained(error, request.source_id) from error
        except (OSError, ValueError) as cause:
            raise TransferInterrupted(f"the router cannot be dialled: {cause}") from cause

    def _begins(self, call: Any) -> None:
        with self._lock:
            if self.stopped.is_set():
                raise TransferInterrupted("the driver is stopping; repeat the call")
            self._calls.add(call)

    def _offer(self, ticket: str, departure: Departure, address: str) -> None:
        try:
            proof = Proof.read(self._options)
            with open_channel(address, self._options, proof) as channel:
                offer = channel.stream_unary(
                    f"{_PEER}/Offer",
                    request_serializer=peer_pb2.Part.SerializeToString,
                    response_deserializer=peer_pb2.OfferResponse.FromString,
                )
                offer(_parts(departure), metadata=(*proof.metadata, (_TICKET, ticket)))
        except grpc.RpcError as error:
            _log.warning("transfer %s: interrupted: %s", departure.transfer_id, _words(error))
        except (OSError, ValueError) as cause:
            _log.warning("transfer %s: the router cannot be dialled: %s", departure.transfer_id, cause)

    def _explained(self, error: grpc.RpcError, source_id: str) -> HostvolError:
        """What the end of a fetch means."""
        code = error.code() if isinstance(error, grpc.Call) else None
        words = _words(error)
        if code is _Code.UNIMPLEMENTED:
            return SourceElsewhere(source_id, self._node_id, "the router or the source's node is too old to send it")
        if code is _Code.NOT_FOUND:
            return SourceNotFound("volume_content_source", source_id)
        if code is _Code.ABORTED:
            return TransferLost(source_id, words)
        if code is _Code.FAILED_PRECONDITION:
            return SourceRefused(source_id, words)
        return TransferInterrupted(words)


def _checked(part: peer_pb2.Part, source_id: str) -> Piece:
    if part.failure:
        raise SourceRefused(source_id, part.failure)
    if zlib.crc32(part.data) != part.crc32:
        raise TransferInterrupted(f"what came at byte {part.offset} is not what was sent")
    return Piece(part.offset, part.data, part.last)


def _parts(departure: Departure) -> Iterator[peer_pb2.Part]:
    """Consumed in a thread of gRPC's, which tells nobody what was raised here."""
    try:
        for piece in departure.pieces():
            yield peer_pb2.Part(offset=piece.offset, data=piece.data, crc32=zlib.crc32(piece.data), last=piece.is_last)
    except Exception as cause:
        is_foreseen = isinstance(cause, HostvolError | OSError)
        _log.error(
            "transfer %s: %s cannot be read: %s",
            departure.transfer_id,
            departure.source_id,
            cause if is_foreseen else "unforeseen failure",
            exc_info=None if is_foreseen else cause,
        )
        yield peer_pb2.Part(failure=str(cause) or type(cause).__name__)


def _words(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return "the connection broke"
    return f"{error.details()} ({error.code().name})"


class FerryFigures(Collector):
    """This node's transfers, asked at each scrape."""

    def __init__(self, arrivals: Arrivals, departures: Departures) -> None:
        self._arrivals = arrivals
        self._departures = departures

    def collect(self) -> Iterator[Metric]:
        counts = {"in": self._arrivals.count(), "out": self._departures.count()}
        sums = {"in": self._arrivals.received_bytes, "out": self._departures.sent_bytes}
        gauge = GaugeMetricFamily(
            "hostvol_transfers", "Contents on their way between this node and others.", labels=["direction"]
        )
        counter = CounterMetricFamily(
            "hostvol_transferred_bytes", "What came from other nodes and went to them.", labels=["direction"]
        )
        for direction in ("in", "out"):
            gauge.add_metric([direction], counts[direction])
            counter.add_metric([direction], sums[direction])
        yield gauge
        yield counter
