"""A caller that speaks raw CSI, and the messages that most tests send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory

from csi_driver.pb import admin_pb2, csi_pb2
from tests.harness.places import MIB

Code = grpc.StatusCode
Mode = csi_pb2.VolumeCapability.AccessMode
_METHODS = {
    method.name: method
    # The same name in two services: CSI's, which comes last, is the one that tests mean.
    for file in (admin_pb2.DESCRIPTOR, csi_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
DIRECTORY = {"type": "directory", "quota": "none"}


class Failure(Exception):
    """An RPC that did not answer OK."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method}: {code.name}: {details}")
        self.code = code
        self.details = details


class Caller:
    """Raw RPCs over the driver's socket: `caller.call("CreateVolume", name=…)` with the request's fields."""

    def __init__(self, socket_path: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket_path}",
            options=[("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._stubs: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any = None, *, timeout: float = 60, **fields: Any) -> Any:
        """The answer; all messages of one that is streamed, in a list.

        Raises: Failure.
        """
        descriptor = _METHODS[method]
        if request is None:
            request = message_factory.GetMessageClass(descriptor.input_type)(**fields)
        try:
            answer = self.stub(method)(request, timeout=timeout)
            return list(answer) if descriptor.server_streaming else answer
        except grpc.RpcError as error:
            raise Failure(method, error.code(), error.details() or "") from error

    def code(self, method: str, request: Any = None, **fields: Any) -> grpc.StatusCode:
        """The code of the answer, OK included."""
        try:
            self.call(method, request, **fields)
        except Failure as failure:
            return failure.code
        return Code.OK

    def import_stub(self) -> Any:
        """The bare gRPC callable of Import, which takes what `import_requests` gives."""
        return self._channel.stream_unary(
            "/hostvol.admin.v1.Admin/Import",
            request_serializer=admin_pb2.ImportRequest.SerializeToString,
            response_deserializer=admin_pb2.ImportResponse.FromString,
        )

    def import_volume(self, stream: bytes, *, timeout: float = 60, **options: str) -> admin_pb2.ImportResponse:
        """The answer to the import of a whole stream.

        Raises: Failure.
        """
        try:
            answer: admin_pb2.ImportResponse = self.import_stub()(import_requests(stream, **options), timeout=timeout)
        except grpc.RpcError as error:
            raise Failure("Import", error.code(), error.details() or "") from error
        return answer

    def admin_stub(self, method: str) -> Any:
        """The bare gRPC callable of a method of the operator's service."""
        descriptor = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name[method]
        return self._channel.unary_unary(
            f"/{descriptor.containing_service.full_name}/{descriptor.name}",
            request_serializer=message_factory.GetMessageClass(descriptor.input_type).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
        )

    def stub(self, method: str) -> Any:
        """The bare gRPC callable of a method."""
        if method not in self._stubs:
            descriptor = _METHODS[method]
            channel = self._channel
            make = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
            self._stubs[method] = make(
                f"/{descriptor.containing_service.full_name}/{descriptor.name}",
                request_serializer=message_factory.GetMessageClass(descriptor.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
            )
        return self._stubs[method]


def capability(
    mode: str = "SINGLE_NODE_MULTI_WRITER", *, block: bool = False, fs_type: str = "", flags: Sequence[str] = ()
) -> csi_pb2.VolumeCapability:
    """A capability in one line."""
    asked = csi_pb2.VolumeCapability(access_mode=Mode(mode=mode))
    if block:
        asked.block.SetInParent()
    else:
        asked.mount.fs_type = fs_type
        asked.mount.mount_flags.extend(flags)
    return asked


def create_request(
    name: str, size_bytes: int = 64 * MIB, limit_bytes: int = 0, **fields: Any
) -> csi_pb2.CreateVolumeRequest:
    """A CreateVolumeRequest with sane defaults; `parameters` and `volume_capabilities` may be given."""
    fields.setdefault("volume_capabilities", [capability()])
    request = csi_pb2.CreateVolumeRequest(name=name, **fields)
    if size_bytes or limit_bytes:
        request.capacity_range.required_bytes = size_bytes
        request.capacity_range.limit_bytes = limit_bytes
    return request


def import_requests(stream: bytes, **options: str) -> Iterator[admin_pb2.ImportRequest]:
    """What an import sends."""
    yield admin_pb2.ImportRequest(options=admin_pb2.ImportOptions(**options))  # type: ignore[arg-type]
    for start in range(0, len(stream), MIB):
        yield admin_pb2.ImportRequest(data=stream[start : start + MIB])
