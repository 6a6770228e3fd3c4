"""Every RPC passes here once: limits, readiness, one log line, one latency, one error table; knows no method's meaning.

A method is served alike whether gRPC brings the call or the stream to a router does (by name and bytes). Methods are
found from the protocol's descriptors, so a servicer is a class with one method per RPC that is real; all others are
UNIMPLEMENTED by themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from csi_driver.errors import CallerGone, HostvolError
from csi_driver.metrics import Metrics
from csi_driver.rpc import status
from csi_driver.rpc.limits import check_limits
from csi_driver.rpc.redaction import redacted

_log = logging.getLogger("hostvol.rpc")
_OBJECT_FIELDS = ("volume_id", "name", "snapshot_id", "target_snapshot_id", "source_volume_id", "group_snapshot_id")
# A call that waits for another one answers a little before its caller gives up, so that the answer is still heard.
_ANSWER_SECONDS = 0.1
_FOR_EVER_SECONDS = 1e8
# So long the reader of a streamed answer may take for what is on its way (it may be copying what it was told of); then
# the stream ends, since it holds one of few threads. A reader whose connection is gone is noticed at once.
PATIENCE_SECONDS = 600.0

Method = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What a method may know of its caller."""

    deadline: float | None

    @classmethod
    def of(cls, context: grpc.ServicerContext) -> Call:
        remaining = context.time_remaining()
        return cls.within(None if remaining is None or remaining > _FOR_EVER_SECONDS else remaining)

    @classmethod
    def within(cls, seconds: float | None) -> Call:
        """A call whose caller waits so long; None: for ever."""
        return cls(None if seconds is None else time.monotonic() + max(0.0, seconds - _ANSWER_SECONDS))


class Refused(Exception):
    """A call that ends with a code other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Journal:
    """One log line and one latency per finished RPC."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def finished(self, name: str, request: Message, code: str, began: float, cause: str) -> None:
        """The RPC `name`, begun at `began` (time.perf_counter), has ended with `code`."""
        seconds = time.perf_counter() - began
        self._metrics.observe_rpc(name, code, seconds)
        level = logging.INFO if code == "OK" else logging.WARNING
        if _log.isEnabledFor(level):
            fields = {
                "method": name,
                "object": _object_of(request),
                "code": code,
                "milliseconds": round(seconds * 1000, 2),
                "cause": cause,
            }
            _log.log(level, "", extra={"rpc": fields})
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s %s", name, redacted(request))


class Served:
    """One method of one servicer, behind everything that all methods have in common."""

    def __init__(
        self,
        descriptor: MethodDescriptor,
        method: Method,
        executor: ThreadPoolExecutor,
        before: Callable[[], None] | None,
        journal: Journal,
    ) -> None:
        self.executor = executor
        self.is_stream = bool(descriptor.server_streaming)
        self.is_upload = bool(descriptor.client_streaming)
        self.decode: Callable[[bytes], Message] = message_class(descriptor.input_type).FromString
        self.encode: Callable[[Message], bytes] = message_class(descriptor.output_type).SerializeToString
        self._name = descriptor.name
        self._method = method
        self._before = before
        self._journal = journal

    def answer(self, request: Message, call: Call) -> Message:
        """The answer to a unary call.

        Raises: Refused, and nothing else.
        """
        began = time.perf_counter()
        try:
            self._check(request)
            response: Message = self._method(request, call)
        except Exception as error:
            # Whatever escaped would reach the caller as UNKNOWN, with its whole text.
            raise self._refused(request, error, began) from error
        self._journal.finished(self._name, request, "OK", began, "")
        return response

    def answers(self, request: Message, call: Call) -> Iterator[Message]:
        """The messages of a streamed answer.

        Raises: Refused, and nothing else; also in the middle.
        """
        began = time.perf_counter()
        try:
            self._check(request)
            yield from self._method(request, call)
        except GeneratorExit:
            self._journal.finished(self._name, request, "CANCELLED", began, "nobody reads the answer")
            raise
        except Exception as error:
            raise self._refused(request, error, began) from error
        self._journal.finished(self._name, request, "OK", began, "")

    def answer_upload(self, requests: Iterator[Message], call: Call) -> Message:
        """The answer to a call whose request is a stream; its method gets the first message and the others.

        Raises: Refused, and nothing else.
        """
        began = time.perf_counter()
        first = self.decode(b"")
        try:
            first = next(requests, first)
            self._check(first)
            response: Message = self._method(first, requests, call)
        except Exception as error:
            raise self._refused(first, error, began) from error
        self._journal.finished(self._name, first, "OK", began, "")
        return response

    def _check(self, request: Message) -> None:
        if self._before is not None:
            self._before()
        check_limits(request)

    def _refused(self, request: Message, error: Exception, began: float) -> Refused:
        code, message = status.code_of(error), status.message_of(error)
        self._journal.finished(self._name, request, code.name, began, message)
        if not isinstance(error, HostvolError | OSError):
            _log.error("unforeseen failure in %s", self._name, exc_info=error)
        return Refused(code, message)


