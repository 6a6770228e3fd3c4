"""`hostvol trash …`: what was deleted and is kept, brought back, or deleted for good."""

from __future__ import annotations

import datetime
from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options
from csi_driver.cli.client import Connect
from csi_driver.cli.output import human_bytes, show_rows
from csi_driver.errors import CallFailed

_COLUMNS = {
    "ENTRY": "entry",
    "KIND": "kind",
    "NAME": "name",
    "POOL": "pool",
    "SIZE": "size_bytes",
    "OWN": "own_bytes",
    "DELETED": "deleted",
    "EXPIRES": "expires",
    "STATE": "state",
}


@click.group(short_help="Deleted volumes and snapshots that are kept.")
def trash() -> None:
    """Deleted volumes and snapshots, kept for the `retention` of their class: look at, restore, purge."""


@trash.command("list")
@options.endpoint
@options.output
@click.pass_obj
def list_trash(connect: Connect, endpoint: str, output: str) -> None:
    """Show what lies in the trash of all pools.

    OWN is what purging an entry gives back. STATE is `retained` until EXPIRES, or `yields` (as `retained`, and gone
    earlier when its space is needed); `replaced` by a rollback, `retired` (another node's volume has its name) and
    `damaged` ones stay until they are purged.

    \b
    Example:
      hostvol trash list --output json | jq -r '.[] | select(.kind == "volume") | .entry'
    """
    with closing(connect(endpoint)) as client:
        rows = sorted(client.trash(), key=lambda row: row["deleted"])
    show_rows(rows, _COLUMNS, output)
    for row in rows:
        if row["message"]:
            click.echo(f"{row['entry']}: {row['message']}", err=True)


@trash.command(short_help="Bring back what was deleted.")
@click.argument("entry")
@options.endpoint
@click.pass_obj
def restore(connect: Connect, entry: str, endpoint: str) -> None:
    """Bring ENTRY back with its id and name, its data and its size limit.

    ENTRY is as `hostvol trash list` shows it, or the id or name of what was deleted (the latest such). It is refused
    while its id or name belongs to something that is there, and when the pool cannot promise the volume its size.
    What a rollback replaced changes places with what the volume holds now; the volume must not be mounted.

    \b
    Example:
      hostvol trash restore data
    """
    with closing(connect(endpoint)) as client:
        found = client.restore_trash(entry)
    click.echo(f"{found['kind']} {found['object_id']} ({found['name']}) is back")


@trash.command()
@click.argument("entries", metavar="[ENTRY]...", nargs=-1)
@click.option("--expired", is_flag=True, help="All whose retention is over.")
@click.option(
    "--all", "everything", is_flag=True, help="All that goes by itself sooner or later: `retained`, `yields`."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.endpoint
@click.pass_obj
def purge(connect: Connect, /, entries: tuple[str, ...], endpoint: str, **asked: Any) -> None:
    """Delete each ENTRY of the trash for good, before its end. What is damaged, replaced or retired must be named.

    \b
    Examples:
      hostvol trash purge vol-5bce98f73f3ed0c8-9720f07228ef1d20@1790000000
      hostvol trash purge --all --yes
    """
    if not entries and not asked["expired"] and not asked["everything"]:
        raise click.UsageError("name entries, or give --expired or --all")
    with closing(connect(endpoint)) as client:
        chosen = [row for row in client.trash() if _is_chosen(row, entries, asked)]
        unknown = set(entries) - {row["entry"] for row in chosen}
        if unknown:
            raise CallFailed("NOT_FOUND", f"not in the trash: {', '.join(sorted(unknown))}; see `hostvol trash list`")
        if chosen and not asked["yes"]:
            own = human_bytes(sum(row["own_bytes"] for row in chosen))
            options.confirm(f"Delete {len(chosen)} entries ({own}) for good?")
        for row in chosen:
            client.purge_trash(row["entry"])
            click.echo(f"{row['entry']} is purged")


def _is_chosen(row: dict[str, Any], entries: tuple[str, ...], asked: dict[str, Any]) -> bool:
    if row["entry"] in entries:
        return True
    if not row["expires"]:
        return False
    return bool(asked["everything"]) or (bool(asked["expired"]) and _is_over(row["expires"]))


def _is_over(expires: str) -> bool:
    at = datetime.datetime.fromisoformat(expires.replace("Z", "+00:00"))
    return at <= datetime.datetime.now(datetime.UTC)
