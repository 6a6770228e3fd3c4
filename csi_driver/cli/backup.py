"""`hostvol export` and `hostvol import`: contents as streams through pipes."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import click

from csi_driver.cli import options
from csi_driver.cli.client import Connect, DriverClient, find_snapshot, find_volume
from csi_driver.cli.output import Size, human_bytes
from csi_driver.cli.progress import meter
from csi_driver.errors import CallFailed

_STDIN: Final = 0
_STDOUT: Final = 1
_PIECE_BYTES: Final = 1 << 20


@click.command("export", short_help="Write a volume or snapshot to standard output.")
@click.argument("name_or_id", metavar="VOLUME|SNAPSHOT")
@click.option("--base", metavar="SNAPSHOT", help="Only what differs from this earlier one of the same volume.")
@options.endpoint
@click.pass_obj
def export_content(connect: Connect, name_or_id: str, base: str | None, endpoint: str) -> None:
    """Write the content of VOLUME or SNAPSHOT (its id or name) to standard output, as `hostvol import` reads it.

    The stream has everything that a new volume needs, holes left out, with checksums. A volume may be in use in a pool
    on XFS or btrfs; in others it must not be mounted.

    \b
    Examples:
      hostvol export before-upgrade | zstd > before-upgrade.hostvol.zst
      hostvol export data | aws s3 cp - s3://backups/data.hostvol
      hostvol export tuesday --base monday > tuesday.hostvol
    """
    if os.isatty(_STDOUT):
        raise click.UsageError("standard output is a terminal; pipe it somewhere, or redirect it to a file")
    with closing(connect(endpoint)) as client:
        found = _found(client, name_or_id)
        base_id = find_snapshot(client, base)["snapshot_id"] if base else ""
        sent_bytes = 0
        with meter("exporting", found.get("allocated_bytes") or found.get("size_bytes", 0)) as advance:
            for piece in client.export(found.get("volume_id") or found["snapshot_id"], base_id):
                _write(piece)
                sent_bytes += len(piece)
                advance(len(piece))
    click.echo(f"{human_bytes(sent_bytes)} exported", err=True)


@click.command("import", short_help="Make a volume of what was exported.")
@click.option("--name", default="", help="Name of the new volume.  [default: that of what was exported]")
@click.option("--pool", default="", show_default="default, or that of --onto", help="Where it is made.")
@click.option(
    "--onto", metavar="SNAPSHOT|VOLUME", help="What the stream is relative to: the volume begins as a copy of it."
)
@click.option("--size", type=Size(), default=0, show_default="that of the first stream", help="At least this much.")
@click.option("--thick", is_flag=True, help="Allocate all blocks of an image at once.")
@click.option("--no-quota", is_flag=True, help="A directory without a size limit.")
@options.endpoint
@click.pass_obj
def import_content(connect: Connect, /, name: str, pool: str, endpoint: str, **asked: Any) -> None:
    """Make a new volume of what `hostvol export` wrote, read from standard input, and print its id.

    A stream that was exported with --base follows the one that it is relative to, or is applied --onto what was made of
    that one: a snapshot that was taken before anybody used the volume, or that volume as long as nobody has used it.
    Neither is changed.

    Nothing is left unless the whole stream came, as it was sent. The kernel trusts the filesystem that it mounts:
    import only what you trust.

    \b
    Examples:
      hostvol import --pool fast < data.hostvol
      cat monday.hostvol tuesday.hostvol wednesday.hostvol | hostvol import --name data-as-it-was
      hostvol import --onto standby-tuesday --name standby-wednesday < wednesday.hostvol
      aws s3 cp s3://backups/before-upgrade.hostvol.zst - | zstd -d | hostvol import --name data-as-it-was
    """
    if os.isatty(_STDIN):
        raise click.UsageError("standard input is a terminal; pipe a stream of `hostvol export` into it")
    wanted = {
        "name": name,
        "pool": pool,
        "size_bytes": asked["size"],
        "provisioning": "thick" if asked["thick"] else "",
        "quota": "none" if asked["no_quota"] else "",
    }
    with closing(connect(endpoint)) as client, meter("importing", _input_bytes()) as advance:
        if asked["onto"]:
            base = _found(client, asked["onto"])
            wanted["onto_id"] = base.get("volume_id") or base["snapshot_id"]
        made = client.import_volume(_pieces(advance), wanted)
    click.echo(made["volume_id"])


def _found(client: DriverClient, name_or_id: str) -> dict[str, Any]:
    found = []
    for find in (find_volume, find_snapshot):
        try:
            found.append(find(client, name_or_id))
        except CallFailed as failure:
            if failure.code != "NOT_FOUND":
                raise
    if not found:
        raise CallFailed("NOT_FOUND", f"no volume or snapshot has the id or name {name_or_id!r}")
    if len(found) > 1:
        raise click.UsageError(f"a volume and a snapshot have the name {name_or_id!r}: give the id")
    return found[0]


def _write(piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(_STDOUT, rest) :]
        except BrokenPipeError as cause:
            raise click.ClickException("whoever read standard output has ended: what it has is not whole") from cause


def _pieces(advance: Any) -> Iterator[bytes]:
    while piece := os.read(_STDIN, _PIECE_BYTES):
        advance(len(piece))
        yield piece


def _input_bytes() -> int:
    """How long the input is, where that is known; else 0."""
    found = os.fstat(sys.stdin.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
