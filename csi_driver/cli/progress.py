"""A bar for a person who waits for a call that takes long; knows no command and no volume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import click

Result = TypeVar("Result")
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.5


def watched(label: str, work: Callable[[], Result], done: Callable[[], float]) -> Result:
    """Do `work`; when it takes more than a second, and a person looks, show how much of it is `done` (0 to 1).

    What `done` raises only ends the bar: the work is what counts.
    """
    with ThreadPoolExecutor(1) as worker:
        future = worker.submit(work)
        if sys.stderr.isatty() and not _ends_within(future, _PATIENCE_SECONDS):
            _show(label, future, done)
        return future.result()


@contextmanager
def meter(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """What counts bytes as they pass, in a bar for a person who looks; `total` 0: not known."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    bar: Any = click.progressbar(length=total or None, label=label, file=sys.stderr)
    with bar:
        yield bar.update


def _show(label: str, future: Future[Result], done: Callable[[], float]) -> None:
    with click.progressbar(length=100, label=label, file=sys.stderr) as bar:
        while not future.done():
            try:
                percent = int(100 * min(1.0, done()))
            except Exception:
                return
            bar.update(percent - bar.pos)
            _ends_within(future, _PAUSE_SECONDS)


def _ends_within(future: Future[Result], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not future.done() and time.monotonic() < ends:
        time.sleep(0.02)
    return future.done()
