"""Callers that create and delete volumes until the power is cut, and the book of what they were told."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.harness import DIRECTORY, MIB, Driver, Failure, Workload

# The same volumes again and again, so that templates play their part.
KINDS: dict[str, dict[str, object]] = {
    "ext4": {"size_bytes": 32 * MIB},
    "ext4-thick": {"size_bytes": 24 * MIB, "parameters": {"provisioning": "thick"}},
    "block": {"block": True, "size_bytes": 8 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 16 * MIB},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "directory-with-quota": {"parameters": {"type": "directory"}, "size_bytes": 16 * MIB},
}
_MOST_PER_CALLER = 4


@dataclass(frozen=True)
class Kept:
    """A volume that was acknowledged, or may be there."""

    name: str
    kind: str
    volume_id: str = ""

    def workload(self, driver: Driver) -> Workload:
        return Workload(driver, self.name, volume_id=self.volume_id, **KINDS[self.kind])  # type: ignore[arg-type]


@dataclass
class Book:
    """What callers know: acknowledged creates and deletes by id, and what was asked and not answered."""

    alive: dict[str, Kept] = field(default_factory=dict)
    gone: dict[str, Kept] = field(default_factory=dict)
    creating: dict[str, Kept] = field(default_factory=dict)  # by name
    deleting: dict[str, Kept] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)  # the last number that a workload fsynced, by volume id
    sizes: dict[str, int] = field(default_factory=dict)  # what an expansion acknowledged, by volume id
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def snapshot(self) -> Book:
        with self._lock:
            return Book(
                dict(self.alive),
                dict(self.gone),
                dict(self.creating),
                dict(self.deleting),
                dict(self.written),
                dict(self.sizes),
            )

    @contextlib.contextmanager
    def edit(self) -> Iterator[Book]:
        with self._lock:
            yield self

    def without_what_came_after(self, cut: Book) -> Book:
        """The book as it stood at the cut: an answer that came later is none."""
        later_deletes = {key: kept for key, kept in self.gone.items() if key not in cut.gone}
        unanswered = cut.deleting | self.deleting | later_deletes
        created = {kept.name: kept for key, kept in (self.alive | self.gone).items() if key not in cut.alive | cut.gone}
        return Book(
            alive={key: kept for key, kept in cut.alive.items() if key not in unanswered},
            gone=cut.gone,
            creating=cut.creating | self.creating | created,
            deleting=unanswered,
            written=cut.written,
            sizes=cut.sizes,
        )


class Load:
    """Callers in threads of their own, each with volumes of its own."""

    def __init__(self, driver: Driver, book: Book, kinds: Sequence[str], seed: str, callers: int = 4) -> None:
        self._driver = driver
        self._book = book
        self._kinds = kinds
        self._stop = threading.Event()
        self._is_cut = False
        self._cut_book: Book | None = None
        self.complaints: list[str] = []
        mine: list[list[Kept]] = [[] for _ in range(callers)]
        for index, kept in enumerate(book.alive.values()):
            if kept.volume_id not in book.written:
                mine[index % callers].append(kept)
        self._threads = [
            threading.Thread(target=self._call, args=(f"{seed}-{number}", volumes))
            for number, volumes in enumerate(mine)
        ]
        self._threads += [
            threading.Thread(target=self._write, args=(book.alive[volume_id],)) for volume_id in book.written
        ]

    def start(self) -> None:
        _ = self._driver.caller  # made once, by this thread
        for thread in self._threads:
            thread.start()

    def expect_the_cut(self) -> None:
        """What fails from now on is no complaint, and what is acknowledged from now on may be too late."""
        self._is_cut = True
        self._cut_book = self._book.snapshot()

    def stop(self) -> Book:
        """Wait for all callers; returns the book at the cut."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self._cut_book is not None
        return self._cut_book

    def _call(self, seed: str, mine: list[Kept]) -> None:
        choices = random.Random(seed)
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                chance = choices.random()
                if len(mine) < _MOST_PER_CALLER and chance < 0.5:
                    mine.append(self._create(Kept(f"{seed}-{number}", choices.choice(self._kinds))))
                elif mine and chance < 0.75:
                    self._expand(choices.choice(mine), 1 + choices.random())
                elif mine:
                    self._delete(mine.pop(choices.randrange(len(mine))))
            except Failure as failure:
                if not self._is_cut:
                    self.complaints.append(str(failure))
                return

    def _create(self, kept: Kept) -> Kept:
        with self._book.edit() as book:
            book.creating[kept.name] = kept
        made = Kept(kept.name, kept.kind, kept.workload(self._driver).create())
        with self._book.edit() as book:
            del book.creating[kept.name]
            book.alive[made.volume_id] = made
        return made

    def _delete(self, kept: Kept) -> None:
        with self._book.edit() as book:
            book.deleting[kept.volume_id] = book.alive.pop(kept.volume_id)
        self._driver.call("DeleteVolume", volume_id=kept.volume_id)
        with self._book.edit() as book:
            book.gone[kept.volume_id] = book.deleting.pop(kept.volume_id)

    def _expand(self, kept: Kept, times: float) -> None:
        workload = kept.workload(self._driver)
        given = workload.expand(int(workload.size_bytes * times) // 4096 * 4096)
        with self._book.edit() as book:
            book.sizes[kept.volume_id] = given

    def _write(self, kept: Kept) -> None:
        """Write numbers into a published volume, each durable before the next."""
        target = kept.workload(self._driver).target()
        try:
            while not self._stop.is_set():
                number = self._book.written[kept.volume_id] + 1
                write_number(target, number)
                with self._book.edit() as book:
                    book.written[kept.volume_id] = number
        except OSError as error:
            if not self._is_cut:
                self.complaints.append(f"{kept}: {error}")


def _file_of(target: str) -> str:
    return target if not os.path.isdir(target) else f"{target}/number"


def write_number(target: str, number: int) -> None:
    """Write `number` into a published volume, mounted or raw, and fsync it."""
    path = _file_of(target)
    flags = os.O_WRONLY if path == target else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, number.to_bytes(8, "big") * 512, 0)
        os.fsync(descriptor)
        if path != target and number == 1:
            directory = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            os.fsync(directory)
            os.close(directory)
    finally:
        os.close(descriptor)


def read_number(target: str) -> int:
    """The number that is in a published volume; 0 when there is none."""
    try:
        with open(_file_of(target), "rb") as file:
            return int.from_bytes(file.read(8), "big")
    except FileNotFoundError:
        return 0
