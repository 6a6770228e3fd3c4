"""Commands of the program, run as a person runs them, and how they end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from csi_driver.app import main
from tests.harness import Driver


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def hostvol(*arguments: str | bytes, answer: str = "", **environment: str) -> Done:
    """Run the command as its entry point does, in this process: a new one costs half a second each."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(answer))
        patch.setattr(sys, "argv", ["hostvol"])
        for name, value in {"COLUMNS": "120", **environment}.items():
            patch.setenv(name, value)
        try:
            main([os.fsdecode(argument) for argument in arguments])
        except SystemExit as ended:
            return Done(int(ended.code or 0), out.getvalue(), err.getvalue())
    return Done(0, out.getvalue(), err.getvalue())


def hostvol_process(*arguments: str | bytes, answer: str = "", **environment: str) -> Done:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "csi_driver", *arguments],
        check=False,
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120", **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


Run = Callable[..., Done]


def succeeded(driver: Driver, *arguments: str, run: Run = hostvol) -> str:
    done = run(*arguments, CSI_ENDPOINT=driver.endpoint)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def failed(
    code: int, *words: str, arguments: tuple[str | bytes, ...], endpoint: str = "unix:///no/driver", run: Run = hostvol
) -> str:
    """The command fails with this code and one sentence on stderr that has these words."""
    done = run(*arguments, CSI_ENDPOINT=endpoint)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()
    if code == 1:
        assert len(sentence) == 1, done.stderr
        assert sentence[0].startswith("hostvol: ")
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr
