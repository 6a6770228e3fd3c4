"""A source that is held: what a new content is made of; knows no request and no catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from csi_driver.domain.pools import Pool
from csi_driver.model import AccessType, Volume, VolumeParameters, VolumeType


class Described(Protocol):
    """What a volume and a snapshot say of their content alike."""

    @property
    def access_type(self) -> AccessType: ...

    @property
    def fs_type(self) -> str: ...

    @property
    def parameters(self) -> VolumeParameters: ...

    @property
    def family(self) -> str: ...

    @property
    def content_ids(self) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """A source that nobody takes away: its content, and what it is.

    `volume` is a living one, to which its users may be writing; None for a snapshot.
    """

    pool: Pool
    described: Described
    size_bytes: int
    content_fd: int
    volume: Volume | None = None

    @property
    def volume_type(self) -> VolumeType:
        return self.described.parameters.volume_type
