"""Pools brought into service and kept there: opened, loaded, compared with the kernel, cleared, measured.

Each pool has a thread of its own, so a disk that hangs keeps no other pool from being served. Nothing here touches a
mounted volume, so one that hangs keeps none from being found again.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from csi_driver.backends import removal
from csi_driver.backends.attachments import IMAGE
from csi_driver.backends.directory import QuotaKind, tend_quotas
from csi_driver.domain.amendment import Amendment
from csi_driver.domain.catalogue import Catalogue, GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.extension import Extension
from csi_driver.domain.group_startup import GroupStartup
from csi_driver.domain.kinship import Kinship
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.pool_growth import room_below
from csi_driver.domain.pools import Pool, PoolOptions, Pools, backed_bytes, initialise_backed_pool, initialise_pool
from csi_driver.domain.transfer_startup import TransferStartup
from csi_driver.domain.trash import Trash
from csi_driver.errors import (
    InsufficientCapacity,
    InvalidField,
    PoolMisconfigured,
    PoolRefused,
    RecordDamaged,
    UndoFailed,
)
from csi_driver.faults import crash_point
from csi_driver.linux import loop
from csi_driver.model import PoolName, QuotaPolicy, Snapshot, Volume, VolumeId, VolumeType
from csi_driver.store import records
from csi_driver.store.pool import VOLUMES
from csi_driver.store.runtime import RuntimeState

_log = logging.getLogger("hostvol.startup")
_OPEN_SECONDS = 15.0
_HEAD_START_SECONDS = 0.2
_TRY_AGAIN_SECONDS = 10.0
_TEND_SECONDS = 60.0
_STOP_SECONDS = 5.0
_Held = TypeVar("_Held", Volume, Snapshot)
_IMAGE_PATH = re.compile(rf"/{VOLUMES}/([a-z0-9-]+)/{re.escape(IMAGE)}$")


# Told, before a pool's volumes are served, which of its snapshots are not finished.
Resume = Callable[[Pool, list[Snapshot], list[Volume]], None]


@dataclass(frozen=True, slots=True)
class Indexes:
    """Where what is read from the pools goes."""

    volumes: Catalogue
    snapshots: SnapshotCatalogue
    kinship: Kinship
    resume: Resume
    trash: Trash
    groups: GroupCatalogue
    group_startup: GroupStartup
    transfers: TransferStartup

    def miss(self, pool: str, reason: str) -> None:
        """The pool is not served: what is not known may be in it."""
        self.volumes.miss(pool, reason)
        self.snapshots.miss(pool, reason)
        self.groups.miss(pool, reason)

    def found(self, pool: str) -> None:
        """All that the pool holds is known."""
        self.volumes.found(pool)
        self.snapshots.found(pool)
        self.groups.found(pool)


class Startup:
    """The keepers of a node's pools."""

    def __init__(
        self,
        options: Sequence[PoolOptions],
        *,
        driver_name: str,
        state_dir: str,
        pools: Pools,
        catalogue: Catalogue,
        snapshots: SnapshotCatalogue,
        kinship: Kinship,
        resume: Resume,
        trash: Trash,
        groups: GroupCatalogue,
        group_startup: GroupStartup,
        transfers: TransferStartup,
        mounts: VolumeMounts,
        extension: Extension,
        amendment: Amendment,
    ) -> None:
        self._pools = pools
        self._stopped = threading.Event()
        indexes = Indexes(catalogue, snapshots, kinship, resume, trash, groups, group_startup, transfers)
        loader = PoolLoader(
            driver_name,
            state_dir,
            pools=pools,
            indexes=indexes,
            mounts=mounts,
            extension=extension,
            amendment=amendment,
        )
        # Who may make or enlarge a file last: what other pools promised beside it is known then.
        ordered = sorted(options, key=lambda one: one.backing_bytes > 0)
        self._keepers = [_Keeper(one, loader, pools, indexes, self._stopped) for one in ordered]

    def run(self) -> None:
        """Open every pool; those that cannot be opened are refused by name, tried again, and the others served.

        A pool whose disk does not answer is waited for 15 seconds, and served when it comes later.

        A node without a pool serves too: it tells why, and its pools come back without a restart. Only where nothing
        but what it was told is wrong does it end, so that a person, or a rollout, sees it.

        Raises: PoolMisconfigured: that is so of every pool.
        """
        ends = time.monotonic() + _OPEN_SECONDS
        for keeper in self._keepers:
            keeper.start()
            # In their order where nothing hangs: of two names for one directory the first is served.
            keeper.settled.wait(_HEAD_START_SECONDS)
        for keeper in self._keepers:
            keeper.settled.wait(max(0.0, ends - time.monotonic()))
        mistakes = [one.refusal for one in self._keepers if isinstance(one.refusal, PoolMisconfigured)]
        if len(mistakes) == len(self._keepers):
            raise mistakes[0]
        if not self._pools.opened:
            _log.error("no pool is served; each is tried again every %.0f s", _TRY_AGAIN_SECONDS)

    @property
    def all_refused(self) -> bool:
        """Whether each pool was refused, and none is served or hangs at its first opening."""
        return all(keeper.refusal is not None for keeper in self._keepers)

    @property
    def is_opening(self) -> bool:
        """Whether a pool is being opened now, for the first time or again."""
        return any(keeper.is_opening for keeper in self._keepers)

    def stop(self) -> bool:
        """End the keepers; False when one is in the middle of something."""
        self._stopped.set()
        ends = time.monotonic() + _STOP_SECONDS
        for keeper in self._keepers:
            if keeper.ident is not None:
                keeper.join(max(0.0, ends - time.monotonic()))
        return not any(keeper.is_alive() for keeper in self._keepers)


