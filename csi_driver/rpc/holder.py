"""What a router asks of a node beside CSI (proto/peer.proto, Holder): parse, call the domain, answer."""

from __future__ import annotations

from csi_driver.domain.node import Node
from csi_driver.pb import peer_pb2
from csi_driver.rpc import parsing
from csi_driver.rpc.edge import Call


class HolderServicer:
    """Spec: proto/peer.proto."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def Retire(self, request: peer_pb2.RetireRequest, call: Call) -> peer_pb2.RetireResponse:
        self._node.volumes.retire(parsing.volume_id(request.volume_id), call.deadline)
        return peer_pb2.RetireResponse()

    def Serve(self, request: peer_pb2.ServeRequest, call: Call) -> peer_pb2.ServeResponse:
        if request.ended:
            self._node.departures.end(request.transfer_id)
        else:
            self._node.departures.open(request.transfer_id, request.source_id, request.offset, call.deadline)
        return peer_pb2.ServeResponse()
