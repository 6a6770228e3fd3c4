"""Mounted volumes held still for a moment, never for longer than the budget; knows no snapshot.

Intent -> guardian -> freeze one after the other -> the caller's work -> thaw -> forget. Whoever dies in between: the
guardian thaws; and where it dies too, the next start does, before it does anything else.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from csi_driver.errors import FreezeBroken, FreezeExpired, VolumeBusy
from csi_driver.faults import crash_point
from csi_driver.linux import freeze, mountinfo
from csi_driver.store.freezes import FreezeIntents, FrozenFilesystem

_log = logging.getLogger("hostvol.freezing")
BUDGET_SECONDS: Final = 2.0
# What is not done by this part of the budget is given up, so that we and not the guardian end it.
_WORK_PART: Final = 0.75
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume's mounted filesystem. `fd` is on it, opened before anything is frozen, and stays its owner's."""

    volume_id: str
    target: str
    source: str
    fd: int


class Freeze:
    """A freeze that goes on."""

    def __init__(self, what: str, budget_seconds: float) -> None:
        self._what = what
        self._budget_seconds = budget_seconds
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long writers have waited."""
        return time.monotonic() - self._began

    def check(self) -> None:
        """Go on only while there is time.

        Raises: FreezeExpired.
        """
        self._require(self._budget_seconds * _WORK_PART)

    def check_held(self) -> None:
        """Tell, once all is thawed, that it was in time.

        Raises: FreezeExpired.
        """
        self._require(self._budget_seconds)

    def _require(self, seconds: float) -> None:
        if self.seconds > seconds:
            raise FreezeExpired(self._what, self.seconds, self._budget_seconds)


class Freezing:
    """The freezes of this node, one at a time."""

    def __init__(self, state_dir: str, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._state_dir = state_dir
        self._budget_seconds = budget_seconds
        self._lock = threading.Lock()

    @contextmanager
    def frozen(self, volumes: Sequence[Mounted]) -> Iterator[Freeze]:
        """Nobody writes to any of the volumes meanwhile.

        Whatever was done is void unless this ends without an exception: it tells when the freeze did not hold.

        Raises: FreezeExpired when the time does not do; FreezeBroken when somebody else has thawed one of them;
            VolumeBusy when one is frozen already; OSError.
        """
        with self._lock, ExitStack() as undo:
            guardian = freeze.Guardian([one.fd for one in volumes], self._budget_seconds)
            undo.callback(guardian.end)
            intents = FreezeIntents(self._state_dir)
            undo.callback(intents.close)
            undo.callback(intents.remove, intents.add([_filesystem(one) for one in volumes]))
            crash_point("freeze.intended")
            guardian.begin()
            going_on = Freeze(", ".join(one.volume_id for one in volumes), self._budget_seconds)
            with _held(volumes, going_on):
                yield going_on
            crash_point("freeze.thawed")


@contextmanager
def _held(volumes: Sequence[Mounted], going_on: Freeze) -> Iterator[None]:
    frozen: list[Mounted] = []
    try:
        for volume in volumes:
            _freeze(volume)
            frozen.append(volume)
            crash_point("freeze.frozen")
            going_on.check()
        yield
    except BaseException:
        _thaw(frozen)
        raise
    early = _thaw(frozen)
    going_on.check_held()
    if early:
        raise FreezeBroken(", ".join(early))


def _freeze(volume: Mounted) -> None:
    try:
        freeze.freeze(volume.fd)
    except OSError as cause:
        if cause.errno == errno.EBUSY:
            raise VolumeBusy(volume.volume_id, "its filesystem is frozen by somebody else") from cause
        raise


def _thaw(volumes: Sequence[Mounted]) -> list[str]:
    """Thaw all, the last one first; returns the ids of those that were thawed already."""
    early = []
    for volume in reversed(volumes):
        try:
            if not freeze.thaw(volume.fd):
                early.append(volume.volume_id)
        except OSError as cause:
            # The guardian goes on trying; a start does too.
            _log.error("volume %s is frozen and cannot be thawed: %s", volume.volume_id, cause)
            early.append(volume.volume_id)
    return early


def _filesystem(volume: Mounted) -> FrozenFilesystem:
    return FrozenFilesystem(volume.volume_id, volume.target, os.fstat(volume.fd).st_dev, volume.source)


def thaw_all(state_dir: str) -> None:
    """Thaw what an earlier process of this boot had frozen when it was killed, and its guardian with it.

    The first act of every start: a workload that waits for it cannot even be killed.
    """
    intents = FreezeIntents(state_dir)
    try:
        for name, filesystems in intents.load_all():
            for one in filesystems:
                _thaw_found(one)
            intents.remove(name)
            crash_point("freeze.forgotten")
    finally:
        intents.close()


def _thaw_found(wanted: FrozenFilesystem) -> None:
    places = [wanted.target, *(entry.target for entry in _entries(wanted.source))]
    for place in places:
        with contextlib.suppress(OSError):
            fd = os.open(place, _OPEN)
            try:
                if os.fstat(fd).st_dev != wanted.device:
                    continue
                if freeze.thaw(fd):
                    _log.warning("volume %s was left frozen by a process that was killed: thawed", wanted.volume_id)
                return
            finally:
                os.close(fd)
    _log.info("volume %s was about to be frozen, and is not mounted any more", wanted.volume_id)


def _entries(source: str) -> list[mountinfo.MountEntry]:
    found = mountinfo.read_mounts(mountinfo.source_needle(source))
    return [entry for entry in found if entry.source == source]
