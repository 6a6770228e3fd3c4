"""Snapshots whose bytes are copied in the background, where they cannot be shared; knows no request.

The source is read by claim all the while: it is neither staged nor deleted nor grown, so it stays what it was at the
cut. Snapshot: claim -> is the source at rest? -> promise the space -> record, not ready -> copy under `tmp/` -> move it
beside the record -> ready. A start copies again what was not finished; whatever fails takes the snapshot away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from csi_driver.backends import removal
from csi_driver.domain import cuts, unwritten
from csi_driver.domain.catalogue import SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.operations import Kind, Operation, Operations
from csi_driver.domain.pools import Pool
from csi_driver.domain.progress import Progress
from csi_driver.errors import CopyFailed, HostvolError, InsufficientCapacity, OperationPending
from csi_driver.faults import crash_point
from csi_driver.model import Snapshot, Volume
from csi_driver.store import durable, records

_log = logging.getLogger("hostvol.copies")
# So many at a time read and write one pool.
_AT_ONCE: Final = 2
_FAILURES_KEPT: Final = 1000
_LOOK_SECONDS: Final = 0.2
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class _GivenUp(Exception):
    """The copy is not wanted any more."""


class Copies:
    """The copies under way on this node."""

    def __init__(self, snapshots: SnapshotCatalogue, claims: Claims, operations: Operations) -> None:
        self._snapshots = snapshots
        self._operations = operations
        self._claims = claims
        self._jobs: dict[str, _Job] = {}
        self._failures: OrderedDict[str, Exception] = OrderedDict()
        self._places: defaultdict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(_AT_ONCE))

    def begin(self, pool: Pool, volume: Volume, snapshot: Snapshot) -> None:
        """The snapshot exists when this returns, and its bytes are on their way.

        Raises: SourceBusy; InsufficientCapacity; OperationPending; VolumeDamaged; OSError.
        """
        self._start(pool, volume, snapshot, is_new=True)

    def resume(self, pool: Pool, volume: Volume, snapshot: Snapshot) -> None:
        """Copy what an earlier process did not finish; the volume's claim is held when this returns."""
        try:
            self._start(pool, volume, snapshot, is_new=False)
        except Exception as cause:
            _log.error("snapshot %s cannot be finished: %s", snapshot.snapshot_id, cause)

    def wait(self, snapshot_id: str, deadline: float | None) -> None:
        """Until the snapshot is ready or gone; or, at the latest, until `deadline` (time.monotonic())."""
        job = self._jobs.get(snapshot_id)
        if job is not None:
            job.ended.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def cancel(self, snapshot_id: str, deadline: float | None) -> None:
        """No copy of the snapshot is under way. Idempotent.

        Raises: OperationPending when it does not end in time.
        """
        job = self._jobs.get(snapshot_id)
        if job is None:
            return
        job.is_unwanted = True
        self.wait(snapshot_id, deadline)
        if not job.ended.is_set():
            raise OperationPending(f"snapshot {snapshot_id}")

    def progress(self, snapshot_id: str) -> tuple[int, int]:
        """The bytes that are copied and those that will be (0: not known); nothing for a snapshot that is ready."""
        job = self._jobs.get(snapshot_id)
        return (0, 0) if job is None else (job.progress.copied_bytes, job.progress.total_bytes)

    def raise_failure(self, name: str) -> None:
        """Tell once why the snapshot of that name is not there any more.

        Raises: what ended its copy.
        """
        failure = self._failures.pop(name, None)
        if failure is not None:
            raise failure.with_traceback(None)

    def require_under_way(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot that will never be ready.

        Raises: CopyFailed.
        """
        if snapshot.snapshot_id not in self._jobs:
            raise CopyFailed(snapshot.snapshot_id, "the copy has stopped; the driver's log has the reason")

    def _start(self, pool: Pool, volume: Volume, snapshot: Snapshot, *, is_new: bool) -> None:
        job = _Job(
            pool,
            volume,
            snapshot,
            snapshots=self._snapshots,
            claims=self._claims,
            places=self._places[pool.name],
            is_new=is_new,
        )
        self._jobs[snapshot.snapshot_id] = job
        threading.Thread(target=self._run, args=(job,), name=f"copy {snapshot.snapshot_id}", daemon=True).start()
        job.begun.wait()
        if job.refusal is not None:
            raise job.refusal

    def _run(self, job: _Job) -> None:
        try:
            with self._operations.running(_operation(job)):
                job.run()
        except _GivenUp:
            pass
        except Exception as cause:
            if job.begun.is_set():
                self._failed(job, cause)
            else:
                job.refusal = cause
        finally:
            self._jobs.pop(job.snapshot.snapshot_id, None)
            job.ended.set()
            job.begun.set()

    def _failed(self, job: _Job, cause: Exception) -> None:
        failure = _explained(job, cause)
        _log.error("snapshot %s is given up: %s", job.snapshot.snapshot_id, failure)
        self._failures[job.snapshot.name] = failure
        while len(self._failures) > _FAILURES_KEPT:
            self._failures.popitem(last=False)
        try:
            job.take_away()
        except OSError as error:
            _log.error("snapshot %s cannot be removed: %s", job.snapshot.snapshot_id, error)


class _Job:
    """One copy, from its claim to its end, in a thread of its own."""

    def __init__(
        self,
        pool: Pool,
        volume: Volume,
        snapshot: Snapshot,
        *,
        snapshots: SnapshotCatalogue,
        claims: Claims,
        places: threading.Semaphore,
        is_new: bool,
    ) -> None:
        self.snapshot = snapshot
        self.begun, self.ended = threading.Event(), threading.Event()
        self.refusal: Exception | None = None
        self.is_unwanted = False
        self.progress = Progress(f"snapshot {snapshot.snapshot_id}", 0, self._each)
        self._pool = pool
        self._volume = volume
        self._snapshots = snapshots
        self._claims = claims
        self._places = places
        self._is_new = is_new
        self._recorded = snapshot
        self._contents = pool.contents(volume.volume_type)
        self._building = f"{snapshot.snapshot_id}.{secrets.token_hex(4)}"

    def run(self) -> None:
        with ExitStack() as held:
            held.enter_context(self._claims.reading(("volume", self._volume.volume_id)))
            if not self._is_new:
                # Held before the volume is served: nobody can have come first.
                self.begun.set()
            if not self._is_moved():
                self._copy(held)
            self._finish()

    def take_away(self) -> None:
        """Nothing of the snapshot is left."""
        self._pool.ledger.copied(self.snapshot.snapshot_id, 0)
        name = self._pool.store.discard_snapshot(self.snapshot.snapshot_id)
        self._snapshots.remove(self.snapshot)
        removal.clear(self._pool.store.trash_fd, name)

    def grantable_bytes(self) -> int:
        """What the pool could promise now."""
        return self._pool.ledger.grantable_bytes(self._pool.overcommit)

    def _copy(self, held: ExitStack) -> None:
        content_fd = self._contents.open(self._pool.store.volumes_fd, self._volume.volume_id)
        held.callback(os.close, content_fd)
        cuts.require_at_rest(self._pool, self._contents, self._volume, content_fd)
        self._check_name(content_fd)
        self.progress.total_bytes = self._contents.size_bytes(content_fd)
        self._admit()
        held.callback(self._pool.ledger.copied, self.snapshot.snapshot_id, 0)
        if self._is_new:
            self._commit()
            self._snapshots.add(self.snapshot)
            self.begun.set()
        self._wait_for_place(held)
        self._build(content_fd)

    def _check_name(self, content_fd: int) -> None:
        """What the volume was imported from is what is copied only if nobody has written to it until now.

        Once it is claimed, and again behind the copy.
        """
        if not self.snapshot.content_id:
            return
        store, volume_id = self._pool.store, self._volume.volume_id
        held = records.read_volume(store.volumes_fd, volume_id, f"{store.directory}/volumes/{volume_id}")
        if unwritten.known(self._pool, held, content_fd).content_id != self.snapshot.content_id:
            self.snapshot = dataclasses.replace(self.snapshot, content_id="")

    def _admit(self) -> None:
        asked = (self.snapshot.snapshot_id, self._pool.name, self.progress.total_bytes, self._pool.overcommit)
        self._pool.promise(lambda: self._pool.ledger.admit_copy(*asked))

    def _commit(self) -> None:
        store = self._pool.store
        object_fd = store.begin(self.snapshot.snapshot_id)
        try:
            records.write_snapshot(object_fd, self.snapshot)
            crash_point("copy.recorded")
            store.commit_snapshot(self.snapshot.snapshot_id, object_fd)
            self._recorded = self.snapshot
            crash_point("copy.committed")
        except BaseException:
            with contextlib.suppress(OSError):
                removal.clear(store.tmp_fd, self.snapshot.snapshot_id)
            raise
        finally:
            os.close(object_fd)

    def _wait_for_place(self, held: ExitStack) -> None:
        while not self._places.acquire(timeout=_LOOK_SECONDS):
            self._each(0)
        held.callback(self._places.release)

    def _build(self, content_fd: int) -> None:
        store = self._pool.store
        building_fd = store.begin(self._building)
        try:
            self._contents.copy(content_fd, self.snapshot.size_bytes, building_fd, self.progress)
            os.fsync(building_fd)
            crash_point("copy.copied")
            self._check_name(content_fd)
            with self._opened_snapshot() as object_fd:
                if self.snapshot != self._recorded:
                    # Before the content is there: a restart that finds both takes the record's word.
                    records.replace_snapshot(object_fd, self.snapshot)
                store.move_in(self._contents.entry, building_fd, object_fd)
            crash_point("copy.moved")
        finally:
            os.close(building_fd)
            try:
                removal.clear(store.tmp_fd, self._building)
            except OSError:
                self._pool.clear_later(store.tmp_fd, self._building)

    def _finish(self) -> None:
        ready = dataclasses.replace(self.snapshot, is_ready=True)
        with self._opened_snapshot() as object_fd:
            records.replace_snapshot(object_fd, ready)
        crash_point("copy.finished")
        self._snapshots.add(ready)
        _log.info("snapshot %s is ready: %d bytes were copied", ready.snapshot_id, self.progress.copied_bytes)

    def _is_moved(self) -> bool:
        """Whether an earlier process has moved the whole content beside the record already."""
        if self._is_new:
            return False
        try:
            os.close(self._contents.open(self._pool.store.snapshots_fd, self.snapshot.snapshot_id))
        except HostvolError:
            return False
        return True

    @contextlib.contextmanager
    def _opened_snapshot(self) -> Iterator[int]:
        object_fd = durable.open_directory(self.snapshot.snapshot_id, dir_fd=self._pool.store.snapshots_fd)
        try:
            yield object_fd
        finally:
            os.close(object_fd)

    def _each(self, copied_bytes: int) -> None:
        if self.is_unwanted:
            raise _GivenUp
        if self.progress.total_bytes:
            self._pool.ledger.copied(self.snapshot.snapshot_id, max(1, self.progress.total_bytes - copied_bytes))


def _operation(job: _Job) -> Operation:
    snapshot = job.snapshot
    return Operation(Kind.SNAPSHOT, snapshot.snapshot_id, snapshot.name, snapshot.source_volume_id, job.progress)


def _explained(job: _Job, cause: Exception) -> Exception:
    if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
        pool = job.snapshot.pool
        asked = max(job.progress.total_bytes, job.progress.copied_bytes)
        return InsufficientCapacity(pool, asked, job.grantable_bytes())
    if isinstance(cause, HostvolError) or (isinstance(cause, OSError) and cause.errno == errno.EROFS):
        return cause
    return CopyFailed(job.snapshot.snapshot_id, str(cause))
