"""Project quotas where the kernel has them: no byte over the limit, inherited by whatever is created.

Runs inside the machine of `test_project_quota.py`, with /dev/ubda to /dev/ubdc to format. Oracles: xfs_quota,
lsattr, du.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import extents, quota, tree
from csi_driver.linux.quota import ProjectQuotaState, QuotaUsage
from tests.uml.quotas import MKFS, NOBODY, WRITER, mounted, open_directory, reported, run, write
from tests.waiting import until

MIB = 1 << 20
DISKS = {"xfs": "/dev/ubda", "ext4": "/dev/ubdb"}
SPARE = "/dev/ubdc"
# ext4 charges the blocks of an extent tree when delayed allocation needs them, and never refuses those.
TREE_BYTES = {"xfs": 0, "ext4": 64 * 1024}


@pytest.fixture(scope="module", params=["xfs", "ext4"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp(request.param)
    with mounted(place, request.param, "prjquota", disk=DISKS[request.param]) as path:
        yield path


@pytest.fixture
def project(filesystem: Path) -> Iterator[tuple[Path, int, int]]:
    """A directory of a project that nobody had before: (its path, a descriptor of it, the id)."""
    project_id = 1000 + len(os.listdir(filesystem)) + int(time.monotonic() * 1000) % 100_000
    path = filesystem / f"project-{project_id}"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert quota.is_free(fd, project_id)
        quota.set_project(fd, project_id)
        yield path, fd, project_id
    finally:
        os.close(fd)
        run("rm", "-rf", path)


def kind_of(filesystem: Path) -> str:
    return run("findmnt", "-no", "FSTYPE", filesystem).strip()


def require_within(limit: int, path: Path, kind: str, used: int) -> None:
    """No byte of data is over the limit, and nothing else but what the filesystem never refuses."""
    on_disk = int(run("du", "--summarize", "--block-size=1", path).split()[0])
    assert max(on_disk, used) <= limit + TREE_BYTES[kind]
    assert sum(data_bytes(file) for file in path.rglob("*") if file.is_file()) <= limit


def data_bytes(file: Path) -> int:
    with open(file, "rb") as opened:
        return extents.allocated_bytes(opened.fileno()).total


def test_enforcement_is_seen(filesystem: Path) -> None:
    with open_directory(filesystem) as fd:
        assert quota.project_quota_enforced(fd)
        assert quota.project_quota_state(fd) is ProjectQuotaState.ENFORCED


@pytest.mark.parametrize("way", ["write", "append", "fallocate", "files", "sparse"])
def test_no_byte_is_written_over_the_limit(filesystem: Path, project: tuple[Path, int, int], way: str) -> None:
    path, fd, project_id = project
    limit = 8 * MIB
    quota.set_limit(fd, project_id, limit)
    failed_with = write(path, NOBODY, way)
    run("sync", "-f", path)
    used = quota.usage(fd, project_id).used_bytes
    assert failed_with in {errno.EDQUOT, errno.ENOSPC}
    kind = kind_of(filesystem)
    print(f"{kind} {way}: {errno.errorcode[failed_with]}, {used} of {limit}")
    require_within(limit, path, kind, used)
    assert used >= limit * 3 // 4
    assert reported(filesystem, project_id) == (used, limit)


def test_several_writers_at_once_stay_within_the_limit(filesystem: Path, project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    quota.set_limit(fd, project_id, 16 * MIB)
    command = [sys.executable, "-S", "-c", WRITER, str(path), str(NOBODY)]
    writers = [subprocess.Popen([*command, way, f"by-{way}"]) for way in ("write", "append", "files", "sparse")]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0, 0]
    run("sync", "-f", path)
    require_within(16 * MIB, path, kind_of(filesystem), quota.usage(fd, project_id).used_bytes)


def test_root_is_held_to_the_limit_by_xfs_and_not_by_ext4(filesystem: Path, project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    quota.set_limit(fd, project_id, 4 * MIB)
    failed_with = write(path, 0, "write")
    used = quota.usage(fd, project_id).used_bytes
    kind = kind_of(filesystem)
    print(f"{kind}, root with all capabilities: {errno.errorcode[failed_with]} at {used}")
    assert (used <= 4 * MIB) == (kind == "xfs")


def test_everything_created_in_it_is_charged_to_it(filesystem: Path, project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "file").write_bytes(b"x" * MIB)
    run("sync", "-f", path)
    for name in ("a", "a/b", "a/b/file"):
        inner = os.open(path / name, os.O_RDONLY)
        assert quota.get_project(inner) == project_id
        os.close(inner)
    assert run("lsattr", "-p", path / "a" / "b").split()[0] == str(project_id)
    found = quota.usage(fd, project_id)
    assert found.inodes_used == 4
    assert MIB <= found.used_bytes <= MIB + 4 * 4096


def test_a_limit_of_zero_removes_it_and_a_low_one_only_stops_growth(project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    quota.set_limit(fd, project_id, 4 * MIB)
    assert write(path, NOBODY, "write") in {errno.EDQUOT, errno.ENOSPC}
    quota.set_limit(fd, project_id, 0)
    assert quota.usage(fd, project_id).limit_bytes == 0
    (path / "more").write_bytes(b"x" * 8 * MIB)
    quota.set_limit(fd, project_id, MIB)
    assert write(path, NOBODY, "write", "other") in {errno.EDQUOT, errno.ENOSPC}
    assert quota.usage(fd, project_id).used_bytes >= 8 * MIB


def test_an_id_is_free_when_it_has_neither_limit_nor_file(project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    assert not quota.is_free(fd, project_id), "the directory itself bears it"
    quota.set_limit(fd, project_id, MIB)
    path.rename(path.with_name("elsewhere"))
    with open_directory(path.parent) as parent:
        tree.remove_tree(parent, "elsewhere")
        # Our descriptor keeps the inode of the removed directory, and its charge.
        assert not quota.is_free(parent, project_id)
    path.mkdir()
    quota.set_limit(fd, project_id, 0)


def test_an_id_is_free_again_after_its_removal(filesystem: Path) -> None:
    project_id = 4_000_000_000
    with open_directory(filesystem) as fd:
        (filesystem / "passing").mkdir()
        with open_directory(filesystem / "passing") as inner:
            quota.set_project(inner, project_id)
        quota.set_limit(fd, project_id, MIB)
        (filesystem / "passing" / "file").write_bytes(b"data")
        tree.remove_tree(fd, "passing")
        assert not quota.is_free(fd, project_id)
        quota.set_limit(fd, project_id, 0)
        until(lambda: quota.is_free(fd, project_id), what=lambda: quota.usage(fd, project_id))


def test_limits_are_rounded_down_to_whole_blocks(project: tuple[Path, int, int]) -> None:
    _, fd, project_id = project
    quota.set_limit(fd, project_id, 3 * 4096 + 4095)
    assert quota.usage(fd, project_id).limit_bytes == 3 * 4096
    with pytest.raises(OSError, match="less than one block"):
        quota.set_limit(fd, project_id, 4095)
    quota.set_limit(fd, project_id, 1 << 50)
    assert quota.usage(fd, project_id).limit_bytes == 1 << 50


def test_an_id_nobody_used_has_no_usage(filesystem: Path) -> None:
    with open_directory(filesystem) as fd:
        assert quota.usage(fd, 123_456_789) == QuotaUsage(0, 0, 0)
        assert quota.is_free(fd, 123_456_789)


def test_statvfs_of_the_directory_shows_the_limit(project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    quota.set_limit(fd, project_id, 10 * MIB)
    (path / "file").write_bytes(b"x" * 2 * MIB)
    run("sync", "-f", path)
    found = os.statvfs(path)
    assert found.f_blocks * found.f_frsize == 10 * MIB
    assert 7 * MIB <= found.f_bavail * found.f_frsize <= 8 * MIB


def test_limits_and_usage_survive_a_remount(tmp_path: Path) -> None:
    for kind in MKFS:
        with mounted(tmp_path / kind, kind, "prjquota", disk=SPARE) as path:
            with open_directory(path) as fd:
                (path / "project").mkdir()
                with open_directory(path / "project") as inner:
                    quota.set_project(inner, 77)
                quota.set_limit(fd, 77, 5 * MIB)
                (path / "project" / "file").write_bytes(b"x" * MIB)
            run("umount", path)
            run("mount", "-o", "prjquota", SPARE, path)
            with open_directory(path) as fd:
                found = quota.usage(fd, 77)
                assert (found.limit_bytes, found.inodes_used) == (5 * MIB, 2)
                assert found.used_bytes >= MIB


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    cases: list[tuple[str, str, list[str], ProjectQuotaState]] = [
        ("xfs", "defaults", [], ProjectQuotaState.OFF),
        ("xfs", "uquota", [], ProjectQuotaState.OFF),
        ("xfs", "pqnoenforce", [], ProjectQuotaState.COUNTED),
        ("xfs", "prjquota", [], ProjectQuotaState.ENFORCED),
        ("ext4", "defaults", ["mkfs.ext4", "-q", "-F"], ProjectQuotaState.OFF),
        ("ext4", "defaults", [], ProjectQuotaState.COUNTED),
        ("ext4", "prjquota", [], ProjectQuotaState.ENFORCED),
    ]
    for kind, options, mkfs, state in cases:
        place = mounted(tmp_path / "place", kind, options, mkfs=mkfs, disk=SPARE)
        with place as path, open_directory(path) as fd:
            assert quota.project_quota_state(fd) is state, (kind, options)
            assert quota.project_quota_enforced(fd) is (state is ProjectQuotaState.ENFORCED)
    with open_directory("/dev/shm") as fd:
        assert quota.project_quota_state(fd) is ProjectQuotaState.UNSUPPORTED
        with pytest.raises(OSError, match=r"not implemented|Invalid"):
            quota.usage(fd, 5)


def test_a_tree_of_many_projects_is_removed_at_any_depth(filesystem: Path, project: tuple[Path, int, int]) -> None:
    """Each level starts another project, so that no rename up is allowed at first."""
    path, _, _ = project
    victim = path / "victim"
    victim.mkdir()
    fd = os.open(victim, os.O_RDONLY)
    for level in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        quota.set_project(below, 200_000 + level % 7)
        os.close(fd)
        fd = below
    os.close(fd)
    (filesystem / "outside").mkdir(exist_ok=True)
    os.mkdir(path / "probe")
    with pytest.raises(OSError, match="cross-device"):
        (filesystem / "outside").rename(path / "probe" / "inside")
    with open_directory(path) as parent:
        tree.remove_tree(parent, "victim")
    assert not victim.exists()


def test_a_full_project_can_be_emptied(project: tuple[Path, int, int]) -> None:
    path, fd, project_id = project
    for branch in range(30):
        (path / "victim" / f"b{branch}" / "/".join("d" * 20)).mkdir(parents=True)
    run("chown", "-R", str(NOBODY), path)
    quota.set_limit(fd, project_id, 4 * MIB)
    assert write(path / "victim", NOBODY, "files") in {errno.EDQUOT, errno.ENOSPC}
    tree.remove_tree(fd, "victim")
    assert os.listdir(path) == []


def test_the_calls_take_microseconds(project: tuple[Path, int, int]) -> None:
    _, fd, project_id = project
    for call in (
        lambda: quota.project_quota_enforced(fd),
        lambda: quota.usage(fd, project_id),
        lambda: quota.set_limit(fd, project_id, MIB),
        lambda: quota.set_project(fd, project_id),
    ):
        start = time.perf_counter()
        for _ in range(200):
            call()
        print(f"{call.__code__.co_names[1]}: {(time.perf_counter() - start) / 200 * 1e6:.0f} us (in UML)")
