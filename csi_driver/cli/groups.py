"""`hostvol group …`: snapshots of several volumes at one instant, over the same RPCs that an orchestrator uses."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options
from csi_driver.cli.client import Connect, find_group, find_volume
from csi_driver.cli.output import show_fields, show_rows

_COLUMNS = {
    "GROUP": "group_snapshot_id",
    "NAME": "name",
    "POOL": "pool",
    "SNAPSHOTS": "snapshot_count",
    "SIZE": "size_bytes",
    "CREATED": "created",
    "STATE": "state",
}


@click.group()
def group() -> None:
    """Group snapshots: several volumes cut at one instant. `hostvol snapshot list --group` shows the members."""


@group.command("list", short_help="Show all group snapshots.")
@options.endpoint
@options.output
@click.pass_obj
def list_groups(connect: Connect, endpoint: str, output: str) -> None:
    """Show all group snapshots, quarantined ones too.

    \b
    Example:
      hostvol group list --output json | jq -r '.[].group_snapshot_id'
    """
    with closing(connect(endpoint)) as client:
        rows = list(client.groups())
    if output == "table":
        rows = [{**row, "snapshot_count": str(len(row["snapshot_ids"]))} for row in rows]
    show_rows(rows, _COLUMNS, output)
    for row in rows:
        if row["message"]:
            click.echo(f"{row['group_snapshot_id']}: {row['message']}", err=True)


@group.command(short_help="Show everything about one group.")
@click.argument("name_or_id", metavar="GROUP")
@options.endpoint
@options.output
@click.pass_obj
def show(connect: Connect, name_or_id: str, endpoint: str, output: str) -> None:
    """Show everything about one GROUP (its id or name): its volumes, and their snapshots in the same order.

    \b
    Example:
      hostvol group show before-upgrade
    """
    with closing(connect(endpoint)) as client:
        show_fields(find_group(client, name_or_id), output)


@group.command(short_help="Take snapshots of several volumes at one instant.")
@click.argument("name")
@click.argument("volumes", metavar="VOLUME...", nargs=-1, required=True)
@options.endpoint
@options.output
@click.pass_obj
def create(connect: Connect, /, name: str, volumes: tuple[str, ...], endpoint: str, output: str) -> None:
    """Take snapshots of each VOLUME (its id or name) at one instant, called NAME together, or find that they are there.

    All or none: what one of them holds was written before whatever another one lacks. A VOLUME is a mounted image, or
    one that is not mounted, in a pool on XFS or btrfs. Make a volume of a member with `hostvol volume create
    --from-snapshot`.

    \b
    Example:
      hostvol group create before-upgrade data log
    """
    with closing(connect(endpoint)) as client:
        volume_ids = [find_volume(client, one)["volume_id"] for one in volumes]
        show_fields(client.group(client.create_group(name, volume_ids)), output)


@group.command(short_help="Delete a group and its snapshots.")
@click.argument("name_or_id", metavar="GROUP")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.endpoint
@click.pass_obj
def delete(connect: Connect, name_or_id: str, yes: bool, endpoint: str) -> None:
    """Delete GROUP (its id or name) and all its snapshots. Volumes that were made from them stay.

    \b
    Example:
      hostvol group delete before-upgrade --yes
    """
    with closing(connect(endpoint)) as client:
        found = find_group(client, name_or_id)
        if not yes:
            options.confirm(_question(found))
        client.delete_group(found["group_snapshot_id"], found["snapshot_ids"])
    click.echo(f"{found['group_snapshot_id']} and its {len(found['snapshot_ids'])} snapshots are deleted")


def _question(found: dict[str, Any]) -> str:
    count = len(found["snapshot_ids"])
    return f"Delete {found['group_snapshot_id']} ({found['name']}) and its {count} snapshots?"
