"""`hostvol health`: what is wrong with a node, for a person and for a script."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Final

import click

from csi_driver.cli import options
from csi_driver.cli.client import Connect
from csi_driver.cli.output import show_rows

# Neither that of a failure (1) nor that of a misspelled command (2).
NOT_WELL: Final = 3
NOT_KNOWN: Final = 4
# Of what nobody has looked at yet.
_UNKNOWN: Final = "UNKNOWN"
_COLUMNS = {
    "KIND": "kind",
    "OBJECT": "object_id",
    "NAME": "name",
    "STATUS": "status",
    "REASON": "reason",
    "CAUSE AND REMEDY": "message",
}


@click.command(short_help="Show what is wrong, and what to do.")
@options.endpoint
@options.output
@click.pass_obj
def health(connect: Connect, endpoint: str, output: str) -> None:
    """Show what is wrong with pools, volumes, snapshots and groups: the cause, and what to do.

    STATUS is DATA_LOSS (content is gone), INACCESSIBLE (it cannot be used now), DEGRADED (less well or less safely) or
    UNKNOWN (nobody has looked yet, since the driver has just started). A volume suffers what its pool does, which is
    shown once. The driver looks every few seconds; what hangs does not keep it from answering.

    Exit code: 0 when all is well, 3 when something is not, 4 when nothing is known to be wrong and not everything has
    been looked at yet, 1 when the driver cannot be asked.

    \b
    Examples:
      hostvol health
      hostvol health --output json | jq -r '.[] | select(.status == "DATA_LOSS") | .object_id'
      hostvol health > /dev/null || mail -s "volumes of $(hostname)" root < /dev/null
    """
    with closing(connect(endpoint)) as client:
        rows = list(client.troubles())
    if rows or output == "json":
        show_rows(rows, _COLUMNS, output)
    else:
        click.echo("all is well")
    if rows:
        sys.exit(NOT_KNOWN if all(row["status"] == _UNKNOWN for row in rows) else NOT_WELL)
