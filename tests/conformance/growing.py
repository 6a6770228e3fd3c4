"""Volumes of every kind that grow, and what is told of their sizes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from csi_driver.linux import growth
from tests.conformance.node_volumes import existing
from tests.harness import DIRECTORY, MIB, Driver, Workload

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 16 * MIB},
    "ext4-thick": {"size_bytes": 16 * MIB, "parameters": {"provisioning": "thick"}},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
    "block": {"block": True, "size_bytes": 8 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 8 * MIB},
}


def growing(driver: Driver, kind: str) -> AbstractContextManager[Workload]:
    """A volume of the kind, taken down afterwards."""
    return existing(driver, f"growing-{kind}", **KINDS[kind])


def size_of(workload: Workload) -> int:
    """As the controller tells it."""
    told = workload.driver.call("ControllerGetVolume", volume_id=workload.volume_id)
    return int(told.volume.capacity_bytes)


def statistics_total(workload: Workload) -> int:
    answer = workload.driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target())
    return int(answer.usage[0].total)


def is_unlimited(workload: Workload) -> bool:
    return workload.parameters.get("quota") == "none"


def grows_mounted(workload: Workload) -> bool:
    return not workload.name.startswith("growing-ext4") or growth.may_grow_mounted_ext4()
