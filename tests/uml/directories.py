"""Directory volumes with a quota inside the machine, and what is seen of them: projects, limits and usage."""

from __future__ import annotations

import errno
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

from csi_driver.linux import quota
from tests.harness import MIB, Code, Driver, PoolPlace, Workload, create_request, run
from tests.uml.quotas import NOBODY, open_directory, reported

DISKS = {"xfs": "/dev/ubda", "ext4": "/dev/ubdb"}
REQUIRED = {"type": "directory"}
NONE = {"type": "directory", "quota": "none"}
FULL = {errno.EDQUOT, errno.ENOSPC}
# A writer of 64 KiB at a time gives up when the next ones do not fit as a whole; XFS also counts its extent maps.
SLACK = 128 << 10


def running(home: Path, pool: Path) -> AbstractContextManager[Driver]:
    """A driver; afterwards nothing of it is mounted, and it met nothing that it did not foresee."""
    return Driver(home, [PoolPlace(pool)]).serving()


def kind_of(path: Path) -> str:
    return run("findmnt", "-no", "FSTYPE", "--target", str(path)).strip()


def directory(driver: Driver, name: str, size_bytes: int = 16 * MIB) -> Workload:
    return Workload(driver, name, parameters=REQUIRED, size_bytes=size_bytes)


def up(workload: Workload) -> Path:
    """Publish it, and give it to an unprivileged user, as fsGroup does."""
    target = Path(workload.up())
    os.chown(target, NOBODY, NOBODY)
    return target


def code_of_creating(workload: Workload) -> Code:
    request = create_request(
        workload.name,
        workload.size_bytes,
        parameters=workload.parameters,
        volume_capabilities=[workload.capability],
    )
    return workload.driver.code("CreateVolume", request)


def project_in(object_directory: Path) -> int:
    """The project id in an object's record."""
    return int(json.loads((object_directory / "record.json").read_bytes())["record"]["project_id"])


def project_of(workload: Workload) -> int:
    return project_in(workload.driver.pool / "volumes" / workload.volume_id)


def charged_to(path: Path) -> int:
    """The project that lsattr shows."""
    return int(run("lsattr", "-pd", str(path)).split()[0])


def disk_usage(path: Path) -> int:
    run("sync", "-f", str(path))
    return int(run("du", "--summarize", "--block-size=1", str(path)).split()[0])


def is_free(filesystem: Path, project_id: int) -> bool:
    with open_directory(filesystem) as fd:
        return reported(filesystem, project_id) == (0, 0) and quota.is_free(fd, project_id)


def stats(workload: Workload) -> tuple[int, int, int]:
    """(total, used, available) bytes of NodeGetVolumeStats."""
    answer = workload.driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target())
    in_bytes = answer.usage[0]
    assert in_bytes.unit == in_bytes.BYTES
    return in_bytes.total, in_bytes.used, in_bytes.available


def capacity(driver: Driver) -> int:
    return int(driver.call("GetCapacity", parameters=REQUIRED).available_capacity)


def remount(driver: Driver, mount_point: Path, disk: str, options: str) -> None:
    """Start the driver again on the same pool, mounted with other options."""
    driver.stop()
    run("umount", str(mount_point))
    run("mount", "-o", options, disk, str(mount_point))
    driver.start()
