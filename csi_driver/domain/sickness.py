"""What mounted XFS filesystems know to be damaged in themselves, asked once a minute; knows no trouble in words.

Asking may wait for a writer or the disk, which is no trouble by itself: who does not answer now is as he was, and what
he answers later is told by the next look.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.looks import Looks
from csi_driver.linux import xfs_health
from csi_driver.linux.mountinfo import MountEntry

_ASK_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class _Said:
    """What the filesystem of one mount said last, and when it was asked last."""

    mount_id: int
    asked_at: float
    is_sick: bool


class Sickness:
    """What each filesystem said last."""

    def __init__(self) -> None:
        self._looks: Looks[bool] = Looks()
        self._lock = threading.Lock()
        self._said: dict[str, _Said] = {}

    def of(self, key: str, entry: MountEntry, ends: float, *, now: bool) -> bool:
        """Whether the filesystem that `key` has mounted is damaged; `now`: however lately it was asked.

        `ends`: the time.monotonic() from which on it is asked, but its answer is not waited for.

        Raises: OSError: EIO.
        """
        if entry.fs_type != "xfs":
            return False
        began = time.monotonic()
        held = self._held(key, entry)
        if not now and began - held.asked_at < _ASK_SECONDS:
            return held.is_sick
        with self._lock:
            self._said[key] = dataclasses.replace(held, asked_at=began)
        patience = max(0.0, min(_PATIENCE_SECONDS, ends - began))
        answer = self._looks.take((key, entry.mount_id), partial(self._ask, key, entry), patience)
        return self._held(key, entry).is_sick if answer is None else answer

    def forget(self, key: str) -> None:
        """It is mounted no more."""
        with self._lock:
            self._said.pop(key, None)

    def keep_only(self, known: Catalogue) -> None:
        """Forget what volumes said that are gone."""
        with self._lock:
            for gone in [one for one in self._said if not known.has(one)]:
                del self._said[gone]

    def _held(self, key: str, entry: MountEntry) -> _Said:
        held = self._said.get(key)
        if held is None or held.mount_id != entry.mount_id:
            return _Said(entry.mount_id, float("-inf"), is_sick=False)
        return held

    def _ask(self, key: str, entry: MountEntry) -> bool:
        is_sick = xfs_health.is_sick(entry)
        with self._lock:
            held = self._said.get(key)
            # Late, it may be forgotten or mounted again.
            if held is not None and held.mount_id == entry.mount_id:
                self._said[key] = dataclasses.replace(held, is_sick=is_sick)
        return is_sick
