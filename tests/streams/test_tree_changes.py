"""Streams of directories relative to an earlier one, by themselves.

- Whatever was changed, the increment makes of the base exactly the target: contents, holes, names, kinds, modes,
  owners, times, attributes, links; behind the whole stream and on a base that is kept, which stays as it is.
- It has data only where something differs, told by content, or by where the data lie.
- A file that was rewritten is in it, whatever its size and its times are; one that became small takes little.
- Whatever is damaged, hostile or does not fit its base is refused, and leads nowhere.
- Memory is constant, however many files there are.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.errors import StreamDamaged
from csi_driver.linux import reflink, tree_copy
from csi_driver.streams import bases, tree_building, trees
from csi_driver.streams.frames import Data, Reader, Writer
from tests.harness import PoolPlace
from tests.random_trees import ACL, Gardener, differences, looks
from tests.streams.test_streams import TOP, header

MIB = 1 << 20
MakePool = Callable[..., PoolPlace]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def relative(content_id: str, base_id: str = "") -> Any:
    return dataclasses.replace(header("directory"), content_id=content_id, base_id=base_id)


def cut(top: Path, to: Path, *, share: bool) -> Path:
    """The tree as it is now."""
    to.mkdir()

    def copied(source_fd: int, target_fd: int, _: object) -> int:
        if share:
            reflink.clone_file(source_fd, target_fd)
            return 0
        return reflink.copy_sparse(source_fd, target_fd)

    with opened(top) as source_fd, opened(to) as target_fd:
        tree_copy.copy_tree(source_fd, target_fd, copied)
    return to


def whole(top: Path, content_id: str) -> bytes:
    with opened(top) as fd:
        return b"".join(trees.stream(relative(content_id), fd))


def increment(base: Path, target: Path, content_id: str, base_id: str, *, shares: bool) -> bytes:
    with opened(base) as base_fd, opened(target) as target_fd:
        pieces = list(trees.changes(relative(content_id, base_id), target_fd, base_fd, shares=shares))
    assert all(len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


def chained(stream: bytes, to: Path) -> Path:
    """The streams one behind the other, as an import takes them."""
    to.mkdir()
    with opened(to) as fd:
        reader: Reader | None = Reader([stream])
        assert reader is not None
        reader.may_be_followed = True
        tree_building.receive(reader, fd, progress=_nothing)
        while (reader := reader.following()) is not None:
            with closing(bases.Consumed(fd)) as consumed:
                tree_building.receive(reader, fd, progress=_nothing, base=consumed)
    return to


def applied(stream: bytes, base: Path, to: Path, *, share: bool = False) -> Path:
    """The stream on a base that stays as it is."""
    to.mkdir()
    with opened(to) as fd, opened(base) as base_fd, closing(bases.Kept(base_fd, share=share)) as kept:
        tree_building.receive(Reader([stream]), fd, progress=_nothing, base=kept)
    return to


def _nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("fs_type", ["host", "xfs", "btrfs"])
def test_increments_make_of_the_base_exactly_the_target(fs_type: str, make_pool: MakePool) -> None:
    place = make_pool(fs_type, 1 << 30)
    where = place.mount_point or place.directory
    where.mkdir(exist_ok=True)
    share = fs_type != "host"
    for seed in range(2):
        room = where / f"seed-{seed}"
        room.mkdir()
        gardener = Gardener(room / "top", seed)
        gardener.top.mkdir()
        gardener.grow(50)
        cuts = [cut(gardener.top, room / "cut-0", share=share)]
        streams = [whole(cuts[0], "0")]
        for number in (1, 2, 3):
            gardener.change(30)
            cuts.append(cut(gardener.top, room / f"cut-{number}", share=share))
            streams.append(increment(cuts[-2], cuts[-1], str(number), str(number - 1), shares=share))
        told = [looks(one) for one in cuts]
        for number in (1, 2, 3):
            on = applied(streams[number], cuts[number - 1], room / f"on-{number}", share=share)
            assert differences(looks(on), told[number]) == {}, (seed, number)
        assert differences(looks(chained(b"".join(streams), room / "chained")), told[3]) == {}, seed
        assert [looks(one) for one in cuts] == told
        shutil.rmtree(room)


def data_bytes(stream: bytes) -> int:
    return sum(len(record.content) for record in Reader([stream]) if isinstance(record, Data))


@pytest.mark.parametrize("fs_type", ["host", "xfs", "btrfs"])
def test_only_what_differs_is_sent(fs_type: str, make_pool: MakePool) -> None:
    place = make_pool(fs_type, 512 * MIB)
    where = place.mount_point or place.directory
    where.mkdir(exist_ok=True)
    share = fs_type != "host"
    top = where / "top"
    (top / "below").mkdir(parents=True)
    for number in range(20):
        (top / f"small-{number}").write_bytes(os.urandom(1000))
    (top / "below/large").write_bytes(os.urandom(8 * MIB))
    (top / "shrinking").write_bytes(os.urandom(8 * MIB))
    before = (top / "small-3").stat()
    base = cut(top, where / "base", share=share)
    with (top / "below/large").open("r+b") as file:
        os.pwrite(file.fileno(), b"new", 5 * MIB + 1)
    (top / "small-3").write_bytes(os.urandom(1000))
    os.utime(top / "small-3", ns=(before.st_atime_ns, before.st_mtime_ns))
    # The same again, in another place on the disk.
    (top / "small-4").write_bytes((top / "small-4").read_bytes())
    os.truncate(top / "shrinking", 5000)
    target = cut(top, where / "target", share=share)
    stream = increment(base, target, "1", "0", shares=share)
    assert data_bytes(stream) == 4096 + 1000
    assert len(stream) < 16_000
    made = applied(stream, base, where / "made", share=share)
    assert differences(looks(made), looks(target)) == {}
    assert (made / "shrinking").stat().st_blocks * 512 <= 65536


def test_the_base_may_be_elsewhere(make_pool: MakePool) -> None:
    place = make_pool("xfs", 512 * MIB)
    other = make_pool("btrfs", 512 * MIB)
    assert place.mount_point is not None
    assert other.mount_point is not None
    gardener = Gardener(place.mount_point / "top", 7)
    gardener.top.mkdir()
    gardener.grow(30)
    base = cut(gardener.top, other.mount_point / "base", share=False)
    gardener.change(20)
    stream = increment(base, gardener.top, "1", "0", shares=True)
    made = applied(stream, base, place.mount_point / "made")
    assert differences(looks(made), looks(gardener.top)) == {}


FILE = {**TOP, "name": "file", "kind": "file", "from_base": True}
BELOW = {**TOP, "name": "below", "kind": "directory"}


def stream_of(*records: dict[str, Any] | bytes | tuple[int, int] | None) -> bytes:
    """A sound relative stream: entries, data at 0, zeros, and None for the end of what is open."""
    writer = Writer()
    parts = [writer.begin(relative("1", "0"))]
    for record in records:
        if record is None:
            parts.append(writer.leave())
        elif isinstance(record, bytes):
            parts.append(writer.data(0, record))
        elif isinstance(record, tuple):
            parts.append(writer.zeros(*record))
        else:
            parts.append(writer.entry(record))
    return b"".join([*parts, writer.end()])


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([TOP, {**FILE, "name": "../outside"}, None, None], id="slash"),
        pytest.param([TOP, {**FILE, "name": ".."}, None, None], id="dots"),
        pytest.param([TOP, {**FILE, "name": "missing"}, None, None], id="missing"),
        pytest.param([TOP, {**FILE, "name": "link"}, None, None], id="a link to a file"),
        pytest.param([TOP, {**FILE, "name": "fifo"}, None, None], id="no file"),
        pytest.param([TOP, {**BELOW, "name": "way"}, FILE, None, None, None], id="below a link"),
        pytest.param([TOP, BELOW, {**FILE, "name": "other"}, None, None, None], id="in another directory"),
        pytest.param([TOP, {**BELOW, "name": "file"}, FILE, None, None, None], id="below a file"),
        pytest.param([TOP, {**FILE, "size": -1}, None, None], id="size"),
        pytest.param([TOP, FILE, (0, 5), None, None], id="zeros behind the end"),
        pytest.param([TOP, FILE, b"12345", None, None], id="data behind the end"),
        pytest.param([TOP, {**FILE, "from_base": False}, (0, 4), None, None], id="zeros in a new file"),
        pytest.param([TOP, BELOW, (0, 4), None, None], id="zeros in a directory"),
        pytest.param([TOP, (0, 4), None], id="zeros at the top"),
    ],
)
@pytest.mark.parametrize("way", ["kept", "consumed"])
def test_what_does_not_fit_its_base_is_refused(way: str, records: list[Any], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"kept")
    base = tmp_path / "base"
    (base / "below").mkdir(parents=True)
    (base / "file").write_bytes(b"base")
    (base / "other").write_bytes(b"base")
    os.symlink(outside / "file", base / "link")
    os.symlink(outside, base / "way")
    os.mkfifo(base / "fifo")
    stream = stream_of(*records)
    with pytest.raises(StreamDamaged):
        applied(stream, base, tmp_path / "made") if way == "kept" else chained(
            whole(base, "0") + stream, tmp_path / "made"
        )
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "made", "outside"]


def test_a_file_of_its_base_is_in_a_relative_stream_only(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with opened(tmp_path / "made") as fd, pytest.raises(StreamDamaged, match="incremental"):
        tree_building.receive(Reader([stream_of(TOP, FILE, None, None)]), fd, progress=_nothing)


def test_one_file_is_not_taken_twice(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "file").write_bytes(b"base")
    os.link(base / "file", base / "other")
    twice = stream_of(TOP, FILE, b"new", None, {**FILE, "name": "other"}, None, None)
    with pytest.raises(StreamDamaged, match="twice"):
        chained(whole(base, "0") + twice, tmp_path / "made")
    made = applied(twice, base, tmp_path / "split")
    assert [(made / name).read_bytes() for name in ("file", "other")] == [b"newe", b"base"]


def test_a_default_acl_of_the_base_is_not_inherited(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    for top in (base, target):
        (top / "below").mkdir(parents=True)
        (top / "file").write_bytes(b"same")
    os.setxattr(base, "system.posix_acl_default", ACL)
    os.chmod(base, 0o2777)
    (target / "below/new").write_bytes(b"new")
    stream = whole(base, "0") + increment(base, target, "1", "0", shares=False)
    assert differences(looks(chained(stream, tmp_path / "made")), looks(target)) == {}


def test_memory_is_constant(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    for top in (base, target):
        for number in range(15):
            (top / str(number)).mkdir(parents=True)
            for name in range(15):
                (top / str(number) / str(name)).write_bytes(b"x")
    (base / "large").write_bytes(os.urandom(MIB) * 16)
    (target / "large").write_bytes(os.urandom(MIB) * 16)

    def pieces() -> Iterator[bytes]:
        with opened(base) as base_fd, opened(target) as target_fd:
            yield from trees.changes(relative("1", "0"), target_fd, base_fd, shares=False)

    made = tmp_path / "made"
    made.mkdir()
    tracemalloc.start()
    try:
        with opened(made) as fd, opened(base) as base_fd, closing(bases.Kept(base_fd, share=False)) as kept:
            tree_building.receive(Reader(pieces()), fd, progress=_nothing, base=kept)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert differences(looks(made), looks(target)) == {}
