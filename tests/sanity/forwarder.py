"""A driver's socket once more, on which every mount capability asks for one filesystem; it knows no volume.

csi-sanity leaves `fs_type` empty. An orchestrator fills it in from the class before it calls, and so does this.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory

from csi_driver.pb import csi_pb2

_REQUESTS = {
    f"/{service.full_name}/{method.name}": message_factory.GetMessageClass(method.input_type)
    for service in csi_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class _Forwarder(grpc.GenericRpcHandler):
    def __init__(self, driver: grpc.Channel, fs_type: str) -> None:
        self._driver: Any = driver
        self._fs_type = fs_type

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method

        def forward(content: bytes, context: grpc.ServicerContext) -> bytes:
            request = _REQUESTS[method].FromString(content)
            for capability in _capabilities(request):
                if capability.HasField("mount"):
                    capability.mount.fs_type = self._fs_type
            try:
                answer: bytes = self._driver.unary_unary(method)(request.SerializeToString(), timeout=60)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")
            return answer

        return grpc.unary_unary_rpc_method_handler(forward)


def _capabilities(request: Any) -> Iterator[Any]:
    fields = request.DESCRIPTOR.fields_by_name
    if "volume_capability" in fields and request.HasField("volume_capability"):
        yield request.volume_capability
    if "volume_capabilities" in fields:
        yield from request.volume_capabilities


@contextmanager
def asking_for(fs_type: str, driver_socket: Path, own_socket: Path) -> Iterator[str]:
    """The endpoint of a forwarder to `driver_socket` that asks for `fs_type`; it listens until the block ends."""
    endpoint = f"unix://{own_socket}"
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix://{driver_socket}", options=options) as channel:
        server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[_Forwarder(channel, fs_type)])
        server.add_insecure_port(endpoint)
        server.start()
        try:
            yield endpoint
        finally:
            server.stop(None).wait()
