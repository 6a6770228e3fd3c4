"""XXH64, one of the checksums that a btrfs may have; knows nothing of it.

Source: the specification of xxHash (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
"""

from __future__ import annotations

import struct
from typing import Final

_MASK: Final = (1 << 64) - 1
_P1: Final = 0x9E3779B185EBCA87
_P2: Final = 0xC2B2AE3D27D4EB4F
_P3: Final = 0x165667B19E3779F9
_P4: Final = 0x85EBCA77C2B2AE63
_P5: Final = 0x27D4EB2F165667C5
_STRIPE: Final = struct.Struct("<4Q")


def xxhash64(content: bytes) -> int:
    """The hash of `content` with the seed 0."""
    whole = len(content) - len(content) % _STRIPE.size
    value = (_stripes(content[:whole]) + len(content)) & _MASK
    rest = content[whole:]
    while len(rest) >= 8:
        lane = _round(0, int.from_bytes(rest[:8], "little"))
        value, rest = (_rotated(value ^ lane, 27) * _P1 + _P4) & _MASK, rest[8:]
    if len(rest) >= 4:
        lane = int.from_bytes(rest[:4], "little") * _P1 & _MASK
        value, rest = (_rotated(value ^ lane, 23) * _P2 + _P3) & _MASK, rest[4:]
    for byte in rest:
        value = _rotated(value ^ byte * _P5 & _MASK, 11) * _P1 & _MASK
    return _avalanche(value)


def _stripes(content: bytes) -> int:
    if not content:
        return _P5
    lanes = [(_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK]
    for words in _STRIPE.iter_unpack(content):
        lanes = [_round(lane, word) for lane, word in zip(lanes, words, strict=True)]
    value = sum(_rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _MASK
    for lane in lanes:
        value = ((value ^ _round(0, lane)) * _P1 + _P4) & _MASK
    return value


def _round(lane: int, word: int) -> int:
    return _rotated(lane + word * _P2 & _MASK, 31) * _P1 & _MASK


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK


def _avalanche(value: int) -> int:
    value = (value ^ value >> 33) * _P2 & _MASK
    value = (value ^ value >> 29) * _P3 & _MASK
    return value ^ value >> 32
