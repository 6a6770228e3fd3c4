"""A stream spoken by hand: what a node may say, and what none should."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from csi_driver.model import node_key
from csi_driver.pb import csi_pb2, peer_pb2
from tests.cluster.api import DRIVER


class Peer:
    """One stream to a controller."""

    def __init__(self, port: int, token: str, ca_file: Path | None, *, name: str = "127.0.0.1") -> None:
        authority = ca_file.read_bytes() if ca_file else None
        self._channel = grpc.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(authority),
            options=[("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._up: queue.SimpleQueue[peer_pb2.FromNode | None] = queue.SimpleQueue()
        self.received: queue.Queue[peer_pb2.FromRouter] = queue.Queue()
        self.ended = threading.Event()
        self.code: grpc.StatusCode | None = None
        self.details = ""
        attach = self._channel.stream_stream(
            "/hostvol.peer.v1.Peer/Attach",
            request_serializer=peer_pb2.FromNode.SerializeToString,
            response_deserializer=peer_pb2.FromRouter.FromString,
        )
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._call: Any = attach(self._messages(), metadata=metadata)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _messages(self) -> Iterator[peer_pb2.FromNode]:
        while (message := self._up.get()) is not None:
            yield message

    def _listen(self) -> None:
        try:
            for message in self._call:
                self.received.put(message)
        except grpc.RpcError as error:
            self.code, self.details = error.code(), error.details()
        self.ended.set()

    def close(self) -> None:
        self._up.put(None)
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    def send(self, **kind: Any) -> None:
        self._up.put(peer_pb2.FromNode(**kind))

    def hello(self, node: str, **changed: Any) -> None:
        said = {"protocol": 1, "version": "0", "node_id": node, "node_key": node_key(node), "driver_name": DRIVER}
        self.send(hello=peer_pb2.Hello(**{**said, **changed}))

    def attach(self, node: str, *volumes: str, **inventory: Any) -> None:
        """Everything until calls may come; `volumes` are the ends of ids."""
        self.hello(node)
        assert self.next().HasField("welcome")
        items = [item(node, end) for end in volumes]
        self.send(inventory=peer_pb2.Inventory(items=items, complete=True, **inventory))

    def next(self, seconds: float = 20) -> peer_pb2.FromRouter:
        return self.received.get(timeout=seconds)

    def reply(self, call: peer_pb2.Call, **fields: Any) -> None:
        self.send(reply=peer_pb2.Reply(call_id=call.call_id, **fields))

    def refusal(self) -> tuple[grpc.StatusCode | None, str]:
        """How the controller ended the stream."""
        assert self.ended.wait(20), "the stream still lives"
        return self.code, self.details


def volume_id(node: str, end: str) -> str:
    return f"vol-{node_key(node)}-{end}"


def item(node: str, end: str) -> peer_pb2.Item:
    return peer_pb2.Item(name=f"name-{end}", volume=csi_pb2.Volume(volume_id=volume_id(node, end), capacity_bytes=1))
