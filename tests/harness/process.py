"""The program in processes of their own: forked from one that has imported it, waited for and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from tests.zygote import ForkedProcess, Zygote

PROGRAM = (sys.executable, "-m", "csi_driver")
_zygote = Zygote()


def start_fork(
    command: Sequence[str], stderr: IO[bytes], env: Mapping[str, str], constants: Mapping[str, float] | None = None
) -> ForkedProcess:
    """As subprocess.Popen, when what is run is the program itself, and much sooner; `constants` as of Zygote.fork."""
    assert tuple(command[: len(PROGRAM)]) == PROGRAM
    return _zygote.fork(command[len(PROGRAM) :], (1, stderr.fileno()), env, constants or {})


def waited(process: subprocess.Popen[bytes] | ForkedProcess, seconds: float) -> int:
    """The exit code. What has not ended in time is killed, and that is told.

    Raises: subprocess.TimeoutExpired.
    """
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        raise


def ended(process: subprocess.Popen[bytes] | ForkedProcess, number: int) -> int:
    """Send a signal and wait; the exit code.

    Raises: subprocess.TimeoutExpired.
    """
    process.send_signal(number)
    return waited(process, 60)


def hostvol(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program to its end, and what it printed.

    Raises: subprocess.TimeoutExpired.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        output = stdout.fileno(), stderr.fileno()
        code = waited(_zygote.fork(arguments, output, {**os.environ, **environment}, {}), 120)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())
