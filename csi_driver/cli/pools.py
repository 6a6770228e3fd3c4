"""`hostvol pool …`: make directories pools, and look at the pools of a running driver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options, output
from csi_driver.cli.client import Connect
from csi_driver.domain.pools import grow_unserved, initialise_backed_pool, initialise_pool
from csi_driver.errors import CallFailed
from csi_driver.model import DEFAULT_DRIVER_NAME
from csi_driver.store.backing import BackingRecord
from csi_driver.store.pool import PoolIdentity

_COLUMNS = {
    "NAME": "name",
    "STATE": "state",
    "FILESYSTEM": "filesystem",
    "REFLINK": "reflink",
    "QUOTA": "quota",
    "SIZE": "size_bytes",
    "AVAILABLE": "available_bytes",
    "PROMISED": "promised_bytes",
    "GRANTABLE": "grantable_bytes",
    "VOLUMES": "volume_count",
    "SNAPSHOTS": "snapshot_count",
    "DIRECTORY": "directory",
    "BACKING FILE": "backing_file",
}


@click.group()
def pool() -> None:
    """Directories that hold volumes."""


@pool.command("init")
@click.argument("directory", type=click.Path(resolve_path=True))
@click.option(
    "--driver-name",
    envvar="HOSTVOL_DRIVER_NAME",
    default=DEFAULT_DRIVER_NAME,
    show_default=True,
    help="The driver that may serve it.",
)
@click.option(
    "--backing-file",
    "backing_bytes",
    type=output.Size(),
    metavar="SIZE",
    help="Make an XFS of that size in a file there: snapshots and clones at once on a machine that has only ext4.",
)
def init(directory: str, driver_name: str, backing_bytes: int | None) -> None:
    """Make DIRECTORY a pool by writing its identity file.

    The directory is created if it is missing, and must be empty. A driver serves only directories with that file, so
    that the mount point of a disk that is not mounted is never written to. Doing it again changes nothing.

    \b
    Examples:
      hostvol pool init /mnt/disk1/hostvol
      hostvol node --pool fast=/mnt/disk1/hostvol
      hostvol pool init --backing-file 100GiB /var/lib/hostvol
    """
    if backing_bytes is not None:
        _init_backed(directory, driver_name, backing_bytes)
        return
    identity = initialise_pool(directory, driver_name)
    if isinstance(identity, PoolIdentity):
        click.echo(f"{directory} is pool {identity.pool_uuid} of driver {identity.driver_name}")
    else:
        click.echo(_backed(directory, identity))


def _init_backed(directory: str, driver_name: str, size_bytes: int) -> None:
    record = initialise_backed_pool(directory, driver_name, size_bytes)
    click.echo(_backed(directory, record))
    if record.size_bytes < size_bytes:
        click.echo(f"it has its size already; to enlarge it: hostvol pool grow {directory} {size_bytes}", err=True)


def _backed(directory: str, record: BackingRecord) -> str:
    size = output.human_bytes(record.size_bytes)
    return f"{directory} is a pool of driver {record.driver_name} in a backing file of {size}"


@pool.command("grow", short_help="Enlarge the backing file of a pool.")
@click.argument("name")
@click.argument("size_bytes", metavar="SIZE", type=output.Size())
@options.endpoint
@click.pass_obj
def grow(connect: Connect, name: str, size_bytes: int, endpoint: str) -> None:
    """Let the backing file of a pool, and the filesystem in it, grow to SIZE.

    NAME is the name or the directory of the pool. While a driver serves it, its volumes stay mounted and in use.
    Interrupted, it is finished by the same command, or by the next start of the driver.

    \b
    Examples:
      hostvol pool grow default 200GiB
      hostvol pool grow /var/lib/hostvol 200GiB
    """
    if name.startswith("/") and grow_unserved(os.path.realpath(name), size_bytes):
        click.echo(f"{name} grew to {output.human_bytes(size_bytes)}")
        return
    with closing(connect(endpoint)) as client:
        grown = client.grow_pool(_name_of(client.pools(), name), size_bytes)
    click.echo(f"pool {grown['name']} grew to {output.human_bytes(grown['backing_bytes'])}")


def _name_of(rows: Sequence[dict[str, Any]], name: str) -> str:
    """The name of the pool whose backing file lies in the directory, if it is one."""
    if not name.startswith("/"):
        return name
    directory = os.path.realpath(name)
    found = [row["name"] for row in rows if row["backing_file"] and os.path.dirname(row["backing_file"]) == directory]
    if not found:
        raise CallFailed("NOT_FOUND", f"{name} is held by another process than the driver that was asked; --endpoint?")
    return str(found[0])


@pool.command("list")
@options.endpoint
@options.output
@click.pass_obj
def list_pools(connect: Connect, endpoint: str, output: str) -> None:
    """Show the pools of the running driver.

    PROMISED is what the volumes on the pool's filesystem may still allocate, GRANTABLE the largest volume that a
    create would be granted now.

    \b
    Example:
      hostvol pool list --output json
    """
    with closing(connect(endpoint)) as client:
        rows = client.pools()
    _show(rows, output)
    for row in rows:
        if row["message"]:
            click.echo(f"pool {row['name']}: {row['message']}", err=True)


def _show(rows: list[dict[str, object]], kind: str) -> None:
    output.show_rows(rows, _COLUMNS, kind)
