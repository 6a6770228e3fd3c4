"""What is remembered of a filesystem in a file: which one it is, and how large; knows no mount and no loop device.

<directory>/hostvol-backing.json   the record
            hostvol-backing.img    the filesystem, every block of it allocated; with .new while it is being made
            pool/                  where it is mounted: the directory of the pool, empty while it is not
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from csi_driver.errors import PoolRefused, RecordDamaged
from csi_driver.store import durable, records

IMAGE = "hostvol-backing.img"
BUILDING = f"{IMAGE}.new"
RECORD = "hostvol-backing.json"
MOUNT_POINT = "pool"
_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BackingRecord:
    """One filesystem in a file. `wanted_bytes` is more than `size_bytes` while it is made larger."""

    filesystem_uuid: str
    driver_name: str
    size_bytes: int
    wanted_bytes: int


def read(dir_fd: int, directory: str) -> BackingRecord | None:
    """The record below `dir_fd`; None when nothing there is a filesystem in a file.

    Raises: PoolRefused when it is damaged, or missing beside its file.
    """
    where = f"{directory}/{RECORD}"
    try:
        body = records.unseal(durable.read_small(dir_fd, RECORD, limit_bytes=_LIMIT_BYTES), "backing file", where)
        return BackingRecord(
            str(body["filesystem_uuid"]), str(body["driver"]), int(body["size_bytes"]), int(body["wanted_bytes"])
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, RecordDamaged) as cause:
        raise PoolRefused(directory, f"the record of its backing file, {RECORD}, is damaged: {cause}") from cause


def write(dir_fd: int, record: BackingRecord) -> None:
    """Put the record in its place, durably."""
    body = {
        "filesystem_uuid": record.filesystem_uuid,
        "driver": record.driver_name,
        "size_bytes": record.size_bytes,
        "wanted_bytes": record.wanted_bytes,
    }
    durable.replace(dir_fd, RECORD, records.seal("backing file", body))


def is_there(dir_fd: int) -> bool:
    """Whether a file of a finished filesystem lies in the directory, with its record or without."""
    return any(name in (IMAGE, RECORD) for name in os.listdir(dir_fd))
