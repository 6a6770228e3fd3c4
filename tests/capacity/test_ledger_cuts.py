"""The rule of capacity when blocks are shared: what belongs to several belongs to nobody.

- A cut is granted only where all of its volume can still be written over, and everybody else keeps his promises.
- It is refused with the numbers, and granted once there is room; with an overcommit the sizes decide.
- A copy is promised what is left of it, and nothing once it is done or given up.
- In any order of cuts, writes, discards and deletions nobody is promised what another one was.
- Relatives are counted by family, whoever of them goes first.
"""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule

from csi_driver.domain import ledger as ledger_module
from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue
from csi_driver.domain.kinship import Kinship
from csi_driver.errors import InsufficientCapacity, InsufficientForCut
from csi_driver.model import GIB, MIB, AccessType, PoolName, Snapshot, SnapshotId, Volume, VolumeId, VolumeParameters
from tests.capacity.books import BLOCK, USABLE, Books, Clock
from tests.capacity.test_ledger_machine import LedgerMachine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger_module, "time", clock)
    return clock


@pytest.fixture
def books(clock: Clock) -> Books:
    return Books()


def cut(books: Books, volume: Volume, overcommit: float = 1.0) -> int:
    """The volume's blocks are shared with a snapshot from now on; returns how many bytes."""
    books.ledger.admit_cut(volume, overcommit)
    shared = books.disk.own[volume.volume_id]
    books.disk.own[volume.volume_id] = 0
    books.disk.strangers_bytes += shared
    return shared


def delete_cut(books: Books, volume: Volume, shared: int) -> None:
    """The snapshot is gone: what its volume has not written over is the volume's own again."""
    own = books.disk.own.get(volume.volume_id)
    still_shared = 0 if own is None else min(shared, volume.capacity_bytes - own)
    books.disk.strangers_bytes -= shared
    if own is not None:
        books.disk.own[volume.volume_id] = own + still_shared


@pytest.mark.parametrize("thick", [False, True], ids=["thin", "thick"])
def test_a_full_volume_is_promised_all_of_its_size_again(books: Books, clock: Clock, thick: bool) -> None:
    volume = books.create(4 * GIB, thick=thick)
    books.fill(volume)
    clock.now += 10
    books.ledger.measure()
    cut(books, volume)
    assert books.ledger.promised_bytes == 4 * GIB
    assert books.ledger.grantable_bytes(1.0) <= USABLE - 8 * GIB
    books.fill(volume)
    clock.now += 10
    assert books.disk.available_bytes >= 0
    with pytest.raises(InsufficientForCut, match=volume.volume_id):
        cut(books, volume)


def test_an_empty_volume_costs_nothing(books: Books) -> None:
    volume = books.create(books.ledger.grantable_bytes(1.0))
    for _ in range(5):
        cut(books, volume)


def test_a_cut_that_was_refused_is_granted_when_there_is_room(books: Books, clock: Clock) -> None:
    volume, other = books.create(4 * GIB), books.create(4 * GIB)
    books.fill(volume)
    clock.now += 10
    with pytest.raises(InsufficientForCut) as refused:
        cut(books, volume)
    assert str(4 * GIB) in str(refused.value)
    books.delete(other)
    assert cut(books, volume) == 4 * GIB


def test_what_a_deleted_snapshot_shared_is_the_volumes_own_again(books: Books, clock: Clock) -> None:
    volume = books.create(4 * GIB)
    books.fill(volume)
    shared = cut(books, volume)
    assert books.ledger.grantable_bytes(1.0) < 2 * GIB
    delete_cut(books, volume, shared)
    clock.now += 10
    # Told too little until it is measured in the background, or when that matters.
    books.create(5 * GIB)
    assert books.ledger.promised_bytes == 5 * GIB


def test_with_an_overcommit_the_sizes_decide(books: Books, clock: Clock) -> None:
    volume = books.create(8 * GIB, overcommit=2.0)
    books.fill(volume)
    clock.now += 10
    with pytest.raises(InsufficientForCut):
        cut(books, volume, 2.0)
    assert cut(books, volume, 10.0) == 8 * GIB


def test_a_cut_that_cannot_be_measured_is_taken_for_the_dearest(books: Books, clock: Clock) -> None:
    volume, _ = books.create(4 * GIB), books.create(4 * GIB)
    books.fill(volume)
    books.disk.unmeasurable.add(volume.volume_id)
    clock.now += 10
    with pytest.raises(InsufficientForCut):
        cut(books, volume)


