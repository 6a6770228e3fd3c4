"""The two ends of a transfer by themselves, on a source that is only pretended.

- Whoever reads again from any place gets the same bytes, of one cut, also from the next process; behind the end, or
  when the transfer is not known, it is lost.
- A transfer that nobody reads is let go after its lease; so is what a target had begun before for the same create, and
  what an earlier run of an older one fetched.
- More transfers than a node serves at a time are refused for now.
- A target waits a break out, and takes a part that is damaged or out of place for one.
"""

from __future__ import annotations

import itertools
import os
import threading
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csi_driver.cluster.ferry import _checked
from csi_driver.domain.arrivals import Arrival
from csi_driver.domain.departures import Departures
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfers import Piece
from csi_driver.errors import NotReady, SourceRefused, TooManyTransfers, TransferInterrupted, TransferLost
from csi_driver.pb import peer_pb2
from csi_driver.streams.journal import Journal
from csi_driver.streams.layout import MAGIC
from tests.waiting import until

SOURCE = "vol-0123456789abcdef-1"


class Consignments:
    """Each cut has bytes of its own; `held` are those that are held, `found` what an earlier process held."""

    def __init__(self, pieces: int = 40) -> None:
        self.held: set[str] = set()
        self.found: list[Any] = []
        self.cuts = 0
        self.is_complete = True
        # Raised once, after so many pieces.
        self.failure: tuple[int, OSError] | None = None
        self._pieces = pieces

    def begin(self, transfer_id: str, source_id: str, deadline: float | None) -> Any:
        self.cuts += 1
        self.held.add(transfer_id)
        cut = bytes([self.cuts])

        def let_go() -> None:
            self.held.discard(transfer_id)

        def leave() -> None:
            self.found.append(consignment)

        consignment = SimpleNamespace(
            transfer_id=transfer_id,
            source_id=source_id,
            sent=lambda: self._sent(cut),
            let_go=let_go,
            leave=leave,
        )
        return consignment

    def left(self, pool: Any) -> list[Any]:
        return self.found

    def _sent(self, cut: bytes) -> Generator[bytes]:
        for number in range(self._pieces):
            if self.failure is not None and self.failure[0] == number:
                failure, self.failure = self.failure[1], None
                raise failure
            yield cut + bytes([number]) * 99


def departures(consignments: Consignments, lease_seconds: float = 60.0) -> Departures:
    return Departures(consignments, Throttle(0), lease_seconds)  # type: ignore[arg-type]


def read(all_of: Departures, transfer_id: str, offset: int, count: int = 1000) -> list[Piece]:
    return list(itertools.islice(all_of.open(transfer_id, SOURCE, offset, None).pieces(), count))


def test_a_transfer_goes_on_with_the_same_cut() -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    first = read(all_of, "node-create.1", 0, 10)
    again = read(all_of, "node-create.1", 500)
    assert again[:5] == first[5:]
    assert (again[-1].offset, again[-1].is_last) == (4000, True)
    assert read(all_of, "node-create.1", 4000) == again[-1:]
    whole = b"".join(piece.data for piece in (*first[:5], *again))
    for offset in (0, 550, 1, 3999):
        assert b"".join(piece.data for piece in read(all_of, "node-create.1", offset)) == whole[offset:]
    assert consignments.cuts == 1
    with pytest.raises(TransferLost):
        all_of.open("node-create.1", SOURCE, 5000, None)
    with pytest.raises(TransferLost):
        all_of.open("node-create.2", SOURCE, 100, None)
    all_of.end("node-create.1")
    all_of.end("node-create.1")
    assert (consignments.held, all_of.count()) == (set(), 0)


def test_a_transfer_goes_on_in_the_next_process() -> None:
    consignments = Consignments()
    first = departures(consignments)
    whole = b"".join(piece.data for piece in read(first, "node-create.1", 0))
    first.stop()
    assert (consignments.held, first.count()) == ({"node-create.1"}, 0)
    second = departures(consignments, lease_seconds=0.5)
    second.take_over(None)  # type: ignore[arg-type]
    pieces = read(second, "node-create.1", 3950)
    assert b"".join(piece.data for piece in pieces) == whole[3950:]
    transfer = second.get("node-create.1")
    # What comes before it was made again, and not sent again.
    assert transfer is not None
    assert transfer.sent_bytes == 50
    with pytest.raises(TransferLost):
        read(second, "node-create.1", 5000)
    until(lambda: not consignments.held, what="nobody reads it any more")


