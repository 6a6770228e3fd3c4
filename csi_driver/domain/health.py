"""What is wrong with this node's pools and volumes, observed; changes nothing.

All volumes are looked at from time to time, at the price of one stat(2) each, and of a thread that asks the filesystem
where one is mounted: an image is opened only when it has changed. A look runs in a thread of its own (see `looks`),
since whatever is broken may also hang. What no look has come to is not said to be well.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from csi_driver.backends.attachments import IMAGE, Attachment
from csi_driver.backends.directory import DATA
from csi_driver.domain import troubles
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.ledger import Ledger
from csi_driver.domain.looks import Looks
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.pools import Pool
from csi_driver.domain.sickness import Sickness
from csi_driver.domain.troubles import Severity, Trouble
from csi_driver.domain.unmounted_images import LOOK_SECONDS, UnmountedImages
from csi_driver.errors import HostvolError, NotReady, RecordDamaged
from csi_driver.linux import filesystem_state, loop, mountinfo
from csi_driver.linux.filesystem_state import FilesystemState
from csi_driver.model import Volume, VolumeType, key_of, node_key

_log = logging.getLogger("hostvol.health")
_LOOK_SECONDS: Final = 10.0
# So old may be what a list tells, so long does it wait for news.
_FRESH_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 2.0
# Who has not answered then is said not to.
_SILENT_SECONDS: Final = 10.0
_SILENT_VOLUME_SECONDS: Final = 5.0
# All filesystems of one look together.
_SILENT_FILESYSTEM_SECONDS: Final = 1.5
# So long are all XFS of one look together waited for, that are asked what they know.
_ASKING_SECONDS: Final = 1.0
# Nobody is said to be silent because another is.
_LEAST_PATIENCE_SECONDS: Final = 0.1

Troubles = tuple[Trouble, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """What one look at volumes shares: a mount of each loop device, and until when filesystems may take to answer.

    `is_close`: a look at one volume, which may cost more. Else images are opened until `reading_ends`, and until
    `asking_ends` it is waited for what each XFS knows. Images that no look has ever come to are noted in `unread`, by
    the ids of their volumes.
    """

    devices: Mapping[str, mountinfo.MountEntry]
    ends: float
    asking_ends: float
    reading_ends: float
    is_close: bool
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """What one look at a pool found: its own troubles, and those of its volumes, by id, which are theirs alone.

    `unread`: the volumes that no look has come to.
    """

    troubles: Troubles = ()
    volumes: Mapping[str, Troubles] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


class Health:
    """The troubles of one node."""

    def __init__(self, node_id: str, mounts: VolumeMounts, catalogue: Catalogue, claims: Claims) -> None:
        self._key = node_key(node_id)
        self._mounts = mounts
        self._pools = mounts.pools
        self._catalogue = catalogue
        self._claims = claims
        self._pool_looks: Looks[PoolHealth] = Looks()
        self._volume_looks: Looks[Troubles] = Looks()
        self._filesystem_looks: Looks[FilesystemState] = Looks()
        self._sickness = Sickness()
        self._pool_sickness = Sickness()
        # What was logged of the volumes that a look failed at.
        self._failed: dict[str, str] = {}
        self._images = UnmountedImages()
        self._found: dict[str, PoolHealth] = {}
        self._looked_at = float("-inf")
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="health", daemon=True)

    def start(self) -> None:
        """Look from time to time, from now on."""
        self._watcher.start()

    def stop(self) -> None:
        self._stopped.set()

    def of(self, volume_id: str) -> Troubles:
        """What is wrong with the volume now, those troubles of its pool included that it suffers from.

        Also of one whose record is quarantined, or whose pool is not served. Answers within five seconds.

        Raises: VolumeNotFound; NotReady when an id that is not this node's may be in a pool that is not served.
        """
        try:
            volume = self._catalogue.get(volume_id)
            pool = self._pools.of(volume)
        except RecordDamaged as damage:
            return (troubles.quarantined(volume_id, damage),)
        except NotReady as cause:
            if key_of(volume_id) != self._key:
                raise
            return (Trouble(Severity.INACCESSIBLE, "PoolUnavailable", str(cause)),)
        found = self._volume_looks.take(("volume", volume_id), partial(self._now, pool, volume), _SILENT_VOLUME_SECONDS)
        return (troubles.silent(volume),) if found is None else found

    def unhealthy(self) -> dict[str, Troubles]:
        """All volumes with a trouble, as the latest look found them, in the order of their ids; no ephemeral ones."""
        found: dict[str, Troubles] = {
            volume_id: (troubles.quarantined(volume_id, damage),)
            for volume_id, damage in self._catalogue.quarantined().items()
            if key_of(volume_id)
        }
        for volume in self._catalogue.all():
            its = () if volume.is_ephemeral else self.latest(volume)
            if its:
                found[volume.volume_id] = its
        return dict(sorted(found.items()))

    def own_troubles(self) -> Iterator[tuple[Volume, Trouble]]:
        """What the latest look found wrong with volumes, and not with their pools."""
        for _, health in sorted(self._found.items()):
            for volume in self._catalogue.served(sorted(health.volumes)):
                yield from ((volume, one) for one in health.volumes[volume.volume_id])

    def pool_troubles(self) -> Iterator[tuple[str, Trouble]]:
        """What is wrong with pools, by the name of each: as the latest look found it."""
        for name, why in sorted(self._pools.refused.items()):
            yield name, troubles.pool_unavailable(name, why)
        for name, health in sorted(self._found.items()):
            if name in self._pools.opened:
                yield from ((name, one) for one in health.troubles)

    def unseen(self) -> Iterator[tuple[str, Trouble]]:
        """The pools, by name, of which it is not known yet whether all is well: no look has ended, or come so far."""
        for name, pool in sorted(self._pools.opened.items()):
            health = self._found.get(name)
            if health is None:
                yield name, troubles.pool_not_looked_at(name, pool.store.directory)
            elif self._catalogue.served(health.unread):
                yield name, troubles.volumes_not_looked_at(name, pool.store.directory)

    def refresh(self) -> None:
        """Look at everything, unless that was done a moment ago; returns after two seconds at the latest."""
        is_old = time.monotonic() - self._looked_at > _FRESH_SECONDS
        if is_old or not self._pools.opened.keys() <= self._found.keys():
            self._look(_PATIENCE_SECONDS, name_silent=False)

    def has_seen(self, volume: Volume) -> bool:
        """Whether a look has come to the volume, so that `latest` says something."""
        health = self._found.get(volume.pool)
        return health is not None and volume.volume_id not in health.unread

    def latest(self, volume: Volume) -> Troubles:
        """As the latest look found it."""
        health = self._found.get(volume.pool, PoolHealth())
        return (*_suffered(volume, health.troubles), *health.volumes.get(volume.volume_id, ()))

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look(_SILENT_SECONDS, name_silent=True)
            except Exception:
                # Whoever looks must not end: nothing would be told any more, as if all were well.
                _log.exception("the look at the pools failed")
            self._stopped.wait(_LOOK_SECONDS)

    def _look(self, patience_seconds: float, *, name_silent: bool) -> None:
        pools = self._pools.opened
        looks = {
            name: self._pool_looks.begin(("pool", name), partial(self._health, pool)) for name, pool in pools.items()
        }
        wait(looks.values(), patience_seconds)
        for name, look in looks.items():
            directory = pools[name].store.directory
            if not look.done():
                if name_silent:
                    self._miss(name, troubles.pool_silent(name, directory))
            elif (cause := look.exception()) is not None:
                failed = troubles.pool_look_failed(name, directory, _explained(cause))
                if failed not in self._found.get(name, PoolHealth()).troubles:
                    _log.warning("pool %s cannot be looked at", name, exc_info=cause)
                self._miss(name, failed)
            else:
                self._found[name] = look.result()
        self._looked_at = time.monotonic()

    def _miss(self, name: str, why: Trouble) -> None:
        """The pool could not be looked at: of its volumes is told what was found before."""
        before = self._found.get(name, PoolHealth())
        self._found[name] = PoolHealth((why,), before.volumes, before.unread)

    def _health(self, pool: Pool) -> PoolHealth:
        view = _view()
        found: dict[str, Troubles] = {}
        for volume in self._catalogue.all():
            its = self._own(pool, volume, view) if volume.pool == pool.name else ()
            if its:
                found[volume.volume_id] = its
        self._images.keep_only(self._catalogue)
        self._sickness.keep_only(self._catalogue)
        for gone in [one for one in list(self._failed) if not self._catalogue.has(one)]:
            self._failed.pop(gone, None)
        return PoolHealth(tuple(self._pool_troubles(pool)), found, frozenset(view.unread))

    def _now(self, pool: Pool, volume: Volume) -> Troubles:
        view = _view(is_close=True)
        return (*_suffered(volume, self._pool_troubles(pool)), *self._own(pool, volume, view))

    def _pool_troubles(self, pool: Pool) -> Iterator[Trouble]:
        named = (pool.name, pool.store.directory)
        if not pool.store.has_identity():
            yield troubles.pool_detached(*named)
        problem = pool.backing.problem() if pool.backing is not None else ""
        if problem:
            yield troubles.backing_file_damaged(pool.name, problem)
        state = self._pool_state(pool)
        if state.is_shut_down:
            yield troubles.pool_shut_down(*named)
            return
        if state.is_read_only:
            yield troubles.pool_read_only(*named)
        if state.error_counts:
            yield troubles.pool_errors(*named)
        if _is_full(pool):
            yield troubles.pool_full(*named)

    def _pool_state(self, pool: Pool) -> FilesystemState:
        try:
            entry = _pool_entry(pool)
        except OSError as error:
            if mountinfo.is_dead_mount(error):
                return FilesystemState(is_shut_down=True)
            raise
        if entry is None:
            return FilesystemState()
        state = filesystem_state.state_of(entry)
        if not state.is_shut_down and _is_sick(self._pool_sickness, pool.name, entry):
            return dataclasses.replace(state, error_counts={"sick": 1})
        return state

    def _own(self, pool: Pool, volume: Volume, view: _View) -> Troubles:
        found = self._looked(pool, volume, view)
        if found and (self._claims.holds(("volume", volume.volume_id)) or not self._catalogue.has(volume.volume_id)):
            # It is being mounted, grown or taken away: nothing stands still that could be wrong.
            return ()
        return found

    def _looked(self, pool: Pool, volume: Volume, view: _View) -> Troubles:
        look = self._of_directory if volume.volume_type is VolumeType.DIRECTORY else self._of_image
        try:
            found = tuple(look(pool, volume, view))
        except Exception as cause:
            # An image holds what somebody wrote there. What nobody foresaw of one is no reason not to see the others.
            why = f"{type(cause).__name__}: {cause}"
            if self._failed.get(volume.volume_id) != why:
                self._failed[volume.volume_id] = why
                _log.exception("volume %s could not be looked at", volume.volume_id)
            return (troubles.look_failed(volume, type(cause).__name__),)
        self._failed.pop(volume.volume_id, None)
        return found

    @staticmethod
    def _of_directory(pool: Pool, volume: Volume, _: _View) -> Iterator[Trouble]:
        path = f"{pool.store.path_of(volume.volume_id)}/{DATA}"
        try:
            if not stat.S_ISDIR(_stat(pool, volume, DATA).st_mode):
                yield troubles.content_missing(volume, path)
        except FileNotFoundError:
            yield troubles.content_missing(volume, path)
        except OSError as cause:
            yield troubles.content_unreadable(volume, path, str(cause.strerror))

    def _of_image(self, pool: Pool, volume: Volume, view: _View) -> Iterator[Trouble]:
        held = pool.attachments.remembered(volume.volume_id)
        if held is not None and not loop.shows_path(held.number, pool.attachments.image_path(volume.volume_id)):
            held = None
        yield from self._of_file(pool, volume, held, view)
        if held is not None:
            yield from self._of_filesystem(volume, view.devices.get(loop.device_path(held.number)), view)
        elif self._mounts.state(volume.volume_id).publications:
            yield troubles.device_gone(volume)

    def _of_file(self, pool: Pool, volume: Volume, held: Attachment | None, view: _View) -> Iterator[Trouble]:
        path = pool.attachments.image_path(volume.volume_id)
        try:
            image = _stat(pool, volume, IMAGE)
        except FileNotFoundError:
            yield troubles.content_missing(volume, path) if held is None else troubles.image_deleted(volume, path)
            return
        except OSError as cause:
            yield troubles.content_unreadable(volume, path, str(cause.strerror))
            return
        if held is not None and image.st_ino != held.inode:
            yield troubles.image_deleted(volume, path)
        elif image.st_size < volume.capacity_bytes:
            yield troubles.image_short(volume, path)
        elif held is None and volume.fs_type and not self._images.is_sound(volume.volume_id, image.st_ctime_ns):
            yield from self._of_superblock(pool, volume, image.st_ctime_ns, view)

    def _of_superblock(self, pool: Pool, volume: Volume, changed_ns: int, view: _View) -> Iterator[Trouble]:
        self._sickness.forget(volume.volume_id)
        try:
            found = self._images.look(pool, volume, changed_ns, view.reading_ends)
        except FileNotFoundError:
            return
        except OSError as cause:
            path = pool.attachments.image_path(volume.volume_id)
            yield troubles.content_unreadable(volume, path, str(cause.strerror))
            return
        if not self._images.was_read(volume.volume_id):
            view.unread.append(volume.volume_id)
        if found.damage:
            yield troubles.filesystem_damaged(volume, found.damage)
        elif found.has_errors:
            yield troubles.filesystem_errors(volume, found.first_error)

    def _of_filesystem(self, volume: Volume, entry: mountinfo.MountEntry | None, view: _View) -> Iterator[Trouble]:
        if entry is None:
            return
        look = partial(filesystem_state.state_of, entry)
        patience = max(_LEAST_PATIENCE_SECONDS, view.ends - time.monotonic())
        try:
            state = self._filesystem_looks.take(volume.volume_id, look, patience)
        except FileNotFoundError:
            # Unmounted meanwhile.
            return
        if state is None:
            yield troubles.silent(volume)
            return
        if state.is_shut_down:
            yield troubles.filesystem_shut_down(volume)
        elif state.is_read_only and not self._is_asked_read_only(volume):
            yield troubles.filesystem_read_only(volume)
        if state.error_counts or (not state.is_shut_down and self._knows_damage(volume, entry, view)):
            yield troubles.filesystem_errors(volume, state.first_error)

    def _knows_damage(self, volume: Volume, entry: mountinfo.MountEntry, view: _View) -> bool:
        return _is_sick(self._sickness, volume.volume_id, entry, ends=view.asking_ends, now=view.is_close)

    def _is_asked_read_only(self, volume: Volume) -> bool:
        asked = self._mounts.state(volume.volume_id).staging_capability
        # Of a mount that nobody here remembers it is not known.
        return asked is None or "ro" in asked.mount_flags


def _suffered(volume: Volume, of_pool: Troubles | Iterator[Trouble]) -> Troubles:
    """Those troubles of its pool that the volume has too."""
    may_grow = volume.volume_type is VolumeType.DIRECTORY or not volume.is_thick
    return tuple(one for one in of_pool if may_grow or not one.only_growing)


def _is_sick(
    sickness: Sickness, key: str, entry: mountinfo.MountEntry, *, ends: float = float("inf"), now: bool = False
) -> bool:
    try:
        return sickness.of(key, entry, ends, now=now)
    except OSError as cause:
        _log.warning("%s cannot be asked for its health: %s", entry.source, cause)
        return False


def _explained(cause: BaseException) -> str:
    """Why a look failed, in words that stay the same; the log has the rest."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) if isinstance(cause, HostvolError) else type(cause).__name__


