"""What the four health RPCs tell, and volumes to ask about."""

from __future__ import annotations

from pathlib import Path

from csi_driver.pb import csi_pb2
from tests.harness import Driver, Workload, run
from tests.waiting import until

OFTEN = {"domain.health._FRESH_SECONDS": 0.1, "domain.health._LOOK_SECONDS": 1.0}
LOST, GONE, WORSE = csi_pb2.DATA_LOSS, csi_pb2.INACCESSIBLE, csi_pb2.DEGRADED
# A look at everything is at most so far away.
LOOK = 90.0


def troubles(driver: Driver, volume_id: str) -> dict[str, int]:
    """Status by reason, as the controller and the node tell it alike."""
    controller = driver.call("ControllerGetVolumeHealth", volume_id=volume_id).volume_health
    node = driver.call("NodeGetVolumeHealth", volume_id=volume_id).volume_health
    assert controller == node
    assert controller.volume_id == volume_id
    assert all(one.reason and volume_or_pool_is_named(one.message, volume_id) for one in node.health_statuses)
    return {one.reason: one.status for one in node.health_statuses}


def volume_or_pool_is_named(message: str, volume_id: str) -> bool:
    return volume_id in message or "pool default" in message


def listed(driver: Driver, **fields: object) -> dict[str, set[str]]:
    """Reasons by volume id, of one page."""
    page = driver.call("ControllerListVolumeHealth", **fields)
    return {one.volume_id: {status.reason for status in one.health_statuses} for one in page.entries}


def wait_listed(driver: Driver, expected: dict[str, set[str]]) -> None:
    until(lambda: listed(driver) == expected, LOOK)


def storage(driver: Driver) -> dict[str, int]:
    found = driver.call("NodeGetStorageHealth").backend_health
    return {one.reason: one.status for one in found}


def published(driver: Driver, **options: object) -> Workload:
    workload = Workload(driver, "v", **options)  # type: ignore[arg-type]
    workload.create()
    workload.stage()
    workload.publish()
    assert troubles(driver, workload.volume_id) == {}
    return workload


def image(workload: Workload) -> Path:
    return workload.driver.pool / "volumes" / workload.volume_id / "disk.img"


def device(workload: Workload) -> str:
    return run("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", workload.staging).strip()
