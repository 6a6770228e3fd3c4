"""Who was promised how many bytes of one filesystem, and what may still be promised; knows no backend.

Counted per filesystem, all pools on it together, since they share its space. *own* of a volume is what is allocated
to it alone, *growth* what it may still allocate. With an overcommit of 1.0 the sum of all growth never exceeds what
is available less a reserve, so nobody runs out of what he was promised except by strangers' writes.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from csi_driver.errors import InsufficientCapacity, InsufficientForCut, NoRoomToGrow
from csi_driver.model import BLOCK_BYTES, MIB, QuotaPolicy, Volume, VolumeType

_RESERVE_BYTES = 64 * MIB
_RESERVE_PART = 50
_FRESH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Space:
    """What the filesystem itself says, in bytes."""

    total_bytes: int
    available_bytes: int


class Filesystem(Protocol):
    """The filesystem below one or more pools, and the counted volumes on it."""

    def space(self) -> Space: ...

    def volumes(self) -> list[Volume]: ...

    def own_bytes(self, volume: Volume) -> int: ...


def is_counted(volume: Volume) -> bool:
    """Whether the volume has a size that is enforced: only then it can be promised anything."""
    return volume.volume_type is VolumeType.IMAGE or volume.parameters.quota is QuotaPolicy.REQUIRED


def growth_of(volume: Volume, own_bytes: int) -> int:
    """What the volume may still allocate, given what it owns; bytes.

    Nothing for a thick one that owns all its blocks; but a workload can discard blocks of any image (mkfs does it).
    """
    return max(0, volume.promised_bytes - own_bytes)


@dataclass(frozen=True, slots=True)
class _Held:
    """One volume in the books, in bytes; `worst` is its growth if it owned nothing."""

    growth: int
    own: int
    size: int
    worst: int


_NOTHING = _Held(0, 0, 0, 0)


class Ledger:
    """The promises made on one filesystem.

    An *own* that was not measured counts as 0. One that was measured before the workload discarded blocks is too
    large, while what was discarded is available again. But the sum of both, the room, changes neither by a write nor
    by a discard: no grant goes beyond the room that was measured last. A grant that holds even if nobody owned
    anything needs no measurement, and a refusal rests on one that was begun for it.
    """

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        self._lock = threading.Lock()
        self._measuring = threading.Lock()
        self._measured_at = -math.inf
        self._room_bytes: float = math.inf
        self._held: dict[str, _Held] = {}
        self._growth_bytes = self._own_bytes = self._size_bytes = self._worst_bytes = 0

    def space(self) -> Space:
        """The filesystem's own numbers, read now."""
        return self._filesystem.space()

    @staticmethod
    def reserve_bytes(space: Space) -> int:
        """What is kept for the metadata of the filesystem below the pools."""
        return max(_RESERVE_BYTES, space.total_bytes // _RESERVE_PART)

    @property
    def promised_bytes(self) -> int:
        """The sum of all growth."""
        return self._growth_bytes

    def grantable_bytes(self, overcommit: float, *, thick: bool = False, yieldable_bytes: int = 0) -> int:
        """The largest volume that would be granted now, a multiple of 4096; never more than that.

        `yieldable_bytes`: what is used now and would be given back for it.
        """
        usable = self._usable_bytes()
        # More room than was measured: discarded by a volume, or freed by a stranger. Only a measurement tells.
        is_due = usable + self._own_bytes > self._room_bytes or (math.isinf(self._room_bytes) and self._own_bytes)
        if usable < self._worst_bytes or is_due:
            self.measure()
        with self._lock:
            return max(0, (self._grantable(overcommit, thick) + yieldable_bytes) // BLOCK_BYTES * BLOCK_BYTES)

    def admit(self, volume: Volume, overcommit: float) -> None:
        """Promise `volume` its whole size while it is built.

        Raises: InsufficientCapacity.
        """
        grantable = self._refusal(volume, volume.capacity_bytes, overcommit)
        if grantable is not None:
            raise InsufficientCapacity(volume.pool, volume.capacity_bytes, grantable)

    def admit_growth(self, volume: Volume, to_bytes: int, overcommit: float) -> None:
        """Promise a volume that is there what it lacks of `to_bytes`, until `resize` tells what became of it.

        Raises: NoRoomToGrow.
        """
        grantable = self._refusal(volume, to_bytes - volume.capacity_bytes, overcommit)
        if grantable is not None:
            raise NoRoomToGrow(volume.volume_id, volume.pool, volume.capacity_bytes, to_bytes, grantable)

    def admit_whole(self, volume: Volume) -> None:
        """Make sure that a thin volume can be allocated whole: by all promises alike, whatever is overcommitted.

        Raises: InsufficientCapacity.
        """
        for since in (None, time.monotonic()):
            if since is not None:
                self.measure(since)
            with self._lock:
                growth = self._held.get(volume.volume_id, _NOTHING).growth
                # Its own growth is one of the promises already.
                spare = self._grantable(1.0, thick=True)
            if spare >= 0:
                return
        raise InsufficientCapacity(volume.pool, growth, growth + spare)

    def admit_used(self, volume: Volume, used_bytes: int, overcommit: float) -> None:
        """Promise a volume without a size so far what it lacks of it; `settle` or `forget` tells what became of it.

        Raises: InsufficientCapacity.
        """
        more_bytes = max(0, volume.capacity_bytes - used_bytes)
        grantable = self._refusal(volume, more_bytes, overcommit)
        if grantable is not None:
            raise InsufficientCapacity(volume.pool, more_bytes, grantable)

    def resize(self, volume: Volume, allocated_bytes: int = 0) -> None:
        """The volume has this size now, and was just given so many bytes of it."""
        with self._lock:
            held = self._held.get(volume.volume_id)
            if held is not None:
                growth = held.growth + volume.promised_bytes - held.size - allocated_bytes
                self._hold(volume.volume_id, volume.promised_bytes, max(0, growth), held.own + allocated_bytes)

    def settle(self, volume: Volume, own_bytes: int) -> None:
        """The volume is there and owns `own_bytes`. Idempotent; also how a measurement is told."""
        if not is_counted(volume):
            return
        with self._lock:
            self._hold(volume.volume_id, volume.promised_bytes, growth_of(volume, own_bytes), own_bytes)

    def admit_cut(self, volume: Volume, overcommit: float) -> None:
        """Promise that all of `volume` can be written over, though what it owns is about to be shared with a relative.

        When the cut fails after all, the next measurement gives the promise back.

        Raises: InsufficientForCut.
        """
        if not is_counted(volume):
            return
        # What it owns now: the room that was measured last is smaller by that, once it is shared.
        own = self._own_of(volume)
        if self._admit_shared(volume, own, overcommit):
            return
        self.measure(time.monotonic())
        if not self._admit_shared(volume, own, overcommit):
            with self._lock:
                grantable = self._grantable(overcommit, volume.is_thick)
            raise InsufficientForCut(volume.volume_id, volume.pool, own, grantable)

    def admit_copy(self, object_id: str, pool: str, size_bytes: int, overcommit: float) -> None:
        """Promise `size_bytes` to a copy that will allocate them all; `copied` tells how far it is.

        Raises: InsufficientCapacity.
        """
        for since in (None, time.monotonic()):
            if since is not None:
                self.measure(since)
            with self._lock:
                grantable = self._grantable(overcommit, thick=True)
                if size_bytes <= grantable:
                    self._hold(object_id, size_bytes, size_bytes, 0)
                    return
        raise InsufficientCapacity(pool, size_bytes, grantable)

    def copied(self, object_id: str, remaining_bytes: int) -> None:
        """So much of a copy is not written yet; nothing: it is done, or given up. Idempotent."""
        with self._lock:
            if remaining_bytes > 0 and object_id in self._held:
                self._hold(object_id, remaining_bytes, remaining_bytes, 0)
            else:
                self._drop(object_id)

    def retire(self, volume: Volume, own_bytes: int) -> None:
        """The volume lies in the trash: it grows no more, and what it owns stays used."""
        with self._lock:
            if volume.volume_id in self._held:
                self._room_bytes -= own_bytes
                self._drop(volume.volume_id)

    def admit_return(self, volume: Volume, own_bytes: int, overcommit: float, leaving_bytes: int = 0) -> None:
        """Promise a volume that comes back from the trash what it lacks of its size.

        `leaving_bytes`: what the one owns whose place it takes, and which stays used.

        Raises: InsufficientCapacity; nothing has changed then.
        """
        if not is_counted(volume):
            return
        lacking = 0
        for since in (None, time.monotonic()):
            if since is not None:
                self.measure(since)
            lacking = self._lacks_for_return(volume, own_bytes, overcommit, leaving_bytes)
            if not lacking:
                return
        growth = growth_of(volume, own_bytes)
        raise InsufficientCapacity(volume.pool, growth, growth - lacking)

    def _lacks_for_return(self, volume: Volume, own_bytes: int, overcommit: float, leaving_bytes: int) -> int:
        """Hold the volume if all promises can be kept then; else what is lacking."""
        with self._lock:
            before, room = self._held.get(volume.volume_id), self._room_bytes
            self._room_bytes += own_bytes - leaving_bytes
            self._hold(volume.volume_id, volume.promised_bytes, growth_of(volume, own_bytes), own_bytes)
            left = self._grantable(overcommit, volume.is_thick)
            if left >= 0:
                return 0
            self._room_bytes = room
            self._drop(volume.volume_id)
            if before is not None:
                self._hold(volume.volume_id, before.size, before.growth, before.own)
            return -left

    def take_place(self, volume: Volume, stand_in: Volume, leaving_bytes: int) -> None:
        """The promise that was made to `stand_in` is the volume's, whose content it is now.

        `leaving_bytes`: what the content before owns, which lies in the trash.
        """
        with self._lock:
            self._drop(stand_in.volume_id)
            if is_counted(volume):
                self._room_bytes -= leaving_bytes
                self._hold(volume.volume_id, volume.promised_bytes, volume.promised_bytes, 0)

    def is_overdrawn(self, overcommit: float) -> bool:
        """Whether more is promised than there is: a stranger wrote, or templates were made after the promise."""
        with self._lock:
            return self._grantable(overcommit, thick=False) < 0

    def forget(self, volume: Volume) -> None:
        """The volume is gone, or was never built. Idempotent."""
        with self._lock:
            self._drop(volume.volume_id)

    def measure(self, since: float | None = None) -> None:
        """Measure what every volume owns, unless that was begun after `since` (time.monotonic(); None: just now).

        One thread measures at a time; the others wait for it and take its result.
        """
        with self._measuring:
            started = time.monotonic()
            if self._measured_at > (started - _FRESH_SECONDS if since is None else since):
                return
            usable = self._usable_bytes()
            for volume in self._filesystem.volumes():
                self._measure_one(volume)
            with self._lock:
                # The lesser of both: what was written or discarded meanwhile must not count twice.
                self._room_bytes = min(usable, self._usable_bytes()) + self._own_bytes
            self._measured_at = started

    def _measure_one(self, volume: Volume) -> None:
        if volume.volume_id not in self._held:
            return
        try:
            measured = self._filesystem.own_bytes(volume)
        except OSError:
            measured = 0
        with self._lock:
            # Deleted meanwhile: a promise must not come back to life. Grown meanwhile: the size is that of the promise.
            held = self._held.get(volume.volume_id)
            if held is not None:
                self._hold(volume.volume_id, held.size, max(0, held.size - measured), measured)

    def _own_of(self, volume: Volume) -> int:
        try:
            return self._filesystem.own_bytes(volume)
        except OSError:
            # Whatever it owns is then promised anew: the strictest answer.
            return volume.promised_bytes

    def _admit_shared(self, volume: Volume, own_bytes: int, overcommit: float) -> bool:
        size = volume.promised_bytes
        with self._lock:
            held = self._held.get(volume.volume_id, _Held(size, 0, size, size))
            if not self._allows_sharing(held, own_bytes, 1.0 if volume.is_thick else overcommit):
                return False
            self._room_bytes -= own_bytes
            self._hold(volume.volume_id, size, size, 0)
            return True

    def _allows_sharing(self, held: _Held, own_bytes: int, overcommit: float) -> bool:
        """Whether all promises can be kept when this object owns nothing any more."""
        usable = self._usable_bytes()
        room = self._room_bytes - own_bytes
        if overcommit > 1.0:
            return self._size_bytes <= overcommit * min(usable + self._own_bytes - held.own, room)
        if usable >= self._worst_bytes:
            return True
        return self._growth_bytes - held.growth + held.size <= usable and self._size_bytes <= room

    def _refusal(self, volume: Volume, asked_bytes: int, overcommit: float) -> int | None:
        """Promise the volume so many bytes more; where they cannot be granted, what can be instead."""
        if not is_counted(volume) or self._admit_without_measuring(volume, asked_bytes, overcommit):
            return None
        arrived = time.monotonic()
        grantable = 0
        for since in (arrived - _FRESH_SECONDS, arrived):
            self.measure(since)
            with self._lock:
                grantable = self._grantable(overcommit, volume.is_thick)
                if asked_bytes <= grantable:
                    self._promise(volume, asked_bytes)
                    return None
        return grantable

    def _admit_without_measuring(self, volume: Volume, asked_bytes: int, overcommit: float) -> bool:
        with self._lock:
            if asked_bytes > self._usable_bytes() - self._worst_bytes:
                return False
            if overcommit > 1.0 and asked_bytes > self._grantable(overcommit, volume.is_thick):
                return False
            self._promise(volume, asked_bytes)
            return True

    def _promise(self, volume: Volume, more_bytes: int) -> None:
        held = self._held.get(volume.volume_id, _NOTHING)
        self._hold(volume.volume_id, held.size + more_bytes, held.growth + more_bytes, held.own)

    def _usable_bytes(self) -> int:
        space = self._filesystem.space()
        return space.available_bytes - self.reserve_bytes(space)

    def _grantable(self, overcommit: float, thick: bool) -> int:
        usable = self._usable_bytes()
        if thick or overcommit <= 1.0:
            measured = min(usable - self._growth_bytes, self._room_bytes - self._size_bytes)
            return int(max(measured, usable - self._worst_bytes))
        return int(overcommit * min(usable + self._own_bytes, self._room_bytes)) - self._size_bytes

    def _hold(self, object_id: str, size: int, growth: int, own: int) -> None:
        self._drop(object_id)
        self._held[object_id] = held = _Held(growth, own, size, worst=max(growth, size))
        self._add(held, 1)

    def _drop(self, object_id: str) -> None:
        held = self._held.pop(object_id, None)
        if held is not None:
            self._add(held, -1)

    def _add(self, held: _Held, sign: int) -> None:
        self._growth_bytes += sign * held.growth
        self._own_bytes += sign * held.own
        self._size_bytes += sign * held.size
        self._worst_bytes += sign * held.worst
