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

import pytest

from csi_driver.pb import csi_pb2
from tests.driver.copying import (
    COPIED,
    KINDS,
    Kind,
    MakeDriver,
    MakePool,
    copied,
    copy_request,
    cut,
    from_snapshot,
    from_volume,
    read,
    source_of,
    take_down,
    write,
)
from tests.harness import Code, Failure


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
