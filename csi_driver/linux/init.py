"""The first process of a container, in the driver's place: passes signals on, waits for it, and outlives its death.

When the first process of a container dies, the kernel kills all others in it: with the driver would die who thaws what
it has frozen. It is run by its path, without this package, so it stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Final

_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_OTHERS_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.01


def hand_over() -> bool:
    """Go on as the child of a small first process, if this one is the first; else nothing happens. Tells which it is.

    To be called before there is a thread. The container ends with our exit code.
    """
    if os.getpid() != 1:
        return False
    # Blocked until the other program can take them: the kernel drops what its first process has no handler for.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child:
        os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(child)])  # noqa: S606 - no shell
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    return True


def main(child: int) -> int:
    """Wait until `child` has ended, and then a little for whoever it left behind; returns its exit code."""
    for number in _PASSED_ON:
        signal.signal(number, lambda passed, _: _pass_on(child, passed))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    _outlive_shortage()
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    _await_others()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _await_others() -> None:
    """Until nobody is left: a guardian that thaws, above all. Not for ever: a process may hang in the kernel."""
    ends = time.monotonic() + _OTHERS_SECONDS
    try:
        while time.monotonic() < ends:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            if not ended:
                time.sleep(_LOOK_SECONDS)
    except ChildProcessError:
        pass


def _outlive_shortage() -> None:
    """Not to be chosen when memory runs out, where we may say so (proc(5): oom_score_adj)."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