def test_what_a_later_process_or_another_pool_may_know_is_not_lost() -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    consignments.is_complete = False
    with pytest.raises(NotReady, match=SOURCE):
        all_of.open("node-create.1", SOURCE, 100, None)
    consignments.is_complete = True
    reading = all_of.open("node-create.2", SOURCE, 0, None).pieces()
    next(reading)
    all_of.break_off()
    assert list(reading) == []
    assert consignments.found == []
    with pytest.raises(NotReady, match="stopping"):
        all_of.open("node-create.2", SOURCE, 100, None)
    all_of.stop()
    assert [one.transfer_id for one in consignments.found] == ["node-create.2"]
    with pytest.raises(NotReady, match="stopping"):
        all_of.open("node-create.2", SOURCE, 100, None)


def test_what_cannot_be_read_is_not_taken_for_the_end() -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    consignments.failure = (7, OSError("it cannot be read"))
    with pytest.raises(OSError, match="cannot be read"):
        read(all_of, "node-create.1", 0)
    pieces = read(all_of, "node-create.1", 700)
    assert (pieces[0].offset, pieces[-1].offset, pieces[-1].is_last) == (700, 4000, True)


def test_a_reader_is_cut_off_by_the_next_one() -> None:
    all_of = departures(Consignments())
    older = all_of.open("node-run-1", SOURCE, 0, None).pieces()
    assert next(older).offset == 0
    newer = all_of.open("node-run-1", SOURCE, 100, None).pieces()
    assert list(older) == []
    assert next(newer).offset == 100
    all_of.stop()
    assert list(newer) == []


def test_what_nobody_reads_is_let_go() -> None:
    consignments = Consignments()
    all_of = departures(consignments, lease_seconds=0.2)
    read(all_of, "node-run-1", 0, 3)
    all_of.open("node-run-2", SOURCE, 0, None)
    assert len(consignments.held) == 2
    until(lambda: not consignments.held)
    with pytest.raises(TransferLost):
        all_of.open("node-run-1", SOURCE, 300, None)
    # One who asks while another reads, and then reads nothing.
    reading = all_of.open("node-run-3", SOURCE, 0, None).pieces()
    next(reading)
    all_of.open("node-run-3", SOURCE, 100, None)
    assert list(reading) == []
    until(lambda: not consignments.held)


def test_a_transfer_that_nobody_reads_gives_its_place_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    for number in range(4):
        all_of.open(f"node{number}-create.1", SOURCE, 0, None)
    reading = all_of.open("node0-create.1", SOURCE, 0, None).pieces()
    next(reading)
    with pytest.raises(TooManyTransfers):
        all_of.open("late-create.1", SOURCE, 0, None)
    monkeypatch.setattr("csi_driver.domain.departures._YIELDS_SECONDS", 0.0)
    all_of.open("late-create.1", SOURCE, 0, None)
    # The one that has rested longest, and never one that is read.
    assert consignments.held == {"node0-create.1", "node2-create.1", "node3-create.1", "late-create.1"}
    reading.close()


def test_another_run_of_the_target_ends_what_the_earlier_one_fetched() -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    for transfer_id in ("node-run-1", "node-run-2", "other-run-1"):
        all_of.open(transfer_id, SOURCE, 0, None)
    all_of.open("node-later-1", SOURCE, 0, None)
    assert len(consignments.held) == 2
    assert all_of.get("node-run-1") is None
    assert all_of.get("other-run-1") is not None
    for number in (2, 3):
        all_of.open(f"node-later-{number}", SOURCE, 0, None)
    with pytest.raises(TooManyTransfers):
        all_of.open("other-run-2", SOURCE, 0, None)


def test_a_create_that_begins_again_ends_what_it_had_begun() -> None:
    consignments = Consignments()
    all_of = departures(consignments)
    for transfer_id in ("node-create.1", "node-other.1", "another-create.1", "node-create.2"):
        all_of.open(transfer_id, SOURCE, 0, None)
    assert consignments.held == {"node-other.1", "another-create.1", "node-create.2"}


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
    arrival = Arrival(way, SOURCE, Journal("create.1"), "name", lambda _: None)
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


def test_a_target_that_reads_what_has_come_keeps_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi_driver.domain.arrivals._RENEWAL_SECONDS", 0.0)
    object_fd = os.open(tmp_path, os.O_RDONLY)
    journal = Journal("create.1")
    journal.place(object_fd)
    journal.close()
    # One byte is asked for while what has come is read; whatever becomes of that, the rest is asked for behind it.
    way = Way([TransferInterrupted("broken")], [Piece(len(MAGIC), b"rest")], [Piece(len(MAGIC) + 4, b"", is_last=True)])
    arrival = Arrival(way, SOURCE, Journal.resumed(object_fd), "name", lambda _: None)
    try:
        chunks = arrival._all_chunks()
        assert next(chunks) == MAGIC
        assert next(chunks) == b"rest"
    finally:
        arrival.close()
        os.close(object_fd)
    assert way.asked == [1, len(MAGIC)]


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
