"""Streams of contents by themselves: what is damaged is found, and what is hostile does nothing.

- A stream that is cut off anywhere, has any byte changed, or goes on behind its end is refused.
- An image arrives with its holes; a directory with everything that files are.
- An entry that would lead out of its directory, stands in a file, or has no kind is refused.
- What is no stream of this kind is refused; so is one behind another that is not relative to that, or of another kind.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from csi_driver.errors import StreamDamaged
from csi_driver.streams import images, layout, tree_building, trees
from csi_driver.streams.frames import Reader, Writer
from csi_driver.streams.header import Header

MIB = 1 << 20


def header(volume_type: str, size_bytes: int = 8 * MIB) -> Header:
    return Header(
        volume_type=volume_type,
        access_type="mount",
        fs_type="",
        size_bytes=size_bytes,
        content_id="content",
        source_id="source",
        source_volume_id="volume",
        name="name",
        created_at=1.5,
    )


def image(where: Path) -> Path:
    path = where / "image"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for offset in (0, 3 * MIB, 8 * MIB - 4096):
            os.pwrite(file.fileno(), os.urandom(4096), offset)
    return path


def sent(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        make = images.stream if path.is_file() else trees.stream
        pieces = list(make(header("image" if path.is_file() else "directory"), fd))
    finally:
        os.close(fd)
    assert all(len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


def received(chunks: Iterable[bytes], where: Path) -> Path:
    reader = Reader(chunks)
    if reader.header.is_image:
        target = where / "copy"
        with target.open("xb") as file:
            file.truncate(reader.header.size_bytes)
            images.receive(reader, file.fileno(), reader.header.size_bytes, is_incremental=False, progress=_nothing)
    else:
        target = where / "copied"
        target.mkdir()
        fd = os.open(target, os.O_RDONLY)
        try:
            tree_building.receive(reader, fd, progress=_nothing)
        finally:
            os.close(fd)
    return target


def _nothing(_: int) -> None:
    pass


def test_an_image_arrives_with_its_holes(tmp_path: Path) -> None:
    source = image(tmp_path)
    stream = sent(source)
    assert len(stream) < 100_000
    copy = received((stream[at : at + 1000] for at in range(0, len(stream), 1000)), tmp_path)
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks < 1024


def test_a_stream_that_is_cut_off_or_changed_anywhere_is_refused(tmp_path: Path) -> None:
    stream = sent(image(tmp_path))
    places = [*range(0, 400, 7), *range(400, len(stream), 997), *range(len(stream) - 200, len(stream), 7)]
    for number, place in enumerate(places):
        where = tmp_path / str(number)
        where.mkdir()
        with pytest.raises(StreamDamaged):
            received([stream[:place]], where)
        flipped = bytes([stream[place] ^ 0x10])
        for file in where.iterdir():
            file.unlink()
        with pytest.raises(StreamDamaged):
            received([stream[:place], flipped, stream[place + 1 :]], where)
    last = tmp_path / "last"
    last.mkdir()
    with pytest.raises(StreamDamaged, match="something follows its end"):
        received([stream, b"x"], last)


def test_a_frame_that_is_left_out_or_moved_is_refused(tmp_path: Path) -> None:
    fd = os.open(image(tmp_path), os.O_RDONLY)
    pieces = list(images.stream(header("image"), fd))
    os.close(fd)
    for number, wrong in enumerate(([*pieces[:1], *pieces[2:]], [pieces[0], pieces[2], pieces[1], *pieces[3:]])):
        where = tmp_path / str(number)
        where.mkdir()
        with pytest.raises(StreamDamaged):
            received(wrong, where)


def test_a_directory_arrives_with_everything_that_files_are(tmp_path: Path) -> None:
    top = tmp_path / "top"
    deep = top / "/".join(["deep"] * 200)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"content")
    os.link(deep / "file", top / "linked")
    os.link(deep / "file", top / "linked again")
    os.symlink("/etc/passwd", top / "symbolic")
    odd = os.fsencode(top) + b"/\xff\n\xc3"
    Path(os.fsdecode(odd)).write_bytes(b"odd")
    os.setxattr(deep / "file", "user.name", b"\0\xff")
    os.setxattr(top, "user.top", b"kept")
    os.mknod(top / "device", 0o020640, os.makedev(1, 3))
    os.chown(top / "symbolic", 5, 6, follow_symlinks=False)
    os.chmod(top / "deep", 0o2751)
    os.utime(top, ns=(3, 4_000_000_005))
    copy = received([sent(top)], tmp_path)
    names = sorted(os.listdir(os.fsencode(top)))
    assert sorted(os.listdir(os.fsencode(copy))) == names
    for name in (b".", b"deep", *names):
        one, other = (os.lstat(os.fsencode(where) + b"/" + name) for where in (top, copy))
        same = ("st_mode", "st_uid", "st_gid", "st_nlink", "st_rdev", "st_mtime_ns")
        assert [getattr(one, key) for key in same] == [getattr(other, key) for key in same], name
    assert os.readlink(copy / "symbolic") == "/etc/passwd"
    bottom = copy / "/".join(["deep"] * 200)
    assert (bottom / "file").samefile(copy / "linked")
    assert (bottom / "file").read_bytes() == b"content"
    assert os.getxattr(bottom / "file", "user.name") == b"\0\xff"
    assert os.getxattr(copy, "user.top") == b"kept"


NUMBERS = {"mode": 0o700, "uid": 0, "gid": 0, "atime": 0, "mtime": 0, "size": 4, "device": 0}
TOP = {"name": "", "kind": "directory", **NUMBERS}


def entries(*records: dict[str, Any] | None) -> bytes:
    """A sound stream of entries, each None being the end of the last; nothing but its entries is wrong."""
    writer = Writer()
    parts = [writer.begin(header("directory"))]
    parts += [writer.leave() if record is None else writer.entry(record) for record in records]
    return b"".join([*parts, writer.end()])


@pytest.mark.parametrize(
    "records",
    [
        [TOP, {**TOP, "name": ".."}, None, None],
        [TOP, {**TOP, "name": "."}, None, None],
        [TOP, {**TOP, "name": "a/b"}, None, None],
        [TOP, {**TOP, "name": ""}, None, None],
        [TOP, {**TOP, "name": "a\0b"}, None, None],
        [TOP, {**TOP, "name": "\u20ac"}, None, None],
        [TOP, {**TOP, "name": 7}, None, None],
        [TOP, {**TOP, "name": "a", "kind": "door"}, None, None],
        [TOP, {**TOP, "name": "a", "kind": "file", "mode": "x"}, None, None],
        [TOP, {**TOP, "name": "a", "kind": "file"}, {**TOP, "name": "b"}, None, None, None],
        [TOP, {**TOP, "name": "a", "kind": "symbolic link"}, None, None],
        [{**TOP, "kind": "file"}, None],
        [TOP],
        [TOP, None, TOP, None],
        [None],
        [],
    ],
)
def test_an_entry_that_cannot_be_is_refused(records: list[dict[str, Any] | None], tmp_path: Path) -> None:
    with pytest.raises(StreamDamaged):
        received([entries(*records)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied"]


def test_a_symbolic_link_in_the_stream_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = {**TOP, "name": "a", "kind": "symbolic link", "target": str(outside)}
    with pytest.raises(OSError):
        received([entries(TOP, link, None, {**TOP, "name": "a"}, None, None)], tmp_path)
    assert list(outside.iterdir()) == []


def test_zeros_make_a_hole_in_a_base_and_nowhere_else(tmp_path: Path) -> None:
    writer = Writer()
    stream = writer.begin(header("image")) + writer.zeros(0, MIB) + writer.data(2 * MIB, b"new") + writer.end()
    with pytest.raises(StreamDamaged):
        received([stream], tmp_path)
    with (tmp_path / "base").open("w+b") as file:
        file.write(os.urandom(8 * MIB))
        images.receive(Reader([stream]), file.fileno(), 8 * MIB, is_incremental=True, progress=_nothing)
        assert os.pread(file.fileno(), MIB, 0) == bytes(MIB)
        assert os.pread(file.fileno(), 3, 2 * MIB) == b"new"


def test_data_outside_of_the_content_are_refused(tmp_path: Path) -> None:
    for number, (offset, content) in enumerate([(8 * MIB, b"x"), (1 << 63, b"x"), (8 * MIB - 1, b"xy")]):
        writer = Writer()
        stream = writer.begin(header("image")) + writer.data(offset, content) + writer.end()
        where = tmp_path / str(number)
        where.mkdir()
        with pytest.raises(StreamDamaged):
            received([stream], where)


def test_a_header_that_cannot_be_is_refused() -> None:
    good = header("image").encoded()
    wrong = (
        (b'"volume_type":"image"', b'"volume_type":"house"'),
        (b'"block_size":4096', b'"block_size":4097'),
        (b'"name":"name"', b'"name":7'),
        (b'"size_bytes":8388608', b'"size_bytes":-1'),
        (b"{", b"["),
    )
    assert Header.decoded(good) == header("image")
    for sound, damaged in wrong:
        assert sound in good
        with pytest.raises(StreamDamaged):
            Header.decoded(good.replace(sound, damaged, 1))


def test_a_frame_of_another_kind_or_length_is_refused() -> None:
    def frame(kind: int, payload: bytes) -> bytes:
        head = layout.PLACE.pack(1, kind, len(payload))
        return layout.HEAD.pack(kind, len(payload), zlib.crc32(payload, zlib.crc32(head))) + payload

    begin = Writer().begin(header("image"))
    for kind, payload in ((ord("Q"), b""), (layout.DATA, b"short"), (layout.LEAVE, b"x"), (layout.END, b"[]")):
        with pytest.raises(StreamDamaged):
            list(Reader([begin, frame(kind, payload)]))
    with pytest.raises(StreamDamaged, match="is said to have"):
        list(Reader([begin, layout.HEAD.pack(layout.DATA, 1 << 30, 0)]))
    with pytest.raises(StreamDamaged, match="does not begin"):
        Reader([b"something else that is long enough"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_id": "other"}, "is relative to other"),
        ({"base_id": ""}, "is whole"),
        ({"volume_type": "directory"}, "its volume_type is 'directory', not 'image'"),
        ({"access_type": "block"}, "its access_type is 'block', not 'mount'"),
        ({"fs_type": "xfs"}, "its fs_type is 'xfs', not ''"),
        ({"block_size": 512}, "its block_size is 512, not 4096"),
        ({"start": 4096}, "begins only at byte 4096"),
        ({"size_bytes": 16 * MIB, "provisioning": "thick"}, ""),
    ],
)
def test_what_follows_has_to_continue_what_is_there(fields: dict[str, Any], words: str) -> None:
    writers = Writer(), Writer()
    second = dataclasses.replace(header("image"), content_id="next", **{"base_id": "content", **fields})
    stream = b"".join(
        writer.begin(one) + writer.end() for writer, one in zip(writers, (header("image"), second), strict=True)
    )
    reader = Reader([stream])
    reader.may_be_followed = True
    assert list(reader) == []
    if words:
        with pytest.raises(StreamDamaged, match=words):
            reader.following()
        return
    behind = reader.following()
    assert behind is not None
    assert (list(behind), behind.following()) == ([], None)
