"""Removing a hostile tree: all of it, nothing else, at any depth, and never across a mount."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import btrfs, tree

from .filesystem_images import MIB, mounted, opened, run


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture
def place(filesystem: Path) -> Iterator[Path]:
    """A directory that is empty before and after."""
    path = filesystem / "place"
    path.mkdir()
    yield path
    path.rmdir()


def remove(path: Path) -> None:
    with opened(path.parent) as parent:
        tree.remove_tree(parent, path.name)


def test_every_kind_of_entry_is_removed(place: Path) -> None:
    victim = place / "victim"
    (victim / "sub" / "empty").mkdir(parents=True)
    (victim / "file").write_bytes(b"data")
    (victim / "sub" / "file").write_bytes(b"data")
    os.link(victim / "file", victim / "sub" / "hard link")
    os.mkfifo(victim / "fifo")
    os.mknod(victim / "device", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    os.mknod(victim / "sub" / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(os.fspath(victim / "socket"))
    (victim / "dangling").symlink_to("nowhere")
    (victim / os.fsdecode(b"\xff\n\x01")).mkdir()
    (victim / os.fsdecode(b"\xff\n\x01") / ("n" * 255)).write_bytes(b"")
    remove(victim)
    assert os.listdir(place) == []


def test_symbolic_links_are_removed_and_what_they_point_to_stays(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"data")
    victim = place / "victim"
    victim.mkdir()
    (victim / "link").symlink_to(outside)
    (victim / "up").symlink_to("..")
    remove(victim)
    assert (outside / "precious").read_bytes() == b"data"
    (place / "link itself").symlink_to(outside)
    remove(place / "link itself")
    assert (outside / "precious").read_bytes() == b"data"


def test_a_single_file_and_nothing_at_all_are_fine(place: Path) -> None:
    (place / "file").write_bytes(b"data")
    remove(place / "file")
    remove(place / "file")
    remove(place / "never was")
    assert os.listdir(place) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_what_is_no_name_of_an_entry_is_refused(place: Path, name: str) -> None:
    with opened(place) as parent, pytest.raises(OSError, match="no name"):
        tree.remove_tree(parent, name)


def make_chain(top: Path, depth: int) -> None:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(depth):
        os.mkdir("d", dir_fd=fd)
        if level % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_chain_deeper_than_any_path_is_removed_with_few_descriptors(place: Path) -> None:
    make_chain(place / "victim", 6000)
    script = (
        "import os, resource, sys\n"
        "from csi_driver.linux import tree\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
        "tree.remove_tree(os.open(sys.argv[1], os.O_RDONLY), 'victim')\n"
    )
    subprocess.run([sys.executable, "-c", script, place], check=True, timeout=120, cwd=Path(__file__).parents[2])
    assert os.listdir(place) == []


def test_twenty_thousand_files_in_one_directory_take_seconds(place: Path) -> None:
    victim = place / "victim"
    (victim / "wide").mkdir(parents=True)
    with opened(victim / "wide") as fd:
        for number in range(20_000):
            os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    start = time.monotonic()
    remove(victim)
    assert os.listdir(place) == []
    assert time.monotonic() - start < 30


def test_a_wide_and_deep_tree_is_removed(place: Path) -> None:
    for first in range(12):
        for second in range(12):
            deep = place / "victim" / str(first) / str(second) / "x" / "y"
            deep.mkdir(parents=True)
            (deep / "file").write_bytes(b"data")
    remove(place / "victim")
    assert os.listdir(place) == []


def test_immutable_and_append_only_entries_are_removed(place: Path) -> None:
    victim = place / "victim"
    (victim / "frozen" / "sub" / "deeper").mkdir(parents=True)
    (victim / "frozen" / "sub" / "file").write_bytes(b"data")
    (victim / "frozen" / "log").write_bytes(b"data")
    (victim / "frozen" / "full").mkdir()
    (victim / "frozen" / "full" / "file").write_bytes(b"data")
    run("chattr", "+i", victim / "frozen" / "sub" / "file", victim / "frozen" / "sub" / "deeper")
    run("chattr", "+a", victim / "frozen" / "log", victim / "frozen" / "full")
    run("chattr", "+i", victim / "frozen" / "sub", victim / "frozen", victim)
    remove(victim)
    assert os.listdir(place) == []


def test_the_flags_of_the_directory_around_it_stay(place: Path) -> None:
    (place / "victim").mkdir()
    run("chattr", "+i", place)
    try:
        with pytest.raises(PermissionError):
            remove(place / "victim")
        assert "i" in run("lsattr", "-d", place).split()[0]
    finally:
        run("chattr", "-i", place)
    remove(place / "victim")


@pytest.mark.parametrize("where", ["mounted", "sub/mounted", "sub/deep/er/mounted"])
def test_a_mount_inside_is_refused_before_anything_is_removed(place: Path, tmp_path: Path, where: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "precious").write_bytes(b"data")
    target = place / "vic tim" / where
    target.mkdir(parents=True)
    (place / "vic tim" / "file").write_bytes(b"data")
    run("mount", "--bind", source, target)
    try:
        with pytest.raises(OSError, match="mount point is inside") as caught:
            remove(place / "vic tim")
        assert caught.value.filename == os.fspath(target)
        assert (place / "vic tim" / "file").read_bytes() == b"data"
        assert (source / "precious").read_bytes() == b"data"
    finally:
        run("umount", target)
    remove(place / "vic tim")
    assert (source / "precious").read_bytes() == b"data"


def test_a_mount_that_comes_after_the_look_is_not_crossed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "precious").write_bytes(b"data")
    target = place / "victim" / "a" / "b"
    target.mkdir(parents=True)
    run("mount", "--bind", source, target)
    monkeypatch.setattr(tree, "_refuse_mounts", lambda path: None)
    try:
        with pytest.raises(OSError, match="busy") as caught:
            remove(place / "victim")
        assert caught.value.filename == os.fspath(target)
        with opened(target.parent) as parent, pytest.raises(OSError, match="it is a mount point"):
            tree._opened_directory(parent, "b").__enter__()
    finally:
        run("umount", target)
    assert (source / "precious").read_bytes() == b"data"
    assert (source / "sub").is_dir()
    remove(place / "victim")


def test_a_mount_at_the_top_and_a_mounted_file_are_refused(place: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    victim = place / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"")
    run("mount", "--bind", source, victim / "file")
    try:
        with pytest.raises(OSError, match="busy") as caught:
            remove(victim)
        assert caught.value.filename == os.fspath(victim / "file")
    finally:
        run("umount", victim / "file")
    run("mount", "-t", "tmpfs", "none", victim)
    try:
        with pytest.raises(OSError, match="busy"):
            remove(victim)
    finally:
        run("umount", victim)
    assert source.read_bytes() == b"data"
    remove(victim)


def test_an_interrupted_removal_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for branch in range(5):
        make_chain(place / f"victim{branch}", 20)
    (place / "victim").mkdir()
    for branch in range(5):
        (place / f"victim{branch}").rename(place / "victim" / str(branch))
    rename, calls = os.rename, 0

    def failing(*arguments: object, **named: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise OSError(5, "injected")
        rename(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", failing)
    failures = 0
    while (place / "victim").exists():
        try:
            remove(place / "victim")
        except OSError as error:
            failures += error.errno == 5
    assert failures >= 5


def test_names_that_cannot_be_renamed_up_are_emptied_where_they_are(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for branch in range(3):
        for depth in range(1, 8):
            (place / "victim" / str(branch) / "/".join("d" * depth)).mkdir(parents=True, exist_ok=True)

    def refusing(*arguments: object, **named: object) -> None:
        raise OSError(28, "injected")

    monkeypatch.setattr(os, "rename", refusing)
    remove(place / "victim")
    assert os.listdir(place) == []


def make_subvolume(path: Path) -> None:
    with opened(path.parent) as parent:
        btrfs.create_subvolume(parent, path.name)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("btrfs"), "btrfs") as path:
        yield path


def test_nested_subvolumes_are_removed_at_any_depth(pool: Path) -> None:
    victim = pool / "victim"
    victim.mkdir()
    here = victim
    for level in range(60):
        make_subvolume(here / "sub")
        (here / "sub" / "plain" / "deep").mkdir(parents=True)
        (here / "sub" / "plain" / "deep" / "file").write_bytes(b"data")
        here = here / "sub" / "plain" / "deep" if level % 2 else here / "sub"
    remove(victim)
    assert not victim.exists()
    assert run("btrfs", "subvolume", "list", pool) == ""


def test_read_only_subvolumes_are_removed(pool: Path) -> None:
    make_subvolume(pool / "victim")
    for name in ("a", "a/b", "a/b/c"):
        (pool / "victim" / name / "plain").mkdir(parents=True, exist_ok=True)
        make_subvolume(pool / "victim" / name / "plain" / "frozen")
    make_subvolume(pool / "victim" / "a" / "plain" / "frozen" / "inner")
    (pool / "victim" / "a" / "plain" / "frozen" / "inner" / "file").write_bytes(b"data")
    for frozen in ("a/plain/frozen/inner", "a/plain/frozen", "a/b/c/plain/frozen", "."):
        run("btrfs", "property", "set", pool / "victim" / frozen, "ro", "true")
    remove(pool / "victim")
    assert not (pool / "victim").exists()
    assert run("btrfs", "subvolume", "list", pool) == ""


def test_a_snapshot_of_what_is_removed_stays(pool: Path) -> None:
    make_subvolume(pool / "victim")
    (pool / "victim" / "file").write_bytes(b"data")
    run("btrfs", "subvolume", "snapshot", pool / "victim", pool / "kept")
    remove(pool / "victim")
    assert (pool / "kept" / "file").read_bytes() == b"data"
    remove(pool / "kept")


def test_a_full_filesystem_can_be_emptied(tmp_path: Path) -> None:
    with mounted(tmp_path, "ext4", size=64 * MIB) as path:
        (path / "victim").mkdir()
        for branch in range(20):
            make_chain(path / "victim" / f"b{branch}", 30)
        assert subprocess.run(["dd", "if=/dev/zero", f"of={path}/victim/ballast", "bs=64k"], check=False).returncode
        remove(path / "victim")
        assert not (path / "victim").exists()
