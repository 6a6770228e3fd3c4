"""How far what takes long is, as a person at a terminal and as a log sees it, and what an interruption does.

- A person sees a bar with percent and bytes, a log a line now and then; standard output is the same.
- What takes long and copies nothing shows neither.
- The driver tells copies under way with their bytes: snapshots, clones, restores and rollbacks, and none afterwards.
- Who interrupts a copy is told that it goes on; the same command joins it.
"""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from csi_driver.cli import progress
from csi_driver.pb import admin_pb2
from tests.driver.copying import written
from tests.harness import MIB, Driver, PoolPlace
from tests.soak.observing import frozen
from tests.waiting import until

Amount = tuple[int, int]
SIZE = 128 * MIB


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATIENCE_SECONDS", "_PAUSE_SECONDS", "_LINE_SECONDS"):
        monkeypatch.setattr(progress, name, 0.01)


def watched(amounts: list[Amount | None]) -> str:
    """Watch a work that ends once all of the amounts were told."""
    told = iter(amounts)
    ended = threading.Event()

    def done() -> Amount | None:
        amount = next(told, None)
        if amount == amounts[-1]:
            ended.set()
        return amount

    def work() -> str:
        assert ended.wait(30)
        return "result"

    return progress.watched("copying", work, done)


@pytest.mark.usefixtures("quick")
def test_a_log_gets_lines_with_bytes_and_percent(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched([None, (0, 4096), (1 << 20, 0), (3 << 20, 4 << 20), (1, 1)]) == "result"
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == ["copying: 0 B of 4 KiB (0%)", "copying: 1 MiB", "copying: 3 MiB of 4 MiB (75%)"]


class Terminal(io.StringIO):
    """A place for what a person would see."""

    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("nothing", [None, (0, 0)])
@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_what_copies_nothing_shows_nothing(
    nothing: Amount | None, stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = stream()
    monkeypatch.setattr(sys, "stderr", seen)
    looks, ended = iter(range(5)), threading.Event()

    def done() -> Amount | None:
        if next(looks, None) is None:
            ended.set()
        return nothing

    assert progress.watched("copying", lambda: ended.wait(30), done)
    assert seen.getvalue() == ""


@pytest.mark.usefixtures("quick")
def test_a_person_sees_a_bar_as_soon_as_there_is_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert watched([None, (0, 0), (1 << 20, 4 << 20)]) == "result"
    assert re.search(r"copying .*25%.*1 MiB of 4 MiB", sys.stderr.getvalue())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("quick")
def test_who_interrupts_is_told_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()

    def done() -> Amount:
        raise KeyboardInterrupt

    with pytest.raises(click.Abort):
        progress.watched("copying", lambda: ended.wait(30), done, goes_on="it goes on")
    ended.set()
    assert "it goes on" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_told_costs_the_work_nothing() -> None:
    def done() -> Amount:
        raise ConnectionError

    def work() -> str:
        time.sleep(0.1)
        return "result"

    assert progress.watched("copying", work, done) == "result"


def operations(driver: Driver) -> list[Any]:
    stub = driver.caller.admin_stub("ListOperations")
    return list(stub(admin_pb2.ListOperationsRequest(), timeout=20).operations)


@contextmanager
def running(driver: Driver, *arguments: str, terminal: str = "") -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, on a terminal if its record is to be kept in a file."""
    # What is started in the background of a shell ignores an interruption.
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "csi_driver",
        *arguments,
        "--endpoint",
        driver.endpoint,
    ]
    if terminal:
        command = ["script", "--quiet", "--flush", "--return", "--command", " ".join(command), terminal]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **streams) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def held_in_the_middle(driver: Driver, place: PoolPlace) -> Iterator[Any]:
    """The copy that begins now does not get on while the block runs."""
    found = until(lambda: operations(driver), 60, "a copy is under way", every=0.0)
    # Here and now: what a child process would do might come when the copy is over.
    with frozen(Path(str(place.mount_point))):
        yield found[0]


def test_copies_are_told_interrupted_and_joined(
    tmp_path: Path, make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    place = make_pool("ext4")
    driver = make_driver(place)
    source = written(driver, SIZE)
    terminal = str(tmp_path / "terminal")
    clone = ("volume", "clone", "source", "copy")
    with ExitStack() as held:
        with running(driver, *clone) as process, held_in_the_middle(driver, place) as operation:
            assert (operation.kind, operation.name, operation.source_id) == ("clone", "copy", source.volume_id)
            assert operation.total_bytes >= SIZE
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert (process.returncode, "the same command joins it" in err) == (130, True), err
            joined = held.enter_context(running(driver, *clone, terminal=terminal))
            until(lambda: "%" in read(terminal), 60)
            [now] = operations(driver)
            assert (now.object_id, now.started) == (operation.object_id, operation.started)
            assert 0 <= now.done_bytes < now.total_bytes
        assert joined.wait(60) == 0
    assert re.search(r"copying .*\d+%.* of [0-9.]+ MiB", read(terminal)), read(terminal)
    assert operation.object_id in read(terminal)
    for kind, source_kind, arguments in (
        ("snapshot", "vol-", ("snapshot", "create", "source", "cut")),
        ("restore", "snap", ("volume", "create", "restored", "--from-snapshot", "cut")),
        ("rollback", "snap", ("volume", "rollback", "source", "cut", "--yes")),
    ):
        with running(driver, *arguments) as process:
            with held_in_the_middle(driver, place) as operation:
                assert (operation.kind, operation.source_id[:4]) == (kind, source_kind)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
    assert operations(driver) == []


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