class Edge:
    """Makes gRPC handlers of servicers, and remembers what it serves under each method's full name."""

    def __init__(self, metrics: Metrics) -> None:
        self._journal = Journal(metrics)
        self.served: dict[str, Served] = {}

    def handler(
        self,
        service: ServiceDescriptor,
        servicer: object,
        executors: Callable[[str], ThreadPoolExecutor],
        before: Callable[[], None] | None = None,
    ) -> grpc.GenericRpcHandler:
        """All methods of `service` that `servicer` has; `executors` gives the threads for each by its name.

        `before` runs ahead of every method and may refuse the call.
        """
        handlers = {}
        for descriptor in service.methods:
            method = getattr(servicer, descriptor.name, None)
            if method is not None:
                served = Served(descriptor, method, executors(descriptor.name), before, self._journal)
                self.served[f"/{service.full_name}/{descriptor.name}"] = served
                handlers[descriptor.name] = _upload_handler(served) if served.is_upload else _rpc_handler(served)
        return grpc.method_handlers_generic_handler(service.full_name, handlers)


class Answer(Protocol):
    """Where the answer to a call by name and bytes goes; called in the threads of the method."""

    def send(self, response: bytes) -> bool:
        """One message of a streamed answer; waits while its reader is behind. False: nobody reads any more."""
        ...

    def end(self, code: int, message: str, response: bytes) -> None:
        """The call is over; the answer of a unary one is `response`."""
        ...


class Dispatcher:
    """The methods of some services, called by full name and serialized request."""

    def __init__(self, edge: Edge, services: Collection[str]) -> None:
        """`services`: full names; no other service can be reached this way."""
        self._served = {name: served for name, served in edge.served.items() if name.split("/")[1] in services}

    def submit(self, method: str, request: bytes, timeout_seconds: float | None, answer: Answer) -> None:
        """Serve the call in its method's own threads. Returns at once; `answer` always hears the end."""
        served = self._served.get(method)
        if served is None:
            answer.end(_number(grpc.StatusCode.UNIMPLEMENTED), f"{method}: this node does not have it", b"")
            return
        try:
            served.executor.submit(_run, served, request, Call.within(timeout_seconds), answer)
        except RuntimeError:
            answer.end(_number(grpc.StatusCode.UNAVAILABLE), "the node is stopping; repeat the call", b"")

    def call(self, method: str, request: bytes) -> tuple[int, str, bytes] | None:
        """Serve a unary call here and now; None when the method is not among ours."""
        served = self._served.get(method)
        return None if served is None else _unary(served, request, Call(None))


def message_class(descriptor: Any) -> Any:
    """The generated class of a message descriptor."""
    return message_factory.GetMessageClass(descriptor)


def _rpc_handler(served: Served) -> Any:
    def unary(request: Message, context: grpc.ServicerContext) -> Message:
        try:
            return served.answer(request, Call.of(context))
        except Refused as refused:
            context.abort(refused.code, refused.message)

    def stream(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            for message in served.answers(request, Call.of(context)):
                # Resumed once the message is on its way, which waits for the reader.
                with _patience(context):
                    yield message
        except Refused as refused:
            context.abort(refused.code, refused.message)

    behaviour: Any = stream if served.is_stream else unary
    # grpcio takes a handler's own threads from this attribute (grpc/_server.py).
    behaviour.experimental_thread_pool = served.executor
    make = grpc.unary_stream_rpc_method_handler if served.is_stream else grpc.unary_unary_rpc_method_handler
    return make(behaviour, request_deserializer=served.decode, response_serializer=served.encode)


def _upload_handler(served: Served) -> Any:
    def upload(requests: Iterator[Message], context: grpc.ServicerContext) -> Message:
        try:
            return served.answer_upload(_received(requests, context), Call.of(context))
        except Refused as refused:
            context.abort(refused.code, refused.message)

    behaviour: Any = upload
    behaviour.experimental_thread_pool = served.executor
    return grpc.stream_unary_rpc_method_handler(
        behaviour, request_deserializer=served.decode, response_serializer=served.encode
    )


def _received(requests: Iterator[Message], context: grpc.ServicerContext) -> Iterator[Message]:
    """The messages of a streamed request as they come.

    Raises: CallerGone when its sender goes away, or sends nothing for very long.
    """
    while True:
        try:
            with _patience(context):
                message = next(requests, None)
        except grpc.RpcError as cause:
            raise CallerGone from cause
        if message is None:
            return
        yield message


@contextmanager
def _patience(context: grpc.ServicerContext) -> Iterator[None]:
    timer = threading.Timer(PATIENCE_SECONDS, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _run(served: Served, raw: bytes, call: Call, answer: Answer) -> None:
    answer.end(*(_stream(served, raw, call, answer) if served.is_stream else _unary(served, raw, call)))


def _unary(served: Served, raw: bytes, call: Call) -> tuple[int, str, bytes]:
    try:
        return 0, "", served.encode(served.answer(served.decode(raw), call))
    except Refused as refused:
        return _number(refused.code), refused.message, b""
    except DecodeError:
        return _UNREADABLE


def _stream(served: Served, raw: bytes, call: Call, answer: Answer) -> tuple[int, str, bytes]:
    try:
        for message in served.answers(served.decode(raw), call):
            if not answer.send(served.encode(message)):
                return _number(grpc.StatusCode.CANCELLED), "nobody reads the answer", b""
    except Refused as refused:
        return _number(refused.code), refused.message, b""
    except DecodeError:
        return _UNREADABLE
    return 0, "", b""


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])


# What gRPC itself answers to a request that does not parse.
_UNREADABLE = (_number(grpc.StatusCode.INTERNAL), "the request cannot be parsed", b"")


def _object_of(request: Any) -> str:
    fields = request.DESCRIPTOR.fields_by_name
    for name in _OBJECT_FIELDS:
        if name in fields:
            value = getattr(request, name)
            if value:
                return str(value)[:128]
    return "-"
