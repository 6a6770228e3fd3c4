"""Group snapshots on pools that share blocks.

- Under a writer that writes to one volume and then to the other, no cut has the second record without the first; ext4,
  xfs and btrfs, on XFS and btrfs; the writer meets no error, and never waits for longer than the freeze's budget.
- Mounted images, idle volumes of every kind and several pools go into one group; what cannot be held still is refused
  by its name, with the remedy, and nothing is left; so is what would take too long once its filesystem is synced.
- The same call finds the same group, in any order of its volumes; other volumes under the name are refused.
- A member tells its group, makes volumes as any snapshot, and goes only with its group; the sources may go before.
- Who unpublishes, deletes or expands a member meanwhile is told to repeat; a volume that is gone already is NOT_FOUND.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from csi_driver.domain.freezing import Mounted
from csi_driver.domain.members import Member, Members
from csi_driver.errors import GroupRefused
from csi_driver.linux import sync
from csi_driver.linux.reflink import Cost
from csi_driver.model import AccessType, Volume, VolumeId, VolumeParameters
from tests.driver.copying import check_sound, copied, from_snapshot, read, take_down, write
from tests.driver.grouping import SIZES, MakeDriver, MakePool, delete_group, group_of, last_record, restored, writing
from tests.harness import DIRECTORY, MIB, Code, Driver, Failure, Workload

CUTS = 12


def image(driver: Driver, name: str, fs_type: str = "", **fields: object) -> Workload:
    made = Workload(driver, name, fs_type=fs_type, size_bytes=SIZES[fs_type or "ext4"], **fields)  # type: ignore[arg-type]
    made.up()
    return made


def refused(driver: Driver, code: Code, words: str, *volumes: Workload, **fields: object) -> None:
    with pytest.raises(Failure, match=words) as failure:
        group_of(driver, *volumes, **fields)  # type: ignore[arg-type]
    assert failure.value.code is code


@pytest.mark.parametrize(("pool", "fs_type"), [("xfs", "ext4"), ("xfs", "xfs"), ("xfs", "btrfs"), ("btrfs", "ext4")])
def test_no_cut_has_what_was_written_later_without_what_was_written_before(
    pool: str, fs_type: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool(pool, size_bytes=4 << 30))
    first, second = image(driver, "first", fs_type), image(driver, "second", fs_type)
    groups, least = [], []
    with writing(first.target(), second.target()) as writer:
        for number in range(CUTS):
            least.append(last_record(f"{second.target()}/records"))
            groups.append(group_of(driver, first, second, name=f"cut-{number}"))
    assert writer.report["longest"] < 20
    for number, group in enumerate(groups):
        found = []
        for volume, snapshot in zip((first, second), group.snapshots, strict=True):
            with restored(volume, snapshot.snapshot_id, f"{volume.name}-{number}") as place:
                found.append(last_record(f"{place}/records"))
        assert least[number] <= found[1] <= found[0] <= found[1] + 1, (number, found)
    for group in groups:
        delete_group(driver, group)
    for volume in (first, second):
        take_down(volume)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


def test_a_group_of_mounted_and_idle_volumes_in_several_pools_is_whole(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"), make_pool("btrfs"), names=["default", "other"])
    kinds = [
        Workload(driver, "mounted"),
        Workload(driver, "other", parameters={"pool": "other"}),
        Workload(driver, "block", block=True, size_bytes=16 * MIB),
        Workload(driver, "directory", parameters=DIRECTORY),
        Workload(driver, "subvolume", parameters={"type": "directory", "pool": "other"}),
    ]
    for volume in kinds:
        volume.up()
        write(volume, f"in {volume.name}")
    for volume in kinds[2:]:
        volume.unpublish()
        volume.unstage()
    group = group_of(driver, *kinds)
    assert group.ready_to_use
    assert [one.source_volume_id for one in group.snapshots] == [one.volume_id for one in kinds]
    for one in group.snapshots:
        assert (one.group_snapshot_id, one.ready_to_use) == (group.group_snapshot_id, True)
        assert driver.call("GetSnapshot", snapshot_id=one.snapshot_id).snapshot == one
    listed = [entry.snapshot for entry in driver.call("ListSnapshots").entries]
    assert sorted(listed, key=lambda one: one.snapshot_id) == sorted(group.snapshots, key=lambda one: one.snapshot_id)
    driver.restart()
    assert group_of(driver, *reversed(kinds)) == group
    for volume in kinds[:2]:
        volume.down()
    for volume in kinds[2:]:
        volume.delete()
    for volume, one in zip(kinds, group.snapshots, strict=True):
        copy = copied(volume, f"{volume.name}-copy", from_snapshot(one.snapshot_id))
        assert read(copy) == f"in {volume.name}"
        copy.down()
    delete_group(driver, group)
    delete_group(driver, group)
    assert driver.code("GetVolumeGroupSnapshot", group_snapshot_id=group.group_snapshot_id) is Code.NOT_FOUND
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


def test_what_cannot_be_held_still_is_refused_by_its_name_and_leaves_nothing(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"), make_pool("host"), names=["default", "ext4"])
    good = image(driver, "good")
    block = Workload(driver, "block", block=True, size_bytes=16 * MIB)
    directory = Workload(driver, "directory", parameters=DIRECTORY)
    copying = Workload(driver, "copying", parameters={"pool": "ext4"})
    for volume, words in ((block, "raw block"), (directory, "directory"), (copying, "pool ext4 .*XFS or btrfs")):
        volume.up()
        before = driver.files()
        refused(driver, Code.FAILED_PRECONDITION, f"{volume.volume_id}.*{words}", good, volume)
        assert driver.files() == before
    elsewhere = Workload(driver, "elsewhere", volume_id=f"vol-{'0' * 16}-1")
    refused(driver, Code.FAILED_PRECONDITION, "one node", good, elsewhere)
    refused(driver, Code.NOT_FOUND, "nobody", good, Workload(driver, "nobody", volume_id="nobody"))
    refused(driver, Code.INVALID_ARGUMENT, "each volume once", good, good)
    refused(driver, Code.INVALID_ARGUMENT, "colour", good, parameters={"colour": "red"})
    refused(driver, Code.INVALID_ARGUMENT, "source_volume_ids")
    assert driver.call("ListSnapshots").entries == []
    for volume in (good, block, directory, copying):
        volume.down()


def test_the_time_of_the_cut_is_expected_of_what_the_sync_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [Cost(1, 0.0)]
    monkeypatch.setattr(sync, "sync_filesystem", lambda _: costs.append(Cost(100_000, 1.7)))
    contents = SimpleNamespace(sharing_cost=lambda _: costs[-1])
    volume = Volume(VolumeId("vol-1"), "volume", MIB, AccessType.MOUNT, "ext4", VolumeParameters(), 1.0)
    pool: Any = SimpleNamespace(contents=lambda _: contents)
    unused: Any = None
    member = Member(pool, volume, -1, Mounted(volume.volume_id, "/", "", -1))
    members = Members("node", unused, unused, unused, unused)
    with ExitStack() as held, pytest.raises(GroupRefused, match=r"vol-1.*100000 extents.*1\.7 s"):
        members.cut([member], held)


def test_a_name_belongs_to_its_volumes_and_a_member_to_its_group(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs"))
    first, second = image(driver, "first"), image(driver, "second")
    group = group_of(driver, first, second)
    refused(driver, Code.ALREADY_EXISTS, group.group_snapshot_id, first)
    # Kubernetes' specs repeat this field of the class among its parameters.
    assert group_of(driver, first, second, parameters={"deletionPolicy": "Retain"}) == group
    for wrong in ({"deletionPolicy": "Keep"}, {"retention": "1d"}):
        with pytest.raises(Failure, match=rf"parameters\.{next(iter(wrong))}"):
            group_of(driver, first, second, name="other", parameters=wrong)
    member = group.snapshots[0].snapshot_id
    with pytest.raises(Failure, match=group.group_snapshot_id) as failure:
        driver.call("DeleteSnapshot", snapshot_id=member)
    assert failure.value.code is Code.INVALID_ARGUMENT
    asked = {"group_snapshot_id": group.group_snapshot_id, "snapshot_ids": [member]}
    for method in ("DeleteVolumeGroupSnapshot", "GetVolumeGroupSnapshot"):
        assert driver.code(method, **asked) is Code.INVALID_ARGUMENT
    told = driver.call("GetVolumeGroupSnapshot", group_snapshot_id=group.group_snapshot_id).group_snapshot
    assert told == group
    single = driver.call("CreateSnapshot", name="group", source_volume_id=first.volume_id).snapshot
    assert single.group_snapshot_id == ""
    driver.call("DeleteSnapshot", snapshot_id=single.snapshot_id)
    delete_group(driver, group)
    assert driver.call("ListSnapshots").entries == []
    for volume in (first, second):
        take_down(volume)


def test_whoever_touches_a_member_meanwhile_is_told_to_repeat_and_one_that_is_gone_is_not_found(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"))
    first, second = image(driver, "first"), image(driver, "second")
    codes, stopped = set(), threading.Event()

    def disturb() -> None:
        while not stopped.is_set():
            codes.add(driver.code("NodeUnstageVolume", volume_id=first.volume_id, staging_target_path=first.staging))
            codes.add(driver.code("DeleteVolume", volume_id=second.volume_id))

    def cut_until(ends: float) -> int:
        made = 0
        while time.monotonic() < ends or not made:
            try:
                delete_group(driver, group_of(driver, first, second, name=f"cut {made}"))
                made += 1
            except Failure as failure:
                assert failure.code is Code.ABORTED, failure
        return made

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        assert cut_until(time.monotonic() + 2)
    finally:
        stopped.set()
        thread.join()
    assert codes <= {Code.FAILED_PRECONDITION, Code.ABORTED}
    first.unpublish()
    alone = group_of(driver, first, second)
    first.unstage()
    check_sound(first)
    delete_group(driver, alone)
    first.delete()
    refused(driver, Code.NOT_FOUND, first.volume_id, first, second)
    take_down(second)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
