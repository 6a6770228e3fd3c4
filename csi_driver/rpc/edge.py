"""Every RPC passes here once: limits, readiness, one log line, one latency, one error table; knows no method's meaning.

Handlers are registered from the protocol's descriptors, so a servicer is a class with one method per RPC that is real;
all others are UNIMPLEMENTED by themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from csi_driver.errors import HostvolError
from csi_driver.metrics import Metrics
from csi_driver.rpc import status
from csi_driver.rpc.limits import check_limits
from csi_driver.rpc.redaction import redacted

_log = logging.getLogger("hostvol.rpc")
_OBJECT_FIELDS = ("volume_id", "name", "snapshot_id", "source_volume_id")
# A call that waits for another one answers a little before its caller gives up, so that the answer is still heard.
_ANSWER_SECONDS = 0.1
_FOR_EVER_SECONDS = 1e8

Method = Callable[[Any, "Call"], Message]


@dataclass(frozen=True, slots=True)
class Call:
    """What a method may know of its caller."""

    deadline: float | None

    @classmethod
    def of(cls, context: grpc.ServicerContext) -> Call:
        remaining = context.time_remaining()
        if remaining is None or remaining > _FOR_EVER_SECONDS:
            return cls(None)
        return cls(time.monotonic() + max(0.0, remaining - _ANSWER_SECONDS))


class Edge:
    """Makes gRPC handlers of servicers."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

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
                behaviour = self._behaviour(descriptor, method, before)
                # grpcio takes a handler's own threads from this attribute (grpc/_server.py).
                behaviour.experimental_thread_pool = executors(descriptor.name)  # type: ignore[attr-defined]
                handlers[descriptor.name] = grpc.unary_unary_rpc_method_handler(
                    behaviour,
                    request_deserializer=message_class(descriptor.input_type).FromString,
                    response_serializer=message_class(descriptor.output_type).SerializeToString,
                )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _behaviour(
        self, descriptor: MethodDescriptor, method: Method, before: Callable[[], None] | None
    ) -> Callable[[Message, grpc.ServicerContext], Message]:
        name = descriptor.name

        def behaviour(request: Message, context: grpc.ServicerContext) -> Message:
            began = time.perf_counter()
            try:
                if before is not None:
                    before()
                check_limits(request)
                response = method(request, Call.of(context))
            except Exception as error:
                # Whatever escaped would reach the caller as UNKNOWN, with its whole text.
                self._refuse(name, request, context, error, began)
            self._finished(name, request, "OK", began, "")
            return response

        return behaviour

    def _refuse(
        self, name: str, request: Message, context: grpc.ServicerContext, error: Exception, began: float
    ) -> NoReturn:
        code, message = status.code_of(error), status.message_of(error)
        self._finished(name, request, code.name, began, message)
        if not isinstance(error, HostvolError | OSError):
            _log.error("unforeseen failure in %s", name, exc_info=error)
        context.abort(code, message)

    def _finished(self, name: str, request: Message, code: str, began: float, cause: str) -> None:
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


def message_class(descriptor: Any) -> Any:
    """The generated class of a message descriptor."""
    return message_factory.GetMessageClass(descriptor)


def _object_of(request: Any) -> str:
    fields = request.DESCRIPTOR.fields_by_name
    for name in _OBJECT_FIELDS:
        if name in fields:
            value = getattr(request, name)
            if value:
                return str(value)[:128]
    return "-"
