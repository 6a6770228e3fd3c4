"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DEFAULT_ENDPOINT = "unix:///run/hostvol/csi.sock"

Command = Callable[..., Any]


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
