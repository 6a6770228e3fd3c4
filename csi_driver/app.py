"""The command line's entry, the configuration of a node, and how its parts are put together.

The only module that knows every layer.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from csi_driver import __version__, durations, logs, quantities
from csi_driver.app_controller import controller
from csi_driver.cli import options
from csi_driver.domain import freezing, inspection
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions
from csi_driver.domain.startup import ensure_state_dir
from csi_driver.errors import HostvolError, InvalidField, NotReady
from csi_driver.linux import init
from csi_driver.metrics import Metrics
from csi_driver.model import PoolName

if TYPE_CHECKING:
    from csi_driver.cli.client import DriverClient
    from csi_driver.cluster.ferry import Ferry
    from csi_driver.cluster.link import Link, LinkOptions
    from csi_driver.rpc.registration import Registration
    from csi_driver.rpc.server import NodeServer

_log = logging.getLogger("hostvol.node")
DEFAULT_POOL_DIRECTORY = "/var/lib/hostvol"
DEFAULT_STATE_DIR = "/run/hostvol"
DEFAULT_CONTROLLER_CA = "/etc/hostvol/controller/ca.crt"
DEFAULT_CONTROLLER_TOKEN = "/var/run/secrets/hostvol/token"  # noqa: S105 - the file's name
_POOL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What Kubernetes accepts as the value of a node's topology label.
_NODE_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_MAX_OVERCOMMIT = 1000.0
_POOL_FORM = (
    "NAME=DIR[,overcommit=N][,init=true[,backing-file=SIZE]][,ephemeral=SIZE][,retention=MAX][,trash=SIZE|PERCENT]"
)
_SETTINGS = ("overcommit", "init", "backing-file", "ephemeral", "retention", "trash")
_PERCENT = re.compile(r"([1-9][0-9]?|100)%")
_LISTEN_SECONDS = 1.0
_OPERATORS = {
    "export": "cli.backup:export_content",
    "group": "cli.groups:group",
    "health": "cli.health:health",
    "import": "cli.backup:import_content",
    "orphans": "app_orphans:orphans",
    "pool": "cli.pools:pool",
    "snapshot": "cli.snapshots:snapshot",
    "trash": "cli.trash:trash",
    "volume": "cli.volumes:volume",
}
_POOLLESS_SECONDS = 600.0
_FORWARDED_SERVICES = (
    "csi.v1.Controller",
    "csi.v1.GroupController",
    "csi.v1.SnapshotMetadata",
    "hostvol.peer.v1.Holder",
)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything that `hostvol node` can be told."""

    endpoint: str
    node_id: str
    driver_name: str
    pools: tuple[PoolOptions, ...]
    state_dir: str
    http_address: str
    shutdown_seconds: float
    controller: str = ""
    controller_ca: str = DEFAULT_CONTROLLER_CA
    controller_token: str = DEFAULT_CONTROLLER_TOKEN
    kubelet_dir: str = ""
    transfer_rate: int = 0


def parse_pool(text: str) -> PoolOptions:
    """A pool as `_POOL_FORM` says.

    Raises: InvalidField.
    """
    name, equals, rest = text.partition("=")
    directory, *settings = rest.split(",")
    if not equals or not _POOL_NAME.fullmatch(name):
        raise InvalidField("pool", text, f"{_POOL_FORM}, NAME of lower-case letters, digits and '-'")
    if not directory.startswith("/"):
        raise InvalidField("pool", text, "an absolute directory")
    given = dict(setting.partition("=")[::2] for setting in settings)
    for key in given.keys() - set(_SETTINGS):
        raise InvalidField("pool", key, f"the settings {', '.join(_SETTINGS)}")
    init = given.get("init", "false")
    if init not in ("true", "false"):
        raise InvalidField("pool", f"init={init}", "init=true or init=false")
    return PoolOptions(
        PoolName(name),
        directory,
        _overcommit(given.get("overcommit", "1.0")),
        init == "true",
        _ephemeral_bytes(given["ephemeral"]) if "ephemeral" in given else 0,
        _backing_bytes(given),
        _retention_seconds(given["retention"]) if "retention" in given else None,
        **(_trash(given["trash"]) if "trash" in given else {}),
    )


def _backing_bytes(given: Mapping[str, str]) -> int:
    value = given.get("backing-file")
    if value is None:
        return 0
    if given.get("init") != "true":
        raise InvalidField("pool", f"backing-file={value}", "beside init=true, since it says how a pool is made")
    try:
        return quantities.parse_bytes(value)
    except ValueError as cause:
        raise InvalidField("pool", f"backing-file={value}", str(cause)) from cause


