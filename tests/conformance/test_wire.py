"""What arrives before it is a request: bytes that are none, messages and strings that are too long.

Bytes that are no request are refused by the transport, and the driver goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from csi_driver.errors import InvalidField
from csi_driver.pb import csi_pb2
from csi_driver.rpc import limits
from tests.conformance.bad_requests import INVALID, Given
from tests.conformance.probing import SPEC_METHODS, request_of, traces
from tests.harness import MIB, Code, Failure, create_request

NOT_REQUESTS = {
    "noise": b"\xff" * 64,
    "a field that ends early": b"\x0a\x7fabc",
    "a name that is no text": b"\x0a\x02\xff\xfe",
    "a name of another type": b"\x08\x01",
    "nesting without end": b"\x1a\x7f" * 200,
}


@pytest.mark.parametrize("content", NOT_REQUESTS.values(), ids=NOT_REQUESTS)
def test_bytes_that_are_no_request_are_refused_and_the_driver_goes_on(given: Given, content: bytes) -> None:
    before = traces(given.driver)
    with grpc.insecure_channel(
        f"unix:{given.driver.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        call: Any = channel.unary_unary("/csi.v1.Controller/CreateVolume")
        with pytest.raises(grpc.RpcError) as caught:
            call(content, timeout=10)
    error: Any = caught.value
    assert error.code() in {INVALID, Code.INTERNAL}
    assert "Traceback" not in error.details()
    assert traces(given.driver) == before
    assert given.driver.call("Probe").ready.value


def test_fields_of_the_future_are_ignored(given: Given) -> None:
    request = create_request("future", 8 * MIB).SerializeToString() + b"\xfa\x3e\x03abc"
    with grpc.insecure_channel(
        f"unix:{given.driver.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        call: Any = channel.unary_unary("/csi.v1.Controller/CreateVolume")
        answer = csi_pb2.CreateVolumeResponse.FromString(call(request))
    given.driver.call("DeleteVolume", volume_id=answer.volume.volume_id)


def test_a_message_above_four_mebibytes_is_refused(given: Given) -> None:
    with pytest.raises(Failure) as caught:
        given.driver.call("CreateVolume", create_request("x" * (5 * MIB)))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert given.driver.call("Probe").ready.value


def string_fields(descriptor: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every string field of a message and of the messages in it, by its path."""
    for field in descriptor.fields:
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            yield prefix + field.name, field
        elif is_message and not field.message_type.GetOptions().map_entry:
            yield from string_fields(field.message_type, f"{prefix}{field.name}.")


FIELDS = [
    (method, path)
    for method, descriptor in SPEC_METHODS.items()
    for path, _ in string_fields(descriptor.input_type)
    if not path.endswith("starting_token")
]


def put(message: Any, path: str, value: str) -> None:
    name, _, rest = path.partition(".")
    if not rest:
        setattr(message, name, value)
        return
    inner = getattr(message, name)
    put(inner.add() if hasattr(inner, "add") else inner, rest, value)


@pytest.mark.parametrize(("method", "path"), FIELDS, ids=[f"{method}.{path}" for method, path in FIELDS])
def test_every_string_of_every_request_has_the_limit_of_the_protocol(method: str, path: str) -> None:
    limit = 4095 if path.endswith("_path") else 256 if path.endswith("node_id") else 128
    request = request_of(method)
    put(request, path, "x" * limit)
    limits.check_limits(request)
    request = request_of(method)
    put(request, path, "x" * (limit + 1))
    with pytest.raises(InvalidField, match=rf"{path}: '{limit + 1} bytes' .* at most {limit} bytes"):
        limits.check_limits(request)
