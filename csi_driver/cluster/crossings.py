"""The content of one node's object on its way to another node, as the router sees it: bytes that it neither reads nor
keeps.

The target asks (Fetch), the source is told to dial (Holder.Serve) and dials (Offer), and each message of one is written
to the other before the next is read: whoever is slow holds the other up, and a few messages are all that is here. A
node may ask only for what a create that went through this router told it to copy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from csi_driver.cluster.registry import Registry
from csi_driver.cluster.tokens import NodeIdentity, Verifier
from csi_driver.errors import HostvolError, NodeRefused, NodeUnreachable, ObjectUnknown
from csi_driver.model import key_of, node_key
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.cluster")
_PEER: Final = f"/{peer_pb2.DESCRIPTOR.services_by_name['Peer'].full_name}"
FETCH: Final = f"{_PEER}/Fetch"
OFFER: Final = f"{_PEER}/Offer"
SERVE: Final = f"/{peer_pb2.DESCRIPTOR.services_by_name['Holder'].full_name}/Serve"
TICKET: Final = "hostvol-ticket"
# Holding the source may have to wait for a copy or for a disk.
_SERVE_SECONDS: Final = 60.0
_OFFER_SECONDS: Final = 30.0
# A disk that hangs, and not a rate that is low: a part has at most 1 MiB.
_SILENCE_SECONDS: Final = 300.0
# So long after a create was last heard of its node may fetch: the provisioner repeats one every five minutes.
_GRANTED_SECONDS: Final = 900.0
_MOST_GRANTED: Final = 10000
_MAX_LIFETIME_SECONDS: Final = 1 << 31
_BEARER: Final = "Bearer "


class _Refused(Exception):
    """The node of a source has answered with this gRPC status code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


Explain = Callable[[Exception], tuple[grpc.StatusCode, str]]