def _overcommit(value: str) -> float:
    try:
        overcommit = float(value)
    except ValueError:
        overcommit = 0.0
    if not 1.0 <= overcommit <= _MAX_OVERCOMMIT:
        raise InvalidField("pool", f"overcommit={value}", f"a number from 1.0 to {_MAX_OVERCOMMIT:g}")
    return overcommit


def _ephemeral_bytes(value: str) -> int:
    try:
        return quantities.parse_bytes(value)
    except ValueError as cause:
        raise InvalidField("pool", f"ephemeral={value}", f"{cause}; without the setting there are none") from cause


def _rate(value: str) -> int:
    if value == "0":
        return 0
    try:
        return quantities.parse_bytes(value)
    except ValueError as cause:
        raise InvalidField("transfer-rate", value, f"{cause}, a second; 0: no limit") from cause


def _retention_seconds(value: str) -> int:
    try:
        return durations.parse_seconds(value)
    except ValueError as cause:
        raise InvalidField("pool", f"retention={value}", str(cause)) from cause


def _trash(value: str) -> dict[str, Any]:
    percent = _PERCENT.fullmatch(value)
    if percent is not None:
        return {"trash_share": int(percent[1]) / 100}
    try:
        return {"trash_bytes": quantities.parse_bytes(value)}
    except ValueError as cause:
        raise InvalidField("pool", f"trash={value}", f"{cause}, or 1% to 100% of its filesystem") from cause


def node_config(asked: dict[str, Any]) -> NodeConfig:
    """The configuration that flags and variables describe.

    Raises: InvalidField naming the flag.
    """
    given = [parse_pool(text) for text in asked["pool"]]
    names = [one.name for one in given]
    if len(set(names)) != len(names):
        raise InvalidField("pool", " ".join(names), "every name once")
    if not _NODE_ID.fullmatch(asked["node_id"]):
        raise InvalidField("node-id", asked["node_id"], "1 to 63 letters, digits, '.', '_' and '-'")
    options.check_driver_name(asked["driver_name"])
    return NodeConfig(
        endpoint=asked["endpoint"],
        node_id=asked["node_id"],
        driver_name=asked["driver_name"],
        pools=_pools(given, init_all=asked["init_pools"]),
        state_dir=asked["state_dir"],
        http_address=asked["http_address"],
        shutdown_seconds=asked["shutdown_seconds"],
        controller=asked["controller"],
        controller_ca=asked["controller_ca"],
        controller_token=asked["controller_token"],
        kubelet_dir=asked["kubelet_dir"],
        transfer_rate=_rate(asked["transfer_rate"]),
    )


def _pools(given: Sequence[PoolOptions], *, init_all: bool) -> tuple[PoolOptions, ...]:
    if not given:
        # Made for whoever just wants a driver; a directory that was named is not.
        return (PoolOptions(PoolName("default"), DEFAULT_POOL_DIRECTORY, init=True),)
    return tuple(dataclasses.replace(one, init=True) for one in given) if init_all else tuple(given)


def serve(config: NodeConfig, stop: threading.Event, *, in_container: bool = False) -> None:
    """Serve one node until `stop` is set; what is in flight then is finished or safely abandoned.

    `in_container`: whoever made this one makes another when it ends, which sees the host's mounts as they are then.

    Raises: HostvolError when it cannot serve; OSError.
    """
    from csi_driver.rpc.server import NodeServer  # noqa: PLC0415 - gRPC's threads and 20 MiB, which `--help` does not need

    ensure_state_dir(config.state_dir)
    # Before anything that takes time, or can fail.
    freezing.thaw_all(config.state_dir)
    node = Node(config.node_id, config.driver_name, config.pools, config.state_dir, transfer_rate=config.transfer_rate)
    metrics = Metrics(lambda: inspection.figures_once(node))
    server = NodeServer(node, metrics, config.endpoint)
    registration = _registration(config, server, metrics)
    with _health(config.http_address, metrics, node, server):
        # Probe is answered (not ready) while records are read.
        server.start()
        link = ferry = None
        try:
            node.start()
            if registration is not None:
                registration.start()
            ferry = _ferry(config, node, metrics)
            link = _start_link(config, node, server, ferry)
            _log.info("hostvol %s serves node %s on %s", __version__, config.node_id, server.path)
            _await_end(node, stop, in_container=in_container)
            _log.info("stopping: finishing what runs")
        finally:
            if registration is not None:
                registration.stop()
            if ferry is not None:
                ferry.stop()
            if link is not None:
                link.stop()
            server.stop(config.shutdown_seconds)
            # Only now: until nobody is served any more, what is held to be sent must not be staged.
            node.departures.stop()
            _abandon_what_hangs(node)
            node.stop()


