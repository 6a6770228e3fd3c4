"""How far a call is that takes long: a bar for a person who waits, a line now and then for a log.

Knows no command and no volume. All of it goes to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import click

from csi_driver.cli.output import human_bytes

Result = TypeVar("Result")
# The bytes that are done, and of how many (0: not known).
Amount = tuple[int, int]
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.5
_LINE_SECONDS = 5.0


def watched(label: str, work: Callable[[], Result], done: Callable[[], Amount | None], *, goes_on: str = "") -> Result:
    """Do `work`, and tell how much of it is `done` (None or nothing of nothing: it copies no bytes) when it takes long.

    What never has anything to tell shows nothing: not everything that takes long is a copy.
    What `done` raises only ends the telling: the work is what counts. Whoever interrupts it is told what `goes_on`.

    Raises: what `work` raises; click.Abort.
    """
    worker = ThreadPoolExecutor(1)
    future = worker.submit(work)
    try:
        if not _ends_within(future, _PATIENCE_SECONDS):
            _tell(label, future, done)
        return future.result()
    except KeyboardInterrupt:
        if goes_on:
            click.echo(f"\n{goes_on}", err=True)
        raise click.Abort from None
    finally:
        # What was interrupted ends with its connection.
        worker.shutdown(wait=False)


@contextmanager
def meter(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """What counts bytes as they pass, in a bar for a person who looks; `total` 0: not known."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    bar: Any = click.progressbar(length=total or None, label=label, file=sys.stderr)
    with bar:
        yield bar.update


def _tell(label: str, future: Future[Any], done: Callable[[], Amount | None]) -> None:
    with _bar(label) if sys.stderr.isatty() else _lines(label) as show:
        while not future.done():
            try:
                amount = done()
            except Exception:
                return
            if amount is not None and any(amount):
                show(amount)
            _ends_within(future, _PAUSE_SECONDS)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Amount], None]]:
    bar: Any = click.progressbar(length=100, label=label, file=sys.stderr, item_show_func=_words)
    is_shown = False
    with ExitStack() as shown:

        def show(amount: Amount) -> None:
            nonlocal is_shown
            if not is_shown:
                # Only now: it draws itself at once, at 0%.
                shown.enter_context(bar)
                is_shown = True
            bar.current_item = amount
            bar.make_step(_percent(amount) - bar.pos)
            bar.render_progress()

        yield show


@contextmanager
def _lines(label: str) -> Iterator[Callable[[Amount], None]]:
    told_at = time.monotonic()

    def show(amount: Amount) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + _LINE_SECONDS:
            told_at = time.monotonic()
            percent = f" ({_percent(amount)}%)" if amount[1] else ""
            click.echo(f"{label}: {_words(amount)}{percent}", err=True)

    yield show


def _percent(amount: Amount) -> int:
    done, total = amount
    return min(100, max(0, 100 * done // total)) if total else 0


def _words(amount: Amount | None) -> str:
    if amount is None:
        return ""
    done, total = amount
    return f"{human_bytes(done)} of {human_bytes(total)}" if total else human_bytes(done)


def _ends_within(future: Future[Any], seconds: float) -> bool:
    ends = time.monotonic() + seconds
    while not future.done() and time.monotonic() < ends:
        time.sleep(0.02)
    return future.done()
