"""The layout of a stream: its first bytes, the heads and kinds of its frames. Described in docs/stream-format.md."""

from __future__ import annotations

import struct
import zlib
from typing import Final

MAGIC: Final = b"hostvol stream 1\n"
# No frame is longer with its head: it fits into one message of 1 MiB.
MAX_PAYLOAD_BYTES: Final = (1 << 20) - (1 << 12)
MAX_DATA_BYTES: Final = (1 << 20) - (1 << 16)
# Kind, length of the payload, CRC-32.
HEAD: Final = struct.Struct("<BII")
# What the CRC covers before the payload: number of the frame, kind, length.
PLACE: Final = struct.Struct("<QBI")
DATA_PLACE: Final = struct.Struct("<Q")
ZEROS_PLACE: Final = struct.Struct("<QQ")
NAME_LENGTH: Final = struct.Struct("<H")

HEADER: Final = ord("H")
DATA: Final = ord("D")
ZEROS: Final = ord("Z")
ENTRY: Final = ord("E")
ATTRIBUTE: Final = ord("A")
LEAVE: Final = ord("L")
END: Final = ord("T")


def checksum_of(number: int, kind: int, *payload: bytes | memoryview) -> int:
    """The CRC-32 of the frame of that number."""
    checksum = zlib.crc32(PLACE.pack(number, kind, sum(map(len, payload))))
    for part in payload:
        checksum = zlib.crc32(part, checksum)
    return checksum
