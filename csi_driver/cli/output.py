"""Tables for people, JSON for programs, and sizes in both directions; knows no command."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import click

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "P": 1000**5}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([KMGTP]i?)?B?")
_MAX_BYTES = (1 << 63) - 1


class Size(click.ParamType[int]):
    """`10GiB`, `10Gi`, `500M` or plain bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write for example 10GiB, 500M or 1073741824", param, ctx)
        amount = float(match[1]) if "." in match[1] else int(match[1])
        size = int(amount * {**_UNITS, **_BINARY}[match[2] or ""])
        if not size:
            self.fail(f"{value!r} is no size: it must be at least one byte", param, ctx)
        if size > _MAX_BYTES:
            self.fail(f"{value!r} is more than 8 EiB", param, ctx)
        return size


def human_bytes(value: int) -> str:
    """A size for people: `1.5 GiB`."""
    for unit, factor in reversed(_BINARY.items()):
        if value >= factor:
            return f"{value / factor:.1f} {unit}B".replace(".0 ", " ")
    return f"{value} B"


def show_rows(rows: Sequence[dict[str, Any]], columns: dict[str, str], output: str) -> None:
    """Print rows: every field as JSON, or the named columns (heading to field) as a table."""
    if output == "json":
        click.echo(json.dumps(list(rows), indent=2))
        return
    table = [[cell(row, field) for field in columns.values()] for row in rows]
    click.echo(_plain(table, list(columns)))


def show_fields(row: dict[str, Any], output: str) -> None:
    """Print one thing: as JSON, or one field a line."""
    if output == "json":
        click.echo(json.dumps(row, indent=2))
        return
    table = [[field, cell(row, field)] for field in row]
    click.echo(_plain(table, []))


def cell(row: dict[str, Any], field: str) -> str:
    """One field as a person reads it."""
    value = row[field]
    if field.endswith("_bytes"):
        return human_bytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(value) or "-"
    if value in ("", None):
        return "-"
    text = str(value)
    # A name may hold line ends and more that would tear a table.
    return text if text.isprintable() else repr(text)


def _plain(table: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    from tabulate import tabulate  # noqa: PLC0415 - a node, which shows no table, has a MiB less

    return tabulate(table, headers=headings, tablefmt="plain", disable_numparse=True)
