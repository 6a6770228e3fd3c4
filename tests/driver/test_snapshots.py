"""Snapshots and copies of every kind of volume, on pools that share blocks and on one that does not.

- What was written before a snapshot is in every volume that is made from it, whatever was written since; the source
  stays what it is, and may be deleted.
- Source, snapshot's copies and clones of ext4, xfs and btrfs are mounted side by side, and are sound when unmounted.
- A repeated call finds the same snapshot or copy; another source under the name is refused.
- A copy is never smaller than its source, may be larger, and has its filesystem and block size.
- A raw block volume never becomes a filesystem; an image never a directory.
- Where blocks cannot be shared a staged volume without a filesystem of its own is refused with the remedy, and an idle
  one copied. (What is mounted: see `test_freezing`.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.harness import (
    DIRECTORY,
    MIB,
    Code,
    Driver,
    Failure,
    PoolPlace,
    Workload,
    create_request,
    polled,
    run,
)

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]
CHECKS = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
}


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
        assert polled(lambda: driver.call("GetSnapshot", snapshot_id=snapshot.snapshot_id).snapshot.ready_to_use, 60)
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


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_cut_below_a_writer_holds_what_was_written_before_and_its_copies_live_side_by_side(
    kind: Kind, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(kind.pool))
    source = source_of(driver, kind)
    source.up()
    write(source, "before")
    snapshot = cut(driver, source.volume_id)
    # 300 MiB is the least that an XFS can have, so that any size asked is enough for a copy.
    told = 0 if kind.fs_type == "xfs" else kind.size_bytes
    assert (snapshot.size_bytes, snapshot.source_volume_id) == (told, source.volume_id)
    write(source, "after")
    first = copied(source, "first", from_snapshot(snapshot.snapshot_id))
    second = copied(source, "second", from_snapshot(snapshot.snapshot_id))
    clone = copied(source, "clone", from_volume(source.volume_id))
    assert [read(one) for one in (source, first, second, clone)] == ["after", "before", "before", "after"]
    write(first, "first")
    assert [read(one) for one in (source, first, second, clone)] == ["after", "first", "before", "after"]
    take_down(source)
    third = copied(source, "third", from_snapshot(snapshot.snapshot_id))
    assert read(third) == "before"
    for one in (first, second, clone, third):
        take_down(one)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


@pytest.mark.parametrize("kind", COPIED.values(), ids=COPIED.keys())
def test_without_shared_blocks_a_staged_volume_is_refused_and_an_idle_one_copied(
    kind: Kind, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(kind.pool))
    source = source_of(driver, kind)
    source.up()
    write(source, "before")
    refused_calls = (
        ("CreateSnapshot", csi_pb2.CreateSnapshotRequest(source_volume_id=source.volume_id, name="cut")),
        ("CreateVolume", copy_request(source, "clone", from_volume(source.volume_id))),
    )
    for method, request in refused_calls if kind.block or kind.parameters else ():
        with pytest.raises(Failure, match="stop what uses it") as refused:
            driver.call(method, request)
        assert refused.value.code is Code.FAILED_PRECONDITION
    source.unpublish()
    source.unstage()
    snapshot = cut(driver, source.volume_id)
    clone = copied(source, "clone", from_volume(source.volume_id))
    source.stage()
    source.publish()
    write(source, "after")
    restored = copied(source, "restored", from_snapshot(snapshot.snapshot_id))
    assert [read(one) for one in (source, clone, restored)] == ["after", "before", "before"]
    for one in (source, clone, restored):
        take_down(one)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