class Grants:
    """Which node may fetch which object: what creates that are under way copy."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def allow(self, key: str, source_id: str) -> None:
        """The node is asked for a volume with this content."""
        self._until.pop((key, source_id), None)
        if len(self._until) >= _MOST_GRANTED:
            del self._until[next(iter(self._until))]
        self._until[key, source_id] = time.monotonic() + _GRANTED_SECONDS

    def require(self, key: str, source_id: str) -> None:
        """Refuse a node that nobody has asked.

        Raises: NodeRefused.
        """
        if self._until.get((key, source_id), 0.0) < time.monotonic():
            self._until.pop((key, source_id), None)
            raise NodeRefused(f"no volume is being made from {source_id[:128]!r} on this node")

    def last(self, key: str, source_id: str) -> None:
        """A fetch that was granted was under way until now: it may have taken longer than its grant held."""
        self.allow(key, source_id)


class _Crossing:
    """One answer to a fetch: where its messages go, and whose they are."""

    def __init__(self, source_key: str, target: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.source_key = source_key
        self.target = target
        self.begun = asyncio.Event()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.offer: asyncio.Task[Any] | None = None

    def end(self, error: Exception | None = None) -> None:
        """The source has ended it. Idempotent: the first end counts."""
        if not self.over.done():
            self.over.set_result(None) if error is None else self.over.set_exception(error)

    def abandon(self) -> None:
        """The target is gone."""
        if self.over.done() and not self.over.cancelled():
            # Nobody may have waited for it.
            self.over.exception()
        elif self.offer is not None:
            self.offer.cancel()
        self.over.cancel()


class Crossings(grpc.GenericRpcHandler):
    """Serves Fetch and Offer (proto/peer.proto)."""

    def __init__(self, registry: Registry, verifier: Verifier, grants: Grants, explain: Explain) -> None:
        self.passed_bytes = 0
        self._registry = registry
        self._verifier = verifier
        self._grants = grants
        self._explain = explain
        self._waiting: dict[str, _Crossing] = {}
        self._under_way = 0
        self._handlers = {
            FETCH: grpc.unary_stream_rpc_method_handler(
                self._fetch, request_deserializer=peer_pb2.FetchRequest.FromString
            ),
            OFFER: grpc.stream_unary_rpc_method_handler(
                self._offer, response_serializer=peer_pb2.OfferResponse.SerializeToString
            ),
        }

    def count(self) -> int:
        """How many contents cross now."""
        return self._under_way

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    async def _fetch(self, request: peer_pb2.FetchRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._under_way += 1
        try:
            identity = await self._verifier.verify(bearer(context))
            async with asyncio.timeout(lifetime_seconds(identity)):
                await self._cross(request, node_key(identity.node_id), context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the token has expired, or the source's node is silent")
        except _Refused as refusal:
            await context.abort(_CODES[refusal.code], str(refusal))
        except (HostvolError, OSError) as error:
            await context.abort(*self._explain(error))
        finally:
            self._under_way -= 1

    async def _cross(
        self, request: peer_pb2.FetchRequest, key: str, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        source_key = key_of(request.source_id)
        if not source_key:
            raise ObjectUnknown("source_id", request.source_id)
        self._grants.require(key, request.source_id)
        ticket, crossing = secrets.token_hex(16), _Crossing(source_key, context)
        self._waiting[ticket] = crossing
        try:
            await self._call_source(request, key, ticket)
            if not request.ended:
                async with asyncio.timeout(_OFFER_SECONDS):
                    await crossing.begun.wait()
                await crossing.over
        finally:
            self._waiting.pop(ticket, None)
            crossing.abandon()
            self._grants.last(key, request.source_id)

    async def _call_source(self, request: peer_pb2.FetchRequest, key: str, ticket: str) -> None:
        session = self._registry.session(key_of(request.source_id))
        if session is None:
            raise NodeUnreachable(f"the node that holds {request.source_id} is not attached")
        asked = peer_pb2.ServeRequest(
            ticket=ticket,
            # No node can speak of another one's transfer.
            transfer_id=f"{key}-{request.transfer_id}",
            source_id=request.source_id,
            offset=request.offset,
            ended=request.ended,
        )
        async with asyncio.timeout(_SERVE_SECONDS):
            outcome = await session.call(SERVE, asked.SerializeToString(), _SERVE_SECONDS)
        if outcome.code:
            raise _Refused(outcome.code, outcome.message)

    async def _offer(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> peer_pb2.OfferResponse:
        try:
            identity = await self._verifier.verify(bearer(context))
            crossing = self._taken(_metadata(context, TICKET), node_key(identity.node_id))
        except (HostvolError, OSError) as error:
            _log.warning("an offer from %s was refused: %s", context.peer(), error)
            await context.abort(*self._explain(error))
            raise
        try:
            await self._pass_on(crossing, identity, context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the token has expired, or nothing was sent for minutes")
        return peer_pb2.OfferResponse()

    def _taken(self, ticket: str, key: str) -> _Crossing:
        crossing = self._waiting.get(ticket)
        if crossing is None or crossing.source_key != key:
            raise NodeRefused("nobody waits for this offer")
        del self._waiting[ticket]
        return crossing

    async def _pass_on(
        self, crossing: _Crossing, identity: NodeIdentity, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        crossing.offer = asyncio.current_task()
        crossing.begun.set()
        lost: Exception | None = NodeUnreachable("the source's node was lost")
        try:
            async with asyncio.timeout(lifetime_seconds(identity)):
                while (message := await _read(context)) is not grpc.aio.EOF:
                    await crossing.target.write(message)
                    self.passed_bytes += len(message)
            lost = None
        finally:
            crossing.end(lost)


_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


async def _read(context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    async with asyncio.timeout(_SILENCE_SECONDS):
        return await context.read()


def lifetime_seconds(identity: NodeIdentity) -> float:
    """How long a stream may live that this identity opened."""
    return max(0.0, min(identity.expires_at - time.time(), _MAX_LIFETIME_SECONDS))


def bearer(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The token in the call's metadata, or nothing."""
    value = _metadata(context, "authorization")
    return value.removeprefix(_BEARER) if value.startswith(_BEARER) else ""


def _metadata(context: grpc.aio.ServicerContext[Any, Any], wanted: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == wanted and isinstance(value, str):
            return value
    return ""
