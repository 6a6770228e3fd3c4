"""`hostvol volume …`: volumes by hand, over the same RPCs that an orchestrator uses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options
from csi_driver.cli.client import GOES_ON, Connect, DriverClient, done_of, find_snapshot, find_volume
from csi_driver.cli.output import Size, human_bytes, show_fields, show_rows
from csi_driver.cli.progress import Amount, watched
from csi_driver.errors import CallFailed
from csi_driver.model import GIB

_COLUMNS = {
    "VOLUME": "volume_id",
    "NAME": "name",
    "POOL": "pool",
    "TYPE": "type",
    "FILESYSTEM": "filesystem",
    "SIZE": "capacity_bytes",
    "ALLOCATED": "allocated_bytes",
    "STATE": "state",
    "HEALTH": "health",
    "MOUNTED AT": "target_paths",
}
_STAGING = "/run/hostvol/staging"
# How long a look is repeated for which too many others ask already.
_LOOK_SECONDS = 5.0
_PAUSE_SECONDS = 0.5


@click.group()
def volume() -> None:
    """Volumes: create, clone, mount, look at, expand, delete."""


@volume.command("list")
@options.endpoint
@options.output
@click.pass_obj
def list_volumes(connect: Connect, endpoint: str, output: str) -> None:
    """Show all volumes, quarantined ones too.

    HEALTH is `ok`, or what is wrong in a word, or `unknown` before the driver has looked; `hostvol health` has
    the cause and the remedy.

    \b
    Example:
      hostvol volume list --output json | jq -r '.[].volume_id'
    """
    with closing(connect(endpoint)) as client:
        show_rows(list(client.volumes()), _COLUMNS, output)


@volume.command()
@click.argument("name_or_id", metavar="VOLUME")
@options.endpoint
@options.output
@click.pass_obj
def show(connect: Connect, name_or_id: str, endpoint: str, output: str) -> None:
    """Show everything about one VOLUME (its id or name).

    \b
    Example:
      hostvol volume show data
    """
    with closing(connect(endpoint)) as client:
        show_fields(find_volume(client, name_or_id), output)


@volume.command()
@click.argument("name")
@click.option(
    "--size", type=Size(), default=None, show_default="1GiB, or what the snapshot has", help="At least this much."
)
@click.option("--limit", type=Size(), default=0, help="At most this much.")
@click.option("--from-snapshot", default="", metavar="SNAPSHOT", help="Begin with its content (its id or name).")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["image", "directory"]),
    default=None,
    show_default="image",
    help="A file that is attached as a device, or a directory.",
)
@click.option("--block", is_flag=True, help="A raw block device instead of a filesystem.")
@click.option("--fs", default="", help="ext4 (default), xfs or btrfs.")
@click.option("--pool", default=None, show_default="default, or that of the snapshot", help="Where it is made.")
@click.option("--thick", is_flag=True, help="Allocate all blocks at once.")
@click.option("--no-quota", is_flag=True, help="A directory without a size limit.")
@click.option("--parameter", "-p", multiple=True, metavar="KEY=VALUE", help="Any other StorageClass parameter.")
@options.endpoint
@options.output
@click.pass_obj
def create(connect: Connect, /, name: str, endpoint: str, output: str, **asked: Any) -> None:
    """Create a volume called NAME, or find that it is there already.

    From a snapshot in a pool that cannot share blocks (ext4) it is a copy, which goes on when this command is
    interrupted; the same command joins it.

    \b
    Examples:
      hostvol volume create data --size 10GiB
      hostvol volume create scratch --type directory --no-quota
      hostvol volume create disk --size 1GiB --block --thick
      hostvol volume create big --size 1TiB --fs xfs --pool slow -p mkfsOptions='-i size=1024'
      hostvol volume create as-it-was --from-snapshot before-upgrade
    """
    with closing(connect(endpoint)) as client:
        source = find_snapshot(client, asked["from_snapshot"]) if asked["from_snapshot"] else None
        parameters = {"type": "image", "pool": "default"} | _parameters_of(source) | _parameters(asked)
        detail = _created(
            client,
            name,
            required_bytes=_size(asked["size"], source),
            limit_bytes=asked["limit"],
            block=asked["block"] or (source is not None and source["access"] == "block"),
            fs_type=asked["fs"],
            parameters=parameters,
            from_snapshot=source["snapshot_id"] if source is not None else "",
        )
    show_fields(detail, output)


@volume.command(short_help="Make a copy of a volume.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("name")
@click.option("--size", type=Size(), default=None, show_default="that of VOLUME", help="At least this much.")
@click.option("--pool", default=None, show_default="that of VOLUME", help="Where it is made.")
@click.option("--thick", is_flag=True, help="Allocate all blocks at once.")
@click.option("--no-quota", is_flag=True, help="A directory without a size limit.")
@click.option("--parameter", "-p", multiple=True, metavar="KEY=VALUE", help="Any other StorageClass parameter.")
@options.endpoint
@options.output
@click.pass_obj
def clone(connect: Connect, /, name_or_id: str, name: str, endpoint: str, output: str, **asked: Any) -> None:
    """Create a volume called NAME that begins with the content of VOLUME (its id or name).

    In a pool on XFS or btrfs this takes no time, and VOLUME may be mounted; in others it is a copy, and VOLUME must
    not be mounted. A copy goes on when this command is interrupted; the same command joins it.

    \b
    Example:
      hostvol volume clone data data-for-tests
    """
    with closing(connect(endpoint)) as client:
        source = find_volume(client, name_or_id)
        detail = _created(
            client,
            name,
            required_bytes=asked["size"] or 0,
            limit_bytes=0,
            block=source["access"] == "block",
            fs_type="",
            parameters=_parameters_of(source) | _parameters({"kind": None, **asked}),
            from_volume=source["volume_id"],
        )
    show_fields(detail, output)


@volume.command()
@click.argument("name_or_id", metavar="VOLUME")
@click.option("--size", type=Size(), required=True, help="At least this much in all; a volume never becomes smaller.")
@click.option("--limit", type=Size(), default=0, help="At most this much.")
@options.endpoint
@options.output
@click.pass_obj
def expand(connect: Connect, /, name_or_id: str, endpoint: str, output: str, **asked: Any) -> None:
    """Make VOLUME (its id or name) larger, also while it is mounted.

    The filesystem of a volume that is not mounted grows when it is mounted next.

    \b
    Examples:
      hostvol volume expand data --size 20GiB
      hostvol volume expand disk --size 20GiB --limit 25GiB
    """
    with closing(connect(endpoint)) as client:
        found = find_volume(client, name_or_id)
        volume_id, from_bytes = found["volume_id"], found["allocated_bytes"]
        grown = watched(
            "allocating",
            lambda: client.expand_volume(volume_id, required_bytes=asked["size"], limit_bytes=asked["limit"]),
            lambda: _allocated(client, volume_id, from_bytes, asked["size"] - from_bytes),
            goes_on=GOES_ON,
        )
        places = [*found["staging_paths"], *found["target_paths"]]
        if grown["node_expansion_required"] and places:
            _expand_filesystem(client, volume_id, places[0], grown["capacity_bytes"])
        detail = _as_it_is(client, volume_id, found["name"], grown["capacity_bytes"])
    show_fields(detail, output)


@volume.command(short_help="Change parameters of a volume.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("pairs", metavar="KEY=VALUE", nargs=-1, required=True)
@options.endpoint
@options.output
@click.pass_obj
def modify(connect: Connect, /, name_or_id: str, pairs: tuple[str, ...], endpoint: str, output: str) -> None:
    """Change parameters of VOLUME (its id or name), also while it is mounted.

    provisioning=thick allocates all blocks, provisioning=thin keeps those that there are; quota=required limits a
    directory to its size, quota=none lifts the limit.

    \b
    Examples:
      hostvol volume modify data provisioning=thick
      hostvol volume modify scratch quota=required
    """
    wanted = _pairs(pairs, "KEY=VALUE")
    with closing(connect(endpoint)) as client:
        found = find_volume(client, name_or_id)
        volume_id, from_bytes = found["volume_id"], found["allocated_bytes"]
        watched(
            "allocating",
            lambda: client.modify_volume(volume_id, wanted),
            lambda: _allocated(client, volume_id, from_bytes, found["capacity_bytes"] - from_bytes),
            goes_on=GOES_ON,
        )
        detail = _as_it_is(client, volume_id, found["name"], found["capacity_bytes"])
    show_fields(detail, output)


@volume.command(short_help="Give a volume the content of a snapshot.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.endpoint
@click.pass_obj
def rollback(connect: Connect, name_or_id: str, snapshot: str, yes: bool, endpoint: str) -> None:
    """Put SNAPSHOT (its id or name) in the place of what its VOLUME (id or name) holds. It must not be mounted.

    What VOLUME held goes to the trash and stays there; `hostvol trash restore` lets the two change places again. In a
    pool that cannot share blocks this is a copy. It goes on when this command is interrupted; the same command joins it
    while it runs, and begins another rollback afterwards.

    \b
    Example:
      hostvol volume rollback data before-upgrade
    """
    with closing(connect(endpoint)) as client:
        found, cut = find_volume(client, name_or_id), find_snapshot(client, snapshot)
        if not yes:
            options.confirm(f"Put {cut['name']} in the place of what {found['volume_id']} holds?")
        volume_id = found["volume_id"]
        entry = watched(
            "copying",
            lambda: client.rollback_volume(volume_id, cut["snapshot_id"]),
            lambda: done_of(client, ("rollback",), object_id=volume_id),
            goes_on=GOES_ON,
        )
    click.echo(f"{found['volume_id']} holds what {cut['snapshot_id']} holds; to undo it: hostvol trash restore {entry}")


@volume.command(short_help="Delete a volume, or move it to the trash.")
@click.argument("name_or_id", metavar="VOLUME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.endpoint
@click.pass_obj
def delete(connect: Connect, name_or_id: str, yes: bool, endpoint: str) -> None:
    """Delete VOLUME (its id or name) and all its data, or move it to the trash if its class has a `retention`.

    It must not be mounted.

    \b
    Example:
      hostvol volume delete data --yes
    """
    with closing(connect(endpoint)) as client:
        found = find_volume(client, name_or_id)
        if not yes:
            options.confirm(f"Delete {found['volume_id']} ({found['name']}) and all its data?")
        client.delete_volume(found["volume_id"])
    click.echo(f"{found['volume_id']} is deleted")


@volume.command(short_help="Mount a volume.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("target", type=click.Path(resolve_path=True))
@click.option("--read-only", is_flag=True, help="Nothing can be written there.")
@click.option("--flags", default="", metavar="FLAG[,FLAG…]", help="Mount flags, for example noatime.")
@options.endpoint
@click.pass_obj
def mount(connect: Connect, /, name_or_id: str, target: str, endpoint: str, **asked: Any) -> None:
    """Mount VOLUME (its id or name) at TARGET; a raw block volume appears as a device file.

    It is staged and published by the same calls that kubelet makes.

    \b
    Example:
      hostvol volume mount data /mnt/data
    """
    mount_flags = tuple(flag for flag in asked["flags"].split(",") if flag)
    with closing(connect(endpoint)) as client:
        found = find_volume(client, name_or_id)
        volume_id, block = found["volume_id"], found["access"] == "block"
        staging = found["staging_paths"][0] if found["staging_paths"] else _staging_path(volume_id)
        client.stage(volume_id, staging, block=block, mount_flags=mount_flags)
        client.publish(volume_id, staging, target, block=block, mount_flags=mount_flags, read_only=asked["read_only"])
    click.echo(f"{volume_id} is mounted at {target}")


@volume.command(short_help="Unmount a volume.")
@click.argument("name_or_id", metavar="VOLUME")
@click.argument("target", type=click.Path(resolve_path=True))
@options.endpoint
@click.pass_obj
def umount(connect: Connect, name_or_id: str, target: str, endpoint: str) -> None:
    """Unmount VOLUME (its id or name) from TARGET, and detach it when that was the last place.

    \b
    Example:
      hostvol volume umount data /mnt/data
    """
    with closing(connect(endpoint)) as client:
        found = find_volume(client, name_or_id)
        client.unpublish(found["volume_id"], target)
        _unstage_ours(client, found["volume_id"])
    click.echo(f"{found['volume_id']} is not mounted at {target}")


def _created(client: DriverClient, name: str, **asked: Any) -> dict[str, Any]:
    """The new volume, with the progress of its copy meanwhile."""
    created = watched(
        "copying",
        lambda: client.create_volume(name, mount_flags=(), **asked),
        lambda: done_of(client, ("clone", "restore", "fetch"), name=name),
        goes_on=GOES_ON,
    )
    return _as_it_is(client, created["volume_id"], name, created["capacity_bytes"])


def _as_it_is(client: DriverClient, volume_id: str, name: str, capacity_bytes: int) -> dict[str, Any]:
    """The volume as of now, or the little that was answered: what was asked for is done, whoever cannot look at it."""
    ends = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            return client.volume(volume_id)
        except CallFailed as failure:
            if failure.code == "ABORTED" and time.monotonic() < ends:
                time.sleep(_PAUSE_SECONDS)
                continue
            click.echo(f"hostvol: it is done, but {volume_id} cannot be looked at now: {failure.message}", err=True)
            return {"volume_id": volume_id, "name": name, "capacity_bytes": capacity_bytes}


def _allocated(client: DriverClient, volume_id: str, from_bytes: int, missing_bytes: int) -> Amount | None:
    """What of the missing bytes has been allocated; None as long as nothing is, as of a thin volume."""
    allocated = client.volume(volume_id)["allocated_bytes"] - from_bytes
    return (allocated, max(1, missing_bytes)) if allocated > 0 else None


def _expand_filesystem(client: DriverClient, volume_id: str, path: str, size_bytes: int) -> None:
    try:
        client.expand_on_node(volume_id, path)
    except CallFailed as failure:
        size = human_bytes(size_bytes)
        raise CallFailed(
            failure.code, f"{volume_id} has {size} now, its filesystem not yet: {failure.message}"
        ) from failure


def _unstage_ours(client: DriverClient, volume_id: str) -> None:
    """Unstage when that was the last place; what an orchestrator staged stays the orchestrator's."""
    now = client.volume(volume_id)
    if not now["target_paths"] and _staging_path(volume_id) in now["staging_paths"]:
        client.unstage(volume_id, _staging_path(volume_id))


def _staging_path(volume_id: str) -> str:
    os.makedirs(_STAGING, mode=0o700, exist_ok=True)
    return f"{_STAGING}/{volume_id}"


def _size(asked: int | None, source: dict[str, Any] | None) -> int:
    if asked is not None:
        return asked
    return GIB if source is None else 0


def _parameters_of(source: dict[str, Any] | None) -> dict[str, str]:
    """What a copy has of its source unless something else is asked."""
    if source is None:
        return {}
    key = "quota" if source["type"] == "directory" else "provisioning"
    return {"type": source["type"], "pool": source["pool"], key: source[key]}


def _parameters(asked: dict[str, Any]) -> dict[str, str]:
    parameters = {key: value for key, value in (("type", asked["kind"]), ("pool", asked["pool"])) if value}
    if asked["thick"]:
        parameters["provisioning"] = "thick"
    if asked["no_quota"]:
        parameters["quota"] = "none"
    return parameters | _pairs(asked["parameter"], "--parameter")


def _pairs(given: Iterable[str], hint: str) -> dict[str, str]:
    pairs = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=hint)
        pairs[key] = value
    return pairs
