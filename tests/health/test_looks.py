"""Looks that hang hold up nobody who asks.

- A look that hangs gives no answer in time, and answers the next who asks once it is through.
- However often is asked, one thread per key hangs.
- What a look raises is raised, a time-out of its own too; an answer that comes a moment too late is taken.
- Where there was no thread for a look that is raised, and the next one has a thread.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from csi_driver.domain.looks import Looks


def test_a_look_that_hangs_holds_one_thread_and_nobody_who_asks() -> None:
    looks: Looks[int] = Looks()
    begun: list[int] = []
    go_on = threading.Event()

    def hang() -> int:
        begun.append(1)
        go_on.wait(60)
        return 7

    for _ in range(50):
        assert looks.take("key", hang, 0.001) is None
    assert len(begun) == 1
    assert looks.take("another", lambda: 8, 60) == 8
    go_on.set()
    assert looks.take("key", hang, 60) == 7


def test_too_many_that_hang_are_no_answer() -> None:
    looks: Looks[int] = Looks()
    go_on = threading.Event()

    def hang() -> int:
        go_on.wait(60)
        return 7

    futures = [looks.begin(number, hang) for number in range(300)]
    go_on.set()
    assert sum(future.exception(60) is None for future in futures[:200]) == 200
    assert not futures[-1].done()


@pytest.mark.parametrize("error", [OSError("gone"), TimeoutError("its own")])
def test_what_a_look_raises_is_raised(error: Exception) -> None:
    looks: Looks[int] = Looks()

    def fail() -> int:
        raise error

    with pytest.raises(type(error), match=str(error)):
        looks.take("key", fail, 60)


def test_an_answer_that_comes_a_moment_too_late_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Looks[int] = Looks()

    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            if timeout is None:
                return super().result()
            self.set_result(7)
            raise TimeoutError

    monkeypatch.setattr(looks, "begin", lambda key, look: Late())
    assert looks.take("key", lambda: 7, 0.0) == 7


def test_where_there_was_no_thread_the_next_look_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    looks: Looks[int] = Looks()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            looks.take("key", lambda: 7, 60)
    assert looks.take("key", lambda: 7, 60) == 7
