"""What a start does before volumes are served: open the pools, load their records, compare with the kernel.

Nothing here touches a mounted filesystem, so one that hangs does not keep the others from being served.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Sequence

from csi_driver.backends import removal
from csi_driver.backends.attachments import IMAGE
from csi_driver.backends.directory import tend_quotas
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.pools import Pool, PoolOptions, Pools
from csi_driver.domain.publishing import Publishing
from csi_driver.errors import PoolRefused, RecordDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import loop
from csi_driver.model import Volume, VolumeId
from csi_driver.store import records
from csi_driver.store.pool import VOLUMES
from csi_driver.store.runtime import RuntimeState

_log = logging.getLogger("hostvol.startup")
_MEASURE_SECONDS = 300.0
_IMAGE_PATH = re.compile(rf"/{VOLUMES}/([a-z0-9-]+)/{re.escape(IMAGE)}$")


class Startup:
    """Brings the pools of a node into service, and keeps their measurements fresh."""

    def __init__(
        self,
        options: Sequence[PoolOptions],
        *,
        driver_name: str,
        state_dir: str,
        pools: Pools,
        catalogue: Catalogue,
        publishing: Publishing,
    ) -> None:
        self._options = options
        self._driver_name = driver_name
        self._state_dir = state_dir
        self._pools = pools
        self._catalogue = catalogue
        self._publishing = publishing
        self._stopped = threading.Event()
        self._leftovers: dict[str, list[tuple[int, str]]] = {}

    def run(self) -> None:
        """Open every pool; those that cannot be opened are refused by name and the others served.

        Raises: PoolRefused when not a single one can be opened.
        """
        refused: PoolRefused | None = None
        for options in self._options:
            try:
                self._open(options)
            except PoolRefused as cause:
                refused = cause
                self._pools.refused[options.name] = str(cause)
                _log.error("%s", cause)
        if refused is not None and not self._pools.opened:
            raise refused

    def keep_house(self) -> None:
        """In a thread of its own until `stop`: clear what earlier runs left, and measure what volumes own."""
        for pool in list(self._pools.opened.values()):
            self._clear_leftovers(pool)
        while True:
            for ledger in self._pools.ledgers():
                ledger.measure()
            for pool in list(self._pools.opened.values()):
                self._tend_quotas(pool)
            if self._stopped.wait(_MEASURE_SECONDS):
                return

    def stop(self) -> None:
        """End `keep_house` at its next pause."""
        self._stopped.set()

    def _open(self, options: PoolOptions) -> None:
        began = time.monotonic()
        pool = Pool(options, self._driver_name, self._state_dir)
        self._leftovers[pool.name] = pool.store.leftovers()
        self._pools.add(pool, self._catalogue.all)
        volumes = self._load(pool)
        self._catalogue.add_all(volumes)
        for volume in volumes:
            pool.ledger.settle(volume, 0)
        self._adopt_loops(pool)
        self._adopt_states(pool)
        crash_point("startup.opened")
        _log.info(
            "pool %s: %d volumes served from %s in %.0f ms",
            pool.name,
            len(volumes),
            pool.store.directory,
            (time.monotonic() - began) * 1000,
        )

    def _load(self, pool: Pool) -> list[Volume]:
        volumes = []
        for name in pool.store.volume_names():
            where = f"{pool.store.path_of(name)}/{records.RECORD}"
            try:
                volume = records.read_volume(pool.store.volumes_fd, name, where)
                if volume.pool != pool.name:
                    raise RecordDamaged(where, f"it belongs to pool {volume.pool}, served here is {pool.name}")
            except RecordDamaged as damage:
                self._catalogue.quarantine(name, damage)
                _log.error("volume %s is quarantined: %s", name, damage)
            else:
                volumes.append(volume)
        return volumes

    def _adopt_loops(self, pool: Pool) -> None:
        """Find the loop devices of this pool's images again: by the path that sysfs shows, then by their inode."""
        for number, path in loop.backing_paths():
            # The end of the path only: seen from another container it begins at that container's mount.
            match = _IMAGE_PATH.search(path)
            if match is not None:
                pool.attachments.adopt(VolumeId(match[1]), number)

    def _adopt_states(self, pool: Pool) -> None:
        for volume_id, state in pool.runtime.load_all().items():
            if self._catalogue.has(volume_id):
                self._publishing.restore(volume_id, state)
            else:
                # Deleted by a process that ended before it could say so here.
                pool.runtime.save(volume_id, RuntimeState())

    @staticmethod
    def _tend_quotas(pool: Pool) -> None:
        try:
            tend_quotas(pool.store)
        except OSError as cause:
            _log.warning("pool %s: its quotas cannot be tended: %s", pool.name, cause)

    def _clear_leftovers(self, pool: Pool) -> None:
        # Listed before the first request: what is built meanwhile is not among them.
        for room_fd, name in self._leftovers.pop(pool.name, []):
            try:
                removal.clear(room_fd, name)
                crash_point("startup.cleared")
            except OSError as cause:
                _log.error("pool %s: %s left by an earlier run cannot be cleared: %s", pool.name, name, cause)


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
