"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from csi_driver.errors import InvalidField
from csi_driver.model import DEFAULT_DRIVER_NAME

DEFAULT_ENDPOINT = "unix:///run/hostvol/csi.sock"

Command = Callable[..., Any]
# Spec: with `topology.` before it, it is the prefix of a topology key, which is lower-case and has at most 63.
_DRIVER_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,52}[a-z0-9])?")


def endpoint(command: Command) -> Command:
    """Where the driver listens."""
    return click.option(
        "--endpoint",
        envvar="CSI_ENDPOINT",
        default=DEFAULT_ENDPOINT,
        show_default=True,
        show_envvar=True,
        help="UNIX socket of the driver.",
    )(command)


def output(command: Command) -> Command:
    """Table or JSON."""
    return click.option(
        "--output",
        "-o",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Tables are for people, JSON is for programs.",
    )(command)


def driver_name(command: Command) -> Command:
    """Which driver is meant."""
    return _DRIVER_NAME_OPTION(command)


def api(command: Command) -> Command:
    """Where the orchestrator's API is, for those outside of its pods."""
    for option in reversed(_API):
        command = option(command)
    return command


def serving(command: Command) -> Command:
    """What every process that serves can be told."""
    for option in reversed(_SERVING):
        command = option(command)
    return command


_API = (
    click.option(
        "--api-server",
        envvar="HOSTVOL_API_SERVER",
        show_envvar=True,
        default="",
        metavar="URL",
        help="The orchestrator's API.  [default: the pod's own]",
    ),
    click.option("--api-ca", envvar="HOSTVOL_API_CA", show_envvar=True, default="", help="File with its CA."),
    click.option(
        "--api-token", envvar="HOSTVOL_API_TOKEN", show_envvar=True, default="", help="File with our token for it."
    ),
)
_DRIVER_NAME_OPTION = click.option(
    "--driver-name",
    envvar="HOSTVOL_DRIVER_NAME",
    show_envvar=True,
    default=DEFAULT_DRIVER_NAME,
    show_default=True,
    help="Name of the driver in the orchestrator; fixed once there are volumes.",
)
_SERVING = (
    _DRIVER_NAME_OPTION,
    click.option(
        "--http-address",
        envvar="HOSTVOL_HTTP_ADDRESS",
        show_envvar=True,
        default="",
        metavar="HOST:PORT",
        help="Serve /metrics, /healthz and /readyz there; :PORT is every address.  [default: off]",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        envvar="HOSTVOL_LOG_FORMAT",
        show_envvar=True,
        default="text",
        show_default=True,
        help="Text for people, JSON for programs.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        envvar="HOSTVOL_LOG_LEVEL",
        show_envvar=True,
        default="info",
        show_default=True,
        help="The least that is logged.",
    ),
    click.option(
        "--shutdown-seconds",
        type=click.FloatRange(0, 3600),
        envvar="HOSTVOL_SHUTDOWN_SECONDS",
        show_envvar=True,
        default=20.0,
        show_default=True,
        help="How long a SIGTERM waits for what runs.",
    ),
)


def check_driver_name(name: str) -> None:
    """Refuse a name that cannot be part of a topology key (spec: GetPluginInfoResponse.name, Topology.segments).

    Raises: InvalidField.
    """
    if not _DRIVER_NAME.fullmatch(name):
        raise InvalidField("driver-name", name, "1 to 54 lower-case letters, digits, '.' and '-'")


def confirm(question: str) -> None:
    """Go on only if whoever types agrees.

    Raises: click.ClickException when the answer is no, or there is none, as in a script.
    """
    try:
        agrees = click.confirm(question)
    except click.Abort:
        raise click.ClickException("nobody answered, nothing was done; --yes does without the question") from None
    if not agrees:
        raise click.ClickException("nothing was done")
