"""The ledger and the trash: what lies there is used, grows no more, and comes back only where it can be promised."""

from __future__ import annotations

import pytest

from csi_driver.domain.ledger import Ledger, Space
from csi_driver.errors import InsufficientCapacity
from csi_driver.model import GIB, MIB, AccessType, PoolName, Volume, VolumeId, VolumeParameters

USABLE = GIB


class Disk:
    """A filesystem on which volumes own what the test says."""

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self.used = 0
        self.held: list[Volume] = []

    def space(self) -> Space:
        reserve = Ledger.reserve_bytes(Space(USABLE, USABLE))
        return Space(USABLE, USABLE + reserve - self.used)

    def volumes(self) -> list[Volume]:
        return self.held

    def own_bytes(self, volume: Volume) -> int:
        return self.own.get(volume.volume_id, 0)

    def make(self, ledger: Ledger, volume_id: str, size_bytes: int, own_bytes: int) -> Volume:
        volume = Volume(
            VolumeId(volume_id), volume_id, size_bytes, AccessType.BLOCK, "", VolumeParameters(pool=PoolName("a")), 0.0
        )
        ledger.admit(volume, 1.0)
        self.held.append(volume)
        self.own[volume_id] = own_bytes
        self.used += own_bytes
        ledger.settle(volume, own_bytes)
        return volume


def test_what_is_in_the_trash_grows_no_more_and_stays_used() -> None:
    disk = Disk()
    ledger = Ledger(disk)
    volume = disk.make(ledger, "one", 600 * MIB, 100 * MIB)
    assert ledger.grantable_bytes(1.0) == USABLE - 600 * MIB
    disk.held.clear()
    ledger.retire(volume, 100 * MIB)
    assert ledger.grantable_bytes(1.0) == USABLE - 100 * MIB
    assert ledger.promised_bytes == 0


def test_what_a_living_volume_discards_is_not_promised_twice_beside_the_trash() -> None:
    disk = Disk()
    ledger = Ledger(disk)
    gone = disk.make(ledger, "gone", 300 * MIB, 300 * MIB)
    living = disk.make(ledger, "living", 500 * MIB, 500 * MIB)
    ledger.measure(0.0)
    disk.held.remove(gone)
    ledger.retire(gone, 300 * MIB)
    # Given back by the living one, and still its own to write.
    disk.own[living.volume_id] = 0
    disk.used -= 500 * MIB
    assert ledger.grantable_bytes(1.0) == USABLE - 800 * MIB


def test_a_volume_comes_back_where_what_it_lacks_can_be_promised() -> None:
    disk = Disk()
    ledger = Ledger(disk)
    volume = disk.make(ledger, "one", 600 * MIB, 100 * MIB)
    disk.held.clear()
    ledger.retire(volume, 100 * MIB)
    other = disk.make(ledger, "other", 500 * MIB, 0)
    with pytest.raises(InsufficientCapacity) as refusal:
        ledger.admit_return(volume, 100 * MIB, 1.0)
    assert refusal.value.shortfall_bytes == 1100 * MIB - USABLE
    assert ledger.promised_bytes == 500 * MIB
    disk.held.clear()
    ledger.forget(other)
    ledger.admit_return(volume, 100 * MIB, 1.0)
    assert ledger.promised_bytes == 500 * MIB
    assert ledger.grantable_bytes(1.0) == USABLE - 600 * MIB


def test_a_rolled_back_volume_is_promised_all_of_its_size() -> None:
    disk = Disk()
    ledger = Ledger(disk)
    volume = disk.make(ledger, "one", 300 * MIB, 300 * MIB)
    stand_in = disk.make(ledger, "one.rollback", 300 * MIB, 0)
    disk.held.remove(stand_in)
    disk.own[volume.volume_id] = 0
    ledger.take_place(volume, stand_in, 300 * MIB)
    assert ledger.promised_bytes == 300 * MIB
    assert ledger.grantable_bytes(1.0) == USABLE - 600 * MIB


def test_what_yields_counts_as_grantable() -> None:
    disk = Disk()
    ledger = Ledger(disk)
    disk.used = USABLE + 50 * MIB
    assert ledger.grantable_bytes(1.0) == 0
    assert ledger.grantable_bytes(1.0, yieldable_bytes=100 * MIB) == 50 * MIB
