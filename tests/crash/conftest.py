"""Counts what the crash tests enumerate, and says so at the end of the session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.lane import Lane, Lanes
from tests.crash.tally import Tally

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """The points and cases of this session."""
    return request.config.stash.setdefault(_TALLY, Tally())


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory, private_mounts: None) -> Iterator[Lanes]:
    """Two drivers with pools of their own, so that cases run side by side."""
    with contextlib.ExitStack() as cleanup:
        made = []
        for number in range(2):
            lane = Lane.make(tmp_path_factory.mktemp(f"lane{number}"))
            cleanup.callback(lane.remove)
            made.append(lane)
        yield Lanes(made)
    for lane in made:
        assert "unforeseen" not in Path(lane.driver.home, "log").read_text(errors="replace")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tally = config.stash.get(_TALLY, None)
    if tally is not None:
        terminalreporter.write_line(str(tally))