def test_a_copy_is_promised_what_is_left_of_it(books: Books) -> None:
    before = books.ledger.grantable_bytes(1.0)
    books.ledger.admit_copy("snap-1", "default", 4 * GIB, 1.0)
    assert books.ledger.grantable_bytes(1.0) == before - 4 * GIB
    books.disk.strangers_bytes += GIB
    books.ledger.copied("snap-1", 3 * GIB)
    assert books.ledger.grantable_bytes(1.0) == before - 4 * GIB
    books.disk.strangers_bytes += 3 * GIB
    for _ in range(2):
        books.ledger.copied("snap-1", 0)
    assert books.ledger.grantable_bytes(1.0) == before - 4 * GIB
    books.ledger.copied("snap-1", GIB)
    assert books.ledger.promised_bytes == 0, "what is done does not come back"


@pytest.mark.parametrize("overcommit", [1.0, 4.0])
def test_a_copy_is_never_overcommitted(books: Books, overcommit: float) -> None:
    with pytest.raises(InsufficientCapacity, match="default"):
        books.ledger.admit_copy("snap-1", "default", USABLE + BLOCK, overcommit)
    books.ledger.admit_copy("snap-1", "default", USABLE // BLOCK * BLOCK, overcommit)


class CutMachine(LedgerMachine):
    """Any order of everything, with cuts and their deletions among it."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[tuple[Volume, int]] = []

    @rule(volume=LedgerMachine.volumes)
    def cut(self, volume: Volume) -> None:
        if volume.volume_id not in self.books.disk.listed:
            return
        try:
            shared = cut(self.books, volume, self.overcommit)
        except InsufficientForCut:
            return
        self.cuts.append((volume, shared))

    @rule(number=st.integers(0, 9))
    def delete_cut(self, number: int) -> None:
        if number < len(self.cuts):
            delete_cut(self.books, *self.cuts.pop(number))

    @rule(size=st.integers(1, 512), part=st.integers(0, 100), is_finished=st.booleans())
    def a_copy_is_made(self, size: int, part: int, is_finished: bool) -> None:
        size_bytes = size * MIB
        try:
            self.books.ledger.admit_copy("snap-copy", "default", size_bytes, self.overcommit)
        except InsufficientCapacity:
            return
        done = size_bytes if is_finished else size_bytes * part // 100
        room = self.books.disk.available_bytes
        assert self.overcommit > 1.0 or done <= room, "a promise was broken"
        if done <= room and is_finished:
            self.books.disk.strangers_bytes += done
        self.books.ledger.copied("snap-copy", 0)


class OvercommittedCutMachine(CutMachine):
    """The same with an overcommit of two."""

    overcommit = 2.0


_SETTINGS = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCuts = CutMachine.TestCase
TestCuts.settings = _SETTINGS
TestOvercommittedCuts = OvercommittedCutMachine.TestCase
TestOvercommittedCuts.settings = _SETTINGS


def test_relatives_are_counted_by_family_whoever_goes_first() -> None:
    volumes, snapshots = Catalogue(), SnapshotCatalogue()
    kinship = Kinship(volumes, snapshots)
    first = Volume(VolumeId("vol-1"), "first", GIB, AccessType.MOUNT, "", VolumeParameters(), 0.0)
    copy = dataclasses.replace(first, volume_id=VolumeId("vol-2"), name="copy", lineage="vol-1")
    stranger = dataclasses.replace(first, volume_id=VolumeId("vol-3"), name="stranger")
    snapshot = Snapshot(
        SnapshotId("snap-1"),
        "cut",
        first.volume_id,
        GIB,
        AccessType.MOUNT,
        "",
        VolumeParameters(pool=PoolName("default")),
        created_at=0.0,
        is_ready=True,
        lineage="vol-1",
    )
    volumes.add(first)
    volumes.add(stranger)
    assert kinship.is_alone(first)
    snapshots.add(snapshot)
    snapshots.add(dataclasses.replace(snapshot, is_ready=True))
    assert not kinship.is_alone(first)
    volumes.add(copy)
    snapshots.remove(snapshot)
    assert not kinship.is_alone(copy)
    volumes.remove(first)
    volumes.remove(first)
    assert kinship.is_alone(copy)
    assert kinship.is_alone(stranger)
