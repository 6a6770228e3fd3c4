"""The gRPC server of one node on its UNIX socket; knows which threads serve what, and nothing of any method.

The synchronous server: kernel calls block and release the GIL. Threads by what may hang: a filesystem that never
answers a statfs holds threads of the statistics only, one that hangs in a mount holds threads of the mutations only,
and Probe has its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import grpc

from csi_driver.domain.node import Node
from csi_driver.linux import sockets
from csi_driver.metrics import Metrics
from csi_driver.pb import admin_pb2, csi_pb2, peer_pb2
from csi_driver.rpc import endpoint
from csi_driver.rpc.admin import AdminServicer
from csi_driver.rpc.controller import ControllerServicer
from csi_driver.rpc.edge import Dispatcher, Edge
from csi_driver.rpc.group_controller import GroupControllerServicer
from csi_driver.rpc.holder import HolderServicer
from csi_driver.rpc.identity import IdentityServicer
from csi_driver.rpc.node import NodeServicer
from csi_driver.rpc.snapshot_metadata import SnapshotMetadataServicer

_STATISTICS = frozenset(
    {
        "NodeGetVolumeStats",
        "NodeGetVolumeHealth",
        "NodeGetStorageHealth",
        "ControllerGetVolumeHealth",
        "ControllerListVolumeHealth",
        *("ListPools", "ListVolumes", "GetVolume", "ListSnapshots", "GetSnapshot", "GetCapacity", "ListTrash"),
        "GetVolumeGroupSnapshot",
    }
)
_INSTANT = frozenset(
    {"NodeGetInfo", "NodeGetCapabilities", "ControllerGetCapabilities", "GroupControllerGetCapabilities"}
)
_STREAMS = frozenset({"Export", "Import"})
_FROM_MEMORY = frozenset({"ListOperations"})
_OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
)


class NodeServer:
    """Owner of the socket and of the threads behind it."""

    def __init__(self, node: Node, metrics: Metrics, endpoint_url: str) -> None:
        """Bind the socket (mode 0600); nothing is served before `start`.

        Raises: InvalidField when the endpoint cannot be used.
        """
        self.path = endpoint.socket_path(endpoint_url)
        endpoint.clear_stale(self.path)
        self._instant = ThreadPoolExecutor(4, thread_name_prefix="instant")
        self._statistics = ThreadPoolExecutor(64, thread_name_prefix="statistics")
        self._mutations = ThreadPoolExecutor(512, thread_name_prefix="mutation")
        # A stream holds its thread as long as its reader takes; see `edge`.
        self._streams = ThreadPoolExecutor(16, thread_name_prefix="stream")
        self._server = grpc.server(self._mutations, options=_OPTIONS)
        self._edge = Edge(metrics)
        self._register(self._edge, node)
        with sockets.owner_only():
            self._server.add_insecure_port(f"unix:{self.path}")
        os.chmod(self.path, 0o600)
        self._inode = sockets.inode(self.path)

    def start(self) -> None:
        """Serve from now on."""
        self._server.start()

    def is_reachable(self) -> bool:
        """Whether the path still leads to our socket: whoever removes it cuts us off from every new caller."""
        return sockets.inode(self.path) == self._inode

    def dispatcher(self, services: Collection[str]) -> Dispatcher:
        """These services (full names), for a caller that brings methods by name and requests by bytes."""
        return Dispatcher(self._edge, services)

    def stop(self, grace_seconds: float) -> None:
        """Accept nothing more, let what runs finish for so long, and remove the socket."""
        self._server.stop(grace_seconds).wait()
        for executor in (self._instant, self._statistics, self._mutations, self._streams):
            executor.shutdown(wait=False, cancel_futures=True)

    def _register(self, edge: Edge, node: Node) -> None:
        services = csi_pb2.DESCRIPTOR.services_by_name
        admin = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
        self._server.add_generic_rpc_handlers(
            (
                edge.handler(services["Identity"], IdentityServicer(node), lambda _: self._instant),
                edge.handler(services["Controller"], ControllerServicer(node), self._threads, node.require_ready),
                edge.handler(
                    services["SnapshotMetadata"],
                    SnapshotMetadataServicer(node),
                    lambda _: self._streams,
                    node.require_ready,
                ),
                edge.handler(
                    services["GroupController"], GroupControllerServicer(node), self._threads, node.require_ready
                ),
                edge.handler(services["Node"], NodeServicer(node), self._threads, node.require_ready),
                edge.handler(admin, AdminServicer(node), self._admin_threads, node.require_ready),
            )
        )

        # Not on the socket: only the stream of a router reaches it.
        holder = peer_pb2.DESCRIPTOR.services_by_name["Holder"]
        edge.handler(holder, HolderServicer(node), self._threads, node.require_ready)

    def _threads(self, method: str) -> ThreadPoolExecutor:
        if method in _INSTANT:
            return self._instant
        return self._statistics if method in _STATISTICS else self._mutations

    def _admin_threads(self, method: str) -> ThreadPoolExecutor:
        if method in _FROM_MEMORY:
            return self._instant
        return self._streams if method in _STREAMS else self._statistics
