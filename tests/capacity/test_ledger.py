"""The rule of capacity by itself, over a filesystem that is made of numbers.

- Nobody is promised what another one was promised: the growth of all never exceeds what is available less the reserve,
  whatever was written, discarded, deleted or not measured since.
- What `grantable_bytes` says is granted.
- Thick volumes own their bytes; thin ones are counted by what they may still allocate; directories without a quota
  are not counted.
- With an overcommit of N the sum of sizes goes up to N times the usable bytes, thick volumes keep the first rule.
- A volume grows by what is grantable and no more; one that failed to has its old promise.
- A volume that is gone, or was never built, gives its promise back; a second telling changes nothing.
- A refusal rests on what the filesystem says now.
- Many threads at once are never granted more together than one after the other.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_driver.domain import ledger as ledger_module
from csi_driver.domain.ledger import Ledger, Space, growth_of, is_counted
from csi_driver.errors import InsufficientCapacity, NoRoomToGrow
from csi_driver.model import GIB, MIB, QuotaPolicy
from tests.capacity.books import BLOCK, USABLE, Books, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger_module, "time", clock)
    return clock


@pytest.fixture
def books(clock: Clock) -> Books:
    return Books()


def test_the_reserve_is_two_percent_and_never_less_than_64_mib() -> None:
    assert Ledger.reserve_bytes(Space(10 * GIB, 0)) == 10 * GIB // 50
    assert Ledger.reserve_bytes(Space(GIB, 0)) == 64 * MIB


def test_an_empty_filesystem_grants_all_but_the_reserve(books: Books) -> None:
    grantable = books.ledger.grantable_bytes(1.0)
    assert USABLE - BLOCK < grantable <= USABLE
    books.create(grantable)
    with pytest.raises(InsufficientCapacity):
        books.create(BLOCK)


def test_what_is_grantable_is_a_multiple_of_a_block_and_never_negative(books: Books) -> None:
    books.disk.strangers_bytes = 12345
    assert books.ledger.grantable_bytes(1.0) % BLOCK == 0
    books.disk.strangers_bytes = 10 * GIB
    assert books.ledger.grantable_bytes(1.0) == 0


def test_writing_into_a_volume_changes_nothing_for_others(books: Books, clock: Clock) -> None:
    volume = books.create(4 * GIB)
    before = books.ledger.grantable_bytes(1.0)
    books.fill(volume)
    clock.now += 10
    assert books.ledger.grantable_bytes(1.0) <= before
    books.create(before)


def test_a_thick_volume_owns_its_bytes_from_the_beginning(books: Books) -> None:
    books.create(4 * GIB, thick=True)
    assert books.ledger.promised_bytes == 0
    assert books.ledger.grantable_bytes(1.0) == books.ledger.grantable_bytes(1.0, thick=True)
    books.create(books.ledger.grantable_bytes(1.0))
    with pytest.raises(InsufficientCapacity):
        books.create(BLOCK, thick=True)


def test_a_directory_without_quota_is_outside_all_this(books: Books) -> None:
    stranger = books.volume(1 << 50, quota=QuotaPolicy.NONE)
    assert not is_counted(stranger)
    books.ledger.admit(stranger, 1.0)
    books.ledger.settle(stranger, 0)
    assert books.ledger.promised_bytes == 0
    assert is_counted(books.volume(1, quota=QuotaPolicy.REQUIRED))


def test_a_directory_with_quota_is_promised_its_size(books: Books) -> None:
    books.ledger.admit(books.volume(4 * GIB, quota=QuotaPolicy.REQUIRED), 1.0)
    assert books.ledger.promised_bytes == 4 * GIB


def test_strangers_take_from_what_can_be_granted(books: Books) -> None:
    before = books.ledger.grantable_bytes(1.0)
    books.disk.strangers_bytes = GIB
    assert books.ledger.grantable_bytes(1.0) == before - GIB


def test_a_deleted_volume_gives_back_at_once(books: Books, clock: Clock) -> None:
    volume = books.create(books.ledger.grantable_bytes(1.0))
    books.fill(volume)
    clock.now += 10
    with pytest.raises(InsufficientCapacity):
        books.create(BLOCK)
    books.delete(volume)
    books.create(volume.capacity_bytes)


def test_a_failed_create_gives_back_and_twice_is_once(books: Books) -> None:
    before = books.ledger.grantable_bytes(1.0)
    volume = books.volume(GIB)
    books.ledger.admit(volume, 1.0)
    assert books.ledger.grantable_bytes(1.0) == before - GIB
    books.ledger.forget(volume)
    books.ledger.forget(volume)
    assert books.ledger.grantable_bytes(1.0) == before
    assert books.ledger.promised_bytes == 0


def test_a_measurement_does_not_bring_a_deleted_volume_back(books: Books, clock: Clock) -> None:
    volume = books.create(GIB)
    books.ledger.forget(volume)  # deleted while the list of volumes still had it
    clock.now += 10
    books.ledger.measure()
    assert books.ledger.promised_bytes == 0


def test_a_volume_that_cannot_be_measured_counts_as_empty(books: Books, clock: Clock) -> None:
    volume = books.create(4 * GIB)
    books.fill(volume)
    books.disk.unmeasurable.add(volume.volume_id)
    clock.now += 10
    with pytest.raises(InsufficientCapacity):
        books.create(4 * GIB)
    books.disk.unmeasurable.clear()
    clock.now += 10
    books.create(4 * GIB)


def test_after_a_start_what_full_volumes_own_is_measured_before_anything_is_refused(books: Books) -> None:
    full = books.create(6 * GIB)
    books.fill(full)
    restarted = Ledger(books.disk)
    restarted.settle(full, 0)
    assert restarted.grantable_bytes(1.0) > 3 * GIB
    restarted.admit(books.volume(3 * GIB), 1.0)


def test_a_pool_with_room_is_not_measured(books: Books) -> None:
    for _ in range(10):
        books.create(100 * MIB)
        books.ledger.grantable_bytes(1.0)
    assert books.disk.measurements == 0


def test_measurements_close_to_each_other_are_one(books: Books, clock: Clock) -> None:
    books.fill(books.create(6 * GIB))
    clock.now += 10
    for _ in range(10):
        books.ledger.grantable_bytes(1.0)
    assert books.disk.measurements == 1


@pytest.mark.parametrize("thick", [False, True], ids=["thin", "thick"])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 300.0])
def test_what_a_workload_discards_is_promised_to_nobody_else(
    books: Books, clock: Clock, seconds: float, thick: bool
) -> None:
    """A discard makes available what its volume may write again: an older measurement of it is too large."""
    volume = books.create(4 * GIB, thick=thick)
    books.fill(volume)
    clock.now += 10
    books.ledger.measure()
    books.discard(volume)
    clock.now += seconds
    grantable = books.ledger.grantable_bytes(1.0)
    assert grantable <= USABLE - 4 * GIB
    with pytest.raises(InsufficientCapacity):
        books.create(USABLE - 4 * GIB + BLOCK)
    books.create(grantable)
    assert books.disk.growth_bytes <= books.disk.available_bytes


def test_a_refusal_rests_on_what_is_available_now(books: Books, clock: Clock) -> None:
    books.disk.strangers_bytes = 9 * GIB
    books.fill(books.create(100 * MIB))
    with pytest.raises(InsufficientCapacity):
        books.create(4 * GIB)
    books.disk.strangers_bytes = 0
    books.create(4 * GIB)


def test_what_strangers_free_is_grantable_as_soon_as_a_measurement_is_due(books: Books, clock: Clock) -> None:
    books.disk.strangers_bytes = 4 * GIB
    books.fill(books.create(GIB))
    clock.now += 10
    books.ledger.measure()
    books.disk.strangers_bytes = 0
    clock.now += 2.5
    assert books.ledger.grantable_bytes(1.0) > USABLE - GIB - BLOCK


def test_what_would_be_granted_without_a_measurement_is_told_without_one(books: Books, clock: Clock) -> None:
    books.disk.strangers_bytes = 4 * GIB
    books.create(GIB)
    books.ledger.measure()
    books.disk.strangers_bytes = 0
    assert books.ledger.grantable_bytes(1.0) > USABLE - GIB - BLOCK


@pytest.mark.parametrize("overcommit", [1.5, 2.0, 10.0])
def test_overcommit_grants_so_many_times_the_usable_bytes(books: Books, clock: Clock, overcommit: float) -> None:
    granted = 0
    while (grantable := books.ledger.grantable_bytes(overcommit)) > 0:
        size = min(grantable, GIB)
        books.create(size, overcommit=overcommit)
        granted += size
    assert overcommit * USABLE - BLOCK < granted <= overcommit * USABLE


def test_overcommit_counts_what_volumes_own_as_room(books: Books, clock: Clock) -> None:
    volume = books.create(GIB, overcommit=2.0)
    before = books.ledger.grantable_bytes(2.0)
    books.fill(volume)
    clock.now += 10
    books.ledger.measure()
    assert books.ledger.grantable_bytes(2.0) == before


def test_overcommit_says_no_more_than_it_grants_after_a_discard(books: Books, clock: Clock) -> None:
    volume = books.create(4 * GIB, overcommit=2.0)
    books.fill(volume)
    clock.now += 10
    books.ledger.measure()
    books.discard(volume)
    clock.now += 300
    books.create(books.ledger.grantable_bytes(2.0), overcommit=2.0)


def test_thick_volumes_are_never_overcommitted(books: Books) -> None:
    books.create(8 * GIB, overcommit=4.0)
    assert books.ledger.grantable_bytes(4.0, thick=True) < 2 * GIB < books.ledger.grantable_bytes(4.0)
    with pytest.raises(InsufficientCapacity):
        books.create(2 * GIB, thick=True, overcommit=4.0)


def test_many_threads_are_granted_together_what_one_would_be(books: Books) -> None:
    def create(_: int) -> int:
        try:
            return books.create(700 * MIB).capacity_bytes
        except InsufficientCapacity:
            return 0

    with ThreadPoolExecutor(16) as threads:
        granted = list(threads.map(create, range(64)))
    assert sum(granted) == USABLE // (700 * MIB) * 700 * MIB
    assert books.ledger.promised_bytes == sum(granted)


def test_a_thick_volume_is_not_counted_twice_once_it_is_built(books: Books) -> None:
    volume = books.volume(4 * GIB, thick=True)
    books.ledger.admit(volume, 1.0)
    books.disk.own[volume.volume_id] = volume.capacity_bytes
    assert books.ledger.grantable_bytes(1.0) < USABLE - 7 * GIB, "while it is built, both count: to the safe side"
    books.ledger.settle(volume, volume.capacity_bytes)
    books.disk.listed[volume.volume_id] = volume
    assert books.ledger.grantable_bytes(1.0) > USABLE - 4 * GIB - BLOCK


def test_what_is_promised_beyond_what_there_is_is_told(books: Books) -> None:
    books.create(books.ledger.grantable_bytes(1.0))
    assert not books.ledger.is_overdrawn(1.0)
    books.disk.strangers_bytes += 100 * MIB
    assert books.ledger.is_overdrawn(1.0)
    assert not books.ledger.is_overdrawn(2.0)


@pytest.mark.parametrize("thick", [False, True])
def test_a_volume_grows_by_what_is_grantable_and_not_by_a_block_more(books: Books, thick: bool) -> None:
    volume = books.create(GIB, thick=thick)
    most = volume.capacity_bytes + books.ledger.grantable_bytes(1.0, thick=thick)
    with pytest.raises(NoRoomToGrow, match=f"{most + BLOCK - GIB} more"):
        books.ledger.admit_growth(volume, most + BLOCK, 1.0)
    grown = books.grow(volume, most)
    assert books.ledger.grantable_bytes(1.0) == 0
    books.fill(grown)
    books.delete(grown)
    assert books.ledger.grantable_bytes(1.0) > USABLE - BLOCK


def test_a_growth_that_fails_gives_back_what_it_was_promised(books: Books) -> None:
    volume = books.create(GIB)
    before = books.ledger.promised_bytes
    assert books.grow(volume, 3 * GIB, fails=True) is volume
    assert books.ledger.promised_bytes == before


def test_a_measurement_does_not_take_a_growth_back_that_is_under_way(books: Books, clock: Clock) -> None:
    volume = books.create(GIB)
    books.ledger.admit_growth(volume, 4 * GIB, 1.0)
    clock.now += 10
    books.ledger.measure()
    assert books.ledger.promised_bytes == 4 * GIB


def test_an_intent_that_a_start_finds_is_promised_already(books: Books) -> None:
    volume = dataclasses.replace(books.volume(GIB), growing_to_bytes=4 * GIB)
    books.ledger.settle(volume, 0)
    assert books.ledger.promised_bytes == 4 * GIB


def test_a_directory_without_quota_grows_without_being_asked(books: Books) -> None:
    volume = books.volume(GIB, quota=QuotaPolicy.NONE)
    books.ledger.admit_growth(volume, 100 * GIB, 1.0)
    books.ledger.resize(dataclasses.replace(volume, capacity_bytes=100 * GIB))
    assert books.ledger.promised_bytes == 0


def test_growth_is_never_negative() -> None:
    volume = Books().volume(GIB)
    assert growth_of(volume, 2 * GIB) == 0
    assert growth_of(volume, 0) == GIB
