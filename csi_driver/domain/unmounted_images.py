"""What the superblocks of images that nobody has mounted say; knows no trouble in words.

An image is opened only when it has changed since it was read last, and of all that have (after a start, that is every
one) only as many in one look as a tenth of a second allows.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.pools import Pool
from csi_driver.linux import superblocks
from csi_driver.linux.superblocks import SOUND, Finding
from csi_driver.model import Volume

LOOK_SECONDS: Final = 0.1
# Whoever writes at the moment of a look may write on without a later time of change: what is so young is read again.
_SETTLED_NS: Final = 1_000_000_000


class UnmountedImages:
    """What was found in each, and as of when."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[str, int] = {}
        self._bad: dict[str, Finding] = {}

    def is_sound(self, volume_id: str, changed_ns: int) -> bool:
        """Whether nothing was found in the image as it was then; False also when it was not read since."""
        return self._read.get(volume_id) == changed_ns and volume_id not in self._bad

    def was_read(self, volume_id: str) -> bool:
        """Whether the image was read at all."""
        return volume_id in self._read

    def look(self, pool: Pool, volume: Volume, changed_ns: int, ends: float) -> Finding:
        """What the volume's image says, as it was `changed_ns` (its st_ctime_ns), or as it was read last.

        `ends`: the time.monotonic() from which on nothing more is read.

        Raises: OSError: EIO; ENOENT.
        """
        if self._read.get(volume.volume_id) != changed_ns and time.monotonic() < ends:
            self._take(volume.volume_id, changed_ns, _finding(pool, volume))
        return self._bad.get(volume.volume_id, SOUND)

    def keep_only(self, known: Catalogue) -> None:
        """Forget what was found in images that are gone."""
        with self._lock:
            if len(self._read) <= len(known):
                return
            for gone in [one for one in self._read if not known.has(one)]:
                del self._read[gone]
                self._bad.pop(gone, None)

    def _take(self, volume_id: str, changed_ns: int, finding: Finding) -> None:
        with self._lock:
            is_settled = time.time_ns() - changed_ns > _SETTLED_NS
            self._read[volume_id] = changed_ns if is_settled else 0
            if finding == SOUND:
                self._bad.pop(volume_id, None)
            else:
                self._bad[volume_id] = finding


def _finding(pool: Pool, volume: Volume) -> Finding:
    with pool.attachments.read(volume.volume_id) as image_fd:
        return superblocks.look(volume.fs_type, image_fd)
