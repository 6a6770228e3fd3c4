"""The kinds of volumes that the node is asked for, and one of them for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.harness import DIRECTORY, MIB, Driver, Workload

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 16 * MIB},
    "block": {"block": True, "size_bytes": 8 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 8 * MIB},
}
SIZED: dict[str, dict[str, Any]] = {
    **KINDS,
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
}


@contextmanager
def existing(driver: Driver, name: str, **kind: Any) -> Iterator[Workload]:
    """A volume, taken down afterwards whatever was published of it."""
    before = (driver.mounts(), driver.loops(), driver.files())
    workload = Workload(driver, name, **kind)
    workload.create()
    try:
        yield workload
    finally:
        for number in range(3):
            workload.unpublish(number)
        workload.unstage()
        workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == before


def with_mode(workload: Workload, mode: str) -> Workload:
    return dataclasses.replace(workload, mode=mode)
