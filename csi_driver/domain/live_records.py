"""Records of living volumes put in the place of others, on disk and in the catalogue; knows no reason for it."""

from __future__ import annotations

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.pools import Pool
from csi_driver.model import Volume
from csi_driver.store import records


class LiveRecords:
    """The records of volumes that are held by claim, or that nobody knows yet."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def remember(self, pool: Pool, volume: Volume) -> None:
        """The volume is like this, durably."""
        records.replace_volume(pool.store.volumes_fd, volume)
        self._catalogue.replace(volume)

    def recall(self, pool: Pool, before: Volume) -> None:
        """The record is the one from before an intent; it needs no space when it still is."""
        where = f"{pool.store.path_of(before.volume_id)}/{records.RECORD}"
        if records.read_volume(pool.store.volumes_fd, before.volume_id, where) != before:
            self.remember(pool, before)
        self._catalogue.replace(before)

    def keep(self, intended: Volume) -> None:
        """The intent could not be taken back: the volume goes on having it."""
        self._catalogue.replace(intended)
