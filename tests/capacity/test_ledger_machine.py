"""The rule of capacity in every order of calls: what is promised is never more than there is.

Where volumes are overcommitted, the sum of their sizes is within its bound and thick ones keep the rule.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from csi_driver.domain import ledger as ledger_module
from csi_driver.domain.ledger import Ledger
from csi_driver.errors import InsufficientCapacity, NoRoomToGrow
from csi_driver.model import GIB, MIB, Volume
from tests.capacity.books import BLOCK, Books, Clock


class LedgerMachine(RuleBasedStateMachine):
    """Volumes made, written, discarded, deleted and measured in any order; time passes in between."""

    volumes = Bundle("volumes")
    overcommit = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(ledger_module, "time", self.clock)
        self.books = Books(4 * GIB)

    def teardown(self) -> None:
        self._patch.undo()

    @rule(target=volumes, part=st.integers(1, 100), thick=st.booleans())
    def create_a_part_of_what_is_grantable(self, part: int, thick: bool) -> Volume:
        grantable = self.books.ledger.grantable_bytes(self.overcommit, thick=thick)
        size = max(BLOCK, grantable * part // 100 // BLOCK * BLOCK)
        if size > grantable:
            return self.books.volume(0)
        return self.books.create(size, thick=thick, overcommit=self.overcommit)

    @rule(target=volumes, size=st.integers(1, 1024), thick=st.booleans())
    def create_anything(self, size: int, thick: bool) -> Volume:
        try:
            return self.books.create(size * 8 * MIB, thick=thick, overcommit=self.overcommit)
        except InsufficientCapacity:
            return self.books.volume(0)

    @rule(target=volumes, volume=consumes(volumes), part=st.integers(0, 130), fails=st.booleans())
    def grow_by_a_part_of_what_is_grantable(self, volume: Volume, part: int, fails: bool) -> Volume:
        if volume.volume_id not in self.books.disk.listed:
            return volume
        grantable = self.books.ledger.grantable_bytes(self.overcommit, thick=volume.is_thick)
        to_bytes = volume.capacity_bytes + grantable * part // 100 // BLOCK * BLOCK
        if to_bytes == volume.capacity_bytes:
            return volume
        try:
            return self.books.grow(volume, to_bytes, overcommit=self.overcommit, fails=fails)
        except NoRoomToGrow:
            assert part > 100, "less than what is said to be grantable was refused"
            return volume

    @rule(volume=volumes, part=st.integers(0, 100))
    def write(self, volume: Volume, part: int) -> None:
        own = self.books.disk.own.get(volume.volume_id)
        if own is not None:
            room = self.books.disk.available_bytes
            wanted = max(own, volume.capacity_bytes * part // 100)
            assert self.overcommit > 1.0 or wanted - own <= room, "a promise was broken"
            self.books.disk.own[volume.volume_id] = min(wanted, own + room)

    @rule(volume=volumes, part=st.integers(0, 100))
    def discard(self, volume: Volume, part: int) -> None:
        own = self.books.disk.own.get(volume.volume_id)
        if own is not None:
            self.books.disk.own[volume.volume_id] = own * part // 100

    @rule(volume=consumes(volumes))
    def delete(self, volume: Volume) -> None:
        if volume.volume_id in self.books.disk.listed:
            self.books.delete(volume)

    @rule(size=st.integers(1, 256), thick=st.booleans())
    def a_create_fails(self, size: int, thick: bool) -> None:
        volume = self.books.volume(size * MIB, thick=thick)
        try:
            self.books.ledger.admit(volume, self.overcommit)
        except InsufficientCapacity:
            return
        self.books.ledger.forget(volume)

    @rule(seconds=st.sampled_from([0.5, 1.5, 3.0, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def measure(self) -> None:
        self.books.ledger.measure()

    @precondition(lambda self: self.overcommit == 1.0)
    @invariant()
    def nobody_is_over_promised(self) -> None:
        reserve = Ledger.reserve_bytes(self.books.disk.space())
        assert self.books.disk.growth_bytes <= self.books.disk.available_bytes - reserve

    @invariant()
    def sizes_keep_to_the_overcommit(self) -> None:
        reserve = Ledger.reserve_bytes(self.books.disk.space())
        sizes = sum(volume.capacity_bytes for volume in self.books.disk.listed.values())
        assert sizes <= self.overcommit * (self.books.disk.total_bytes - reserve)


class OvercommittedMachine(LedgerMachine):
    """The same with an overcommit of two."""

    overcommit = 2.0


_SETTINGS = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = LedgerMachine.TestCase
TestAnyOrder.settings = _SETTINGS
TestAnyOrderOvercommitted = OvercommittedMachine.TestCase
TestAnyOrderOvercommitted.settings = _SETTINGS
