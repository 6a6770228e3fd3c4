"""The stream of one node as the router sees it: calls go down, replies come up; knows no CSI method."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Protocol

from csi_driver.cluster.outcome import Outcome
from csi_driver.errors import NodeUnreachable
from csi_driver.pb import peer_pb2

PROTOCOL = 1
# How many messages of a streamed answer a node may be ahead of the client.
_CREDIT = 4
# A stream that another has replaced waits so long for answers, and no longer than its token lasts. A node that is gone
# without a word is found by gRPC's keepalive.
_RETIRED_SECONDS = 600.0


class StreamEnded(Exception):
    """A streamed answer has ended with a code other than OK."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class _Pending(Protocol):
    def deliver(self, reply: peer_pb2.Reply) -> None: ...

    def fail(self, reason: str) -> None: ...


class Session:
    """A node's stream, until `close`; all calls in flight are NodeUnreachable then."""

    def __init__(self, node_id: str, key: str) -> None:
        self.node_id = node_id
        self.key = key
        self.outgoing: asyncio.Queue[peer_pb2.FromRouter] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.reason = ""
        self._is_retired = False
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}

    async def call(self, method: str, request: bytes, timeout_seconds: float | None) -> Outcome:
        """The node's answer to a unary call. Cancelling the waiting leaves the call running on the node.

        Raises: NodeUnreachable.
        """
        answer = _Unary()
        call_id = self._begin(answer, method, request, timeout_seconds, 0)
        try:
            return await answer.future
        finally:
            self._pending.pop(call_id, None)
            self._close_if_done()

    async def stream(self, method: str, request: bytes, timeout_seconds: float | None) -> AsyncGenerator[bytes]:
        """The messages of a streamed answer; the node is never more than a few ahead.

        Raises: NodeUnreachable; StreamEnded.
        """
        answer = _Stream()
        call_id = self._begin(answer, method, request, timeout_seconds, _CREDIT)
        try:
            while True:
                found = await answer.arrived.get()
                if isinstance(found, Exception):
                    raise found
                if isinstance(found, Outcome):
                    call_id = 0
                    if found.code:
                        raise StreamEnded(found)
                    return
                yield found
                self._send(peer_pb2.FromRouter(credit=peer_pb2.Credit(call_id=call_id, messages=1)))
        finally:
            if self._pending.pop(call_id, None) is not None:
                self._send(peer_pb2.FromRouter(cancel=peer_pb2.Cancel(call_id=call_id)))
            self._close_if_done()

    def deliver(self, reply: peer_pb2.Reply) -> None:
        """A reply has come; one that nobody waits for any more is dropped."""
        pending = self._pending.get(reply.call_id)
        if pending is not None:
            pending.deliver(reply)

    def close(self, reason: str) -> None:
        """The stream is over. Idempotent: the first reason counts."""
        if self.closed.is_set():
            return
        self.reason = reason
        self.closed.set()
        for pending in self._pending.values():
            pending.fail(f"node {self.node_id}: {reason}; repeat the call")

    def retire(self, reason: str) -> None:
        """Take no more calls, and close when those in flight are answered, or have not been for long."""
        self.reason = reason
        self._is_retired = True
        self._close_if_done()
        if not self.closed.is_set():
            asyncio.get_running_loop().call_later(_RETIRED_SECONDS, self.close, reason)

    def in_flight(self) -> int:
        """How many calls the node has not answered yet."""
        return len(self._pending)

    def _begin(self, answer: _Pending, method: str, request: bytes, timeout: float | None, credit: int) -> int:
        if self.closed.is_set() or self._is_retired:
            raise NodeUnreachable(f"node {self.node_id}: {self.reason}; repeat the call")
        call_id = next(self._ids)
        self._pending[call_id] = answer
        milliseconds = 0 if timeout is None else max(1, int(timeout * 1000))
        call = peer_pb2.Call(
            call_id=call_id, method=method, request=request, timeout_milliseconds=milliseconds, credit=credit
        )
        self._send(peer_pb2.FromRouter(call=call))
        return call_id

    def _close_if_done(self) -> None:
        if self._is_retired and not self._pending:
            self.close(self.reason)

    def _send(self, message: peer_pb2.FromRouter) -> None:
        self.outgoing.put_nowait(message)


class _Unary:
    def __init__(self) -> None:
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def deliver(self, reply: peer_pb2.Reply) -> None:
        if not self.future.done():
            self.future.set_result(Outcome(reply.code, reply.message, reply.response))

    def fail(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(NodeUnreachable(reason))


class _Stream:
    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes | Outcome | Exception] = asyncio.Queue()

    def deliver(self, reply: peer_pb2.Reply) -> None:
        self.arrived.put_nowait(reply.response if reply.more else Outcome(reply.code, reply.message))

    def fail(self, reason: str) -> None:
        self.arrived.put_nowait(NodeUnreachable(reason))
