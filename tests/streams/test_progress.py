"""How far an import is, with a base that is copied and increments behind: it goes on, and never begins again.

- Of an image and of a directory, on a base that is copied, shared or none: no step backwards, and the end is the sum of
  all that was copied.
- A total that increments exceed is no total any more.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from csi_driver.backends import directory_contents
from csi_driver.backends.image_contents import ImageContents
from csi_driver.backends.increments import Base, Onward
from csi_driver.domain.progress import Progress
from csi_driver.model import AccessType, Volume, VolumeId, VolumeParameters
from csi_driver.streams.frames import Reader, Writer
from tests.streams.test_streams import NUMBERS, TOP, header

MIB = 1 << 20
SIZE = 8 * MIB
VOLUME = Volume(VolumeId("vol-1"), "volume", SIZE, AccessType.BLOCK, "", VolumeParameters(), 1.0)


def reader_of(*streams: bytes) -> Reader:
    reader = Reader([b"".join(streams)])
    reader.may_be_followed = True
    return reader


def image_stream(number: int, *, is_whole: bool = False) -> bytes:
    """Two pieces of 64 KiB."""
    writer = Writer()
    base_id = "" if is_whole else str(number - 1)
    begun = writer.begin(dataclasses.replace(header("image"), content_id=str(number), base_id=base_id))
    pieces = [writer.data((2 * number + at) * MIB, os.urandom(65536)) for at in range(2)]
    return b"".join([begun, *pieces, writer.end()])


@pytest.fixture
def object_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "object").mkdir()
    with ExitStack() as opened:
        fd = os.open(tmp_path / "object", os.O_RDONLY)
        opened.callback(os.close, fd)
        yield fd


@pytest.mark.parametrize("is_based", [False, True])
def test_an_image_goes_on(is_based: bool, object_fd: int, tmp_path: Path) -> None:
    told: list[int] = []
    contents = ImageContents(cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None))
    streams = [image_stream(number, is_whole=not number and not is_based) for number in range(3)]
    base = None
    expected = [number * 65536 for number in range(1, 7)]
    with (tmp_path / "base").open("w+b") as file:
        if is_based:
            file.write(os.urandom(2 * MIB))
            file.truncate(SIZE)
            file.flush()
            base = Base(file.fileno(), SIZE, share=False)
            expected = [2 * MIB, *(2 * MIB + done for done in expected)]
        contents.received(VOLUME, reader_of(*streams), object_fd, told.append, base)
    assert told == expected


def test_a_directory_goes_on(object_fd: int) -> None:
    told: list[int] = []
    directory_contents._received(VOLUME, reader_of(*map(_tree, range(3))), object_fd, Onward(told.append), None)
    assert told == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("share", [False, True])
def test_a_directory_whose_base_is_copied_goes_on(share: bool, make_pool: Any) -> None:
    top = make_pool("xfs").mount_point
    for name in ("base", "to"):
        (top / name).mkdir()
    (top / "base" / "a").write_bytes(os.urandom(20 * MIB))
    writer = Writer()
    begun = writer.begin(dataclasses.replace(header("directory"), content_id="1", base_id="0"))
    file = {"name": "a", "kind": "file", **NUMBERS, "size": 20 * MIB, "from_base": True}
    parts = [begun, writer.entry(TOP), writer.entry(file), writer.data(MIB, b"four"), writer.leave(), writer.leave()]
    told: list[int] = []
    with ExitStack() as opened:
        base_fd, to_fd = (os.open(top / name, os.O_RDONLY) for name in ("base", "to"))
        for fd in (base_fd, to_fd):
            opened.callback(os.close, fd)
        base = Base(base_fd, 0, share)
        stream = reader_of(*parts, writer.end())
        directory_contents._received(VOLUME, stream, to_fd, Onward(told.append), base)
    assert told == ([4] if share else [16 * MIB, 20 * MIB, 20 * MIB + 4])
    assert (top / "to" / "a").stat().st_size == 20 * MIB


def _tree(number: int) -> bytes:
    """Two files of four bytes."""
    writer = Writer()
    base_id = str(number - 1) if number else ""
    parts = [
        writer.begin(dataclasses.replace(header("directory"), content_id=str(number), base_id=base_id)),
        writer.entry(TOP),
    ]
    for name in ("a", "b"):
        parts += [writer.entry({"name": name, "kind": "file", **NUMBERS}), writer.data(0, b"four"), writer.leave()]
    return b"".join([*parts, writer.leave(), writer.end()])


def test_a_total_that_was_exceeded_is_none() -> None:
    progress = Progress("volume", 100)
    for done, total in ((60, 100), (100, 100), (101, 0), (150, 0)):
        progress(done)
        assert (progress.copied_bytes, progress.total_bytes) == (done, total)
