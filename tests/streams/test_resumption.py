"""Streams that are taken up again by another process, from what lies on the disk.

- Wherever a stream breaks off, an image and a directory are made whole from what was made of it, its journal and the
  rest; the rest begins at the last frame that came.
- What does not lie there as it came is asked for again: a byte that changed, a file that is shorter or gone, a journal
  that lacks its end.
- A rest that is another stream's is refused at the end, by the digest.
- The same content is sent again as the same bytes: the first reading marks nothing that is sent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_driver.errors import StreamDamaged, TransferInterrupted
from csi_driver.streams import images, tree_building
from csi_driver.streams.frames import Reader
from csi_driver.streams.journal import Journal
from csi_driver.streams.layout import DATA, HEAD, MAGIC
from tests.random_trees import differences, looks
from tests.streams.test_streams import MIB, sent


def image(top: Path) -> Path:
    """Three ranges of data, one of several frames, with holes between them."""
    path = top / "image"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for offset, size in ((0, 70_000), (2 * MIB, 2_000_000), (8 * MIB - 4096, 4096)):
            os.pwrite(file.fileno(), os.urandom(size), offset)
    return path


def tree(top: Path) -> Path:
    """Files with several names, holes and attributes; a directory inside; what is no file."""
    path = top / "tree"
    (path / "b/below").mkdir(parents=True)
    for name, size in (("a", 5000), ("b/1", 1_500_000), ("b/below/2", 70), ("c", 0), ("d", 3)):
        (path / name).write_bytes(os.urandom(size))
    with (path / "sparse").open("wb") as file:
        file.truncate(MIB)
        os.pwrite(file.fileno(), b"end", MIB - 3)
    os.link(path / "a", path / "b/another")
    os.link(path / "a", path / "e")
    os.symlink("a", path / "b/symbolic")
    os.mkfifo(path / "b/fifo", 0o640)
    os.setxattr(path / "b/1", "user.mark", b"kept")
    os.setxattr(path, "user.top", b"kept")
    os.chmod(path / "d", 0)
    os.chown(path / "b/below", 5, 6)
    # What is made there later has it, what is there already has not.
    os.setxattr(path / "b", "system.posix_acl_default", default_acl(5))
    return path


def default_acl(user_id: int) -> bytes:
    """A user more may do everything (include/uapi/linux/posix_acl_xattr.h: tag, permissions, id)."""
    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 7, user_id), (4, 5, nobody), (0x10, 7, nobody), (0x20, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


KINDS: dict[str, Callable[[Path], Path]] = {"image": image, "directory": tree}


def frames(stream: bytes, kind: int = 0) -> list[int]:
    """Where each frame, or each of that kind, ends."""
    ends, at = [], len(MAGIC)
    while at < len(stream):
        found, length, _ = HEAD.unpack_from(stream, at)
        at += HEAD.size + length
        if kind in (0, found):
            ends.append(at)
    return ends


class Target:
    """An object's directory in which a stream is received by one process after the other."""

    def __init__(self, top: Path) -> None:
        top.mkdir()
        self.top = top
        self.content = top / "content"
        self.asked = -1
        self.is_other = False
        self.is_killed = False

    def begin(self, stream: bytes, come: int) -> None:
        """Until so many bytes have come; then that process is no more."""
        with pytest.raises(TransferInterrupted):
            self._receive(Journal("create.1"), self._cut_off(stream, come))

    def finish(self, stream: bytes) -> None:
        """By another process, which asks for what it lacks."""
        object_fd = os.open(self.top, os.O_RDONLY)
        try:
            journal = Journal.resumed(object_fd)
        finally:
            os.close(object_fd)
        assert journal.transfer_id == "create.1"
        self._receive(journal, self._rest(journal, stream))

    def _cut_off(self, stream: bytes, come: int) -> Iterator[bytes]:
        yield stream[:come]
        raise TransferInterrupted("killed")

    def _rest(self, journal: Journal, stream: bytes) -> Iterator[bytes]:
        come = 0
        for chunk in journal.replayed():
            assert stream[come : come + len(chunk)] == chunk or self.is_other
            come += len(chunk)
            yield chunk
        self.asked = come
        if not journal.is_whole:
            yield stream[come:]

    def _receive(self, journal: Journal, chunks: Iterator[bytes]) -> None:
        object_fd = os.open(self.top, os.O_RDONLY)
        reader = Reader(chunks, journal)
        try:
            if reader.header.is_image:
                self._receive_image(reader, journal, object_fd)
            else:
                self._receive_tree(reader, journal, object_fd)
            if not self.is_killed:
                journal.drop(object_fd)
        finally:
            journal.close()
            os.close(object_fd)

    def _receive_image(self, reader: Reader, journal: Journal, object_fd: int) -> None:
        size = reader.header.size_bytes
        image_fd = os.open(self.content, os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(image_fd, size)
            journal.place(object_fd)
            images.receive(reader, image_fd, size, is_incremental=False, progress=_nothing, journal=journal)
        finally:
            os.close(image_fd)

    def _receive_tree(self, reader: Reader, journal: Journal, object_fd: int) -> None:
        self.content.mkdir(exist_ok=True)
        top_fd = os.open(self.content, os.O_RDONLY)
        try:
            journal.place(object_fd)
            tree_building.receive(reader, top_fd, progress=_nothing, journal=journal)
        finally:
            os.close(top_fd)

    def require(self, source: Path) -> None:
        """The content is the source's, and nothing but it is there."""
        assert [path.name for path in self.top.iterdir()] == ["content"]
        if source.is_file():
            assert self.content.read_bytes() == source.read_bytes()
            assert self.content.stat().st_blocks <= source.stat().st_blocks + 64
        else:
            assert differences(looks(self.content), looks(source)) == {}


def _nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_taken_up_wherever_it_broke_off(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    stream = sent(source)
    ends = frames(stream)
    data_ends = frames(stream, DATA)
    for come in (*ends[::3], *(end - 1 for end in ends[1::6])):
        target = Target(tmp_path / f"at-{come}")
        target.begin(stream, come)
        target.finish(stream)
        # What is no data is written down with the next data.
        assert max((end for end in data_ends if end <= come), default=0) <= target.asked <= come
        target.require(source)


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_come_whole_is_not_asked_for_again(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    stream = sent(source)
    target = Target(tmp_path / "target")
    target.is_killed = True
    target._receive(Journal("create.1"), iter([stream]))
    target.is_killed = False
    target.finish(stream)
    assert target.asked == len(stream)
    target.require(source)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_as_it_came_is_asked_for_again(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    stream = sent(source)
    ends = frames(stream)
    for number, change in enumerate((_flip, _shorten, _lose, _cut_journal, _flip_journal)):
        target = Target(tmp_path / str(number))
        target.begin(stream, ends[-3])
        change(target)
        target.finish(stream)
        assert target.asked < ends[-3], change
        target.require(source)


def _file(target: Target) -> Path:
    return target.content if target.content.is_file() else target.content / "b/1"


def _flip(target: Target) -> None:
    with _file(target).open("r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1, *b"x"])[:1])
        file.seek(0)
        file.write(b"\0\0\0\0")


def _shorten(target: Target) -> None:
    os.truncate(_file(target), 100)


def _lose(target: Target) -> None:
    if target.content.is_file():
        os.truncate(target.content, 0)
    else:
        _file(target).unlink()


def _cut_journal(target: Target) -> None:
    journal = target.top / "arrived"
    os.truncate(journal, journal.stat().st_size - 5)


def _flip_journal(target: Target) -> None:
    journal = target.top / "arrived"
    content = bytearray(journal.read_bytes())
    content[len(content) - 20] ^= 1
    journal.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_another_content_is_refused(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    stream = sent(source)
    ends = frames(stream)
    target = Target(tmp_path / "target")
    target.begin(stream, ends[-3])
    # The part that has come: the digest is the only one to know.
    with (source if kind == "image" else source / "a").open("r+b") as file:
        file.write(b"other")
    target.is_other = True
    with pytest.raises(StreamDamaged, match="digest"):
        target.finish(sent(source))


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    object_fd = os.open(tmp_path, os.O_RDONLY)
    for content in (b"", b"one\n", b"create.1 token\nnot a stream", b"\xff\xff\n" + MAGIC, b"a b c\n" + MAGIC):
        (tmp_path / "arrived").write_bytes(content)
        with pytest.raises(ValueError):
            Journal.resumed(object_fd)
    os.close(object_fd)


@pytest.mark.parametrize("kind", KINDS)
def test_a_content_is_sent_again_as_the_same_bytes(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind](tmp_path)
    assert sent(source) == sent(source)
