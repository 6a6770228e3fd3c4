"""The router's side of the nodes' streams: who may attach, and what comes over the stream; knows no CSI method.

A node is who its token proves, whatever it says; what it tells must bear its own key. A violation ends its stream and
touches nobody else's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from csi_driver import __version__
from csi_driver.cluster.crossings import bearer, lifetime_seconds
from csi_driver.cluster.inventory import Inventory
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.streams import PROTOCOL, Session
from csi_driver.cluster.tokens import NodeIdentity, Verifier
from csi_driver.errors import HostvolError, NodeRefused, NodeUnreachable
from csi_driver.model import node_key
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.cluster")
ATTACH = f"/{peer_pb2.DESCRIPTOR.services_by_name['Peer'].full_name}/Attach"
_HELLO_SECONDS = 15.0
_INVENTORY_SECONDS = 120.0

Explain = Callable[[Exception], tuple[grpc.StatusCode, str]]


class Peers(grpc.GenericRpcHandler):
    """Serves Attach (proto/peer.proto)."""

    def __init__(self, registry: Registry, verifier: Verifier, driver_name: str, explain: Explain) -> None:
        self.refused = 0
        self._registry = registry
        self._verifier = verifier
        self._driver_name = driver_name
        self._explain = explain
        self._handler = grpc.stream_stream_rpc_method_handler(
            self._attach,
            request_deserializer=peer_pb2.FromNode.FromString,
            response_serializer=peer_pb2.FromRouter.SerializeToString,
        )

    def service(self, handler_call_details: Any) -> Any:
        return self._handler if handler_call_details.method == ATTACH else None

    async def _attach(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await self._serve(context)
        except NodeUnreachable as end:
            await context.abort(*self._explain(end))
        except (HostvolError, OSError) as error:
            self.refused += 1
            code, message = self._explain(error)
            _log.warning("a stream from %s was refused: %s", context.peer(), message)
            await context.abort(code, message)

    async def _serve(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        identity = await self._verifier.verify(bearer(context))
        lifetime = lifetime_seconds(identity)
        hello = await self._hello(context)
        self._check(hello, identity)
        session = Session(identity.node_id, node_key(identity.node_id))
        await context.write(
            peer_pb2.FromRouter(
                welcome=peer_pb2.Welcome(protocol=PROTOCOL, version=__version__, lifetime_seconds=max(1, int(lifetime)))
            )
        )
        tasks = {
            asyncio.create_task(self._listen(session, context)),
            asyncio.create_task(_speak(session, context)),
            asyncio.create_task(session.closed.wait()),
        }
        done: set[asyncio.Task[Any]] = set()
        try:
            done, _ = await asyncio.wait(tasks, timeout=lifetime, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                session.close("its token has expired")
        finally:
            # Also when gRPC cancels us because the node hung up.
            self._registry.detach(session)
            session.close("the stream was lost")
            for task in tasks:
                task.cancel()
            _log.info("node %s is detached: %s", session.node_id, session.reason)
        await asyncio.gather(*tasks, return_exceptions=True)
        _raise_what_the_node_must_hear(done)
        raise NodeUnreachable(session.reason)

    async def _hello(self, context: grpc.aio.ServicerContext[Any, Any]) -> peer_pb2.Hello:
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                first = await context.read()
        except TimeoutError as cause:
            raise NodeRefused("the stream says nothing") from cause
        if first is grpc.aio.EOF or first.WhichOneof("kind") != "hello":
            raise NodeRefused("the stream does not begin with a hello")
        hello: peer_pb2.Hello = first.hello
        return hello

    def _check(self, hello: peer_pb2.Hello, identity: NodeIdentity) -> None:
        proved = {
            "driver_name": (hello.driver_name, self._driver_name),
            "node_id": (hello.node_id, identity.node_id),
            "node_key": (hello.node_key, node_key(identity.node_id)),
        }
        for field, (said, known) in proved.items():
            if said != known:
                raise NodeRefused(f"hello.{field}: {said[:80]!r} was said, {known!r} is known")

    async def _listen(self, session: Session, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        inventory = Inventory(session.key)
        async with asyncio.timeout(_INVENTORY_SECONDS):
            while True:
                part = (await _read(context)).inventory
                # Names are counted when the whole of it is there.
                list(inventory.apply(part))
                if part.complete:
                    break
        await self._registry.attach(session, inventory)
        _log.info("node %s is attached with %d volumes", session.node_id, len(inventory.volumes))
        while True:
            message = await _read(context)
            kind = message.WhichOneof("kind")
            if kind == "reply":
                session.deliver(message.reply)
            elif kind == "inventory":
                self._registry.apply(session, message.inventory)


def _raise_what_the_node_must_hear(done: set[asyncio.Task[Any]]) -> None:
    for task in done:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, HostvolError):
            raise error


async def _read(context: grpc.aio.ServicerContext[Any, Any]) -> peer_pb2.FromNode:
    message = await context.read()
    if message is grpc.aio.EOF:
        raise NodeUnreachable("the node ended its stream")
    return message  # type: ignore[no-any-return]


async def _speak(session: Session, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    while True:
        await context.write(await session.outgoing.get())
