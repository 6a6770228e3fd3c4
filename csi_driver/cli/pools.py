"""`hostvol pool …`: make directories pools, and look at the pools of a running driver."""

from __future__ import annotations

from contextlib import closing

import click

from csi_driver.cli import options, output
from csi_driver.cli.client import Connect
from csi_driver.domain.pools import initialise_pool
from csi_driver.model import DEFAULT_DRIVER_NAME

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
}


@click.group()
def pool() -> None:
    """Directories that hold volumes."""


@pool.command("init")
@click.argument("directory", type=click.Path(resolve_path=True))
@click.option("--driver-name", envvar="HOSTVOL_DRIVER_NAME", default=DEFAULT_DRIVER_NAME, show_default=True)
def init(directory: str, driver_name: str) -> None:
    """Make DIRECTORY a pool by writing its identity file.

    The directory is created if it is missing, and must be empty. A driver serves only directories with that file, so
    that the mount point of a disk that is not mounted is never written to. Doing it again changes nothing.

    \b
    Example:
      hostvol pool init /mnt/disk1/hostvol
      hostvol node --pool fast=/mnt/disk1/hostvol
    """
    identity = initialise_pool(directory, driver_name)
    click.echo(f"{directory} is pool {identity.pool_uuid} of driver {identity.driver_name}")


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
