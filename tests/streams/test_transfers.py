"""The two ends of a transfer by themselves, on a source that is only pretended.

- Whoever reads again from where the last one came to gets the same bytes, of one cut; further back than what is kept,
  or of a transfer that is not known, the transfer is lost.
- A transfer that nobody reads is let go after its lease; so is what an earlier run of the target fetched.
- More transfers than a node serves at a time are refused for now.
- A target waits a break out, and takes a part that is damaged or out of place for one.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from csi_driver.cluster.ferry import _checked
from csi_driver.domain.arrivals import Arrival
from csi_driver.domain.departures import Departures
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfers import Piece
from csi_driver.errors import SourceRefused, TooManyTransfers, TransferInterrupted, TransferLost
from csi_driver.model import AccessType, VolumeParameters
from csi_driver.pb import peer_pb2
from tests.cluster.cluster import until

SOURCE = "vol-0123456789abcdef-1"


class Sources:
    """Each cut has bytes of its own; `held` counts what is held."""

    def __init__(self, pieces: int = 40) -> None:
        self.held = 0
        self.cuts = 0
        self._pieces = pieces

    def still(self, source: Any, deadline: float | None, held: ExitStack) -> Any:
        self.cuts += 1
        self.held += 1
        held.callback(self._let_go)
        cut = bytes([self.cuts])
        contents = SimpleNamespace(size_bytes=lambda _: 0, sent=lambda *_: self._sent(cut))
        described = SimpleNamespace(access_type=AccessType.BLOCK, fs_type="", parameters=VolumeParameters())
        pool = SimpleNamespace(contents=lambda _: contents)
        return SimpleNamespace(pool=pool, volume_type="image", described=described, size_bytes=1, content_fd=-1)

    def _let_go(self) -> None:
        self.held -= 1

    def _sent(self, cut: bytes) -> Generator[bytes]:
        for number in range(self._pieces):
            yield cut + bytes([number]) * 99


def departures(sources: Sources, lease_seconds: float = 60.0) -> Departures:
    return Departures(sources, Throttle(0), lease_seconds)  # type: ignore[arg-type]


def read(all_of: Departures, transfer_id: str, offset: int, count: int = 1000) -> list[Piece]:
    return list(itertools.islice(all_of.open(transfer_id, SOURCE, offset, None).pieces(), count))


def test_a_transfer_goes_on_with_the_same_cut() -> None:
    sources = Sources()
    all_of = departures(sources)
    first = read(all_of, "node-run-1", 0, 10)
    again = read(all_of, "node-run-1", 500)
    assert again[:5] == first[5:]
    assert (again[-1].offset, again[-1].is_last) == (4000, True)
    assert sources.cuts == 1
    assert read(all_of, "node-run-1", 4000) == again[-1:]
    for offset in (0, 550, 5000):
        with pytest.raises(TransferLost):
            all_of.open("node-run-1", SOURCE, offset, None)
    with pytest.raises(TransferLost):
        all_of.open("node-run-2", SOURCE, 100, None)
    all_of.end("node-run-1")
    all_of.end("node-run-1")
    assert (sources.held, all_of.count()) == (0, 0)


def test_a_reader_is_cut_off_by_the_next_one() -> None:
    all_of = departures(Sources())
    older = all_of.open("node-run-1", SOURCE, 0, None).pieces()
    assert next(older).offset == 0
    newer = all_of.open("node-run-1", SOURCE, 100, None).pieces()
    assert list(older) == []
    assert next(newer).offset == 100
    all_of.stop()
    assert list(newer) == []


def test_what_nobody_reads_is_let_go() -> None:
    sources = Sources()
    all_of = departures(sources, lease_seconds=0.2)
    read(all_of, "node-run-1", 0, 3)
    all_of.open("node-run-2", SOURCE, 0, None)
    assert sources.held == 2
    until(lambda: sources.held == 0)
    with pytest.raises(TransferLost):
        all_of.open("node-run-1", SOURCE, 300, None)


def test_another_run_of_the_target_ends_what_the_earlier_one_fetched() -> None:
    sources = Sources()
    all_of = departures(sources)
    for transfer_id in ("node-run-1", "node-run-2", "other-run-1"):
        all_of.open(transfer_id, SOURCE, 0, None)
    all_of.open("node-later-1", SOURCE, 0, None)
    assert sources.held == 2
    assert all_of.get("node-run-1") is None
    assert all_of.get("other-run-1") is not None
    for number in (2, 3):
        all_of.open(f"node-later-{number}", SOURCE, 0, None)
    with pytest.raises(TooManyTransfers):
        all_of.open("other-run-2", SOURCE, 0, None)
    all_of.stop()
    assert sources.held == 0


class Way:
    """A Carrier that brings what it is told, one answer for each request."""

    def __init__(self, *answers: list[Piece | Exception]) -> None:
        self.stopped = threading.Event()
        self.asked: list[int] = []
        self.ended = False
        self._answers = list(answers)

    def fetch(self, transfer_id: str, source_id: str, offset: int) -> Iterator[Piece]:
        self.asked.append(offset)
        for piece in self._answers.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def end(self, transfer_id: str, source_id: str) -> None:
        self.ended = True


def arrived(way: Way) -> bytes:
    arrival = Arrival(way, SOURCE, "run-1", "name", lambda _: None)
    try:
        return b"".join(arrival._chunks)
    finally:
        arrival.close()


def test_a_target_takes_up_where_it_is_after_a_break() -> None:
    broken = TransferInterrupted("broken")
    way = Way(
        [Piece(0, b"abc"), broken],
        [broken],
        [Piece(3, b"de"), Piece(7, b"out of place")],
        [Piece(5, b"f")],
        [Piece(6, b"", is_last=True)],
    )
    assert arrived(way) == b"abcdef"
    assert way.asked == [0, 3, 3, 5, 6]
    assert way.ended


def test_a_target_gives_up_what_is_lost_and_what_it_need_not_wait_for() -> None:
    for failure in (TransferLost(SOURCE, "let go"), SourceRefused(SOURCE, "busy")):
        way = Way([Piece(0, b"abc"), failure])
        with pytest.raises(type(failure)):
            arrived(way)
        assert way.ended
    stopping = Way([Piece(0, b"abc"), TransferInterrupted("broken")])
    stopping.stopped.set()
    with pytest.raises(TransferInterrupted, match="stopping"):
        arrived(stopping)


def test_a_part_is_checked() -> None:
    good = peer_pb2.Part(offset=5, data=b"data", crc32=zlib.crc32(b"data"))
    assert _checked(good, SOURCE) == Piece(5, b"data")
    with pytest.raises(TransferInterrupted, match="not what was sent"):
        _checked(peer_pb2.Part(offset=5, data=b"date", crc32=good.crc32), SOURCE)
    with pytest.raises(SourceRefused, match="cannot be read"):
        _checked(peer_pb2.Part(failure="it cannot be read"), SOURCE)
