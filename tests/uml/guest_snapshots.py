"""Snapshots and copies of directories where the kernel has project quotas; runs inside the machine.

On XFS, whose files share blocks, and on ext4, where they are copied, each mounted with `prjquota`:

- A snapshot is of no project and takes nothing of its volume's limit.
- A copy is of a project of its own, every file in it, with a limit of its own that holds; source and copy do not
  disturb each other, and what was written to several names stays one file.
- A deleted copy leaves neither limit nor usage.
"""

from __future__ import annotations

import os
from pathlib import Path

from csi_driver.pb import csi_pb2
from tests.harness import MIB, Code, Driver, Workload, create_request, polled, run
from tests.uml.guest_driver import (
    FULL,
    REQUIRED,
    SLACK,
    charged_to,
    directory,
    disk_usage,
    driver,
    filesystem,
    is_free,
    kind_of,
    one_driver,
    project_of,
    stats,
    up,
)
from tests.uml.guest_quota import NOBODY, write

__all__ = ["driver", "filesystem", "one_driver"]


def fill(target: Path, name: str, size_bytes: int) -> None:
    run("dd", "if=/dev/urandom", f"of={target / name}", "bs=64K", f"count={size_bytes // 65536}", "conv=fsync")


def down(workload: Workload) -> None:
    workload.unpublish()
    workload.unstage()


def cut(source: Workload, name: str) -> str:
    call = source.driver.call
    made = call("CreateSnapshot", name=name, source_volume_id=source.volume_id).snapshot
    assert polled(lambda: call("GetSnapshot", snapshot_id=made.snapshot_id).snapshot.ready_to_use, 60)
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