def _await_end(node: Node, stop: threading.Event, *, in_container: bool) -> None:
    """Until `stop` is set.

    Raises: NotReady when a container has had no pool for ten minutes, and opens none just then: of a disk that is
        mounted on a parent of a pool's path it would never see anything.
    """
    had_pool = time.monotonic()
    # Python runs a handler in the main thread only, and a signal that the kernel gives to another thread does not wake
    # it from a wait without end: beside threads that start children, every fourth SIGTERM was lost.
    while not stop.wait(_LISTEN_SECONDS):
        if not (in_container and node.has_no_pool):
            had_pool = time.monotonic()
        elif time.monotonic() - had_pool > _POOLLESS_SECONDS and not node.is_opening_pool:
            reasons = "; ".join(why for _, why in sorted(node.pools.refused.items()))
            raise NotReady(f"no pool for {_POOLLESS_SECONDS:.0f} s: a new container may see other mounts; {reasons}")


def _registration(config: NodeConfig, server: NodeServer, metrics: Metrics) -> Registration | None:
    """How kubelet finds this driver, when there is a kubelet."""
    if not config.kubelet_dir:
        return None
    from csi_driver.rpc.registration import Plugin, Registration  # noqa: PLC0415 - as above

    return Registration(Plugin(config.driver_name, server.path), config.kubelet_dir, metrics)


def _link_options(config: NodeConfig) -> LinkOptions:
    from csi_driver.cluster.link import LinkOptions  # noqa: PLC0415 - as above

    return LinkOptions(config.controller, config.controller_ca, config.controller_token)


def _ferry(config: NodeConfig, node: Node, metrics: Metrics) -> Ferry | None:
    """The way of contents to other nodes, when there is a controller."""
    if not config.controller:
        return None
    from csi_driver.cluster.ferry import Ferry, FerryFigures  # noqa: PLC0415 - as above

    ferry = Ferry(_link_options(config), config.node_id, node.departures)
    metrics.add(FerryFigures(node.arrivals, node.departures))
    return ferry


def _start_link(config: NodeConfig, node: Node, server: NodeServer, ferry: Ferry | None) -> Link | None:
    """Dial the controller, when there is one."""
    if ferry is None:
        return None
    from csi_driver.cluster.holdings import Holdings  # noqa: PLC0415 - as above
    from csi_driver.cluster.link import Link  # noqa: PLC0415
    from csi_driver.rpc import answers  # noqa: PLC0415

    link = Link(
        _link_options(config),
        node_id=config.node_id,
        driver_name=config.driver_name,
        holdings=Holdings(
            node,
            lambda volume: answers.volume(volume, node.topology),
            lambda snapshot: answers.snapshot(snapshot, node.topology),
            answers.volume_health,
        ),
        # Never the Node service: whoever speaks for the controller mounts nothing here.
        dispatcher=server.dispatcher(_FORWARDED_SERVICES),
        offers=ferry,
    )
    ferry.addresses = link.attached_addresses
    node.arrivals.use(ferry)
    link.start()
    return link


def _abandon_what_hangs(node: Node) -> None:
    """End the process here when operations are still in flight after their grace.

    The interpreter would wait for their threads, which may hang in the kernel for ever, and closing the pools would
    take the descriptors away below them. The next start finishes or undoes what they leave, as after a SIGKILL.
    """
    count = node.claims.count()
    if count:
        _log.warning("stopping: %d operations did not end in time and are abandoned", count)
        logging.shutdown()
        os._exit(0)


@contextmanager
def _health(address: str, metrics: Metrics, node: Node, socket_: NodeServer) -> Iterator[None]:
    if not address:
        yield
        return
    from csi_driver.rpc.health import HealthServer  # noqa: PLC0415 - http.server is not free either

    server = HealthServer(address, metrics, is_ready=lambda: node.is_ready, is_alive=socket_.is_reachable)
    server.start()
    _log.info("metrics and health on port %d", server.port)
    try:
        yield
    finally:
        server.stop()


