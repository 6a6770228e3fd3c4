"""The node's side of the streams to its routers: dialled from here, kept, and dialled again; knows no CSI method.

Every address of the controller's name has a keeper, a thread that keeps one stream to it. A stream ends with its
token: when kubelet has renewed the file, a second stream is opened, and the router ends the first.
"""

from __future__ import annotations

import logging
import queue
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from csi_driver import __version__
from csi_driver.cluster.holdings import Change, Holdings
from csi_driver.errors import InvalidField
from csi_driver.model import node_key
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.link")
_PROTOCOL = 1
_SERVE = f"/{peer_pb2.DESCRIPTOR.services_by_name['Holder'].full_name}/Serve"
_ATTACH = f"/{peer_pb2.DESCRIPTOR.services_by_name['Peer'].full_name}/Attach"
_RESOLVE_SECONDS = 5.0
_TOKEN_POLL_SECONDS = 5.0
_WELCOME_SECONDS = 20.0
_FIRST_BACKOFF_SECONDS = 0.2
_LAST_BACKOFF_SECONDS = 8.0
_JOIN_SECONDS = 5.0
# So long a reader may take for a message of a streamed answer; then the stream gives its thread back.
_PATIENCE_SECONDS = 600.0
_OPTIONS = (
    ("grpc.max_receive_message_length", 5 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    # As on the router's side.
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 5000),
)


class Answer(Protocol):
    """What a served call is answered with; see the dispatcher of the protocol edge."""

    def send(self, response: bytes) -> bool: ...

    def end(self, code: int, message: str, response: bytes) -> None: ...


class Offers(Protocol):
    """Sends what a router asks for, once it is held."""

    def offer(self, ticket: str, transfer_id: str, address: str) -> None: ...


class Dispatcher(Protocol):
    """Serves calls by name and bytes."""

    def submit(self, method: str, request: bytes, timeout_seconds: float | None, answer: Answer) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Where the controller is (HOST:PORT), and the files with its CA and our token, read at each dial."""

    controller: str
    ca_file: str
    token_file: str

    @property
    def host(self) -> str:
        return self.controller.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.controller.rpartition(":")[2])

    def check(self) -> None:
        """Raises: InvalidField."""
        host, _, port = self.controller.rpartition(":")
        if not host.strip("[]") or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidField("controller", self.controller, "HOST:PORT")


@dataclass(frozen=True, slots=True)
class _Side:
    """What every stream of this node has in common."""

    hello: peer_pb2.Hello
    holdings: Holdings
    dispatcher: Dispatcher
    offers: Offers


@dataclass(frozen=True, slots=True)
class Proof:
    """Whom we trust (PEM), and what proves us, as read for one dial."""

    authority: bytes
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call must bear."""
        return (("authorization", f"Bearer {self.token}"),)

    @classmethod
    def read(cls, options: LinkOptions) -> Proof:
        """Raises: OSError, ValueError."""
        with open(options.ca_file, "rb") as file:
            authority = file.read()
        return cls(authority, _token(options))


class Link:
    """This node's streams to all routers behind one name."""

    def __init__(
        self,
        options: LinkOptions,
        *,
        node_id: str,
        driver_name: str,
        holdings: Holdings,
        dispatcher: Dispatcher,
        offers: Offers,
    ) -> None:
        options.check()
        self._options = options
        hello = peer_pb2.Hello(
            protocol=_PROTOCOL,
            version=__version__,
            node_id=node_id,
            node_key=node_key(node_id),
            driver_name=driver_name,
        )
        self._side = _Side(hello, holdings, dispatcher, offers)
        self._stopping = threading.Event()
        self._keepers: dict[str, _Keeper] = {}
        self._resolver = threading.Thread(target=self._resolve_for_ever, name="resolver", daemon=True)

    def start(self) -> None:
        """Dial, and keep dialling."""
        self._side.holdings.start()
        self._resolver.start()

    def stop(self) -> None:
        """End all streams; what runs on the node goes on."""
        self._stopping.set()
        self._side.holdings.stop()
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.stop()
        for keeper in keepers:
            keeper.join(_JOIN_SECONDS)

    def attached_count(self) -> int:
        """To how many routers this node is attached now."""
        return len(self.attached_addresses())

    def attached_addresses(self) -> list[str]:
        """The routers to which this node is attached now, as gRPC targets."""
        return [address for address, keeper in list(self._keepers.items()) if keeper.is_attached]

    def _resolve_for_ever(self) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                addresses = _addresses(self._options.host, self._options.port)
                said = ""
            except OSError as cause:
                # What is attached stays so: a name server's trouble is not the router's.
                if said != (said := str(cause)):
                    _log.warning("controller %s cannot be resolved: %s", self._options.controller, cause)
            else:
                self._follow(addresses)
            self._stopping.wait(_RESOLVE_SECONDS)

    def _follow(self, addresses: set[str]) -> None:
        for address in addresses - self._keepers.keys():
            keeper = _Keeper(address, self._new_stream)
            self._keepers[address] = keeper
            keeper.start()
        for address in self._keepers.keys() - addresses:
            # A stream that lives is not cut because a name server forgets it.
            if not self._keepers[address].is_attached:
                self._keepers.pop(address).stop()

    def _new_stream(self, address: str) -> _Stream:
        return _Stream(address, self._options, Proof.read(self._options), self._side)


