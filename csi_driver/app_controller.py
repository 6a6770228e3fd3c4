"""`hostvol controller`: the configuration of a cluster's router, and how its parts are put together."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from csi_driver import __version__, logs
from csi_driver.cli import options
from csi_driver.errors import InvalidField
from csi_driver.linux import sockets
from csi_driver.metrics import Metrics

if TYPE_CHECKING:
    from csi_driver.cluster.certificates import Keeper
    from csi_driver.cluster.orchestrator import Orchestrator
    from csi_driver.rpc.edge import Dispatcher

_log = logging.getLogger("hostvol.cluster")
DEFAULT_LISTEN = "[::]:9809"
DEFAULT_NAMESPACE = "hostvol-system"
_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_SERVICE = "hostvol-controller"


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Everything that `hostvol controller` can be told."""

    endpoint: str
    listen: str
    driver_name: str
    namespace: str
    node_account: str
    audience: str
    tls_names: tuple[str, ...]
    tls_directory: str
    authority: str
    api_server: str
    api_ca: str
    api_token: str
    http_address: str
    shutdown_seconds: float


def controller_config(asked: dict[str, Any]) -> ControllerConfig:
    """The configuration that flags and variables describe.

    Raises: InvalidField naming the flag.
    """
    _, colon, port = asked["listen"].rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidField("listen", asked["listen"], "ADDRESS:PORT, for example [::]:9809")
    options.check_driver_name(asked["driver_name"])
    namespace = asked["namespace"] or _own_namespace()
    return ControllerConfig(
        endpoint=asked["endpoint"],
        listen=asked["listen"],
        driver_name=asked["driver_name"],
        namespace=namespace,
        node_account=asked["node_account"],
        audience=asked["audience"] or asked["driver_name"],
        tls_names=tuple(asked["tls_name"]) or _service_names(namespace),
        tls_directory=asked["tls_directory"],
        authority=asked["authority"],
        api_server=asked["api_server"],
        api_ca=asked["api_ca"],
        api_token=asked["api_token"],
        http_address=asked["http_address"],
        shutdown_seconds=asked["shutdown_seconds"],
    )


async def serve(config: ControllerConfig) -> None:
    """Serve a cluster until SIGTERM.

    Raises: HostvolError when it cannot serve; OSError.
    """
    from csi_driver.cluster.alarms import Alarms  # noqa: PLC0415 - gRPC, which `--help` does not need
    from csi_driver.cluster.certificates import Certificates  # noqa: PLC0415
    from csi_driver.cluster.crossings import Crossings  # noqa: PLC0415
    from csi_driver.cluster.duplicates import Duplicates  # noqa: PLC0415
    from csi_driver.cluster.figures import RouterFigures  # noqa: PLC0415
    from csi_driver.cluster.orchestrator import Access, Orchestrator  # noqa: PLC0415
    from csi_driver.cluster.orphans import Orphans  # noqa: PLC0415
    from csi_driver.cluster.peers import Peers  # noqa: PLC0415
    from csi_driver.cluster.presence import Presence  # noqa: PLC0415
    from csi_driver.cluster.registry import Registry  # noqa: PLC0415
    from csi_driver.cluster.router import Router  # noqa: PLC0415
    from csi_driver.cluster.server import ControllerServer, Front  # noqa: PLC0415
    from csi_driver.cluster.tokens import Verifier  # noqa: PLC0415
    from csi_driver.rpc import endpoint, status  # noqa: PLC0415
    from csi_driver.rpc.edge import Journal  # noqa: PLC0415

    path = endpoint.socket_path(config.endpoint)
    endpoint.clear_stale(path)
    orchestrator = Orchestrator(Access.given(config.api_server, config.api_ca, config.api_token), config.driver_name)
    registry = Registry()
    presence = Presence(registry, orchestrator, config.driver_name)
    router = Router(registry, presence, orchestrator, config.driver_name)
    verifier = Verifier(orchestrator, audience=config.audience, namespace=config.namespace, account=config.node_account)
    peers = Peers(registry, verifier, config.driver_name, status.explain)
    crossings = Crossings(registry, verifier, router.grants, status.explain)
    metrics = Metrics()
    alarms = Alarms(registry, orchestrator, config.driver_name)
    duplicates = Duplicates(registry, orchestrator, config.driver_name)
    orphans = Orphans(registry, orchestrator, config.driver_name)
    metrics.add(RouterFigures(registry, presence, router, peers, alarms, duplicates, orphans, crossings))
    front = Front(router, _local(config.driver_name, metrics), Journal(metrics), status.explain)
    server = ControllerServer(front, peers, crossings, Certificates(_keeper(config, orchestrator), config.tls_names))
    await server.serve_sidecars(path)
    socket_ = sockets.inode(path)
    with _health(config.http_address, metrics, lambda: sockets.inode(path) == socket_):
        watches = [_serve_nodes(server, config), presence.watch(), alarms.watch(), duplicates.watch(), orphans.watch()]
        background = [asyncio.create_task(watch) for watch in watches]
        await _stopped(background)
        await server.stop(config.shutdown_seconds)
        for task in background:
            task.cancel()
        orchestrator.close()


