"""The pools of this node: each with its directory, its backends and its share of a filesystem; knows no request."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from csi_driver.backends import backing_file
from csi_driver.backends.attachments import Attachments
from csi_driver.backends.backing_file import BackingFile
from csi_driver.backends.block_image import BlockImageBackend
from csi_driver.backends.directory import DirectoryBackend, QuotaKind, quota_kind, quota_remedy
from csi_driver.backends.directory_contents import DirectoryContents
from csi_driver.backends.filesystem_image import FilesystemImageBackend
from csi_driver.backends.image import ImageFiles
from csi_driver.backends.image_contents import ImageContents
from csi_driver.backends.unmounted_growth import UnmountedGrowth
from csi_driver.domain.backend import Backend
from csi_driver.domain.contents import Contents
from csi_driver.domain.kinship import Kinship
from csi_driver.domain.ledger import Ledger, Space, is_counted
from csi_driver.durations import human_seconds
from csi_driver.errors import InvalidField, NoRoom, NotReady, OperationPending, PoolRefused
from csi_driver.linux import btrfs, btrfs_space, filesystem, filesystem_state, lock, mountinfo, reflink
from csi_driver.model import MIB, PoolName, Volume, VolumeParameters, VolumeType
from csi_driver.store import backing, durable
from csi_driver.store import pool as pool_store
from csi_driver.store.backing import BackingRecord
from csi_driver.store.pool import PoolDirectory, PoolIdentity
from csi_driver.store.runtime import RuntimeDirectory

# Of 512 threads that serve mutating calls, and of 64 for statistics (rpc.server): what a pool that hangs may hold.
_SLOTS = 96
_QUESTIONS = 32
# How long space that was given back may take to count: btrfs and XFS free it in the background.
_PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.05
_FIRST_COPIED_PER_SECOND = 200.0 * MIB


def initialise_pool(directory: str, driver_name: str) -> PoolIdentity | BackingRecord:
    """Make `directory` a pool, or find that it is one already, be it in a backing file. Idempotent.

    Raises: PoolRefused when it belongs to another driver, is served, holds anything, or is not a directory; OSError.
    """
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    root_fd = durable.open_directory(directory)
    try:
        record = backing.read(root_fd, directory)
        if record is not None:
            return record
        if os.path.lexists(f"{directory}/../{backing.RECORD}"):
            parent = os.path.dirname(os.path.realpath(directory))
            raise PoolRefused(directory, f"the filesystem of a pool in a backing file belongs there; name {parent}")
        if not lock.try_lock(root_fd) and not pool_store.has_identity(root_fd):
            raise PoolRefused(directory, "another hostvol process holds it")
        return pool_store.initialise(root_fd, directory, driver_name)
    finally:
        os.close(root_fd)


def initialise_backed_pool(directory: str, driver_name: str, size_bytes: int) -> BackingRecord:
    """Make `directory` a pool in a backing file of that size, or find that it is one already. Idempotent.

    Raises: as backing_init.ensure; PoolRefused when it is served and no such pool.
    """
    from csi_driver.backends import backing_init  # noqa: PLC0415 - rare

    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    dir_fd = durable.open_directory(directory)
    try:
        if not lock.try_lock(dir_fd):
            record = backing.read(dir_fd, directory)
            if record is None:
                raise PoolRefused(directory, "another hostvol process holds it")
            return record
        return backing_init.ensure(dir_fd, directory, driver_name, size_bytes)
    finally:
        os.close(dir_fd)


def backed_bytes(directory: str) -> int:
    """The size of the backing file whose record lies in the directory; 0 where there is none.

    Raises: PoolRefused when the record is damaged; OSError.
    """
    dir_fd = durable.open_directory(directory)
    try:
        record = backing.read(dir_fd, directory)
    finally:
        os.close(dir_fd)
    return record.size_bytes if record is not None else 0


def grow_unserved(directory: str, size_bytes: int) -> bool:
    """Let the backing file of a pool that no driver serves grow; False when one serves it, who is to be asked then.

    Raises: PoolRefused when there is none; as BackingFile.grow.
    """
    if backing_file.is_served(directory):
        return False
    held = BackingFile.open(directory)
    if held is None:
        raise PoolRefused(directory, "it has no backing file; its filesystem grows by means of its own")
    try:
        held.grow(size_bytes)
    finally:
        held.close()
    return True


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """One pool as the operator gives it.

    `--pool NAME=DIR[,overcommit=N][,init=true[,backing-file=SIZE]][,ephemeral=SIZE]`.

    `ephemeral_bytes`: what all inline ephemeral volumes in it may have together; 0: there may be none.
    `backing_bytes`: it is made in a backing file of that size, and a smaller one grows; 0: in the directory itself.
    `retention_seconds`: the longest that anything stays in its trash; None: as long as its class says.
    `trash_bytes`, or `trash_share` of its filesystem: what is kept there at most; None: whatever is deleted.
    """

    name: PoolName
    directory: str
    overcommit: float = 1.0
    init: bool = False
    ephemeral_bytes: int = 0
    backing_bytes: int = 0
    retention_seconds: int | None = None
    trash_bytes: int | None = None
    trash_share: float | None = None


class GivesWay(Protocol):
    """What lies in the trash, as far as those who need space have to know it."""

    def yieldable_bytes(self, pool: Pool) -> int: ...

    def give_back(self, pool: Pool, wanted_bytes: int) -> bool: ...


@dataclass(slots=True)
class LastCut:
    """What the latest cut of an image in a pool cost: the extents that were shared, and the seconds it took."""

    extents: int = 0
    seconds: float = 0.0


class Pool:
    """One directory that holds volumes, locked for this process."""

    def __init__(self, options: PoolOptions, driver_name: str, state_dir: str) -> None:
        """Open and lock the pool.

        Raises: PoolRefused; InsufficientCapacity when its backing file has no room to grow; OSError.
        """
        self.name = options.name
        self.overcommit = options.overcommit
        self.ephemeral_bytes = options.ephemeral_bytes
        self._options = options
        self.backing = BackingFile.open(options.directory)
        try:
            self.store = _locked_store(self._directory_of(options), driver_name)
        except BaseException:
            self._close_backing()
            raise
        self._uncleared: list[tuple[int, str]] = []
        self._slots = threading.BoundedSemaphore(_SLOTS)
        self._questions = threading.BoundedSemaphore(_QUESTIONS)
        self.runtime = RuntimeDirectory(state_dir, self.store.identity.pool_uuid)
        self.filesystem_name = filesystem.filesystem_name(self.store.root_fd)
        self.attachments = Attachments(self.store)
        self.images = ImageFiles(self.store)
        self._directory = DirectoryBackend(self.store)
        self.unmounted_growth = UnmountedGrowth(self.store, self.attachments)
        self._filesystem_image = FilesystemImageBackend(self.images, self.attachments, self.unmounted_growth)
        self._block_image = BlockImageBackend(self.images, self.attachments)
        self._image_contents = ImageContents(self.store, self.images, self.attachments, self.unmounted_growth)
        self._directory_contents = DirectoryContents(self.store, self._directory, lambda: self.images.can_reflink)
        self.last_cut = LastCut()
        # What a copy of an image is expected to achieve, in bytes; learnt from the latest.
        self.copied_per_second = _FIRST_COPIED_PER_SECOND
        # Given by Pools.add: pools on one filesystem share both.
        self.filesystem: PoolFilesystem
        self.ledger: Ledger
        self.trash: GivesWay

    def close(self) -> None:
        """Give the lock back."""
        self.runtime.close()
        self.store.close()
        self._close_backing()

    def _directory_of(self, options: PoolOptions) -> str:
        if self.backing is None:
            return options.directory
        if options.backing_bytes > self.backing.size_bytes:
            self.backing.grow(options.backing_bytes)
        return self.backing.mounted()

    def _close_backing(self) -> None:
        if self.backing is not None:
            self.backing.close()

    def tend_backing(self) -> None:
        """See to it that the backing file has all of its blocks.

        Raises: PoolRefused; OSError.
        """
        if self.backing is not None:
            self.backing.tend()

    @property
    def has_log_tree(self) -> bool:
        """Whether this is a btrfs that writes a log tree (it is mounted without `notreelog`)."""
        if not btrfs.is_btrfs(self.store.root_fd):
            return False
        mount_id = mountinfo.observe(self.store.root_fd).mount_id
        found = mountinfo.read_mounts(b"%d " % mount_id)
        return any(one.mount_id == mount_id and "notreelog" not in one.super_options for one in found)

    @property
    def log_tree_remedy(self) -> str:
        """What to do where there is one."""
        return (
            f"pool {self.name}: the btrfs at {self.store.directory} is mounted without notreelog: Linux 6.18 cannot "
            "always replay its log tree after a power cut, and then refuses to mount it; mount it with notreelog"
        )

    @property
    def quota(self) -> QuotaKind:
        return quota_kind(self.store.root_fd)

    @property
    def quota_remedy(self) -> str:
        return quota_remedy(self.store.root_fd)

    @property
    def filesystem_key(self) -> str:
        """The same for all pools on one filesystem (the subvolumes of a btrfs differ in st_dev)."""
        if btrfs.is_btrfs(self.store.root_fd):
            return btrfs.filesystem_uuid(self.store.root_fd)
        return str(self.store.device)

    def backend(self, volume: Volume) -> Backend:
        """Who holds the bytes of this volume."""
        if volume.volume_type is VolumeType.DIRECTORY:
            return self._directory
        return self._block_image if volume.is_block else self._filesystem_image

    def contents(self, volume_type: VolumeType) -> Contents:
        """How the content of such volumes is shared and copied."""
        return self._directory_contents if volume_type is VolumeType.DIRECTORY else self._image_contents

    def counts_shared(self, volume: Volume) -> bool:
        """Whether what the volume is said to own may be shared with its relatives."""
        return volume.volume_type is VolumeType.DIRECTORY and self._directory.counts_shared

    def shares_with(self, other: Pool) -> bool:
        """Whether an object here can share blocks with one in the other pool, found out by doing it."""
        if other is self:
            return self.images.can_reflink
        if other.filesystem_key != self.filesystem_key:
            return False
        # Two pools of one filesystem that are seen through two mounts cannot before Linux 5.18.
        return reflink.probe(other.store.tmp_fd, self.store.tmp_fd)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Do one operation in this pool, beside so many others that a pool whose disk hangs leaves threads to the rest.

        To be taken before the claim: whoever waits for another's outcome holds a thread as well.

        Raises: OperationPending when too many are under way; NotReady, and nothing that came of EROFS, when the pool is
            read-only.
        """
        with self._one_of(self._slots, _SLOTS):
            try:
                yield
            except Exception as cause:
                if _came_of_read_only(cause) and self._is_known_read_only():
                    raise self._read_only() from cause
                raise

    @contextmanager
    def question(self) -> Iterator[None]:
        """The same for statistics, which have threads of their own.

        Raises: OperationPending when too many are under way.
        """
        with self._one_of(self._questions, _QUESTIONS):
            yield

    @contextmanager
    def _one_of(self, places: threading.BoundedSemaphore, count: int) -> Iterator[None]:
        if not places.acquire(blocking=False):
            raise OperationPending(f"pool {self.name} ({count} of them)")
        try:
            yield
        finally:
            places.release()

    def promise(self, admit: Callable[[], None]) -> None:
        """Have the ledger admit something; what it lacks is given back first: caches, then the trash that yields.

        Raises: what `admit` raises.
        """
        try:
            admit()
            return
        except NoRoom:
            self.settle_space()
        try:
            admit()
        except NoRoom as refusal:
            if not self.trash.give_back(self, refusal.shortfall_bytes):
                raise
            self._admit_patiently(admit)

    def _admit_patiently(self, admit: Callable[[], None]) -> None:
        ends = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self.settle_space()
            try:
                admit()
                return
            except NoRoom:
                if time.monotonic() > ends:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def grantable_bytes(self, *, thick: bool = False) -> int:
        """The largest volume that would be granted now, after whatever yields has gone."""
        yieldable = self.trash.yieldable_bytes(self)
        return self.ledger.grantable_bytes(self.overcommit, thick=thick, yieldable_bytes=yieldable)

    def require_retention(self, parameters: VolumeParameters) -> None:
        """Refuse what is to stay in the trash for longer than the pool's operator allows.

        Raises: InvalidField.
        """
        asked = parameters.retention_seconds
        if self.allowed_retention(asked) < asked:
            most = human_seconds(self.allowed_retention(asked))
            raise InvalidField(
                "parameters.retention",
                human_seconds(asked),
                f"at most {most} in pool {self.name}, as its operator says",
            )

    def allowed_retention(self, asked_seconds: int) -> int:
        """How long something that is to stay so long may stay in the pool's trash, in seconds."""
        most = self._options.retention_seconds
        return asked_seconds if most is None else min(asked_seconds, most)

    def trash_ceiling_bytes(self) -> int | None:
        """What the pool's trash may hold at most; None: no limit."""
        if self._options.trash_share is not None:
            return int(self.ledger.space().total_bytes * self._options.trash_share)
        return self._options.trash_bytes

    def settle_space(self) -> None:
        """Make what was given back count: templates are a cache, and btrfs frees what was deleted when it commits."""
        self.images.drop_templates()
        if btrfs.is_btrfs(self.store.root_fd):
            btrfs.commit(self.store.root_fd)

    def tend_space(self) -> None:
        """Measure what every volume owns, and let the templates give way where more is promised than there is.

        When a template was made a btrfs may have said what was free before it: it knows when it commits.
        """
        self.ledger.measure()
        if self.ledger.is_overdrawn(self.overcommit):
            self.images.drop_templates()

    def clear_later(self, room_fd: int, name: str) -> None:
        """The remains of an operation could not be cleared; the pool's keeper tries again."""
        self._uncleared.append((room_fd, name))

    def take_uncleared(self) -> list[tuple[int, str]]:
        """What `clear_later` collected since the last time."""
        taken, self._uncleared = self._uncleared, []
        return taken

    def require_present(self) -> None:
        """Refuse to write where the pool is not mounted any more.

        Raises: NotReady.
        """
        if not self.store.has_identity():
            raise NotReady(f"pool {self.name}: {self.store.directory} does not lead to the pool now; is it mounted?")

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written to its filesystem, by way of its mount."""
        if os.fstatvfs(self.store.root_fd).f_flag & os.ST_RDONLY:
            return True
        return self.filesystem_name == "ext4" and filesystem_state.is_emergency_ext4(self.store.device)

    def require_writable(self) -> None:
        """Refuse to make anything where the pool is not mounted any more, or only for reading.

        Raises: NotReady.
        """
        self.require_present()
        if self.is_read_only:
            raise self._read_only()

    def _is_known_read_only(self) -> bool:
        try:
            return self.is_read_only
        except OSError:
            # Shut down meanwhile: what failed before says more.
            return False

    def _read_only(self) -> NotReady:
        return NotReady(
            f"pool {self.name}: its filesystem at {self.store.directory} is read-only; look at the kernel's log, check "
            "it and mount it again"
        )


def _came_of_read_only(failure: BaseException) -> bool:
    """Whether it is EROFS, or was raised for it or after it: what could not be undone, what could not be cleared."""
    seen: list[BaseException] = []
    at: BaseException | None = failure
    while at is not None and at not in seen:
        if isinstance(at, OSError) and at.errno == errno.EROFS:
            return True
        seen.append(at)
        at = at.__cause__ or at.__context__
    return False


def _locked_store(directory: str, driver_name: str) -> PoolDirectory:
    store = PoolDirectory(directory, driver_name)
    # The directory itself, and no file in it: whoever holds a file that was replaced holds nothing.
    if not lock.try_lock(store.root_fd):
        store.close()
        raise PoolRefused(directory, "another hostvol process serves it")
    return store


@dataclass(slots=True)
class PoolFilesystem:
    """The filesystem below one or more pools, as the ledger sees it."""

    pools: dict[PoolName, Pool]
    all_volumes: Callable[[], list[Volume]]
    kinship: Kinship

    def space(self) -> Space:
        """Bytes that files can still be given; btrfs is asked by ioctl, since its statvfs guesses."""
        root_fd = next(iter(self.pools.values())).store.root_fd
        space = filesystem.space(root_fd)
        if btrfs.is_btrfs(root_fd):
            return Space(space.total_bytes, btrfs_space.available_data_bytes(root_fd))
        return Space(space.total_bytes, space.available_bytes)

    def volumes(self) -> list[Volume]:
        return [volume for volume in self.all_volumes() if volume.pool in self.pools and is_counted(volume)]

    def own_bytes_if_known(self, volume: Volume) -> int | None:
        """The same, None where it cannot be told from what relatives share, or not be measured."""
        pool = self.pools[volume.pool]
        if not is_counted(volume) or (pool.counts_shared(volume) and not self.kinship.is_alone(volume)):
            return None
        try:
            return pool.backend(volume).own_bytes(volume)
        except OSError:
            return None

    def own_bytes(self, volume: Volume) -> int:
        pool = self.pools[volume.pool]
        if pool.counts_shared(volume) and not self.kinship.is_alone(volume):
            # What is shared cannot be told from what is not: nothing is surely the volume's own.
            return 0
        return pool.backend(volume).own_bytes(volume)


@dataclass(slots=True)
class Pools:
    """All pools by name; those that could not be opened, with the reason.

    `trash` is given before the first pool is added.
    """

    trash: GivesWay = field(init=False)
    opened: dict[str, Pool] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def has(self, name: str) -> bool:
        """Whether the node was given a pool of that name, served or not."""
        return name in self.opened or name in self.refused

    def get(self, name: str) -> Pool:
        """The pool of that name.

        Raises: InvalidField when the node has no such pool; NotReady when it could not be opened.
        """
        pool = self.opened.get(name)
        if pool is not None:
            return pool
        if name in self.refused:
            raise NotReady(f"pool {name} is not served: {self.refused[name]}")
        raise InvalidField("parameters.pool", name, f"one of {', '.join(sorted(self.opened)) or 'none'}")

    def of(self, volume: Volume) -> Pool:
        """The pool that holds the volume."""
        return self.get(volume.pool)

    def backend(self, volume: Volume) -> Backend:
        """Who holds the bytes of the volume."""
        return self.of(volume).backend(volume)

    def add(self, pool: Pool, all_volumes: Callable[[], list[Volume]], kinship: Kinship) -> None:
        """Serve `pool`, in one ledger with the pools on the same filesystem.

        Raises: PoolRefused when another one bears its uuid: a copy, which would share its runtime state.
        """
        with self._lock:
            for other in self.opened.values():
                if other.store.identity.pool_uuid == pool.store.identity.pool_uuid:
                    raise PoolRefused(pool.store.directory, f"it has the uuid of pool {other.name}; is it a copy?")
            for other in self.opened.values():
                if other.filesystem_key == pool.filesystem_key:
                    pool.filesystem, pool.ledger = other.filesystem, other.ledger
                    break
            else:
                pool.filesystem = PoolFilesystem({}, all_volumes, kinship)
                pool.ledger = Ledger(pool.filesystem)
            pool.trash = self.trash
            pool.filesystem.pools[pool.name] = pool
            self.opened = {**self.opened, pool.name: pool}
            self.refused.pop(pool.name, None)

    def refuse(self, name: str, reason: str) -> None:
        """Say why the pool is not served."""
        with self._lock:
            self.opened = {key: pool for key, pool in self.opened.items() if key != name}
            self.refused[name] = reason

    def ledgers(self) -> list[Ledger]:
        """Every ledger once."""
        return list({id(pool.ledger): pool.ledger for pool in self.opened.values()}.values())

    def close(self) -> None:
        """Give every lock back."""
        for pool in self.opened.values():
            pool.close()
        self.opened.clear()
