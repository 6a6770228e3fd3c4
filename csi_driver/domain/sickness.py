"""What mounted XFS filesystems know to be damaged in themselves, asked once a minute; knows no trouble in words.

Asking may wait for a writer or the disk, which is no trouble by itself: who does not answer now is as he was.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from functools import partial
from typing import Final

from csi_driver.domain.looks import Looks
from csi_driver.linux import xfs_health
from csi_driver.linux.mountinfo import MountEntry

_ASK_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 0.25


class Sickness:
    """What each filesystem said last."""

    def __init__(self) -> None:
        self._looks: Looks[bool] = Looks()
        # Mount, when it was asked, whether it is sick.
        self._said: dict[Hashable, tuple[int, float, bool]] = {}

    def of(self, key: Hashable, entry: MountEntry, *, now: bool) -> bool:
        """Whether the filesystem that `key` has mounted is damaged; `now`: however lately it was asked.

        Raises: OSError: EIO.
        """
        if entry.fs_type != "xfs":
            return False
        mount_id, asked_at, is_sick = self._said.get(key, (0, 0.0, False))
        if mount_id != entry.mount_id:
            is_sick = False
        elif not now and time.monotonic() - asked_at < _ASK_SECONDS:
            return is_sick
        answer = self._looks.take((key, entry.mount_id), partial(xfs_health.is_sick, entry), _PATIENCE_SECONDS)
        is_sick = is_sick if answer is None else answer
        self._said[key] = (entry.mount_id, time.monotonic(), is_sick)
        return is_sick

    def forget(self, key: Hashable) -> None:
        """It is mounted no more."""
        self._said.pop(key, None)