async def _serve_nodes(server: Any, config: ControllerConfig) -> None:
    port = await server.serve_nodes(config.listen)
    _log.info("hostvol %s routes for %s; nodes dial port %d", __version__, config.driver_name, port)
    await server.keep_certificates()


async def _stopped(background: list[asyncio.Task[None]]) -> None:
    """Return at SIGTERM; a task that fails before ends everything with its error."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    waiting = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiting, *background], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    _log.info("stopping: finishing what runs")


class _Cluster:
    """The plugin as Identity tells it: ready whether nodes are there or not, since they need us to be."""

    def __init__(self, driver_name: str) -> None:
        self.driver_name = driver_name

    @property
    def is_ready(self) -> bool:
        return True


def _local(driver_name: str, metrics: Metrics) -> Dispatcher:
    """What needs no node: Identity, and what a controller of this version can do."""
    from csi_driver.pb import csi_pb2  # noqa: PLC0415 - as above
    from csi_driver.rpc.controller import ControllerCapabilities  # noqa: PLC0415
    from csi_driver.rpc.edge import Dispatcher, Edge  # noqa: PLC0415
    from csi_driver.rpc.group_controller import GroupControllerCapabilities  # noqa: PLC0415
    from csi_driver.rpc.identity import IdentityServicer  # noqa: PLC0415

    edge = Edge(metrics)
    services = csi_pb2.DESCRIPTOR.services_by_name
    threads = ThreadPoolExecutor(1)
    edge.handler(services["Identity"], IdentityServicer(_Cluster(driver_name)), lambda _: threads)
    edge.handler(services["Controller"], ControllerCapabilities(), lambda _: threads)
    edge.handler(services["GroupController"], GroupControllerCapabilities(), lambda _: threads)
    return Dispatcher(edge, [services[name].full_name for name in ("Identity", "Controller", "GroupController")])


def _keeper(config: ControllerConfig, orchestrator: Orchestrator) -> Keeper:
    from csi_driver.cluster.certificates import DirectoryKeeper, SecretKeeper  # noqa: PLC0415 - as above

    if config.tls_directory:
        return DirectoryKeeper(config.tls_directory)
    return SecretKeeper(orchestrator, config.namespace, config.authority)


@contextmanager
def _health(address: str, metrics: Metrics, is_alive: Callable[[], bool]) -> Iterator[None]:
    if not address:
        yield
        return
    from csi_driver.rpc.health import HealthServer  # noqa: PLC0415 - http.server is not free either

    server = HealthServer(address, metrics, is_ready=lambda: True, is_alive=is_alive)
    server.start()
    _log.info("metrics and health on port %d", server.port)
    try:
        yield
    finally:
        server.stop()


def _own_namespace() -> str:
    with suppress(OSError), open(_NAMESPACE_FILE, encoding="ascii") as file:
        return file.read().strip()
    return DEFAULT_NAMESPACE


def _service_names(namespace: str) -> tuple[str, ...]:
    full = (_SERVICE, namespace, "svc", "cluster", "local")
    return tuple(".".join(full[:parts]) for parts in (1, 2, 3, 5))


@click.command(short_help="Run the router of a cluster.")
@options.endpoint
@options.serving
@options.api
@click.option(
    "--listen",
    envvar="HOSTVOL_LISTEN",
    show_envvar=True,
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where nodes dial in, with TLS.",
)
@click.option(
    "--namespace",
    envvar="HOSTVOL_NAMESPACE",
    show_envvar=True,
    default="",
    help="Of our Secret and ConfigMap and of the nodes' service account.  "
    f"[default: the pod's, or {DEFAULT_NAMESPACE}]",
)
@click.option(
    "--node-service-account",
    "node_account",
    envvar="HOSTVOL_NODE_SERVICE_ACCOUNT",
    show_envvar=True,
    default="hostvol-node",
    show_default=True,
    help="Whose tokens are accepted.",
)
@click.option(
    "--token-audience",
    "audience",
    envvar="HOSTVOL_TOKEN_AUDIENCE",
    show_envvar=True,
    default="",
    help="For whom the tokens must be made.  [default: the driver's name]",
)
@click.option(
    "--tls-name",
    multiple=True,
    envvar="HOSTVOL_TLS_NAMES",
    show_envvar=True,
    metavar="NAME",
    help=f"A name or address that nodes dial; may be repeated.  [default: the names of the Service {_SERVICE}]",
)
@click.option(
    "--authority",
    envvar="HOSTVOL_AUTHORITY",
    show_envvar=True,
    default="hostvol-controller-ca",
    show_default=True,
    help="Name of the Secret with our certificate authority, and of the ConfigMap with its certificate.",
)
@click.option(
    "--tls-directory",
    envvar="HOSTVOL_TLS_DIRECTORY",
    show_envvar=True,
    default="",
    help="Keep the authority in this directory instead; nodes need its ca.crt.",
)
def controller(log_format: str, log_level: str, **asked: Any) -> None:
    """Route the calls of a cluster's sidecars to the nodes that dial in; keeps no state.

    \b
    Examples:
      hostvol controller --endpoint unix:///csi/csi.sock --listen '[::]:9809'
    """
    logs.configure(log_format, log_level)
    # Inventories are many objects that live long: measured with 100,000 volumes, the default makes pauses of 50 ms.
    gc.set_threshold(100_000, 50, 50)
    asyncio.run(serve(controller_config(asked)))