class _Keeper(threading.Thread):
    """Opens one pool, again and again until it succeeds, and then keeps it in order."""

    def __init__(
        self,
        options: PoolOptions,
        loader: PoolLoader,
        pools: Pools,
        indexes: Indexes,
        stopped: threading.Event,
    ) -> None:
        super().__init__(name=f"pool {options.name}", daemon=True)
        self.settled = threading.Event()
        self.refusal: PoolRefused | None = None
        self.is_opening = False
        self._options = options
        self._loader = loader
        self._pools = pools
        self._indexes = indexes
        self._stopped = stopped
        self._refuse("its disk has not answered yet")

    def run(self) -> None:
        pool = self._open()
        self.settled.set()
        while pool is None:
            if self._stopped.wait(_TRY_AGAIN_SECONDS):
                return
            pool = self._open()
        leftovers = pool.store.leftovers_at_open
        while True:
            leftovers += pool.take_uncleared()
            leftovers = [left for left in leftovers if not _cleared(pool, *left)]
            self._indexes.transfers.tend(pool)
            _tend(pool, self._indexes.trash)
            if self._stopped.wait(_TEND_SECONDS):
                return

    def _open(self) -> Pool | None:
        self.is_opening = True
        try:
            return self._try_to_open()
        finally:
            self.is_opening = False

    def _try_to_open(self) -> Pool | None:
        try:
            pool = self._loader.open(self._options)
        except (PoolRefused, OSError) as cause:
            refusal = _refusal(self._options, cause)
            if self.refusal is None or str(self.refusal) != str(refusal):
                _log.error("%s", refusal)
            self.refusal = refusal
            self._refuse(str(refusal))
            return None
        self.refusal = None
        self._indexes.found(self._options.name)
        self._indexes.group_startup.settle()
        return pool

    def _refuse(self, reason: str) -> None:
        self._pools.refuse(self._options.name, reason)
        self._indexes.miss(self._options.name, f"pool {self._options.name}: {reason}")


