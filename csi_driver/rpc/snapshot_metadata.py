"""CSI SnapshotMetadata for the snapshots of one node: parse, call the domain, stream the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final, TypeVar

from csi_driver.domain.block_lists import BlockList
from csi_driver.domain.node import Node
from csi_driver.errors import InvalidField
from csi_driver.pb import csi_pb2
from csi_driver.rpc import parsing
from csi_driver.rpc.edge import Call

AllocatedOrDelta = TypeVar("AllocatedOrDelta", csi_pb2.GetMetadataAllocatedResponse, csi_pb2.GetMetadataDeltaResponse)
_VARIABLE: Final = csi_pb2.BlockMetadataType.VARIABLE_LENGTH
# A range takes at most 25 bytes on the wire: 200 KiB, and never 1 MiB, which is what a node's stream carries at once.
_DEFAULT_RESULTS: Final = 8192
_MOST_RESULTS: Final = 32768
# So long nothing is sent at most, even where nothing is found: whoever has given up is noticed then.
_SILENCE_SECONDS: Final = 5.0


class SnapshotMetadataServicer:
    """Spec: SnapshotMetadata Service RPC."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, call: Call
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        snapshot_id = parsing.snapshot_id(request.snapshot_id)
        offset, results = _offset(request.starting_offset), _results(request.max_results)
        blocks = self._node.block_lists.allocated(snapshot_id, offset)
        yield from _messages(csi_pb2.GetMetadataAllocatedResponse, blocks, results)

    def GetMetadataDelta(
        self, request: csi_pb2.GetMetadataDeltaRequest, call: Call
    ) -> Iterator[csi_pb2.GetMetadataDeltaResponse]:
        base_id = parsing.volume_id(request.base_snapshot_id, "base_snapshot_id")
        target_id = parsing.volume_id(request.target_snapshot_id, "target_snapshot_id")
        offset, results = _offset(request.starting_offset), _results(request.max_results)
        blocks = self._node.block_lists.changed(base_id, target_id, offset)
        yield from _messages(csi_pb2.GetMetadataDeltaResponse, blocks, results)


def _messages(kind: type[AllocatedOrDelta], blocks: BlockList, results: int) -> Iterator[AllocatedOrDelta]:
    """The list, so many ranges a message: at least one message, since it tells the size as well."""

    def empty() -> AllocatedOrDelta:
        return kind(block_metadata_type=_VARIABLE, volume_capacity_bytes=blocks.capacity_bytes)

    message, count, silent_since, is_first = empty(), 0, time.monotonic(), True
    for window in blocks.windows:
        for one in window:
            if count == results:
                yield message
                message, count, silent_since, is_first = empty(), 0, time.monotonic(), False
            message.block_metadata.add(byte_offset=one.start, size_bytes=one.end - one.start)
            count += 1
        if time.monotonic() - silent_since > _SILENCE_SECONDS:
            yield message
            message, count, silent_since, is_first = empty(), 0, time.monotonic(), False
    if count or is_first:
        yield message


def _offset(value: int) -> int:
    if value < 0:
        raise InvalidField("starting_offset", value, "0 or more")
    return value


def _results(value: int) -> int:
    if value < 0:
        raise InvalidField("max_results", value, "0 or more")
    return min(value, _MOST_RESULTS) or _DEFAULT_RESULTS