def _pool_entry(pool: Pool) -> mountinfo.MountEntry | None:
    """The line of the pool's mount; None when it was unmounted lazily.

    Raises: OSError: as `mountinfo.is_dead_mount` knows it when the kernel shut it down.
    """
    mount_id = mountinfo.observe(pool.store.root_fd).mount_id
    entries = (entry for entry in mountinfo.read_mounts(b"%d " % mount_id) if entry.mount_id == mount_id)
    return next(entries, None)


def _is_full(pool: Pool) -> bool:
    try:
        space = pool.ledger.space()
    except (OSError, HostvolError):
        return False
    return space.available_bytes < Ledger.reserve_bytes(space)


def _view(*, is_close: bool = False) -> _View:
    # The first of each: a staging mount, and no file or directory that a pod has of it.
    found = {entry.source: entry for entry in reversed(list(mountinfo.read_mounts(b" /dev/loop")))}
    now = time.monotonic()
    asking_ends, reading_ends = (float("inf"),) * 2 if is_close else (now + _ASKING_SECONDS, now + LOOK_SECONDS)
    return _View(found, now + _SILENT_FILESYSTEM_SECONDS, asking_ends, reading_ends, is_close)


def _stat(pool: Pool, volume: Volume, entry: str) -> os.stat_result:
    return os.stat(f"{volume.volume_id}/{entry}", dir_fd=pool.store.volumes_fd, follow_symlinks=False)
