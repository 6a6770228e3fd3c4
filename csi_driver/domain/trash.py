"""Deleted objects during their retention: known, counted, given back and cleared away; knows no request.

An entry is a directory `trash/<id>@<time of deletion>`, in which everything lies as it did; its record says how long it
stays. The end of its name says what else it may be (store.pool). Purge: claim -> rename, after which a start clears it
whatever is left of it -> clear away.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from csi_driver.backends import remains, removal
from csi_driver.domain.claims import Claims
from csi_driver.domain.kinship import Kinship
from csi_driver.domain.pools import Pool
from csi_driver.errors import NotInTrash, OperationPending, RecordDamaged, RemainsHeld
from csi_driver.faults import crash_point
from csi_driver.model import RetentionPolicy, Snapshot, Volume
from csi_driver.store import records
from csi_driver.store.pool import KEPT, REPLACED, ROLLBACK, TRASH

_log = logging.getLogger("hostvol.trash")
# How far clocks may differ before one was set.
_SLACK_SECONDS: Final = 60
_JUMP_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class Entry:
    """One object in the trash of a pool; times in seconds since the epoch.

    `held` is None where its record is damaged, of which `damage` tells. `own_bytes`: what its end would give back;
    None: not measured yet.
    """

    name: str
    pool: Pool
    deleted_at: int
    held: Volume | Snapshot | None
    own_bytes: int | None = None
    damage: str = ""

    @property
    def object_id(self) -> str:
        return self.name.rpartition("@")[0]

    @property
    def is_replaced(self) -> bool:
        """Whether a rollback put something else in its place."""
        return self.name.endswith(REPLACED) or ROLLBACK in self.name

    @property
    def is_retained(self) -> bool:
        """Whether it goes by itself; all others stay until an operator decides."""
        return self.held is not None and "." not in self.name

    @property
    def expires_at(self) -> int | None:
        if self.held is None or not self.is_retained:
            return None
        return self.deleted_at + self.pool.allowed_retention(self.held.parameters.retention_seconds)

    @property
    def yields(self) -> bool:
        """Whether it may go before its end when its space is needed."""
        return (
            self.held is not None
            and self.is_retained
            and self.held.parameters.retention_policy is RetentionPolicy.YIELD
        )

    @property
    def state(self) -> str:
        """One word for people: retained, yields, replaced, retired or damaged."""
        if self.held is None:
            return "damaged"
        if self.is_replaced:
            return "replaced"
        if not self.is_retained:
            return "retired"
        return "yields" if self.yields else "retained"

    @property
    def path(self) -> str:
        return f"{self.pool.store.directory}/{TRASH}/{self.name}"


class Trash:
    """The trash of all pools of this node."""

    def __init__(self, claims: Claims, kinship: Kinship) -> None:
        self._claims = claims
        self._kinship = kinship
        self._lock = threading.Lock()
        self._giving_back = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._yielders: set[str] = set()
        self._clocks: dict[str, tuple[float, float]] = {}

    # what is there

    def all(self, pool: Pool | None = None) -> list[Entry]:
        """The entries, of one pool or of all, the oldest first."""
        with self._lock:
            found = [entry for entry in self._entries.values() if pool is None or entry.pool is pool]
        return sorted(found, key=lambda entry: (entry.deleted_at, entry.name))

    def page(self, after: str, limit: int) -> tuple[list[Entry], bool]:
        """Up to `limit` entries in the order of their names behind `after`, measured; and whether none follow."""
        with self._lock:
            names = sorted(self._entries)
        start = bisect.bisect_right(names, after)
        found = [self._entries.get(name) for name in names[start : start + limit]]
        return [self.measured(entry) for entry in found if entry is not None], start + limit >= len(names)

    def find(self, reference: str) -> Entry:
        """The entry of this name, or the latest one of the object with this id or name.

        Raises: NotInTrash.
        """
        entry = self._entries.get(reference)
        if entry is not None:
            return entry
        for found in reversed(self.all()):
            if reference in (found.object_id, found.held.name if found.held is not None else ""):
                return found
        raise NotInTrash(reference)

    def get(self, name: str) -> Entry:
        """The entry of this name.

        Raises: NotInTrash.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotInTrash(name)
        return entry

    def figures(self, pool: Pool) -> tuple[int, int]:
        """How many entries the pool has, and what they own as far as it was measured, in bytes."""
        entries = self.all(pool)
        return len(entries), sum(entry.own_bytes or 0 for entry in entries)

    def measured(self, entry: Entry) -> Entry:
        """The entry with what it owns, measured unless it was before."""
        if entry.own_bytes is not None:
            return entry
        try:
            own_bytes = remains.own_bytes(entry.pool.store.trash_fd, entry.name)
        except OSError as cause:
            _log.warning("trash entry %s cannot be measured: %s", entry.path, cause)
            return entry
        known = _with_own(entry, own_bytes)
        with self._lock:
            if entry.name in self._entries:
                self._entries[entry.name] = known
        return known

    # what comes and goes

    def add(self, pool: Pool, name: str, held: Volume | Snapshot, own_bytes: int | None) -> Entry:
        """The object lies in the pool's trash under that name."""
        entry = Entry(name, pool, _deleted_at(name), held, own_bytes)
        self._know(entry)
        return entry

    def forget(self, entry: Entry) -> None:
        """The entry has left the trash. Idempotent."""
        with self._lock:
            self._entries.pop(entry.name, None)
            self._yielders.discard(entry.name)
        self._kinship.note(entry.name, None)

    def load(self, pool: Pool) -> None:
        """Everything in the pool's trash is known, before anything of the pool is served."""
        for name in pool.store.trash_names():
            where = f"{pool.store.directory}/{TRASH}/{name}/{records.RECORD}"
            try:
                held = records.read_any(pool.store.trash_fd, name, where)
                if held.object_id != name.rpartition("@")[0] or held.pool != pool.name:
                    raise RecordDamaged(where, f"it belongs to {held.object_id} in pool {held.pool}")
            except RecordDamaged as damage:
                _log.error("trash entry %s is kept, whatever its age: %s", name, damage)
                self._know(Entry(name, pool, _deleted_at(name), None, damage=str(damage)))
            else:
                self._take_in(pool, name, held)

    def purge(self, name: str, deadline: float | None = None) -> None:
        """Nothing is left of the entry. Idempotent while it runs: a second caller waits for the first.

        Raises: NotInTrash; OperationPending while it comes back; RemainsHeld: a start, or the keeper, goes on.
        """
        self._claims.run(("trash", name), "purge", deadline, lambda: self._purge(self.get(name)))

    def tend(self, pool: Pool) -> None:
        """What has reached its end goes, the oldest first; what is not measured is; the ceiling holds."""
        self._mend_clocks(pool)
        now = time.time()
        for entry in self.all(pool):
            if entry.expires_at is not None and entry.expires_at <= now:
                self._purge_if_free(entry, "its retention is over")
        for entry in self.all(pool):
            self.measured(entry)
        self.trim(pool)

    def trim(self, pool: Pool) -> None:
        """The pool's trash holds no more than its operator allows: the oldest go first, whoever owns them."""
        ceiling = pool.trash_ceiling_bytes()
        if ceiling is None:
            return
        retained = [entry for entry in self.all(pool) if entry.is_retained]
        held = sum(entry.own_bytes or 0 for entry in retained)
        for entry in retained:
            if held <= ceiling:
                return
            if entry.own_bytes and self._purge_if_free(entry, "the pool's ceiling for its trash is reached"):
                held -= entry.own_bytes

    # what gives way

    def yieldable_bytes(self, pool: Pool) -> int:
        """What the filesystem of the pool would be given back when a create needed it."""
        return sum(entry.own_bytes or 0 for entry in self._yielding(pool))

    def give_back(self, pool: Pool, wanted_bytes: int) -> bool:
        """Entries that yield have gone, the oldest first, until so much is given back; none if all are too little."""
        with self._giving_back:
            yielding = list(self._yielding(pool))
            if sum(entry.own_bytes or 0 for entry in yielding) < wanted_bytes:
                return False
            for entry in yielding:
                if wanted_bytes <= 0:
                    break
                if entry.own_bytes and self._purge_if_free(entry, "its space is needed"):
                    wanted_bytes -= entry.own_bytes
        return wanted_bytes <= 0

    def _yielding(self, pool: Pool) -> Iterator[Entry]:
        # Asked at every GetCapacity: what does not yield, which may be thousands, is not looked at.
        with self._lock:
            found = [self._entries[name] for name in self._yielders]
        for entry in sorted(found, key=lambda entry: (entry.deleted_at, entry.name)):
            if entry.pool.ledger is pool.ledger and not self._claims.holds(("trash", entry.name)):
                yield entry

    def _take_in(self, pool: Pool, name: str, held: Volume | Snapshot) -> None:
        if ROLLBACK in name:
            if isinstance(held, Volume) and name.endswith(f"{ROLLBACK}{held.rollback}"):
                # The process ended before it took the place of the volume's content: that one is untouched.
                pool.clear_later(pool.store.trash_fd, pool.store.condemn(name))
                return
            name = pool.store.mark_replaced(name)
        elif "." not in name and not held.parameters.retention_seconds:
            # Deleted for good, by a version that gave such entries no mark.
            pool.clear_later(pool.store.trash_fd, pool.store.condemn(name))
            return
        self._know(Entry(name, pool, _deleted_at(name), held))

    def _know(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.name] = entry
            if entry.yields:
                self._yielders.add(entry.name)
        # Until it is purged it holds its blocks, which are nobody's own as long as two have them.
        self._kinship.note(entry.name, entry.held)

    def _purge_if_free(self, entry: Entry, reason: str) -> bool:
        try:
            self.purge(entry.name)
        except (NotInTrash, OperationPending):
            return False
        except RemainsHeld as cause:
            _log.warning("%s", cause)
            return False
        except OSError as cause:
            _log.error("trash entry %s cannot be purged: %s", entry.path, cause)
            return False
        _log.info("trash entry %s is purged: %s", entry.name, reason)
        return True

    def _purge(self, entry: Entry) -> None:
        store = entry.pool.store
        out = store.condemn(entry.name)
        crash_point("purge.condemned")
        self.forget(entry)
        try:
            removal.clear(store.trash_fd, out)
        except OSError as cause:
            entry.pool.clear_later(store.trash_fd, out)
            raise RemainsHeld(entry.object_id, cause) from cause
        crash_point("purge.cleared")

    # clocks

    def _mend_clocks(self, pool: Pool) -> None:
        """A clock that was set ends no retention early, nor lets one last for decades."""
        wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        wall_before, boot_before = self._clocks.get(pool.name, (wall, boot))
        self._clocks[pool.name] = (wall, boot)
        jump = (wall - wall_before) - (boot - boot_before)
        for entry in self.all(pool):
            if entry.held is None or not entry.is_retained:
                continue
            at = entry.deleted_at + int(jump) if jump > _JUMP_SECONDS else entry.deleted_at
            if at > wall + _SLACK_SECONDS or at < entry.held.created_at - _SLACK_SECONDS:
                at = int(wall)
            if at != entry.deleted_at:
                self._restamp(entry, at)

    def _restamp(self, entry: Entry, deleted_at: int) -> None:
        def restamp() -> None:
            current = self.get(entry.name)
            name = current.pool.store.restamp(current.name, deleted_at)
            self._know(Entry(name, current.pool, _deleted_at(name), current.held, current.own_bytes))
            self.forget(current)

        try:
            self._claims.run(("trash", entry.name), "restamp", None, restamp)
        except (NotInTrash, OperationPending, OSError) as cause:
            _log.warning("trash entry %s keeps its time of deletion: %s", entry.path, cause)


def mark_of(volume: Volume, *, retired: bool) -> str | None:
    """How a volume's name in the trash ends; None: it does not stay there."""
    if retired:
        return KEPT
    return "" if volume.parameters.retention_seconds else None


def _deleted_at(name: str) -> int:
    seconds = name.rpartition("@")[2].partition(".")[0]
    return int(seconds) if seconds.isdecimal() and len(seconds) < 12 else 0


def _with_own(entry: Entry, own_bytes: int) -> Entry:
    return Entry(entry.name, entry.pool, entry.deleted_at, entry.held, own_bytes, entry.damage)
