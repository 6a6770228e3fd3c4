"""Streams that make of a content what it was later, one behind the other; knows no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csi_driver.errors import CapacityOutOfRange
from csi_driver.model import Volume

if TYPE_CHECKING:
    from csi_driver.streams.frames import Reader


@dataclass(frozen=True, slots=True)
class Base:
    """The content that the first stream is relative to, which stays as it is; the descriptor is its owner's.

    `share`: the new content may have its blocks.
    """

    content_fd: int
    size_bytes: int
    share: bool


class Onward:
    """The progress of several steps, one behind the other, each of which counts its bytes from 0."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._before = self._last = 0

    def __call__(self, done_bytes: int) -> None:
        self._last = done_bytes
        self._progress(self._before + done_bytes)

    def step(self) -> None:
        """What is told next is of the next step."""
        self._before, self._last = self._before + self._last, 0


def following(volume: Volume, stream: Reader, progress: Onward) -> Iterator[Reader]:
    """The streams behind one that was read to its end, each relative to the one before, to be read in turn.

    Each is a step of `progress`.

    Raises: StreamDamaged; CapacityOutOfRange when one has more than the volume's size; whatever the streams raise.
    """
    behind = stream.following()
    while behind is not None:
        require_room(volume, behind)
        progress.step()
        yield behind
        behind = behind.following()


def require_room(volume: Volume, stream: Reader) -> None:
    """Refuse what is larger than its volume.

    Raises: CapacityOutOfRange.
    """
    size_bytes = stream.header.size_bytes
    if size_bytes > volume.capacity_bytes:
        raise CapacityOutOfRange(
            f"size_bytes: {volume.capacity_bytes} is less than the {size_bytes} bytes that a stream which follows "
            "has; ask for as many (--size)"
        )
