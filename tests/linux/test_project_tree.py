"""A tree charged to a project: all files and directories of it, nothing else, and what is hostile is left alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import project_tree
from csi_driver.linux.attributes import get_project_attributes

from .filesystem_images import mounted, opened, run


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """XFS, which has projects in every kernel."""
    with mounted(tmp_path_factory.mktemp("tree"), "xfs") as path:
        yield path


def project(path: Path) -> tuple[int, bool]:
    with opened(path) as fd:
        found = get_project_attributes(fd)
    return found.project_id, found.inherited


def test_everything_in_the_tree_is_charged_and_what_is_made_later_too(filesystem: Path) -> None:
    top, outside = filesystem / "top", filesystem / "outside"
    (top / "a/b").mkdir(parents=True)
    for path in (top / "file", top / "a/b/file", outside):
        path.write_bytes(b"x")
    os.symlink(outside, top / "symlink")
    os.symlink(filesystem, top / "a/directory")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket"))
    with opened(top) as fd:
        for inherited in (True, True, False):
            project_tree.charge_tree(fd, 4711, inherited=inherited)
            assert {project(path) for path in (top, top / "a", top / "a/b")} == {(4711, inherited)}
            assert {project(path) for path in (top / "file", top / "a/b/file")} == {(4711, False)}
        project_tree.charge_tree(fd, 4712, inherited=True)
    (top / "a/later").mkdir()
    assert project(top / "a/later") == (4712, True)
    assert {project(outside), project(filesystem)} == {(0, False)}


def test_no_mount_point_is_crossed(filesystem: Path) -> None:
    top, inside = filesystem / "crossed", filesystem / "crossed/inside"
    inside.mkdir(parents=True)
    elsewhere = filesystem / "elsewhere"
    elsewhere.mkdir()
    run("mount", "--bind", str(elsewhere), str(inside))
    try:
        with opened(top) as fd, pytest.raises(OSError, match="cross-device") as caught:
            project_tree.charge_tree(fd, 4711, inherited=True)
    finally:
        run("umount", str(inside))
    assert caught.value.errno == errno.EXDEV
    assert project(elsewhere) == (0, False)
