"""The frames of a stream: written, read and checked; knows no file and no volume.

A stream is MAGIC and frames, the first with the header, the last with totals and a digest of all before it. Every frame
carries a CRC-32 of its place in the stream, its kind, its length and its payload, so that one that is flipped, missing,
repeated or moved is found where it stands, and a stream that ends early is found at its end. docs/stream-format.md is
the exact description.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from csi_driver.errors import StreamDamaged
from csi_driver.streams.header import Header
from csi_driver.streams.layout import (
    ATTRIBUTE,
    DATA,
    DATA_PLACE,
    END,
    ENTRY,
    HEAD,
    HEADER,
    LEAVE,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    NAME_LENGTH,
    ZEROS,
    ZEROS_PLACE,
    checksum_of,
)

if TYPE_CHECKING:
    from csi_driver.streams.journal import Journal

_GATHERED_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the image, or of the file that was entered last."""

    offset: int
    content: memoryview


@dataclass(frozen=True, slots=True)
class Zeros:
    """A range that became a hole since the base was taken."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the directory that is open, and what it stands for, as JSON says it."""

    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Attribute:
    """An extended attribute of what was entered last."""

    name: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """What was entered last is complete."""


Record = Data | Zeros | Entry | Attribute | Leave


class Writer:
    """Makes the bytes of one stream, piece by piece; none of them is longer than 1 MiB."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._frames = 0
        self._data_bytes = 0

    @property
    def data_bytes(self) -> int:
        """How many bytes of content were written."""
        return self._data_bytes

    def begin(self, header: Header) -> bytes:
        """What every stream begins with."""
        self._digest.update(MAGIC)
        return MAGIC + self._frame(HEADER, header.encoded())

    def data(self, offset: int, content: bytes | memoryview) -> bytes:
        """At most MAX_DATA_BYTES of content at a place in bytes."""
        self._data_bytes += len(content)
        return self._frame(DATA, DATA_PLACE.pack(offset), content)

    def zeros(self, offset: int, length: int) -> bytes:
        """A range that reads as zeros, and may not have done so in the base."""
        return self._frame(ZEROS, ZEROS_PLACE.pack(offset, length))

    def entry(self, fields: dict[str, object]) -> bytes:
        """A name in a directory."""
        return self._frame(ENTRY, json.dumps(fields, separators=(",", ":")).encode())

    def attribute(self, name: bytes, content: bytes) -> bytes:
        """An extended attribute."""
        return self._frame(ATTRIBUTE, NAME_LENGTH.pack(len(name)) + name, content)

    def leave(self) -> bytes:
        """The end of an entry."""
        return self._frame(LEAVE, b"")

    def end(self) -> bytes:
        """What every whole stream ends with."""
        totals = {"frames": self._frames, "data_bytes": self._data_bytes, "sha256": self._digest.hexdigest()}
        return self._frame(END, json.dumps(totals, separators=(",", ":")).encode())

    def _frame(self, kind: int, prefix: bytes, content: bytes | memoryview = b"") -> bytes:
        length = len(prefix) + len(content)
        if length > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        checksum = checksum_of(self._frames, kind, prefix, content)
        frame = b"".join((HEAD.pack(kind, length, checksum), prefix, content))
        self._digest.update(frame)
        self._frames += 1
        return frame


class Reader:
    """One stream as it arrives, checked: it yields what was written, and ends only where the stream does."""

    def __init__(self, chunks: Iterable[bytes] | _Input, journal: Journal | None = None) -> None:
        """Read the header; `chunks` are the stream in pieces of any size. `journal` is told each frame.

        Raises: StreamDamaged; whatever `chunks` raises.
        """
        self._input = chunks if isinstance(chunks, _Input) else _Input(iter(chunks))
        self.journal = journal
        # Else whatever follows its end is an error.
        self.may_be_followed = False
        self._digest = hashlib.sha256()
        self._frames = 0
        self.data_bytes = 0
        if self._input.take(len(MAGIC), "its beginning") != MAGIC:
            raise StreamDamaged("it does not begin as a stream of this version of hostvol does")
        self._digest.update(MAGIC)
        kind, payload = self._next()
        if kind != HEADER:
            raise StreamDamaged("its header is missing")
        self.header = Header.decoded(bytes(payload))

    def following(self) -> Reader | None:
        """The stream behind this one, whose end was seen, which is relative to its content; None: there is none.

        Raises: StreamDamaged when it is relative to another content, of another kind, or only the rest of a stream;
            whatever the chunks raise.
        """
        if self._input.is_at_end():
            return None
        behind = Reader(self._input)
        behind.may_be_followed = True
        base, header = self.header, behind.header
        if header.base_id != base.content_id:
            of = f"is relative to {header.base_id}" if header.base_id else "is whole"
            raise StreamDamaged(
                f"what follows {base.content_id} {of}; each has to follow the one that it is relative to"
            )
        if header.start:
            raise StreamDamaged(f"what follows begins only at byte {header.start}; each has to be whole")
        for field in ("volume_type", "access_type", "fs_type", "block_size"):
            held, given = getattr(base, field), getattr(header, field)
            if held != given:
                raise StreamDamaged(f"what follows is of another kind: its {field} is {given!r}, not {held!r}")
        return behind

    @property
    def read_bytes(self) -> int:
        """How many bytes of the stream have been read."""
        return self._input.position

    def __iter__(self) -> Iterator[Record]:
        """The records in order. Whoever has not seen the end of the iteration has not seen a whole stream.

        The content of a Data record is valid until the next one is asked for.

        Raises: StreamDamaged; whatever the chunks raise.
        """
        while True:
            digest = self._digest.hexdigest()
            kind, payload = self._next()
            if kind == END:
                self._check_end(bytes(payload), digest)
                return
            decode = _DECODERS.get(kind)
            if decode is None:
                raise StreamDamaged(f"frame {self._frames - 1} is of an unknown kind ({kind})")
            record = decode(payload)
            if isinstance(record, Data):
                self.data_bytes += len(record.content)
            yield record

    def _next(self) -> tuple[int, memoryview]:
        head = self._input.take(HEAD.size, f"frame {self._frames}")
        kind, length, checksum = HEAD.unpack(head)
        if length > MAX_PAYLOAD_BYTES:
            raise StreamDamaged(f"frame {self._frames} is said to have {length} bytes")
        payload = self._input.take(length, f"frame {self._frames}")
        if checksum_of(self._frames, kind, payload) != checksum:
            raise StreamDamaged(f"the checksum of frame {self._frames} does not match")
        self._digest.update(head)
        self._digest.update(payload)
        if self.journal is not None:
            self.journal.note(kind, head, payload)
        self._frames += 1
        return kind, memoryview(payload)

    def _check_end(self, payload: bytes, digest: str) -> None:
        totals = fields_of(payload)
        expected = {"frames": self._frames - 1, "data_bytes": self.data_bytes, "sha256": digest}
        if totals != expected:
            raise StreamDamaged("its totals or its digest do not match")
        if not self.may_be_followed and not self._input.is_at_end():
            raise StreamDamaged("something follows its end")


class _Input:
    """Bytes in pieces of any size, taken in pieces of another."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.position = 0
        self._chunks = chunks
        self._chunk = memoryview(b"")

    def take(self, count: int, what: str) -> bytes:
        """Exactly so many bytes.

        Raises: StreamDamaged naming `what` was to come when the input ends before.
        """
        parts = []
        missing = count
        while missing:
            if not self._chunk and not self._refill():
                raise StreamDamaged(f"it ends after {self.position} bytes, in {what}; it was cut off")
            part, self._chunk = self._chunk[:missing], self._chunk[missing:]
            parts.append(part)
            missing -= len(part)
            self.position += len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def is_at_end(self) -> bool:
        return not self._chunk and not self._refill()

    def _refill(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._chunk = memoryview(chunk)
                return True
        return False


def gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, small pieces joined: each is a message on its way, and a file makes three."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if size + len(piece) > _GATHERED_BYTES and held:
            yield b"".join(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece)
    if held:
        yield b"".join(held)


def fields_of(payload: bytes) -> dict[str, object]:
    """A JSON object.

    Raises: StreamDamaged.
    """
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as cause:
        raise StreamDamaged("a frame holds no JSON") from cause
    if not isinstance(fields, dict):
        raise StreamDamaged("a frame holds no JSON object")
    return fields


def _data(payload: memoryview) -> Data:
    _require(len(payload) > DATA_PLACE.size)
    return Data(DATA_PLACE.unpack_from(payload)[0], payload[DATA_PLACE.size :])


def _zeros(payload: memoryview) -> Zeros:
    _require(len(payload) == ZEROS_PLACE.size)
    return Zeros(*ZEROS_PLACE.unpack(payload))


def _entry(payload: memoryview) -> Entry:
    return Entry(fields_of(bytes(payload)))


def _attribute(payload: memoryview) -> Attribute:
    _require(len(payload) > NAME_LENGTH.size)
    behind = NAME_LENGTH.size + NAME_LENGTH.unpack_from(payload)[0]
    _require(len(payload) >= behind)
    return Attribute(bytes(payload[NAME_LENGTH.size : behind]), bytes(payload[behind:]))


def _leave(payload: memoryview) -> Leave:
    _require(not payload)
    return Leave()


def _require(condition: bool) -> None:
    if not condition:
        raise StreamDamaged("a frame has not the length that its kind has")


_DECODERS: Final[dict[int, Callable[[memoryview], Record]]] = {
    DATA: _data,
    ZEROS: _zeros,
    ENTRY: _entry,
    ATTRIBUTE: _attribute,
    LEAVE: _leave,
}
