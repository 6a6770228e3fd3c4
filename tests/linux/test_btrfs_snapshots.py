"""Snapshots of subvolumes: of one instant, read-only or not, and the sign of what they would leave out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import btrfs, btrfs_snapshots

from .conftest import fails_with
from .filesystem_images import mounted, opened, run


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("btrfs"), "btrfs") as path:
        yield path


@pytest.fixture
def place(filesystem: Path) -> Iterator[Path]:
    path = filesystem / "place"
    path.mkdir()
    run("btrfs", "subvolume", "create", path / "source")
    yield path
    for name in sorted(path.rglob("*"), reverse=True):
        if name.stat().st_ino == 256:
            run("btrfs", "subvolume", "delete", name)
    run("rm", "--recursive", "--force", "--", path)


def snapshot(place: Path, name: str, *, read_only: bool) -> None:
    with opened(place / "source", os.O_RDONLY) as source, opened(place, os.O_RDONLY) as parent:
        btrfs_snapshots.snapshot(source, parent, name, read_only=read_only)


def test_a_snapshot_holds_what_was_written_before(place: Path) -> None:
    (place / "source/file").write_text("before")
    snapshot(place, "cut", read_only=True)
    (place / "source/file").write_text("after")
    assert (place / "cut/file").read_text() == "before"
    assert "ro=true" in run("btrfs", "property", "get", place / "cut", "ro")
    with fails_with(errno.EROFS):
        (place / "cut/file").write_text("again")


def test_a_writable_one_has_a_life_of_its_own(place: Path) -> None:
    (place / "source/file").write_text("before")
    snapshot(place, "twin", read_only=False)
    (place / "twin/file").write_text("twin")
    assert (place / "source/file").read_text() == "before"


def test_subvolumes_inside_are_seen(place: Path) -> None:
    with opened(place / "source", os.O_RDONLY) as source:
        assert not btrfs_snapshots.holds_subvolumes(source)
        run("btrfs", "subvolume", "create", place / "source/inner")
        assert btrfs_snapshots.holds_subvolumes(source)
        run("btrfs", "subvolume", "delete", place / "source/inner")
        assert not btrfs_snapshots.holds_subvolumes(source)


def test_what_is_no_subvolume_is_refused(place: Path) -> None:
    (place / "plain").mkdir()
    with opened(place / "plain", os.O_RDONLY) as source, opened(place, os.O_RDONLY) as parent:
        with fails_with(errno.EINVAL):
            btrfs_snapshots.snapshot(source, parent, "cut", read_only=True)
        assert not btrfs.is_subvolume(source)
        for name in ("", ".", "a/b", "x" * 300):
            with fails_with(errno.EINVAL):
                btrfs_snapshots.snapshot(source, parent, name, read_only=True)


def test_the_request_has_the_kernels_number() -> None:
    assert (btrfs_snapshots.BTRFS_IOC_SNAP_CREATE_V2, btrfs_snapshots.VOL_ARGS_V2.size) == (0x50009417, 4096)