def _connect(endpoint: str) -> DriverClient:
    from csi_driver.rpc.client import Client  # noqa: PLC0415 - as above

    return Client(endpoint)


class _Commands(click.Group):
    """All commands; those of operators are imported when they are asked for: a node is smaller without them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        for name in _OPERATORS:
            self.get_command(ctx, name)
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OPERATORS and cmd_name not in self.commands:
            module, _, command = _OPERATORS[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(f"csi_driver.{module}"), command))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hostvol")
@click.pass_context
def cli(context: click.Context) -> None:
    """hostvol turns directories on this machine into volumes for Kubernetes and every other CSI orchestrator."""
    context.obj = _connect


@cli.command(short_help="Run the driver for this machine's pools.")
@options.endpoint
@options.serving
@click.option(
    "--node-id",
    envvar="HOSTVOL_NODE_ID",
    default=socket.gethostname,
    show_default="host name",
    show_envvar=True,
    help="Name of this node; part of every volume's id.",
)
@click.option(
    "--pool",
    multiple=True,
    envvar="HOSTVOL_POOLS",
    show_envvar=True,
    metavar=_POOL_FORM,
    help=f"A directory that holds volumes; may be repeated.  [default: default={DEFAULT_POOL_DIRECTORY}, created]",
)
@click.option(
    "--init-pools",
    is_flag=True,
    envvar="HOSTVOL_INIT_POOLS",
    show_envvar=True,
    help="Make empty directories pools, as init=true does for one pool. Not for mount points: an unmounted disk leaves "
    "an empty directory.",
)
@click.option(
    "--state-dir",
    envvar="HOSTVOL_STATE_DIR",
    show_envvar=True,
    default=DEFAULT_STATE_DIR,
    show_default=True,
    help="What is remembered until the next boot; on a tmpfs.",
)
@click.option(
    "--kubelet-dir",
    envvar="HOSTVOL_KUBELET_DIR",
    show_envvar=True,
    default="",
    metavar="DIR",
    help="Register with the kubelet whose root directory this is.  [default: no registration]",
)
@click.option(
    "--controller",
    envvar="HOSTVOL_CONTROLLER",
    show_envvar=True,
    default="",
    metavar="HOST:PORT",
    help="Serve a cluster's controller too: every address of the name is dialled.  [default: none]",
)
@click.option(
    "--controller-ca",
    envvar="HOSTVOL_CONTROLLER_CA",
    show_envvar=True,
    default=DEFAULT_CONTROLLER_CA,
    show_default=True,
    help="File with the certificates of the controller's authority.",
)
@click.option(
    "--controller-token",
    envvar="HOSTVOL_CONTROLLER_TOKEN",
    show_envvar=True,
    default=DEFAULT_CONTROLLER_TOKEN,
    show_default=True,
    help="File with the service account token that proves which node this is.",
)
@click.option(
    "--transfer-rate",
    envvar="HOSTVOL_TRANSFER_RATE",
    show_envvar=True,
    default="0",
    metavar="SIZE",
    help="Bytes a second that may come from other nodes, and as many that may go to them; 100Mi, for example.  "
    "[default: no limit]",
)
def node(log_format: str, log_level: str, **asked: Any) -> None:
    """Run the driver for this machine's pools: Identity, Controller and Node on one UNIX socket.

    \b
    Examples:
      hostvol node
      hostvol node --endpoint unix:///csi/csi.sock --node-id worker-1 --pool default=/mnt/disk/hostvol --init-pools
      hostvol node --pool fast=/nvme/hostvol --pool slow=/hdd/hostvol,overcommit=2 --http-address 127.0.0.1:9808
      hostvol node --pool default=/mnt/disk/hostvol,ephemeral=20Gi
      hostvol node --pool default=/mnt/disk/hostvol,retention=30d,trash=20%
    """
    logs.configure(log_format, log_level)
    in_container = init.hand_over()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(node_config(asked), stop, in_container=in_container)


cli.add_command(controller)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `hostvol` command: failures end in one sentence on stderr and exit code 1, never in a traceback."""
    try:
        cli.main(arguments if arguments is None else list(arguments), standalone_mode=False)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (HostvolError, OSError) as error:
        click.echo(f"hostvol: {error}", err=True)
        sys.exit(1)
    except UnicodeEncodeError as error:
        # The shell passes any bytes; the protocol carries text.
        click.echo(f"hostvol: an argument is not UTF-8 text: {ascii(error.object)[:80]}", err=True)
        sys.exit(1)
