"""The mark of a directory tree.

- Reading, sharing and copying leave it as it is, and it is the same for whoever looks again.
- Every change shows, at the top and deep below, even one that puts the size and the times back.
- A copy has another; nothing outside is looked at; any depth takes the same descriptors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.linux import tree_mark

Change = Callable[[Path], object]


def mark(top: Path) -> str:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return tree_mark.mark(fd)
    finally:
        os.close(fd)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    deep = top / "/".join(["deep"] * 300)
    deep.mkdir(parents=True)
    (top / "beside").mkdir()
    (deep / "file").write_bytes(b"content")
    os.link(deep / "file", top / "linked")
    os.symlink("/", top / "beside" / "out")
    os.mkfifo(top / "beside" / "pipe")
    return top


def bottom(top: Path) -> Path:
    return top / "/".join(["deep"] * 300)


def rewritten(top: Path) -> None:
    path = bottom(top) / "file"
    found = path.stat()
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


CHANGES: dict[str, Change] = {
    "content": rewritten,
    "size": lambda top: os.truncate(top / "linked", 3),
    "new": lambda top: (bottom(top) / "new").touch(),
    "gone": lambda top: (top / "beside" / "pipe").unlink(),
    "name": lambda top: (top / "beside").rename(top / "other"),
    "mode": lambda top: (top / "beside" / "pipe").chmod(0o600),
    "attribute": lambda top: os.setxattr(bottom(top), "user.name", b"x"),
    "top": lambda top: top.chmod(0o711),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_shows(kind: str, top: Path) -> None:
    before = mark(top)
    CHANGES[kind](top)
    assert mark(top) != before


def test_looks_leave_it_as_it_is_and_a_copy_has_another(top: Path, tmp_path: Path) -> None:
    before = mark(top)
    assert (bottom(top) / "file").read_bytes() == b"content"
    # As a commit moves what was built.
    (tmp_path / "room").mkdir()
    shutil.copytree(top, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    assert mark(top) == before
    copies = [tmp_path / "copy", tmp_path / "room"]
    assert len({before, *map(mark, copies)}) == 3
