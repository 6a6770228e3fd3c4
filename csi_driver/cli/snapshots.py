"""`hostvol snapshot …`: snapshots by hand, over the same RPCs that an orchestrator uses."""

from __future__ import annotations

import json
import time
from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options
from csi_driver.cli.client import GOES_ON, Connect, DriverClient, find_group, find_snapshot, find_volume
from csi_driver.cli.output import human_bytes, show_fields, show_rows
from csi_driver.cli.progress import Amount, watched
from csi_driver.errors import CallFailed

_COLUMNS = {
    "SNAPSHOT": "snapshot_id",
    "NAME": "name",
    "VOLUME": "source_volume_id",
    "POOL": "pool",
    "TYPE": "type",
    "FILESYSTEM": "filesystem",
    "SIZE": "size_bytes",
    "CREATED": "created",
    "STATE": "state",
    "COPIED": "copied",
    "GROUP": "group_snapshot_id",
}
_LOOK_SECONDS = 0.2


@click.group()
def snapshot() -> None:
    """Snapshots: create, look at, delete. `hostvol volume create --from-snapshot` makes a volume of one."""


@snapshot.command("list", short_help="Show all snapshots.")
@click.option("--group", metavar="GROUP", help="Only the members of this group snapshot (its id or name).")
@options.endpoint
@options.output
@click.pass_obj
def list_snapshots(connect: Connect, group: str | None, endpoint: str, output: str) -> None:
    """Show all snapshots, those that are not ready and quarantined ones too.

    COPIED is how far a snapshot is whose STATE is `copying`; GROUP is the group snapshot that it is deleted with.

    \b
    Examples:
      hostvol snapshot list --group before-upgrade
      hostvol snapshot list --output json | jq -r '.[] | select(.state == "ready") | .snapshot_id'
    """
    with closing(connect(endpoint)) as client:
        wanted = find_group(client, group)["group_snapshot_id"] if group else ""
        rows = [row for row in client.snapshots() if not wanted or row["group_snapshot_id"] == wanted]
    if output == "table":
        rows = [{**row, "copied": _copied(row)} for row in rows]
    show_rows(rows, _COLUMNS, output)


@snapshot.command()
@click.argument("name_or_id", metavar="SNAPSHOT")
@options.endpoint
@options.output
@click.pass_obj
def show(connect: Connect, name_or_id: str, endpoint: str, output: str) -> None:
    """Show everything about one SNAPSHOT (its id or name).

    \b
    Example:
      hostvol snapshot show before-upgrade
    """
    with closing(connect(endpoint)) as client:
        show_fields(find_snapshot(client, name_or_id), output)


@snapshot.command(short_help="Take a snapshot of a volume.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until a copy is done.")
@options.endpoint
@options.output
@click.pass_obj
def create(connect: Connect, /, name_or_id: str, name: str, *, no_wait: bool, endpoint: str, output: str) -> None:
    """Take a snapshot called NAME of VOLUME (its id or name), or find that it is there already.

    In a pool on XFS or btrfs this takes no time, and VOLUME may be mounted; in others the content is copied, and VOLUME
    must not be mounted. A copy goes on when this command is interrupted; the same command joins it.

    \b
    Example:
      hostvol snapshot create data before-upgrade
    """
    with closing(connect(endpoint)) as client:
        volume_id = find_volume(client, name_or_id)["volume_id"]
        snapshot_id = client.create_snapshot(name, volume_id)["snapshot_id"]
        detail = client.snapshot(snapshot_id) if no_wait else _finished(client, snapshot_id)
    show_fields(detail, output)


@snapshot.command()
@click.argument("name_or_id", metavar="SNAPSHOT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.endpoint
@click.pass_obj
def delete(connect: Connect, name_or_id: str, yes: bool, endpoint: str) -> None:
    """Delete SNAPSHOT (its id or name). Volumes that were made from it stay.

    \b
    Example:
      hostvol snapshot delete before-upgrade --yes
    """
    with closing(connect(endpoint)) as client:
        found = find_snapshot(client, name_or_id)
        if not yes:
            options.confirm(f"Delete {found['snapshot_id']} ({found['name']})?")
        client.delete_snapshot(found["snapshot_id"])
    click.echo(f"{found['snapshot_id']} is deleted")


@snapshot.command(short_help="Print where a snapshot holds data, or differs.")
@click.argument("name_or_id", metavar="SNAPSHOT")
@click.option("--base", metavar="SNAPSHOT", help="Only what may differ from this earlier one of the same volume.")
@click.option("--from", "offset", type=click.IntRange(min=0), default=0, help="Leave out what ends before this byte.")
@options.endpoint
@options.output
@click.pass_obj
def blocks(connect: Connect, /, name_or_id: str, *, base: str | None, offset: int, endpoint: str, output: str) -> None:
    """Print where SNAPSHOT (its id or name) holds data: offset and size in bytes, a range a line.

    With --base it prints what changed since: data that became a hole as well. Never less than that, perhaps more.

    \b
    Example:
      hostvol snapshot blocks after-upgrade --base before-upgrade
    """
    with closing(connect(endpoint)) as client:
        snapshot_id = find_snapshot(client, name_or_id)["snapshot_id"]
        base_id = find_snapshot(client, base)["snapshot_id"] if base else ""
        ranges = client.snapshot_blocks(snapshot_id, base_id, offset)
        if output == "json":
            fields = ({"byte_offset": start, "size_bytes": size} for start, size in ranges)
            click.echo(json.dumps(list(fields), indent=2))
            return
        for start, size in ranges:
            click.echo(f"{start} {size}")


def _finished(client: DriverClient, snapshot_id: str) -> dict[str, Any]:
    """The snapshot once it is copied, with its progress meanwhile.

    Raises: CallFailed when its copy is given up; click.Abort.
    """
    latest = client.snapshot(snapshot_id)

    def wait() -> dict[str, Any]:
        nonlocal latest
        while latest["state"] == "copying":
            time.sleep(_LOOK_SECONDS)
            latest = client.snapshot(snapshot_id)
        return latest

    def done() -> Amount:
        return latest["copied_bytes"], latest["copy_bytes"]

    if latest["state"] != "copying":
        return latest
    detail = watched("copying", wait, done, goes_on=GOES_ON)
    if detail["state"] != "ready":
        raise CallFailed("INTERNAL", detail["message"])
    return detail


def _copied(row: dict[str, Any]) -> str:
    if row["state"] != "copying":
        return ""
    if not row["copy_bytes"]:
        return human_bytes(row["copied_bytes"])
    return f"{human_bytes(row['copied_bytes'])} of {human_bytes(row['copy_bytes'])}"
