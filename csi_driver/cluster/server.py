"""The router's two gRPC servers in one event loop: the sidecars' on a UNIX socket, the nodes' with TLS."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from csi_driver.cluster import routing
from csi_driver.cluster.certificates import Certificates
from csi_driver.cluster.crossings import Crossings
from csi_driver.cluster.outcome import Outcome
from csi_driver.cluster.peers import Explain, Peers
from csi_driver.cluster.router import Asked, Router
from csi_driver.cluster.streams import StreamEnded
from csi_driver.errors import HostvolError
from csi_driver.linux import sockets

_log = logging.getLogger("hostvol.cluster")
_FOR_EVER_SECONDS = 1e8
_RETRY_SECONDS = 2.0
_REFRESH_SECONDS = 600.0
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SIDECAR_OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
)
_PEER_OPTIONS = (
    # A list page or a stream's message of 4 MiB, and what stands around it.
    ("grpc.max_receive_message_length", 5 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    # A keepalive waits for a ping of another kind that is on its way; by default those may take a minute.
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
    ("grpc.http2.max_ping_strikes", 0),
)


class Journal(Protocol):
    """Where finished RPCs are written down."""

    def finished(self, name: str, request: Message, code: str, began: float, cause: str) -> None: ...


class Local(Protocol):
    """Methods that are answered here, without a node: who we are and what we can do."""

    def call(self, method: str, request: bytes) -> tuple[int, str, bytes] | None: ...


class Front(grpc.GenericRpcHandler):
    """Every CSI method of a cluster's controller, by name and bytes."""

    def __init__(self, router: Router, local: Local, journal: Journal, explain: Explain) -> None:
        self._router = router
        self._local = local
        self._journal = journal
        self._explain = explain
        self._handlers = {
            method: self._rpc_handler(method, descriptor) for method, descriptor in routing.method_descriptors().items()
        }

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def _rpc_handler(self, method: str, descriptor: Any) -> Any:
        decode = message_factory.GetMessageClass(descriptor.input_type).FromString

        async def unary(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            local = self._local.call(method, raw)
            if local is not None:
                return await _told(Outcome(*local), context)
            return await _told(await self._watched(_asked(method, decode, raw, context)), context)

        async def stream(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
            asked = _asked(method, decode, raw, context)
            if asked is None:
                await _told(_UNREADABLE, context)
                return
            began = time.perf_counter()
            async with aclosing(self._router.stream(asked)) as messages:
                while not (outcome := await self._outcome(asked, began, _next(messages))).code:
                    if outcome is _END:
                        break
                    yield outcome.response
            self._finished(asked, began, outcome)
            await _told(outcome, context)

        if descriptor.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _watched(self, asked: Asked | None) -> Outcome:
        """What the caller of a unary method hears, whatever happens; one line in the journal."""
        if asked is None:
            return _UNREADABLE
        began = time.perf_counter()
        outcome = await self._outcome(asked, began, self._router.call(asked))
        self._finished(asked, began, outcome)
        return outcome

    async def _outcome(self, asked: Asked, began: float, work: Awaitable[Outcome]) -> Outcome:
        try:
            return await work
        except asyncio.CancelledError:
            self._journal.finished(asked.name, asked.request, "CANCELLED", began, "the caller has given up")
            raise
        except Exception as error:
            code, message = self._explain(error)
            if not isinstance(error, HostvolError | OSError):
                _log.error("unforeseen failure in %s", asked.name, exc_info=error)
            return Outcome(code.value[0], message)

    def _finished(self, asked: Asked, began: float, outcome: Outcome) -> None:
        code = _code(outcome).name
        self._journal.finished(asked.name, asked.request, code, began, outcome.message)


class ControllerServer:
    """Owner of both listeners."""

    def __init__(self, front: Front, peers: Peers, crossings: Crossings, certificates: Certificates) -> None:
        self._certificates = certificates
        self._sidecars = grpc.aio.server(options=_SIDECAR_OPTIONS)
        self._sidecars.add_generic_rpc_handlers((front,))
        self._nodes = grpc.aio.server(options=_PEER_OPTIONS)
        self._nodes.add_generic_rpc_handlers((peers, crossings))
        self._shown: object = None

    async def serve_sidecars(self, path: str) -> None:
        """Listen on the UNIX socket (mode 0600), whether there are nodes or not."""
        with sockets.owner_only():
            self._sidecars.add_insecure_port(f"unix:{path}")
        os.chmod(path, 0o600)
        await self._sidecars.start()

    async def serve_nodes(self, address: str) -> int:
        """Listen for nodes as soon as there is a certificate; returns the port."""
        while not await self._refreshed():
            await asyncio.sleep(_RETRY_SECONDS)
        credentials = grpc.dynamic_ssl_server_credentials(self._configuration(), self._fetch)
        port = self._nodes.add_secure_port(address, credentials)
        await self._nodes.start()
        return int(port)

    async def keep_certificates(self) -> None:
        """Renew what nears its end; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            await self._refreshed()

    async def stop(self, grace_seconds: float) -> None:
        """Let what runs finish for so long, then end all streams."""
        await self._sidecars.stop(grace_seconds)
        await self._nodes.stop(0)

    async def _refreshed(self) -> bool:
        try:
            await self._certificates.refresh()
        except (HostvolError, OSError, ValueError, KeyError) as cause:
            _log.warning("the certificate cannot be made or renewed: %s", cause)
            return False
        return True

    def _configuration(self) -> Any:
        current = self._certificates.current
        assert current is not None
        self._shown = current
        return grpc.ssl_server_certificate_configuration([(current.key, current.certificate)])

    def _fetch(self) -> Any:
        """Called by gRPC at each handshake, in threads of its own; None: nothing has changed."""
        return None if self._shown is self._certificates.current else self._configuration()


_END = Outcome(0)
# What gRPC itself answers to a request that does not parse.
_UNREADABLE = Outcome(grpc.StatusCode.INTERNAL.value[0], "the request cannot be parsed")


async def _told(outcome: Outcome, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    """The response; any other outcome ends the call here."""
    if outcome.code:
        await context.abort(_code(outcome), outcome.message)
    return outcome.response


async def _next(messages: AsyncIterator[bytes]) -> Outcome:
    try:
        return Outcome(0, response=await anext(messages))
    except StopAsyncIteration:
        return _END
    except StreamEnded as ended:
        return ended.outcome


def _asked(
    method: str, decode: Callable[[bytes], Message], raw: bytes, context: grpc.aio.ServicerContext[Any, Any]
) -> Asked | None:
    try:
        request = decode(raw)
    except DecodeError:
        return None
    remaining = context.time_remaining()
    timeout = None if remaining is None or remaining > _FOR_EVER_SECONDS else remaining
    return Asked(method, method.rpartition("/")[2], raw, request, timeout)


def _code(outcome: Outcome) -> grpc.StatusCode:
    return _CODES.get(outcome.code, grpc.StatusCode.INTERNAL)
