"""What a stream says of itself before its content; knows no frame and no file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final

from csi_driver.errors import StreamDamaged
from csi_driver.model import BLOCK_BYTES, AccessType, Provisioning, QuotaPolicy, VolumeType

_MAX: Final = (1 << 63) - 1
_MAX_TEXT: Final = 128
_CHOICES: Final[dict[str, frozenset[str]]] = {
    "volume_type": frozenset(VolumeType),
    "access_type": frozenset(AccessType),
    "provisioning": frozenset(Provisioning),
    "quota": frozenset(QuotaPolicy),
    "fs_type": frozenset({"", "ext4", "xfs", "btrfs"}),
}


@dataclass(frozen=True, slots=True)
class Header:
    """A stream's description of its content. Sizes in bytes, times in seconds since the epoch.

    `content_id` names the content: two streams of one `content_id` are of the same bytes. What was made of one has
    them too, but for the UUID in the superblocks of a filesystem, which is its own, and zeros behind `size_bytes` where
    it is larger. `base_id` is that of the content which an incremental stream has to be applied to, or to what was made
    of it; empty: the stream is whole. `data_bytes` is the most that its data can come to; 0: not known. `start`: what
    lies before it in the image is not in the stream.
    """

    volume_type: str
    access_type: str
    fs_type: str
    size_bytes: int
    content_id: str
    source_id: str
    source_volume_id: str
    name: str
    created_at: float
    block_size: int = BLOCK_BYTES
    provisioning: str = "thin"
    quota: str = "required"
    base_id: str = ""
    data_bytes: int = 0
    start: int = 0

    @property
    def is_image(self) -> bool:
        return self.volume_type == VolumeType.IMAGE

    def encoded(self) -> bytes:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, payload: bytes) -> Header:
        """The header that JSON describes; what it says beside is for later versions.

        Raises: StreamDamaged naming the field.
        """
        try:
            fields = json.loads(payload)
            header = cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError, RecursionError) as cause:
            raise StreamDamaged("its header lacks a field, or is none") from cause
        header._check()
        return header

    def _check(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if not _FITS[str(field.type)](given):
                raise StreamDamaged(f"the field {field.name} of its header cannot be used")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise StreamDamaged(f"the field {name} of its header has no value that this version knows")
        if not self.size_bytes or self.start > self.size_bytes or self.block_size not in (512, BLOCK_BYTES):
            raise StreamDamaged("a size in its header cannot be")
        if not self.content_id or not self.name:
            raise StreamDamaged("its header names nothing")


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return len(value.encode()) <= _MAX_TEXT
    except UnicodeEncodeError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 40


_FITS: Final = {"str": _is_text, "int": _is_number, "float": _is_time}