class PoolLoader:
    """Reads what a pool holds, and finds again what earlier processes of this boot attached and mounted."""

    def __init__(
        self,
        driver_name: str,
        state_dir: str,
        *,
        pools: Pools,
        indexes: Indexes,
        mounts: VolumeMounts,
        extension: Extension,
        amendment: Amendment,
    ) -> None:
        self._driver_name = driver_name
        self._state_dir = state_dir
        self._pools = pools
        self._indexes = indexes
        self._mounts = mounts
        self._extension = extension
        self._amendment = amendment

    def open(self, options: PoolOptions) -> Pool:
        """The pool, in service.

        Raises: PoolRefused, OSError; nothing is held then.
        """
        began = time.monotonic()
        pool = self._opened(options)
        try:
            pool.unmounted_growth.settle_all()
            volumes, snapshots = self._volumes(pool), self._snapshots(pool)
            self._pools.add(pool, self._indexes.volumes.all, self._indexes.kinship)
        except BaseException:
            pool.close()
            raise
        self._take_over(pool, volumes, snapshots)
        seconds = time.monotonic() - began
        _log.info(
            "pool %s: %d volumes and %d snapshots served from %s in %.0f ms",
            pool.name,
            len(volumes),
            len(snapshots),
            pool.store.directory,
            seconds * 1000,
        )
        _warn_of_missing_quota(pool, volumes)
        if pool.has_log_tree:
            _log.warning("%s", pool.log_tree_remedy)
        return pool

    def _opened(self, options: PoolOptions) -> Pool:
        if options.backing_bytes:
            return self._backed(options)
        if options.init:
            initialise_pool(options.directory, self._driver_name)
        return Pool(options, self._driver_name, self._state_dir)

    def _backed(self, options: PoolOptions) -> Pool:
        """A pool in a backing file, made or grown if need be; where it cannot grow it is served as it is."""
        os.makedirs(options.directory, mode=0o700, exist_ok=True)
        present = backed_bytes(options.directory)
        device = os.stat(options.directory).st_dev
        try:
            with room_below(self._pools, options.name, device, options.backing_bytes - present):
                initialise_backed_pool(options.directory, self._driver_name, options.backing_bytes)
                return Pool(options, self._driver_name, self._state_dir)
        except (InsufficientCapacity, InvalidField) as cause:
            if not present:
                raise PoolRefused(options.directory, str(cause)) from cause
            _log.error("pool %s keeps its size: %s", options.name, cause)
        return Pool(replace(options, backing_bytes=0), self._driver_name, self._state_dir)

    def _take_over(self, pool: Pool, volumes: list[Volume], snapshots: list[Snapshot]) -> None:
        for volume in volumes:
            pool.ledger.settle(volume, 0)
        # Their blocks may be their relatives': before anything is measured.
        self._indexes.trash.load(pool)
        self._adopt_loops(pool)
        volumes = [self._settled(volume) for volume in volumes]
        # The volumes are found by requests only after everything that is known of them.
        self._adopt_states(pool, {volume.volume_id for volume in volumes})
        self._indexes.transfers.take_over(pool)
        self._indexes.snapshots.add_all(snapshots)
        self._indexes.group_startup.take_over(pool)
        self._indexes.resume(pool, [one for one in snapshots if not one.is_ready], volumes)
        self._indexes.volumes.add_all(volumes)
        crash_point("startup.opened")

    def _settled(self, volume: Volume) -> Volume:
        """The volume after whatever expansion or modification was cut short has been finished or taken back."""
        try:
            return self._amendment.settle(self._extension.settle(volume))
        except UndoFailed as failure:
            _log.error("%s", failure)
            return volume

    def _volumes(self, pool: Pool) -> list[Volume]:
        store = pool.store
        room = _Room("volume", store.volumes_fd, store.volume_names, store.path_of, self._indexes.volumes.quarantine)
        return _sound(pool.name, room, records.read_volume)

    def _snapshots(self, pool: Pool) -> list[Snapshot]:
        store, quarantine = pool.store, self._indexes.snapshots.quarantine
        room = _Room("snapshot", store.snapshots_fd, store.snapshot_names, store.snapshot_path, quarantine)
        return _sound(pool.name, room, records.read_snapshot)

    @staticmethod
    def _adopt_loops(pool: Pool) -> None:
        """Find the loop devices of this pool's images again: by the path that sysfs shows, then by their inode."""
        for number, path in loop.backing_paths():
            # The end of the path only: seen from another container it begins at that container's mount.
            match = _IMAGE_PATH.search(path)
            if match is not None:
                pool.attachments.adopt(VolumeId(match[1]), number)

    def _adopt_states(self, pool: Pool, loaded: set[VolumeId]) -> None:
        for volume_id, state in pool.runtime.load_all().items():
            if volume_id in loaded or self._indexes.volumes.has(volume_id):
                self._mounts.restore(volume_id, state)
            else:
                # Deleted by a process that ended before it could say so here.
                pool.runtime.save(volume_id, RuntimeState())


