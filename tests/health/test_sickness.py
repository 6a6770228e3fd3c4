"""Asking XFS what it knows: many that are slow do not make a look slow, and no answer is lost or kept for ever.

- All of one look together are waited for no longer than it allows; none is left unasked for that.
- What is answered too late is told by the next look.
- Who is asked is not asked again within a minute, unless one looks closely.
- What a volume said is forgotten with it, and no late answer brings it back; another mount begins anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.sickness import Sickness
from csi_driver.linux import xfs_health
from csi_driver.linux.mountinfo import MountEntry
from tests.waiting import until

FOREVER = float("inf")


class Disk:
    """Filesystems that answer when they may; all are damaged."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answered: list[int] = []
        self.may_answer = threading.Event()

    def is_sick(self, entry: MountEntry) -> bool:
        self.asked.append(entry.mount_id)
        assert self.may_answer.wait(60)
        self.answered.append(entry.mount_id)
        return True


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(xfs_health, "is_sick", disk.is_sick)
    yield disk
    disk.may_answer.set()


def mounted(number: int) -> MountEntry:
    return MountEntry(number, 1, 7, "/", f"/at/{number}", ("rw",), "xfs", f"/dev/loop{number}", ("rw",))


def ask_all(sickness: Sickness, count: int, *, ends: float) -> list[bool]:
    return [sickness.of(f"v{number}", mounted(number), ends, now=False) for number in range(count)]


def test_many_that_are_slow_do_not_make_a_look_slow_and_are_told_by_the_next(disk: Disk) -> None:
    sickness = Sickness()
    began = time.monotonic()
    assert ask_all(sickness, 100, ends=began + 0.3) == [False] * 100, "none has said anything"
    assert time.monotonic() - began < 20, "a hundred times the patience with one"
    until(lambda: len(disk.asked) == 100)
    disk.may_answer.set()
    until(lambda: all(ask_all(sickness, 100, ends=began)))
    assert len(disk.asked) == 100, "each was asked once"


def test_who_was_asked_is_asked_again_only_closely(disk: Disk) -> None:
    disk.may_answer.set()
    sickness = Sickness()
    for _ in range(3):
        assert sickness.of("v", mounted(1), FOREVER, now=False)
    assert disk.asked == [1]
    assert sickness.of("v", mounted(1), FOREVER, now=True)
    assert disk.asked == [1, 1]


def test_what_was_said_is_forgotten_with_its_volume(disk: Disk) -> None:
    sickness = Sickness()
    began = time.monotonic()
    assert not sickness.of("v1", mounted(1), began, now=False)
    sickness.keep_only(Catalogue())
    assert not sickness._said
    disk.may_answer.set()
    until(lambda: disk.answered == [1])
    assert not sickness._said, "late, of one that is gone"
    assert sickness.of("v2", mounted(2), FOREVER, now=False)
    sickness.forget("v2")
    assert not sickness._said


def test_a_late_answer_of_an_earlier_mount_says_nothing_of_the_next(disk: Disk) -> None:
    sickness = Sickness()
    began = time.monotonic()
    assert not sickness.of("v", mounted(1), began, now=False)
    assert not sickness.of("v", mounted(2), began, now=False)
    held = dict(sickness._said)
    disk.may_answer.set()
    until(lambda: sorted(disk.answered) == [1, 2])
    until(lambda: sickness._said["v"].is_sick)
    assert sickness._said["v"].mount_id == held["v"].mount_id == 2
