"""Snapshots and copies of directories where the kernel has project quotas; runs inside the machine.

On XFS, whose files share blocks, and on ext4, where they are copied, each mounted with `prjquota`:

- A snapshot is of no project and takes nothing of its volume's limit.
- A copy is of a project of its own, every file in it, with a limit of its own that holds; source and copy do not
  disturb each other, and what was written to several names stays one file.
- A deleted copy leaves neither limit nor usage.
- A volume that comes back from the trash has its project, all its files in it, and its limit, also after a restart;
  while it lies there nobody else is given its project.
- A rollback gives the volume a project of its own and the limit that it has now, and its undoing the one that it had.
"""

from __future__ import annotations

import os
from pathlib import Path

from csi_driver.pb import csi_pb2
from tests.harness import MIB, Code, Driver, Workload, create_request, run
from tests.uml.directories import (
    FULL,
    REQUIRED,
    SLACK,
    charged_to,
    directory,
    disk_usage,
    is_free,
    kind_of,
    project_of,
    stats,
    up,
)
from tests.uml.quotas import NOBODY, reported, write
from tests.waiting import until


def fill(target: Path, name: str, size_bytes: int) -> None:
    run("dd", "if=/dev/urandom", f"of={target / name}", "bs=64K", f"count={size_bytes // 65536}", "conv=fsync")


def down(workload: Workload) -> None:
    workload.unpublish()
    workload.unstage()


def cut(source: Workload, name: str) -> str:
    call = source.driver.call
    made = call("CreateSnapshot", name=name, source_volume_id=source.volume_id).snapshot
    until(lambda: call("GetSnapshot", snapshot_id=made.snapshot_id).snapshot.ready_to_use, 60)
    return str(made.snapshot_id)


def restored(source: Workload, snapshot_id: str, size_bytes: int) -> Workload:
    copy = directory(source.driver, "copy", size_bytes)
    content = csi_pb2.VolumeContentSource()
    content.snapshot.snapshot_id = snapshot_id
    request = create_request(
        "copy",
        size_bytes,
        parameters=REQUIRED,
        volume_capabilities=[copy.capability],
        volume_content_source=content,
    )
    copy.volume_id = source.driver.call("CreateVolume", request).volume.volume_id
    return copy


def test_a_copy_has_a_project_and_a_limit_of_its_own(driver: Driver, filesystem: Path) -> None:
    source = directory(driver, "source")
    target = up(source)
    fill(target, "file", 8 * MIB)
    os.link(target / "file", target / "second name")
    (target / "deep/er").mkdir(parents=True)
    fill(target / "deep/er", "other", MIB)
    if kind_of(filesystem) == "ext4":
        down(source)
    snapshot_id = cut(source, "cut")
    data = driver.pool / "snapshots" / snapshot_id / "data"
    assert charged_to(data) == charged_to(data / "deep") == 0
    copy = restored(source, snapshot_id, 24 * MIB)
    assert driver.code("CreateVolume", create_request("copy", 24 * MIB, parameters=REQUIRED)) is Code.ALREADY_EXISTS
    copy.stage()
    shown = Path(copy.publish())
    project = project_of(copy)
    assert project not in (0, project_of(source))
    for path in (shown, shown / "file", shown / "deep", shown / "deep/er", shown / "deep/er/other"):
        assert charged_to(path) == project, path
    assert (shown / "file").stat().st_ino == (shown / "second name").stat().st_ino
    assert (shown / "file").read_bytes() == (driver.pool / "snapshots" / snapshot_id / "data/file").read_bytes()
    total, used, _ = stats(copy)
    assert total == 24 * MIB
    assert abs(used - disk_usage(shown)) <= SLACK
    assert write(shown, NOBODY, "write", "filler") in FULL
    assert 24 * MIB - 2 * SLACK <= disk_usage(shown) <= 24 * MIB
    if kind_of(filesystem) == "ext4":
        source.stage()
        source.publish()
    assert write(target, NOBODY, "write", "filler") in FULL
    assert disk_usage(target) >= 16 * MIB - 2 * SLACK, "the copy took of the source's limit"
    for one in (source, copy):
        down(one)
        one.delete()
    driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
    assert is_free(filesystem, project)


def test_a_copy_of_more_than_its_limit_is_refused_and_leaves_nothing(driver: Driver, filesystem: Path) -> None:
    source = Workload(driver, "source", parameters={"type": "directory", "quota": "none"}, size_bytes=4 * MIB)
    fill(up(source), "file", 8 * MIB)
    down(source)
    content = csi_pb2.VolumeContentSource()
    content.volume.volume_id = source.volume_id
    request = create_request("copy", 4 * MIB, parameters=REQUIRED, volume_content_source=content)
    before = driver.files()
    assert driver.code("CreateVolume", request) is Code.OUT_OF_RANGE
    assert driver.files() == before
    source.delete()


def retained(driver: Driver, name: str) -> Workload:
    return Workload(driver, name, parameters={**REQUIRED, "retention": "1h"}, size_bytes=8 * MIB)


def require_held(workload: Workload, filesystem: Path, project: int, limit: int) -> None:
    """All that the volume holds is charged to its project, whose limit stops a writer; it is staged for that."""
    workload.stage()
    shown = Path(workload.publish())
    assert project_of(workload) == project
    assert {charged_to(path) for path in (shown, *shown.rglob("*"))} == {project}
    assert reported(filesystem, project)[1] == stats(workload)[0] == limit
    assert write(shown, NOBODY, "write", "filler") in FULL
    assert limit - 2 * SLACK <= disk_usage(shown) <= limit
    (shown / "filler").unlink()
    down(workload)


def test_what_comes_back_from_the_trash_has_its_project_and_its_limit(driver: Driver, filesystem: Path) -> None:
    workload = retained(driver, "kept")
    target = up(workload)
    (target / "deep").mkdir()
    fill(target / "deep", "file", MIB)
    project, limit = project_of(workload), workload.size_bytes
    down(workload)
    workload.delete()
    driver.restart()
    other = directory(driver, "other")
    other.create()
    assert project_of(other) != project
    driver.call("RestoreTrash", entry=workload.volume_id)
    require_held(workload, filesystem, project, limit)
    for one in (workload, other):
        one.delete()
    driver.call("PurgeTrash", entry=driver.call("ListTrash").entries[0].entry)
    until(lambda: is_free(filesystem, project))


def test_a_rollback_and_its_undoing_have_a_project_and_the_limit_of_the_volume(
    driver: Driver, filesystem: Path
) -> None:
    workload = directory(driver, "rolled", 8 * MIB)
    fill(up(workload), "file", MIB)
    down(workload)
    snapshot_id = cut(workload, "cut")
    before = project_of(workload)
    workload.expand(12 * MIB)
    entry = driver.call("RollbackVolume", volume_id=workload.volume_id, snapshot_id=snapshot_id).entry
    rolled = project_of(workload)
    assert rolled not in (0, before)
    require_held(workload, filesystem, rolled, 12 * MIB)
    assert reported(filesystem, before)[1] == 12 * MIB, "what was replaced is still held to its limit"
    driver.restart()
    driver.call("RestoreTrash", entry=entry)
    require_held(workload, filesystem, before, 12 * MIB)
    workload.delete()
    driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
    for left in driver.call("ListTrash").entries:
        driver.call("PurgeTrash", entry=left.entry)
    until(lambda: is_free(filesystem, rolled) and is_free(filesystem, before))