class _Keeper(threading.Thread):
    """Keeps one stream to one address."""

    def __init__(self, address: str, new_stream: Callable[[str], _Stream]) -> None:
        super().__init__(name=f"link {address}", daemon=True)
        self._address = address
        self._new_stream = new_stream
        self._stopping = threading.Event()
        self._streams: list[_Stream] = []
        self._said = ""

    @property
    def is_attached(self) -> bool:
        return any(stream.is_attached for stream in self._streams)

    def stop(self) -> None:
        self._stopping.set()
        for stream in list(self._streams):
            stream.cancel()

    def run(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while not self._stopping.is_set():
            was_attached = self._keep_one()
            if was_attached:
                backoff = _FIRST_BACKOFF_SECONDS
            # Jittered: a router that restarts meets all nodes at once.
            self._stopping.wait(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            backoff = min(backoff * 2, _LAST_BACKOFF_SECONDS)

    def _keep_one(self) -> bool:
        """Dial once, and return when that stream is over or a newer one is due; whether it was ever attached."""
        try:
            stream = self._new_stream(self._address)
        except (OSError, ValueError) as cause:
            self._say(f"the files to dial with cannot be read: {cause}")
            return False
        self._streams = [one for one in self._streams if not one.over.is_set()]
        self._streams.append(stream)
        stream.start()
        if self._stopping.is_set():
            stream.cancel()
        while not stream.over.wait(_TOKEN_POLL_SECONDS):
            if stream.is_attached:
                self._said = ""
            if stream.is_attached and self._token_is_newer(stream):
                _log.info("controller %s: the token was renewed, dialling again", self._address)
                return True
        if not self._stopping.is_set():
            self._say(stream.reason)
        return stream.was_attached

    def _token_is_newer(self, stream: _Stream) -> bool:
        with suppress(OSError, ValueError):
            return stream.token_differs()
        return False

    def _say(self, reason: str) -> None:
        """Once for each reason, however often the dial fails with it."""
        if reason != self._said:
            _log.warning("controller %s: %s", self._address, reason)
            self._said = reason


class _Stream(threading.Thread):
    """One stream, from its dial to its end."""

    def __init__(self, address: str, options: LinkOptions, proof: Proof, side: _Side) -> None:
        super().__init__(name=f"stream {address}", daemon=True)
        self.over = threading.Event()
        self.reason = ""
        self.was_attached = False
        self._address = address
        self._options = options
        self._proof = proof
        self._side = side
        self._welcomed = threading.Event()
        self._closed = False
        self._up: queue.SimpleQueue[Callable[[], peer_pb2.FromNode] | None] = queue.SimpleQueue()
        self._answers: dict[int, _Answer] = {}
        self._call: Any = None

    @property
    def is_attached(self) -> bool:
        return self.was_attached and not self.over.is_set()

    def token_differs(self) -> bool:
        """Whether the token's file holds another one by now."""
        return _token(self._options) != self._proof.token

    def tell(self, change: Change) -> None:
        """Queue a change (Listener)."""
        self.send(lambda: peer_pb2.FromNode(inventory=change()))

    def send(self, message: Callable[[], peer_pb2.FromNode]) -> None:
        """Queue a message, built when its turn comes; dropped when the stream is over."""
        if not self._closed:
            self._up.put(message)

    def cancel(self) -> None:
        """End the stream."""
        call = self._call
        if call is not None:
            call.cancel()

    def run(self) -> None:
        watchdog = threading.Timer(_WELCOME_SECONDS, self._give_up)
        watchdog.daemon = True
        with open_channel(self._address, self._options, self._proof) as channel:
            attach = channel.stream_stream(
                _ATTACH,
                request_serializer=peer_pb2.FromNode.SerializeToString,
                response_deserializer=peer_pb2.FromRouter.FromString,
            )
            watchdog.start()
            try:
                self._call = attach(self._messages(), metadata=self._proof.metadata)
                for message in self._call:
                    self._received(message)
                self.reason = "the router ended the stream"
            except grpc.RpcError as error:
                self.reason = _explained(error)
            finally:
                watchdog.cancel()
                self._close()

    def _close(self) -> None:
        self._closed = True
        self._side.holdings.detach(self)
        self._welcomed.set()
        self._up.put(None)
        for answer in list(self._answers.values()):
            answer.close()
        self.over.set()

    def _give_up(self) -> None:
        if not self._welcomed.is_set():
            self.cancel()

    def _messages(self) -> Iterator[peer_pb2.FromNode]:
        """What goes up, in order; consumed in a thread of gRPC's."""
        yield peer_pb2.FromNode(hello=self._side.hello)
        self._welcomed.wait()
        if self._closed:
            return
        for part in self._side.holdings.attach(self):
            yield peer_pb2.FromNode(inventory=part)
        self.was_attached = True
        _log.info("controller %s: attached", self._address)
        while True:
            message = self._up.get()
            if message is None:
                return
            yield message()

    def _received(self, message: peer_pb2.FromRouter) -> None:
        kind = message.WhichOneof("kind")
        if kind == "call":
            self._begin(message.call)
        elif kind == "welcome":
            self._welcomed.set()
        elif kind == "credit":
            answer = self._answers.get(message.credit.call_id)
            if answer is not None:
                answer.grant(message.credit.messages)
        elif kind == "cancel":
            answer = self._answers.get(message.cancel.call_id)
            if answer is not None:
                answer.close()

    def _begin(self, call: peer_pb2.Call) -> None:
        answer = _Answer(call.call_id, call.credit, self.send, self._answers)
        self._answers[call.call_id] = answer
        timeout = call.timeout_milliseconds / 1000 if call.timeout_milliseconds else None
        self._side.dispatcher.submit(
            call.method,
            call.request,
            timeout,
            answer if call.method != _SERVE else self._followed_by_offer(call, answer),
        )

    def _followed_by_offer(self, call: peer_pb2.Call, answer: _Answer) -> Answer:
        request = peer_pb2.ServeRequest.FromString(call.request)
        if request.ended:
            return answer
        return _Offering(answer, lambda: self._side.offers.offer(request.ticket, request.transfer_id, self._address))


class _Answer:
    """Where the answer to one call goes: up the stream that brought the call."""

    def __init__(
        self,
        call_id: int,
        credit: int,
        send: Callable[[Callable[[], peer_pb2.FromNode]], None],
        answers: dict[int, _Answer],
    ) -> None:
        self._call_id = call_id
        self._credit = threading.Semaphore(credit)
        self._send = send
        self._answers = answers
        self._closed = False

    def send(self, response: bytes) -> bool:
        if not self._credit.acquire(timeout=_PATIENCE_SECONDS) or self._closed:
            return False
        self._up(peer_pb2.Reply(call_id=self._call_id, response=response, more=True))
        return True

    def end(self, code: int, message: str, response: bytes) -> None:
        self._answers.pop(self._call_id, None)
        self._up(peer_pb2.Reply(call_id=self._call_id, code=code, message=message, response=response))

    def grant(self, messages: int) -> None:
        """The reader wants so many more."""
        self._credit.release(max(1, messages))

    def close(self) -> None:
        """Nobody reads any more."""
        self._closed = True
        self._credit.release()

    def _up(self, reply: peer_pb2.Reply) -> None:
        self._send(lambda: peer_pb2.FromNode(reply=reply))


class _Offering:
    """The answer to Serve: when the source is held, it is sent to the router whose stream brought the call."""

    def __init__(self, answer: _Answer, offer: Callable[[], None]) -> None:
        self._answer = answer
        self._offer = offer

    def send(self, response: bytes) -> bool:
        return self._answer.send(response)

    def end(self, code: int, message: str, response: bytes) -> None:
        self._answer.end(code, message, response)
        if not code:
            self._offer()


def open_channel(address: str, options: LinkOptions, proof: Proof) -> grpc.Channel:
    """A connection of its own to one router, with TLS."""
    credentials = grpc.ssl_channel_credentials(root_certificates=proof.authority)
    names = (("grpc.ssl_target_name_override", options.host), ("grpc.default_authority", options.host))
    return grpc.secure_channel(address, credentials, options=(*_OPTIONS, *names))


def _token(options: LinkOptions) -> str:
    with open(options.token_file, encoding="ascii") as file:
        return file.read().strip()


def _addresses(host: str, port: int) -> set[str]:
    """Every address of the name, as gRPC targets.

    Raises: OSError when it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {
        f"ipv6:[{address[0]}]:{port}" if family == socket.AF_INET6 else f"ipv4:{address[0]}:{port}"
        for family, _, _, _, address in found
    }


def _explained(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return "the stream broke"
    code = error.code()
    if code is grpc.StatusCode.CANCELLED:
        return "ended from here"
    return f"{error.details()} ({code.name})"
