"""Project quotas where the kernel may have none: ids and projects work, and the probe says what is missing.

What needs a kernel with quotas is in `tests/uml/guest_quota.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import attributes, quota
from csi_driver.linux.quota import ProjectQuotaState

from .filesystem_images import MIB, mounted, opened, run


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """XFS, which has projects in every kernel; ext4 made for them needs CONFIG_QUOTA to be mounted."""
    with mounted(tmp_path_factory.mktemp("projects"), "xfs") as path:
        yield path


def test_structures_and_numbers_are_those_of_the_headers() -> None:
    assert (quota.DQBLK.size, quota.STATV.size, quota.DQINFO.size) == (72, 160, 24)
    assert quota.Q_XGETQSTATV == 0x5808
    assert attributes.FS_IOC_FSGETXATTR == 0x801C581F
    assert attributes.FS_IOC_FSSETXATTR == 0x401C5820


def test_without_the_mount_option_nothing_is_enforced(filesystem: Path) -> None:
    with opened(filesystem) as fd:
        assert not quota.project_quota_enforced(fd)
        assert quota.project_quota_state(fd) in {ProjectQuotaState.UNSUPPORTED, ProjectQuotaState.OFF}


def test_filesystems_without_projects_are_unsupported(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs") as path, opened(path) as btrfs, opened("/dev/shm") as tmpfs:
        assert quota.project_quota_state(btrfs) is ProjectQuotaState.UNSUPPORTED
        assert quota.project_quota_state(tmpfs) is ProjectQuotaState.UNSUPPORTED


def test_usage_and_limits_are_errors_where_nothing_is_counted(filesystem: Path) -> None:
    with opened(filesystem) as fd:
        with pytest.raises(OSError, match=r"not implemented|No such process"):
            quota.usage(fd, 5)
        with pytest.raises(OSError, match=r"not implemented|No such process"):
            quota.set_limit(fd, 5, MIB)


@pytest.mark.parametrize("project_id", [-1, 0, 0xFFFFFFFF, 1 << 40])
def test_what_is_no_project_id_is_refused(filesystem: Path, project_id: int) -> None:
    with opened(filesystem) as fd:
        for call in (quota.usage, quota.is_free, quota.set_project):
            with pytest.raises(OSError, match="no project id"):
                call(fd, project_id)
        with pytest.raises(OSError, match="no project id"):
            quota.set_limit(fd, project_id, MIB)


@pytest.mark.parametrize("limit", [-1, 1, 1023])
def test_a_limit_of_less_than_a_block_is_refused(filesystem: Path, limit: int) -> None:
    with opened(filesystem) as fd, pytest.raises(OSError, match="less than one block"):
        quota.set_limit(fd, 5, limit)


def test_a_directory_and_what_is_created_in_it_bear_the_project(projects: Path) -> None:
    path = projects / "project"
    path.mkdir()
    with opened(path) as fd:
        assert quota.get_project(fd) == 0
        quota.set_project(fd, quota.GREATEST_PROJECT_ID)
        assert attributes.get_project_attributes(fd).inherited
    (path / "sub").mkdir()
    (path / "sub" / "file").write_bytes(b"data")
    with opened(path / "sub" / "file") as fd:
        assert quota.get_project(fd) == quota.GREATEST_PROJECT_ID
        quota.set_project(fd, 4711)
    assert run("lsattr", "-p", path / "sub").split()[0] == "4711"
    assert "P" in run("lsattr", "-d", path).split()[0]


def test_other_attributes_stay(projects: Path) -> None:
    path = projects / "attributes"
    path.mkdir()
    run("chattr", "+Ad", path)
    with opened(path) as fd:
        quota.set_project(fd, 7)
    assert {"A", "d", "P"} <= set(run("lsattr", "-d", path).split()[0])


def test_a_filesystem_without_projects_refuses_one(tmp_path: Path) -> None:
    with mounted(tmp_path, "ext4") as path, opened(path) as fd, pytest.raises(OSError, match="not supported"):
        quota.set_project(fd, 5)