@dataclass(frozen=True, slots=True)
class _Room:
    """A directory of a pool in which each object has a directory of its own, and where those go that are damaged."""

    kind: str
    fd: int
    names: Callable[[], Iterable[str]]
    path_of: Callable[[str], str]
    quarantine: Callable[[str, RecordDamaged, str], None]


def _sound(pool: PoolName, room: _Room, read: Callable[[int, str, str], _Held]) -> list[_Held]:
    """What can be served of a room; the rest is quarantined."""
    sound = []
    for name in room.names():
        where = f"{room.path_of(name)}/{records.RECORD}"
        try:
            held = read(room.fd, name, where)
            if held.pool != pool:
                raise RecordDamaged(where, f"it belongs to pool {held.pool}, served here is {pool}")
        except RecordDamaged as damage:
            room.quarantine(name, damage, records.claimed_name(room.fd, name))
            _log.error("%s %s is quarantined: %s", room.kind, name, damage)
        else:
            sound.append(held)
    return sound


def ensure_state_dir(path: str) -> None:
    """The directory for this boot's state exists, is ours alone and can be written.

    Raises: PoolRefused naming the flag.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
    except OSError as cause:
        raise PoolRefused(path, f"--state-dir cannot be used: {cause}") from cause


def _refusal(options: PoolOptions, cause: PoolRefused | OSError) -> PoolRefused:
    if isinstance(cause, PoolRefused):
        return cause
    kind = PoolMisconfigured if isinstance(cause, NotADirectoryError | FileExistsError) else PoolRefused
    return kind(options.directory, f"it fails: {cause}")


def _warn_of_missing_quota(pool: Pool, volumes: list[Volume]) -> None:
    if pool.quota is not QuotaKind.NONE:
        return
    unlimited = sum(
        volume.volume_type is VolumeType.DIRECTORY and volume.parameters.quota is QuotaPolicy.REQUIRED
        for volume in volumes
    )
    if unlimited:
        _log.error("pool %s: %d directory volumes have no limit now; %s", pool.name, unlimited, pool.quota_remedy)


def _cleared(pool: Pool, room_fd: int, name: str) -> bool:
    """Clear what an earlier operation left; False when it has to be tried again."""
    try:
        removal.clear(room_fd, name)
        crash_point("startup.cleared")
    except OSError as cause:
        _log.error("pool %s: %s left by an earlier operation cannot be cleared: %s", pool.name, name, cause)
        return False
    return True


def _tend(pool: Pool, trash: Trash) -> None:
    try:
        trash.tend(pool)
        pool.tend_space()
        tend_quotas(pool.store)
    except OSError as cause:
        _log.warning("pool %s cannot be measured: %s", pool.name, cause)
    try:
        pool.tend_backing()
    except (PoolRefused, OSError) as cause:
        _log.error("pool %s: its backing file is not whole: %s", pool.name, cause)
