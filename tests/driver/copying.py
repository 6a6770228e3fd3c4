"""What the tests of snapshots and copies share: sources of every kind, cuts and copies of them, and their content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from csi_driver.pb import csi_pb2
from tests.checks import CHECKS
from tests.harness import DIRECTORY, MIB, Driver, PoolPlace, Workload, create_request, run
from tests.waiting import until

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


@dataclass(frozen=True)
class Kind:
    """What the source is, and which filesystem is below its pool."""

    pool: str
    fs_type: str = ""
    size_bytes: int = 64 * MIB
    block: bool = False
    parameters: dict[str, str] = field(default_factory=dict)


KINDS = {
    "ext4-on-xfs": Kind("xfs"),
    "xfs-on-xfs": Kind("xfs", "xfs", 300 * MIB),
    "btrfs-on-xfs": Kind("xfs", "btrfs", 128 * MIB),
    "block-on-xfs": Kind("xfs", block=True, size_bytes=16 * MIB),
    "thick-on-xfs": Kind("xfs", parameters={"provisioning": "thick"}),
    "directory-on-xfs": Kind("xfs", parameters=DIRECTORY),
    "ext4-on-btrfs": Kind("btrfs"),
    "xfs-on-btrfs": Kind("btrfs", "xfs", 300 * MIB),
    "btrfs-on-btrfs": Kind("btrfs", "btrfs", 128 * MIB),
    "block-on-btrfs": Kind("btrfs", block=True, size_bytes=16 * MIB),
    "directory-on-btrfs": Kind("btrfs", parameters={"type": "directory"}),
}
COPIED = {
    "ext4-on-ext4": Kind("host"),
    "xfs-on-ext4": Kind("host", "xfs", 300 * MIB),
    "btrfs-on-ext4": Kind("host", "btrfs", 128 * MIB),
    "block-on-ext4": Kind("host", block=True, size_bytes=16 * MIB),
    "directory-on-ext4": Kind("host", parameters=DIRECTORY),
}


def source_of(driver: Driver, kind: Kind, name: str = "source") -> Workload:
    return Workload(driver, name, kind.block, kind.fs_type, kind.size_bytes, kind.parameters)


def place_of(workload: Workload) -> str:
    return workload.target() if workload.block else f"{workload.target()}/content"


def write(workload: Workload, content: str) -> None:
    """Put content into the published volume, not durably: the cut is to hold it all the same."""
    flags = os.O_WRONLY if workload.block else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = os.open(place_of(workload), flags)
    try:
        os.pwrite(descriptor, content.encode().ljust(4096, b"\0"), 0)
    finally:
        os.close(descriptor)


def read(workload: Workload) -> str:
    with open(place_of(workload), "rb") as file:
        return file.read(4096).rstrip(b"\0").decode()


def cut(driver: Driver, volume_id: str, name: str = "cut", **fields: Any) -> csi_pb2.Snapshot:
    snapshot = driver.call("CreateSnapshot", source_volume_id=volume_id, name=name, **fields).snapshot
    if not snapshot.ready_to_use:
        until(lambda: driver.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot.ready_to_use, 60)
        snapshot.ready_to_use = True
    return snapshot


def from_snapshot(snapshot_id: str) -> csi_pb2.VolumeContentSource:
    source = csi_pb2.VolumeContentSource()
    source.snapshot.snapshot_id = snapshot_id
    return source


def from_volume(volume_id: str) -> csi_pb2.VolumeContentSource:
    source = csi_pb2.VolumeContentSource()
    source.volume.volume_id = volume_id
    return source


def copy_request(like: Workload, name: str, source: csi_pb2.VolumeContentSource, **changes: Any) -> Any:
    changes.setdefault("parameters", like.parameters)
    changes.setdefault("volume_capabilities", [like.capability])
    return create_request(name, changes.pop("size_bytes", like.size_bytes), volume_content_source=source, **changes)


def copied(like: Workload, name: str, source: csi_pb2.VolumeContentSource, **changes: Any) -> Workload:
    """A volume with the source's content, made and published."""
    copy = Workload(like.driver, name, like.block, like.fs_type, like.size_bytes, like.parameters)
    request = copy_request(like, name, source, **changes)
    volume = like.driver.call("CreateVolume", request).volume
    assert volume.content_source == source
    copy.volume_id = volume.volume_id
    copy.stage()
    copy.publish()
    return copy


def image_of(workload: Workload) -> str:
    return str(workload.driver.pool / "volumes" / workload.volume_id / "disk.img")


def check_sound(workload: Workload) -> None:
    """The unmounted filesystem of the volume has no fault."""
    if not workload.block and workload.parameters.get("type") != "directory":
        run(*CHECKS[workload.fs_type or "ext4"], image_of(workload))


def take_down(workload: Workload) -> None:
    workload.unpublish()
    workload.unstage()
    check_sound(workload)
    workload.delete()


def idle(workload: Workload) -> None:
    workload.unpublish()
    workload.unstage()


def fill(workload: Workload, size_bytes: int) -> None:
    """So much that cannot be compressed, in the published volume."""
    run("dd", "if=/dev/urandom", f"of={workload.target()}/bulk", "bs=1M", f"count={size_bytes // MIB}", "conv=fsync")


def snapshots(driver: Driver, **filters: str) -> list[csi_pb2.Snapshot]:
    return [entry.snapshot for entry in driver.call("ListSnapshots", **filters).entries]


def written(driver: Driver, size_bytes: int, **fields: Any) -> Workload:
    """An idle volume that holds so much."""
    source = Workload(driver, "source", size_bytes=2 * size_bytes, **fields)
    source.up()
    fill(source, size_bytes)
    idle(source)
    return source


def total_bytes(workload: Workload) -> int:
    space = os.statvfs(workload.target())
    return space.f_blocks * space.f_frsize
