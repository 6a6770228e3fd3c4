"""What the two ends of a transfer between nodes say to each other; knows neither the disk nor the way between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from csi_driver.model import ContentSource, SourceKind

# How long a transfer may stand still: what is longer away does not come back. The source is held a little longer than
# its target waits, and the target longer than an orchestrator takes to repeat a create (five minutes).
PATIENCE_SECONDS: Final = 360.0
LEASE_SECONDS: Final = 400.0
# What has come stays so long without anybody who asks for it again; counted anew by a process that finds it.
KEPT_SECONDS: Final = 900.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a transfer's bytes; `is_last`: there are no more, and `data` is empty."""

    offset: int
    data: bytes
    is_last: bool = False


class Carrier(Protocol):
    """The way to other nodes. `stopped` is set when the driver ends."""

    @property
    def stopped(self) -> threading.Event: ...

    def fetch(self, transfer_id: str, source_id: str, offset: int) -> Iterator[Piece]:
        """The content of a volume or snapshot of another node, from the offset on.

        Raises, also in the middle: TransferInterrupted when it is worth another try; SourceNotFound; SourceElsewhere
            when the other node or the router cannot do it; SourceRefused; TransferLost.
        """
        ...

    def end(self, transfer_id: str, source_id: str) -> None:
        """Nothing more of this transfer will be asked for. Never raises."""
        ...


def source_of(object_id: str) -> ContentSource:
    """What an id names, as its prefix tells."""
    return ContentSource(SourceKind.SNAPSHOT if object_id.startswith("snap-") else SourceKind.VOLUME, object_id)
