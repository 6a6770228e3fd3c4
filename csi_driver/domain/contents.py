"""What the domain needs of whoever shares and copies content; the backends fulfil it without knowing it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Protocol

from csi_driver.backends.increments import Base
from csi_driver.linux.reflink import Cost
from csi_driver.model import Volume

if TYPE_CHECKING:
    from csi_driver.streams.frames import Reader
    from csi_driver.streams.header import Header


class Contents(Protocol):
    """The content of one kind of objects in one pool. Descriptors stay the caller's."""

    @property
    def entry(self) -> str:
        """The name of the content beside a record."""

    @property
    def can_share(self) -> bool:
        """Whether a copy within the pool shares blocks with its source, and so is made in no time."""

    def open(self, room_fd: int, object_id: str) -> int:
        """A descriptor of an object's content.

        Raises: VolumeDamaged when it is missing.
        """

    def is_at_rest(self, volume: Volume, content_fd: int) -> bool:
        """Whether nobody can write to the content now."""

    def mark(self, content_fd: int) -> str:
        """What every change to the content changes, whoever makes it, and nothing else; the same after a restart."""

    def flush(self, volume: Volume) -> None:
        """What was written before to a volume without a filesystem of its own is in its content."""

    def still(self, volume: Volume, content_fd: int, expected: Cost | None = None) -> int | None:
        """A descriptor of the content that does not change, whoever writes; None where none can be had at once.

        `expected`: what `sharing_cost` told.
        """

    def sharing_cost(self, content_fd: int) -> Cost:
        """What sharing the content will cost, during which its writers wait."""

    def size_bytes(self, content_fd: int) -> int:
        """What copying costs; 0: not known."""

    def share(self, content_fd: int, size_bytes: int, object_fd: int, expected: Cost | None = None) -> None:
        """The content beside a record, sharing its blocks; durable but for its name.

        `expected`: what `sharing_cost` told.
        """

    def copy(self, content_fd: int, size_bytes: int, object_fd: int, progress: Callable[[int], None]) -> None:
        """The content beside a record, with blocks of its own; durable but for its name.

        What `progress` raises ends it.
        """

    def build(
        self,
        volume: Volume,
        content_fd: int,
        source_bytes: int,
        object_fd: int,
        *,
        share: bool,
        progress: Callable[[int], None],
    ) -> None:
        """The content of a volume that is being built from another one's, with its own size, limit and identity.

        Raises: CapacityOutOfRange, VolumeDamaged, OSError.
        """

    def sent(self, header: Header, content_fd: int) -> Generator[bytes]:
        """The content as a stream, in pieces of at most 1 MiB.

        Raises: OSError: EIO.
        """

    def received(
        self,
        volume: Volume,
        stream: Reader,
        object_fd: int,
        progress: Callable[[int], None],
        base: Base | None = None,
    ) -> str:
        """The content of a volume that is being built from a stream, with its own size, limit and identity.

        `base`: what a relative stream is applied to. Returns the content_id of the stream that was applied last.

        Raises: StreamDamaged; CapacityOutOfRange, VolumeDamaged, OSError; whatever the stream raises.
        """
