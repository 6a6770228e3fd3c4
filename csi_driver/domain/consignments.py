"""Contents that are held to be sent, whatever becomes of the process; knows neither the way nor who fetches.

Each is a directory `tmp/*.sent` of the source's pool: with the cut, where blocks can be shared, and the record, which
goes last and leaves first. Without a cut the source itself is held: nobody stages, deletes or grows it. What another
process left is held again before the pool's volumes are served, so that its bytes are still the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator
from contextlib import ExitStack

from csi_driver.backends import removal
from csi_driver.domain.pools import Pool
from csi_driver.domain.sources import Sources
from csi_driver.domain.streaming import header_of
from csi_driver.domain.transfers import source_of
from csi_driver.errors import HostvolError
from csi_driver.faults import crash_point
from csi_driver.model import VolumeType
from csi_driver.store import consignments
from csi_driver.store.consignments import ConsignmentRecord
from csi_driver.store.pool import SENT_SUFFIX

_log = logging.getLogger("hostvol.transfers")


class Consignment:
    """One content that is held."""

    def __init__(
        self, transfer_id: str, source_id: str, sent: Callable[[], Generator[bytes]], pool: Pool, held: ExitStack
    ) -> None:
        self.transfer_id = transfer_id
        self.source_id = source_id
        self.sent = sent
        self._pool = pool
        self._held = held

    def leave(self) -> None:
        """Hold it no longer in this process; the next one will."""
        self._held.close()

    def let_go(self) -> None:
        """Hold it no longer; nothing of it is left."""
        with self._held:
            # The record goes first: without it the source may change.
            _remove(self._pool, name_of(self.transfer_id))


class Consignments:
    """Where they are begun and found again."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    @property
    def is_complete(self) -> bool:
        """Whether everything that an earlier process held has been found."""
        return self._sources.is_complete

    def begin(self, transfer_id: str, source_id: str, deadline: float | None) -> Consignment:
        """The content as of now.

        Raises: what `Sources` raises; OSError.
        """
        name = name_of(transfer_id)
        with ExitStack() as opened:
            origin, is_cut = self._sources.consigned(source_of(source_id), deadline, opened, name)
            pool, content_fd = origin.pool, origin.content_fd
            with ExitStack() as undo:
                undo.callback(_remove, pool, name)
                # Of this cut: whatever else is sent of its source has other bytes.
                header = header_of(origin, source_id, transfer_id, source_id)
                record = ConsignmentRecord(transfer_id, source_id, header.encoded().decode(), is_cut)
                consignments.write(pool.store, name, record)
                crash_point("departure.recorded")
                undo.pop_all()
            held = opened.pop_all()
        contents = pool.contents(origin.volume_type)
        return Consignment(transfer_id, source_id, lambda: contents.sent(header, content_fd), pool, held)

    def left(self, pool: Pool) -> list[Consignment]:
        """What another process held in the pool; what cannot be held any more is cleared."""
        return [one for name in pool.store.sent_at_open if (one := self._taken_up(pool, name)) is not None]

    def _taken_up(self, pool: Pool, name: str) -> Consignment | None:
        from csi_driver.streams.header import Header  # noqa: PLC0415 - most nodes never do this

        try:
            record = consignments.read(pool.store, name)
            header = Header.decoded(record.header.encode())
            with ExitStack() as held:
                room = name if record.is_cut else ""
                volume_type = VolumeType(header.volume_type)
                content_fd = self._sources.held_again(pool, source_of(record.source_id), volume_type, held, room)
                contents = pool.contents(volume_type)
                return Consignment(
                    record.transfer_id,
                    record.source_id,
                    lambda: contents.sent(header, content_fd),
                    pool,
                    held.pop_all(),
                )
        except FileNotFoundError:
            pass
        except (HostvolError, OSError) as cause:
            _log.warning("pool %s: what was being sent from %s is given up: %s", pool.name, name, cause)
        pool.clear_later(pool.store.tmp_fd, name)
        return None


def name_of(transfer_id: str) -> str:
    """What a transfer's directory is called, whatever its id holds."""
    return hashlib.sha256(transfer_id.encode()).hexdigest()[:16] + SENT_SUFFIX


def _remove(pool: Pool, name: str) -> None:
    try:
        consignments.withdraw(pool.store, name)
        crash_point("departure.over")
        removal.clear(pool.store.tmp_fd, name)
    except OSError:
        pool.clear_later(pool.store.tmp_fd, name)
