"""A cluster on loopback: an API server, routers and node drivers, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi_driver.model import topology_key
from csi_driver.pb import csi_pb2
from tests.cluster.api import DRIVER, FakeApi
from tests.harness import DIRECTORY, PROGRAM, Caller, Driver, Failure, PoolPlace, create_request, ended, start_fork
from tests.waiting import until
from tests.zygote import ForkedProcess


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@dataclass
class Controller:
    """`hostvol controller` as a child process."""

    home: Path
    api: FakeApi
    port: int
    address: str = "127.0.0.1"
    names: tuple[str, ...] = ("127.0.0.1", "localhost", "hostvol-controller.test")
    arguments: tuple[str, ...] = ()
    constants: dict[str, float] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)  # it is not started again
    process: ForkedProcess | None = None
    _caller: Caller | None = None

    @property
    def socket_path(self) -> Path:
        return self.home / "csi.sock"

    def start(self) -> None:
        """Start, and wait until the sidecars' socket and the nodes' port are served."""
        self.home.mkdir(parents=True, exist_ok=True)
        command = [
            *(*PROGRAM, "controller", f"--endpoint=unix://{self.socket_path}"),
            *(f"--listen={self.address}:{self.port}", f"--api-server={self.api.url}"),
            *(f"--tls-name={name}" for name in self.names),
            *self.arguments,
        ]
        before = self.log().count("nodes dial port") if (self.home / "log").exists() else 0
        with (self.home / "log").open("ab") as log:
            self.process = start_fork(command, log, os.environ, self.constants)
        until(lambda: self.log().count("nodes dial port") > before or self._check(), what="the controller serves")

    def _check(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return False

    @property
    def caller(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(self.socket_path)
        return self._caller

    def call(self, method: str, request: Any = None, **fields: Any) -> Any:
        return self.caller.call(method, request, **fields)

    def failure(self, method: str, request: Any = None, **fields: Any) -> Failure:
        """The failure that the call must end with."""
        try:
            answer = self.call(method, request, **fields)
        except Failure as failure:
            return failure
        raise AssertionError(f"{method} succeeded: {answer}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._caller is not None:
            self._caller.close()
            self._caller = None
        return ended(self.process, number) if self.process is not None else 0

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def attached(self) -> int:
        """How many streams were attached so far, as the log says."""
        return self.log().count(" is attached with ")

    def volumes(self, **fields: Any) -> list[str]:
        """The ids of one list page."""
        return [entry.volume.volume_id for entry in self.call("ListVolumes", **fields).entries]


@dataclass
class Cluster:
    """Everything, in one directory."""

    home: Path
    api: FakeApi = field(default_factory=FakeApi)
    controllers: list[Controller] = field(default_factory=list)
    nodes: dict[str, Driver] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    constants: dict[str, float] = field(default_factory=dict)  # of its controllers

    @property
    def controller(self) -> Controller:
        return self.controllers[0]

    @property
    def ca_file(self) -> Path:
        return self.home / "ca.crt"

    def token_file(self, name: str) -> Path:
        return self.home / f"token-{name}"

    def begin(self, *arguments: str, pools: Mapping[str, PoolPlace] | None = None) -> None:
        """One controller and two nodes with these arguments, which serve and are attached; `pools` by node."""
        self.add_controller()
        for name in ("node-a", "node-b"):
            node = self.prepare_node(name)
            node.arguments = [*node.arguments, *arguments]
            if pools and name in pools:
                node.pools = [pools[name]]
            node.start()
        for name in self.nodes:
            self.wait_attached(name)

    def add_controller(self, address: str = "127.0.0.1", *arguments: str) -> Controller:
        home = self.home / f"controller{len(self.controllers)}"
        controller = Controller(home, self.api, self.port, address, arguments=arguments, constants=self.constants)
        self.controllers.append(controller)
        controller.start()
        self.write_authority()
        return controller

    def write_authority(self) -> None:
        """What kubelet does with the ConfigMap."""
        found = self.api.stored["/api/v1/namespaces/hostvol-system/configmaps/hostvol-controller-ca"]
        fresh = self.home / "ca.crt.new"
        fresh.write_text(found["data"]["ca.crt"])
        os.replace(fresh, self.ca_file)

    def write_token(self, name: str, token: str) -> None:
        """What kubelet does with a projected token."""
        fresh = self.home / f"token-{name}.new"
        fresh.write_text(token)
        os.replace(fresh, self.token_file(name))

    def prepare_node(self, name: str, host: str = "127.0.0.1", **options: Any) -> Driver:
        """A node driver that is not started yet, with a good token."""
        self.api.nodes.setdefault(name, True)
        if not self.token_file(name).exists():
            self.write_token(name, self.api.token(name))
        arguments = [
            f"--controller={host}:{self.port}",
            f"--controller-ca={self.ca_file}",
            f"--controller-token={self.token_file(name)}",
        ]
        pool = PoolPlace(self.home / name / "pool")
        node = Driver(self.home / name, [pool], node_id=name, arguments=arguments, **options)
        self.nodes[name] = node
        return node

    def add_node(self, name: str, host: str = "127.0.0.1", **options: Any) -> Driver:
        """A node driver that serves and is attached to every controller."""
        node = self.prepare_node(name, host, **options)
        node.start()
        self.wait_attached(name)
        return node

    def wait_attached(self, name: str) -> None:
        """Wait until every controller reaches the node."""
        for controller in self.controllers:
            until(lambda one=controller: self.reaches(one, name), what=f"{name} is attached")

    def reaches(self, controller: Controller, name: str) -> bool:
        try:
            controller.call("GetCapacity", capacity_request(name), timeout=5)
        except Failure:
            return False
        return True

    def close(self) -> None:
        """End all of it, each whatever becomes of the others."""
        with ExitStack() as stack:
            stack.callback(self.api.close)
            for controller in self.controllers:
                controller.is_over.set()
                stack.callback(controller.stop)
            for node in self.nodes.values():
                stack.callback(node.clean_up)
                stack.callback(node.stop)
        for process in (*self.nodes.values(), *self.controllers):
            if process.process is not None:
                assert "unforeseen" not in process.log(), process.log()


def topology(*names: str) -> csi_pb2.TopologyRequirement:
    """One of these nodes is required."""
    places = [csi_pb2.Topology(segments={topology_key(DRIVER): name}) for name in names]
    return csi_pb2.TopologyRequirement(requisite=places)


def capacity_request(name: str) -> csi_pb2.GetCapacityRequest:
    return csi_pb2.GetCapacityRequest(accessible_topology=topology(name).requisite[0], parameters=DIRECTORY)


def on(name: str, node: str, **fields: Any) -> csi_pb2.CreateVolumeRequest:
    """A directory volume that must be on the node."""
    return create_request(name, parameters=DIRECTORY, accessibility_requirements=topology(node), **fields)


def anywhere(name: str, **fields: Any) -> csi_pb2.CreateVolumeRequest:
    """A directory volume on whichever node."""
    return create_request(name, parameters=DIRECTORY, **fields)
