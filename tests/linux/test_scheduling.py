"""A thread that goes before ordinary ones: it alone, only as long as it says, and where that is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_driver.linux.scheduling import before_ordinary_threads

# A thread says what its policy is: inside, and behind it.
TELL = """
import os
from csi_driver.linux.scheduling import before_ordinary_threads
with before_ordinary_threads():
    inside = os.sched_getscheduler(0)
print(inside, os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
"""


def policy(thread_id: int = 0) -> int:
    return os.sched_getscheduler(thread_id)


def told() -> list[int]:
    """What a process says that has no CAP_SYS_NICE."""
    command = ["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice", "--", sys.executable]
    result = subprocess.run([*command, "-c", TELL], check=True, capture_output=True, text=True, timeout=60)
    return [int(word) for word in result.stdout.split()]


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1)).result()
    except OSError as error:
        pytest.skip(f"threads cannot be given a real-time priority here: {error}")


def test_the_thread_has_the_least_real_time_priority_and_then_what_it_had() -> None:
    with before_ordinary_threads():
        assert policy() == os.SCHED_RR | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(0).sched_priority == 1
        child = subprocess.run(["chrt", "--pid", "0"], check=True, capture_output=True, text=True, timeout=60)
        assert "SCHED_OTHER" in child.stdout
    assert policy() == os.SCHED_OTHER


def test_a_failure_inside_puts_it_back_as_well() -> None:
    with pytest.raises(OSError, match="no space"), before_ordinary_threads():
        raise OSError("no space")
    assert policy() == os.SCHED_OTHER


@pytest.mark.parametrize("had", [os.SCHED_BATCH, os.SCHED_IDLE])
def test_another_ordinary_policy_and_the_nice_value_come_back(had: int) -> None:
    def work() -> tuple[int, int, int]:
        thread_id = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread_id, 5)
        os.sched_setscheduler(0, had, os.sched_param(0))
        with before_ordinary_threads():
            inside = policy()
        return inside, policy(), os.getpriority(os.PRIO_PROCESS, thread_id)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == (os.SCHED_RR | os.SCHED_RESET_ON_FORK, had, 5)


def test_a_thread_that_has_a_real_time_priority_keeps_it() -> None:
    def work() -> list[tuple[int, int]]:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7))
        with before_ordinary_threads():
            inside = policy(), os.sched_getparam(0).sched_priority
        return [inside, (policy(), os.sched_getparam(0).sched_priority)]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == [(os.SCHED_FIFO, 7)] * 2


def test_other_threads_stay_what_they_are() -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with before_ordinary_threads():
            inside.set()
            leave.wait(60)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert inside.wait(60)
        assert worker.native_id is not None
        assert policy(worker.native_id) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
        others = {int(name) for name in os.listdir("/proc/self/task")} - {worker.native_id}
        assert {policy(thread_id) for thread_id in others} == {os.SCHED_OTHER}
    finally:
        leave.set()
        worker.join()


def test_without_the_right_nothing_changes() -> None:
    assert told() == [os.SCHED_OTHER, os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0)]


def test_a_flag_that_may_not_be_taken_back_stays_and_the_priority_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a right that comes from RLIMIT_RTPRIO; what the kernel says then is the test's own."""
    change = os.sched_setscheduler

    def refuse(thread_id: int, policy: int, parameters: os.sched_param) -> None:
        if os.sched_getscheduler(thread_id) & os.SCHED_RESET_ON_FORK and not policy & os.SCHED_RESET_ON_FORK:
            raise PermissionError(1, "Operation not permitted")
        change(thread_id, policy, parameters)

    def work() -> int:
        with before_ordinary_threads():
            pass
        return policy()

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
