"""Callers that the power is cut below, each with objects of its own; knows no disk and no particular call."""

from __future__ import annotations

import random
import threading
from abc import ABC, abstractmethod
from pathlib import Path

from tests.durability.load import KINDS, read_number, write_number
from tests.harness import Driver, Failure, Workload


class Caller(ABC):
    """Makes calls in a thread of its own until the power is cut, and knows which of them were answered before."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.acknowledged = 0
        self.complaint = ""
        self._before = 0
        self._is_cut = False
        self._thread = threading.Thread()

    def begin(self, turn: int) -> None:
        """Work from now on."""
        self._is_cut, self.complaint, self._before = False, "", self.acknowledged
        self._thread = threading.Thread(target=self._run, args=(f"{self.name}-{turn}",), daemon=True)
        self._thread.start()

    def is_under_way(self) -> bool:
        """Whether a call was answered since it began; true as well when there is nothing to wait for."""
        return self.acknowledged > self._before or bool(self.complaint)

    def expect_the_cut(self) -> None:
        """What fails from now on is no complaint, and what is answered from now on is too late."""
        self._is_cut = True

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self.complaint

    def _run(self, seed: str) -> None:
        choices = random.Random(seed)
        step = 0
        try:
            while not self._is_cut:
                step += 1
                self.step(choices, f"{seed}-{step}")
        except (Failure, OSError) as failure:
            if not self._is_cut:
                self.complaint = str(failure)

    def heard(self) -> bool:
        """Whether an answer that is here now came before the cut; it is counted then."""
        if self._is_cut:
            return False
        self.acknowledged += 1
        return True

    @abstractmethod
    def step(self, choices: random.Random, name: str) -> None:
        """Make a call or two; new objects have this name."""

    @abstractmethod
    def check(self) -> None:
        """Compare what is there after the cut with what was heard, and forget what nobody knows."""

    @abstractmethod
    def volumes(self) -> set[str]:
        """The ids of the volumes that stay."""

    def come_back(self) -> None:  # noqa: B027 - most have nothing mounted
        """What the workload does once the driver serves again."""


def source_of(driver: Driver, kind: str, name: str, *, published: bool) -> Workload:
    """A volume with the number 1 in it."""
    source = Workload(driver, name, **KINDS[kind])  # type: ignore[arg-type]
    write_number(source.up(), 1)
    if not published:
        source.unpublish()
        source.unstage()
    return source


def number_in(driver: Driver, volume_id: str, like: Workload) -> int:
    """The number in a volume; a filesystem in an image is mounted for it."""
    if like.block or like.parameters.get("type") == "directory":
        return read_number(str(content(driver, "volumes", volume_id)))
    looked_at = Workload(driver, f"look-{volume_id}", like.block, like.fs_type, like.size_bytes, like.parameters)
    looked_at.volume_id = volume_id
    looked_at.stage()
    try:
        return read_number(looked_at.publish())
    finally:
        looked_at.unpublish()
        looked_at.unstage()


def content(driver: Driver, room: str, name: str) -> Path:
    """Where the image, or the files, of an object lie."""
    where = driver.pool / room / name
    image = where / "disk.img"
    return image if image.exists() else where / "data"
