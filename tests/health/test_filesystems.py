"""What is wrong inside a filesystem is told, mounted or not, until the remedy that the message names has been applied.

- What ext4 counted is told in the same words while it is mounted, when it is not, and after a restart; e2fsck ends it.
- A superblock that the kernel refuses, and an XFS that xfs_repair has not finished with: the volume cannot be mounted.
- What a mounted XFS has found corrupt in an allocation group is told; xfs_repair ends it.
- A block of a btrfs whose checksum does not fit is told once it was read, also after it was mounted again; who replaces
  the file and resets the statistics ends it.
- An image is opened only when it has changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.unmounted_images import UnmountedImages
from csi_driver.linux import superblocks
from tests.harness import MIB, Driver, Failure, Workload, run
from tests.health.asking import GONE, WORSE, device, image, published, troubles, wait_listed
from tests.waiting import until

FOREVER = float("inf")


def message(driver: Driver, volume_id: str) -> str:
    [found] = driver.call("NodeGetVolumeHealth", volume_id=volume_id).volume_health.health_statuses
    return str(found.message)


def put_away(workload: Workload) -> None:
    workload.unpublish()
    workload.unstage()


def patch(path: Path, offset: int, content: bytes) -> bytes:
    """Write into an image; returns what was there."""
    with path.open("r+b") as file:
        before = os.pread(file.fileno(), len(content), offset)
        os.pwrite(file.fileno(), content, offset)
        os.fsync(file.fileno())
    return before


def test_what_ext4_counted_is_told_after_it_was_unmounted_until_it_is_checked(driver: Driver) -> None:
    workload = published(driver)
    Path("/sys/fs/ext4", Path(device(workload)).name, "trigger_fs_error").write_text("a test")
    # The kernel counts in a work queue.
    until(lambda: troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE})
    told = message(driver, workload.volume_id)
    assert re.search(r"\(the first in \w+ at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\).*e2fsck -f", told)
    put_away(workload)
    assert message(driver, workload.volume_id) == told
    driver.restart()
    wait_listed(driver, {workload.volume_id: {"FilesystemErrors"}})
    assert message(driver, workload.volume_id) == told
    run("e2fsck", "-f", "-y", str(image(workload)), check=False)
    assert troubles(driver, workload.volume_id) == {}
    wait_listed(driver, {})


def test_a_superblock_that_the_kernel_refuses_is_told_until_it_is_whole(driver: Driver) -> None:
    kinds = {"ext4": (64 * MIB, 1024 + 0x20), "xfs": (300 * MIB, 8), "btrfs": (128 * MIB, 65536 + 0x48)}
    held = {name: Workload(driver, name, fs_type=name, size_bytes=size) for name, (size, _) in kinds.items()}
    before: dict[str, bytes] = {}
    for name, workload in held.items():
        workload.create()
        assert troubles(driver, workload.volume_id) == {}
        before[name] = patch(image(workload), kinds[name][1], b"\x5a\xa5")
        assert troubles(driver, workload.volume_id) == {"FilesystemDamaged": GONE}
        with pytest.raises(Failure, match="volume"):
            workload.stage()
    wait_listed(driver, {workload.volume_id: {"FilesystemDamaged"} for workload in held.values()})
    for name, workload in held.items():
        patch(image(workload), kinds[name][1], before[name])
        assert troubles(driver, workload.volume_id) == {}
    workload = held["xfs"]
    features = int(
        run("xfs_db", "-r", "-c", "sb 0", "-c", "print features_incompat", str(image(workload))).split()[-1], 0
    )
    needs_repair = f"write features_incompat {features | superblocks.XFS_NEEDS_REPAIR:#x}"
    run("xfs_db", "-x", "-c", "sb 0", "-c", needs_repair, str(image(workload)))
    assert "xfs_repair" in message(driver, workload.volume_id)
    with pytest.raises(Failure, match="cannot be mounted"):
        workload.stage()
    run("xfs_repair", str(image(workload)))
    assert troubles(driver, workload.volume_id) == {}
    workload.stage()


def zero_inode_tree(path: Path, group: int) -> None:
    """The root of the inode B-tree of an allocation group becomes zeros."""
    root = run("xfs_db", "-r", "-c", f"agi {group}", "-c", "print root", str(path)).split("=")[1].strip()
    said = run("xfs_db", "-r", "-c", f"convert agno {group} agbno {root} byte", str(path))
    found = re.search(r"\((\d+)\)", said)
    assert found is not None, said
    patch(path, int(found[1]), bytes(4096))


def test_what_a_mounted_xfs_found_corrupt_is_told_until_it_is_repaired(driver: Driver) -> None:
    workload = Workload(driver, "v", fs_type="xfs", size_bytes=300 * MIB)
    workload.create()
    zero_inode_tree(image(workload), 1)
    assert troubles(driver, workload.volume_id) == {}, "nothing has read it yet"
    workload.stage()
    workload.publish()
    assert troubles(driver, workload.volume_id) == {}
    run("xfs_io", "-c", "bulkstat", workload.target(), check=False)
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9):
        assert troubles(driver, workload.volume_id) == {}, "only what a scrub finds is remembered"
        return
    assert troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE}
    assert "xfs_repair" in message(driver, workload.volume_id)
    wait_listed(driver, {workload.volume_id: {"FilesystemErrors"}})
    put_away(workload)
    run("xfs_repair", str(image(workload)))
    workload.stage()
    workload.publish()
    assert troubles(driver, workload.volume_id) == {}


def test_a_corrupt_block_of_a_btrfs_is_told_until_the_statistics_are_reset(driver: Driver) -> None:
    workload = published(driver, fs_type="btrfs", size_bytes=128 * MIB)
    content = os.urandom(4096) * 16
    Path(workload.target(), "precious").write_bytes(content)
    put_away(workload)
    path = image(workload)
    patch(path, path.read_bytes().index(content), b"rot")
    workload.stage()
    workload.publish()
    assert troubles(driver, workload.volume_id) == {}, "nobody has read it yet"
    with pytest.raises(OSError, match="Input/output error"):
        Path(workload.target(), "precious").read_bytes()
    assert troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE}
    assert "btrfs scrub" in message(driver, workload.volume_id)
    wait_listed(driver, {workload.volume_id: {"FilesystemErrors"}})
    put_away(workload)
    workload.stage()
    workload.publish()
    assert troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE}
    Path(workload.target(), "precious").unlink()
    run("btrfs", "device", "stats", "--reset", workload.staging)
    assert troubles(driver, workload.volume_id) == {}


def test_an_image_is_opened_only_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    said = {"a": superblocks.SOUND, "b": superblocks.Finding(damage="gone bad")}

    @contextmanager
    def read(volume_id: str) -> Iterator[str]:
        opened.append(volume_id)
        yield volume_id

    monkeypatch.setattr(superblocks, "look", lambda _, image_fd: said[image_fd])
    pool = cast(Any, SimpleNamespace(attachments=SimpleNamespace(read=read)))
    volumes = {one: cast(Any, SimpleNamespace(volume_id=one, fs_type="ext4")) for one in said}
    images = UnmountedImages()
    for _ in range(3):
        assert [images.look(pool, volumes[one], 1, FOREVER) for one in "ab"] == [said["a"], said["b"]]
    assert opened == ["a", "b"]
    said["b"] = superblocks.SOUND
    assert images.look(pool, volumes["b"], 2, 0.0).damage, "no time for it: as it was"
    assert images.look(pool, volumes["b"], 2, FOREVER) == superblocks.SOUND
    assert opened == ["a", "b", "b"]
    images.keep_only(Catalogue())
    images.look(pool, volumes["a"], 1, FOREVER)
    assert opened == ["a", "b", "b", "a"]
