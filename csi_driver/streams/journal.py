"""What has come of a stream, kept beside what is made of it; knows no volume.

The data are left out: they lie where they belong. Read again after a restart, the journal and the data give the
beginning of the stream back, byte for byte, as far as the CRC-32 of each frame matches what lies on the disk. So
nothing has to be synced while it comes, and the digest at the stream's end proves the whole all the same.
docs/stream-format.md has the form of the file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator
from typing import BinaryIO, Final

from csi_driver.faults import crash_point
from csi_driver.store.pool import JOURNAL
from csi_driver.streams.layout import DATA, DATA_PLACE, END, HEAD, MAGIC, MAX_PAYLOAD_BYTES, checksum_of

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_GATHERED_BYTES: Final = 1 << 16
_LINE_BYTES: Final = 256


class Journal:
    """The journal of one stream, from its first frame to its last.

    `transfer_id` is the name under which the stream goes on, `token` one that nothing in the stream bears.
    """

    def __init__(self, transfer_id: str) -> None:
        self.transfer_id = transfer_id
        self.token = secrets.token_hex(8)
        # What is read again now lies on the disk already.
        self.is_replaying = False
        self.is_resumed = False
        self.is_whole = False
        # The bytes at a place of the image, or of the file that was entered last; set by whoever builds.
        self.read_back: Callable[[int, int], bytes] = lambda offset, length: b""
        self._fd = -1
        self._pending = bytearray(f"{transfer_id} {self.token}\n".encode() + MAGIC)

    @classmethod
    def resumed(cls, object_fd: int) -> Journal:
        """The journal that lies in an object's directory.

        Raises: FileNotFoundError; ValueError when it is none; OSError.
        """
        journal_fd = os.open(JOURNAL, _FLAGS, dir_fd=object_fd)
        try:
            with open(journal_fd, "rb", closefd=False) as file:
                transfer_id, token = file.readline(_LINE_BYTES).decode().split()
                if file.read(len(MAGIC)) != MAGIC:
                    raise ValueError("it does not begin as a journal does")
            journal = cls(transfer_id)
        except BaseException:
            os.close(journal_fd)
            raise
        journal.token, journal.is_resumed, journal.is_replaying = token, True, True
        journal._fd = journal_fd
        journal._pending.clear()
        return journal

    @property
    def is_kept(self) -> bool:
        """Whether what comes can be taken up after a restart."""
        return self._fd >= 0

    def close(self) -> None:
        """Idempotent. What was noted last and not written yet will be fetched again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def place(self, object_fd: int) -> None:
        """From now on what comes is kept in the object's directory; all that is in it is durable. Idempotent.

        Raises: OSError.
        """
        if self._fd >= 0:
            return
        self._fd = os.open(JOURNAL, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=object_fd)
        crash_point("arrival.opened")
        self._flush()
        os.fsync(self._fd)
        os.fsync(object_fd)
        crash_point("arrival.kept")

    def drop(self, object_fd: int) -> None:
        """The content is whole and durable, and will now become something else than what came. Idempotent.

        Raises: OSError.
        """
        self.close()
        try:
            os.unlink(JOURNAL, dir_fd=object_fd)
        except FileNotFoundError:
            return
        os.fsync(object_fd)
        crash_point("arrival.whole")

    def note(self, kind: int, head: bytes, payload: bytes) -> None:
        """A frame has come, and is right."""
        if self.is_replaying:
            return
        self._pending += head
        self._pending += payload[: DATA_PLACE.size] if kind == DATA else payload
        if self._fd >= 0 and (kind in (DATA, END) or len(self._pending) > _GATHERED_BYTES):
            self._flush()

    def replayed(self) -> Generator[bytes]:
        """The stream's beginning, frame by frame; ends with the last one that lies on the disk as it came."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            position = len(file.readline(_LINE_BYTES)) + len(file.read(len(MAGIC)))
            yield MAGIC
            number = 0
            while not self.is_whole and (frame := self._frame(file, number)):
                yield frame
                position, number = file.tell(), number + 1
                self.is_whole = frame[0] == END
        os.ftruncate(self._fd, position)
        self.is_replaying = False

    def _frame(self, file: BinaryIO, number: int) -> bytes:
        """The next one; nothing where it cannot be had whole."""
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            return b""
        kind, length, checksum = HEAD.unpack(head)
        if length > MAX_PAYLOAD_BYTES:
            return b""
        payload = file.read(DATA_PLACE.size if kind == DATA else length)
        if kind == DATA and len(payload) == DATA_PLACE.size:
            (offset,) = DATA_PLACE.unpack(payload)
            payload += self.read_back(offset, length - DATA_PLACE.size)
        if len(payload) != length or checksum_of(number, kind, payload) != checksum:
            return b""
        return head + payload

    def _flush(self) -> None:
        view = memoryview(bytes(self._pending))
        while view:
            view = view[os.write(self._fd, view) :]
        self._pending.clear()
