"""A ledger over a filesystem that is made of numbers, with a clock of its own."""

from __future__ import annotations

import dataclasses
import threading

from csi_driver.domain.ledger import Ledger, Space, growth_of
from csi_driver.model import (
    GIB,
    AccessType,
    PoolName,
    Provisioning,
    QuotaPolicy,
    Volume,
    VolumeId,
    VolumeParameters,
    VolumeType,
)

BLOCK = 4096
USABLE = 10 * GIB - 10 * GIB // 50


class FakeFilesystem:
    """Numbers: what strangers hold, what each volume owns, and what is therefore available."""

    def __init__(self, total_bytes: int = 10 * GIB) -> None:
        self.total_bytes = total_bytes
        self.strangers_bytes = 0
        self.own: dict[VolumeId, int] = {}
        self.listed: dict[VolumeId, Volume] = {}
        self.unmeasurable: set[VolumeId] = set()
        self.measurements = 0

    @property
    def available_bytes(self) -> int:
        return self.total_bytes - self.strangers_bytes - sum(self.own.values())

    def space(self) -> Space:
        return Space(self.total_bytes, self.available_bytes)

    def volumes(self) -> list[Volume]:
        return list(self.listed.values())

    def own_bytes(self, volume: Volume) -> int:
        self.measurements += 1
        if volume.volume_id in self.unmeasurable:
            raise OSError("it cannot be measured")
        return self.own.get(volume.volume_id, 0)

    @property
    def growth_bytes(self) -> int:
        """What the volumes that are there may truly still allocate."""
        return sum(growth_of(volume, self.own.get(key, 0)) for key, volume in self.listed.items())


class Clock:
    """Stands in for `time` in the ledger's module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Books:
    """A ledger and its filesystem, used as `domain.volumes` uses them."""

    def __init__(self, total_bytes: int = 10 * GIB) -> None:
        self.disk = FakeFilesystem(total_bytes)
        self.ledger = Ledger(self.disk)
        self._count = 0
        self._lock = threading.Lock()

    def volume(self, size_bytes: int, *, thick: bool = False, quota: QuotaPolicy | None = None) -> Volume:
        with self._lock:
            self._count += 1
            number = self._count
        parameters = VolumeParameters(
            volume_type=VolumeType.IMAGE if quota is None else VolumeType.DIRECTORY,
            pool=PoolName("default"),
            provisioning=Provisioning.THICK if thick else Provisioning.THIN,
            quota=quota or QuotaPolicy.REQUIRED,
        )
        return Volume(VolumeId(f"vol-{number}"), f"n{number}", size_bytes, AccessType.BLOCK, "", parameters, 0.0)

    def create(self, size_bytes: int, *, thick: bool = False, overcommit: float = 1.0) -> Volume:
        volume = self.volume(size_bytes, thick=thick)
        self.ledger.admit(volume, overcommit)
        self.disk.own[volume.volume_id] = size_bytes if thick else 0
        self.ledger.settle(volume, size_bytes if thick else 0)
        self.disk.listed[volume.volume_id] = volume
        return volume

    def grow(self, volume: Volume, to_bytes: int, *, overcommit: float = 1.0, fails: bool = False) -> Volume:
        """As `domain.growth` does it; somebody may measure in its middle."""
        self.ledger.admit_growth(volume, to_bytes, overcommit)
        allocated = to_bytes - volume.capacity_bytes if volume.is_thick else 0
        self.disk.own[volume.volume_id] += allocated
        self.ledger.measure()
        if fails:
            self.disk.own[volume.volume_id] -= allocated
            self.ledger.resize(volume)
            return volume
        grown = dataclasses.replace(volume, capacity_bytes=to_bytes)
        self.disk.listed[volume.volume_id] = grown
        self.ledger.resize(grown, allocated)
        return grown

    def delete(self, volume: Volume) -> None:
        del self.disk.listed[volume.volume_id]
        self.ledger.forget(volume)
        del self.disk.own[volume.volume_id]

    def fill(self, volume: Volume) -> None:
        self.disk.own[volume.volume_id] = volume.capacity_bytes

    def discard(self, volume: Volume) -> None:
        self.disk.own[volume.volume_id] = 0
