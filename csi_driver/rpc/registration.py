"""Registration with kubelet: a socket in its directory of plugins, which it finds and asks; knows no volume.

kubelet registers a driver when the socket appears and takes it out of its CSINode when the socket goes, so it is there
while volumes are served, and gone after an orderly stop. After a crash a stale one stays: the next start replaces it,
which kubelet sees as a new registration. A kubelet that restarts finds the socket by itself.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import grpc

from csi_driver.errors import InvalidField
from csi_driver.linux import sockets
from csi_driver.metrics import Metrics
from csi_driver.pb import registration_pb2
from csi_driver.rpc import endpoint
from csi_driver.rpc.edge import Call, Edge

_log = logging.getLogger("hostvol.registration")
_DIRECTORY = "plugins_registry"
# Of CSI as kubelet compares it: it refuses a second driver of the same name with a version that is not higher.
_SUPPORTED_VERSIONS = ("1.0.0",)
_LOOK_SECONDS = 2.0
_OPTIONS = (("grpc.so_reuseport", 0),)


@dataclass(frozen=True, slots=True)
class Plugin:
    """Who is registered: the driver's name, and its CSI socket where kubelet sees it."""

    driver_name: str
    csi_socket: str


class RegistrationServicer:
    """Kubelet's plugin registration API v1 (proto/registration.proto)."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._told = ""

    def GetInfo(self, request: registration_pb2.InfoRequest, call: Call) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type="CSIPlugin",
            name=self._plugin.driver_name,
            endpoint=self._plugin.csi_socket,
            supported_versions=_SUPPORTED_VERSIONS,
        )

    def NotifyRegistrationStatus(
        self, request: registration_pb2.RegistrationStatus, call: Call
    ) -> registration_pb2.RegistrationStatusResponse:
        # kubelet repeats a registration that failed, and tells each time.
        told = "registered" if request.plugin_registered else f"refused: {request.error}"
        if told != self._told:
            level = logging.INFO if request.plugin_registered else logging.ERROR
            _log.log(level, "kubelet: driver %s is %s", self._plugin.driver_name, told)
        self._told = told
        return registration_pb2.RegistrationStatusResponse()


class Registration:
    """Owner of the registration socket: it is there, and ours, from `start` until `stop`."""

    def __init__(self, plugin: Plugin, kubelet_dir: str, metrics: Metrics) -> None:
        """`kubelet_dir`: kubelet's root directory, at the same path here as on the node.

        Raises: InvalidField.
        """
        if not os.path.isabs(kubelet_dir):
            raise InvalidField("kubelet-dir", kubelet_dir, "an absolute directory")
        self._directory = f"{kubelet_dir.rstrip('/')}/{_DIRECTORY}"
        self.path = f"{self._directory}/{plugin.driver_name}-reg.sock"
        # kubelet ignores names that begin with a dot: it never meets a socket on which nobody listens yet.
        self._hidden = endpoint.socket_path(f"{self._directory}/.{plugin.driver_name}-reg.sock")
        self._servicer = RegistrationServicer(plugin)
        self._edge = Edge(metrics)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="registration")
        self._server: grpc.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="registration", daemon=True)
        self._said = ""

    def start(self) -> None:
        """Be found by kubelet; a directory that is not there yet, or a socket that is lost, is tended to later."""
        self._ensure_served()
        self._keeper.start()

    def stop(self) -> None:
        """Be gone, so that kubelet takes the driver out of its list."""
        self._stopping.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        self._withdraw()
        self._threads.shutdown(wait=False)

    def _keep(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._ensure_served()

    def _ensure_served(self) -> None:
        if self._inode is not None and sockets.inode(self.path) == self._inode:
            return
        try:
            self._serve()
            self._said = ""
        except (OSError, RuntimeError, InvalidField) as cause:
            if self._said != str(cause):
                _log.error("the registration socket %s cannot be made: %s", self.path, cause)
            self._said = str(cause)

    def _serve(self) -> None:
        self._withdraw()
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        endpoint.clear_stale(self._hidden)
        server = grpc.server(self._threads, options=_OPTIONS)
        service = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
        server.add_generic_rpc_handlers((self._edge.handler(service, self._servicer, lambda _: self._threads),))
        with sockets.owner_only():
            server.add_insecure_port(f"unix:{self._hidden}")
        server.start()
        self._server = server
        os.rename(self._hidden, self.path)
        self._inode = sockets.inode(self.path)

    def _withdraw(self) -> None:
        """Remove the socket if it is ours: another process may have taken the name."""
        if self._inode is not None and sockets.inode(self.path) == self._inode:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        self._inode = None
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None
