"""`hostvol orphans`: the volumes that no PersistentVolume names, for an operator to decide about."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import click

from csi_driver.cli import options
from csi_driver.cli.client import Connect
from csi_driver.cli.output import show_rows
from csi_driver.model import topology_key

_COLUMNS = {"VOLUME": "volume_id", "NODE": "node", "SIZE": "capacity_bytes"}


@click.command(short_help="List volumes that no PersistentVolume names.")
@options.endpoint
@options.api
@options.output
@options.driver_name
@click.pass_obj
def orphans(connect: Connect, /, endpoint: str, output: str, driver_name: str, **api: str) -> None:
    """List the volumes of a cluster that no PersistentVolume names; to be run in a controller's pod.

    Nothing deletes them: a volume that is being created looks the same for a moment, and one whose PersistentVolume was
    deleted by mistake can be used again by a new one that names its id.

    \b
    Examples:
      hostvol orphans --output json
      kubectl exec -n hostvol-system hostvol-controller-0 -- hostvol orphans
    """
    from csi_driver.cluster.orchestrator import Access, Orchestrator  # noqa: PLC0415 - `--help` does not need it

    access = Access.given(**api)
    with closing(connect(endpoint)) as client:
        held = [_row(volume, driver_name) for volume in client.listed_volumes()]
    with closing(Orchestrator(access, driver_name)) as orchestrator:
        # Read after the volumes: one that gets its PersistentVolume in between is none of these.
        claimed = asyncio.run(orchestrator.volume_handles(driver_name))
    show_rows([row for row in held if row["volume_id"] not in claimed], _COLUMNS, output)


def _row(volume: dict[str, Any], driver_name: str) -> dict[str, Any]:
    segments = [topology["segments"] for topology in volume["accessible_topology"]]
    node = next((one[topology_key(driver_name)] for one in segments if topology_key(driver_name) in one), "")
    return {"volume_id": volume["volume_id"], "node": node, "capacity_bytes": volume["capacity_bytes"]}
