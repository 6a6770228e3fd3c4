"""The records of contents that are held to be sent, each in a directory of its own under `tmp/`; knows no content."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Final

from csi_driver.errors import RecordDamaged
from csi_driver.store import durable, records
from csi_driver.store.pool import PoolDirectory

_NAME: Final = "sent.json"
_LIMIT_BYTES: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class ConsignmentRecord:
    """What a later process needs in order to send the same bytes. `header`: of the stream, as JSON."""

    transfer_id: str
    source_id: str
    header: str
    is_cut: bool


def write(store: PoolDirectory, name: str, record: ConsignmentRecord) -> None:
    """What lies in `tmp/<name>`, which is made if need be, is whole. Survives a power cut.

    Raises: OSError.
    """
    durable.ensure_directory(store.tmp_fd, name)
    object_fd = durable.open_directory(name, dir_fd=store.tmp_fd)
    try:
        durable.write_new(object_fd, _NAME, records.seal("consignment", asdict(record)))
        os.fsync(object_fd)
    finally:
        os.close(object_fd)
    os.fsync(store.tmp_fd)


def read(store: PoolDirectory, name: str) -> ConsignmentRecord:
    """The record in `tmp/<name>`.

    Raises: FileNotFoundError: it was not whole, or is over; RecordDamaged; OSError.
    """
    object_fd = durable.open_directory(name, dir_fd=store.tmp_fd)
    try:
        body = records.unseal(durable.read_small(object_fd, _NAME, limit_bytes=_LIMIT_BYTES), "consignment", name)
        return ConsignmentRecord(
            str(body["transfer_id"]), str(body["source_id"]), str(body["header"]), bool(body["is_cut"])
        )
    except (ValueError, KeyError) as cause:
        raise RecordDamaged(name, f"a field is missing or wrong: {cause}") from cause
    finally:
        os.close(object_fd)


def withdraw(store: PoolDirectory, name: str) -> None:
    """From now on `tmp/<name>` is only to be cleared, also after a power cut. Idempotent."""
    try:
        object_fd = durable.open_directory(name, dir_fd=store.tmp_fd)
    except FileNotFoundError:
        return
    try:
        durable.unlink_if_there(object_fd, _NAME)
        os.fsync(object_fd)
    finally:
        os.close(object_fd)
