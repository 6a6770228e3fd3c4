"""A workload that writes without a break, notes how long each write took, and reads everything back at the end.

Run as `python writer.py PLACE BYTES`: PLACE is a directory or a block device. It writes BYTES in all, and more until
its standard input is closed. On standard output: one JSON object (see `Report`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 256 << 10
CHUNKS_PER_SYNC = 4
CHUNKS_PER_FILE = 256
SLOW_SECONDS = 0.05


@dataclass
class Report:
    """What the writer saw: bytes written, errors by their text, whether all was read back as it was written.

    `slow` has (end by time.monotonic, seconds) of every write or sync that took more than 50 ms.
    """

    written: int = 0
    errors: list[str] = field(default_factory=list)
    intact: bool = False
    slow: list[tuple[float, float]] = field(default_factory=list)

    def longest_pause(self, begin: float, end: float) -> float:
        """The longest write or sync that overlaps a time, in seconds; 0: none took 50 ms."""
        return max((took for ended, took in self.slow if ended >= begin and ended - took <= end), default=0.0)


@contextmanager
def writing(place: str, least_bytes: int) -> Iterator[list[Report]]:
    """A writer in a process of its own while the block runs; its report is in the list afterwards."""
    command = [sys.executable, "-S", __file__, place, str(least_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    reports: list[Report] = []
    try:
        yield reports
        told, _ = process.communicate(timeout=240)
        reports.append(Report(**json.loads(told)))
    finally:
        process.kill()
        process.wait()


def _chunk(number: int) -> bytes:
    return random.Random(number).randbytes(CHUNK)


def _place_of(place: Path, number: int) -> tuple[Path, int]:
    if place.is_dir():
        return place / f"part-{number // CHUNKS_PER_FILE}", number % CHUNKS_PER_FILE * CHUNK
    return place, number * CHUNK


def _write(place: Path, number: int) -> None:
    path, offset = _place_of(place, number)
    flags = os.O_WRONLY | (os.O_CREAT if path != place else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        os.pwrite(descriptor, _chunk(number), offset)
        if number % CHUNKS_PER_SYNC == 0:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _is_intact(place: Path, count: int) -> bool:
    held, wanted = hashlib.sha256(), hashlib.sha256()
    for number in range(count):
        path, offset = _place_of(place, number)
        with path.open("rb", buffering=0) as file:
            held.update(os.pread(file.fileno(), CHUNK, offset))
        wanted.update(_chunk(number))
    return held.digest() == wanted.digest()


def _run(place: Path, least_bytes: int) -> Report:
    report, stopped = Report(), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    number = 0
    while number * CHUNK < least_bytes or not stopped.is_set():
        began = time.monotonic()
        try:
            _write(place, number)
        except OSError as error:
            report.errors.append(str(error))
            break
        took = time.monotonic() - began
        if took > SLOW_SECONDS:
            report.slow.append((began + took, took))
        number += 1
    report.written = number * CHUNK
    report.intact = _is_intact(place, number)
    return report


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_run(Path(sys.argv[1]), int(sys.argv[2])))))
