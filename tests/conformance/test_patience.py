"""Readers of streamed answers who stop reading: the stream's thread, one of few, is given back.

- A reader who takes nothing for too long loses the stream, by gRPC and through a controller; the next is served.
- A reader who goes away is noticed at once; both end in one line of the journal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.cluster import link
from csi_driver.metrics import Metrics
from csi_driver.pb import csi_pb2
from csi_driver.rpc import edge
from csi_driver.rpc.edge import Call, Edge
from tests.waiting import until

SERVICE = csi_pb2.DESCRIPTOR.services_by_name["SnapshotMetadata"]
ALLOCATED = f"/{SERVICE.full_name}/GetMetadataAllocated"
RANGES = [csi_pb2.BlockMetadata(byte_offset=1 << 40, size_bytes=1 << 40)] * 8192


class Endless:
    """Lists without end, or with none."""

    def __init__(self) -> None:
        self.ended = 0

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, call: Call
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        try:
            while True:
                yield csi_pb2.GetMetadataAllocatedResponse(block_metadata=RANGES)
                if request.max_results:
                    return
        finally:
            self.ended += 1


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def endless() -> Endless:
    return Endless()


@pytest.fixture
def channel(tmp_path: Path, metrics: Metrics, endless: Endless) -> Iterator[grpc.Channel]:
    """To a server with one thread for all streams."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as rest:
        server = grpc.server(rest)
        server.add_generic_rpc_handlers((Edge(metrics).handler(SERVICE, endless, lambda _: one),))
        server.add_insecure_port(f"unix:{tmp_path}/socket")
        server.start()
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix:{tmp_path}/socket", options=options) as channel:
            yield channel
        server.stop(0).wait()


def ask(channel: grpc.Channel, **fields: Any) -> Any:
    stub = channel.unary_stream(
        ALLOCATED,
        request_serializer=csi_pb2.GetMetadataAllocatedRequest.SerializeToString,
        response_deserializer=csi_pb2.GetMetadataAllocatedResponse.FromString,
    )
    return stub(csi_pb2.GetMetadataAllocatedRequest(snapshot_id="snap", **fields), timeout=60)


def test_who_stops_reading_loses_the_stream(
    channel: grpc.Channel, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "PATIENCE_SECONDS", 0.5)
    slow = ask(channel)
    next(slow)
    # Waits for the only thread.
    assert len(list(ask(channel, max_results=1))) == 1
    with pytest.raises(grpc.RpcError) as caught:
        list(slow)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    until(lambda: endless.ended == 2)


def test_who_reads_on_keeps_it(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "PATIENCE_SECONDS", 3.0)
    reader = ask(channel)
    ends = time.monotonic() + 4.0
    while time.monotonic() < ends:
        next(reader)
        time.sleep(0.05)
    reader.cancel()


def test_who_goes_away_is_noticed_and_written_down(
    channel: grpc.Channel, endless: Endless, caplog: pytest.LogCaptureFixture
) -> None:
    reader = ask(channel)
    next(reader)
    reader.cancel()
    until(lambda: endless.ended == 1)
    assert len(list(ask(channel, max_results=1))) == 1
    lines = [record.__dict__["rpc"] for record in caplog.records if hasattr(record, "rpc")]
    assert [(line["method"], line["object"], line["code"]) for line in lines][:1] == [
        ("GetMetadataAllocated", "snap", "CANCELLED")
    ]


def test_a_controller_that_gives_no_credit_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_PATIENCE_SECONDS", 0.2)
    sent: list[Any] = []
    answer = link._Answer(1, 2, lambda message: sent.append(message()), {})
    assert [answer.send(b"x") for _ in range(3)] == [True, True, False]
    assert len(sent) == 2
    answer.grant(1)
    assert answer.send(b"x")
