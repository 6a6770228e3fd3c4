"""A machine of User-Mode Linux that runs one command on the host's files, read-only, and is gone afterwards.

For what the host's kernel may lack: project quotas, CAP_SYS_RESOURCE. It boots in a few seconds, needs no
KVM, and its block devices (/dev/ubda, /dev/ubdb, …) are files. Debian: `apt install user-mode-linux`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.uml import without_xstate

KERNEL = "linux.uml"
REPOSITORY = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("init.py")

needs_uml = pytest.mark.skipif(
    shutil.which(KERNEL) is None or os.geteuid() != 0, reason="needs root and user-mode-linux"
)


class BootError(Exception):
    """The machine stopped before its command ended; the message is the end of its console."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command inside left behind, and how long machine and command took together."""

    returncode: int
    stdout: str
    stderr: str
    console: str
    seconds: float

    def check(self) -> Outcome:
        """Raise AssertionError with all output unless the command succeeded."""
        said = "\n".join((self.stdout, self.stderr, self.console))
        assert self.returncode == 0, f"exit code {self.returncode}\n{said}"
        return self


def run_in_uml(
    argv: Sequence[str],
    *,
    disks: Sequence[Path] = (),
    timeout: float,
    directory: Path = REPOSITORY,
    environment: Mapping[str, str] | None = None,
    writable: Sequence[Path] = (),
    memory_mib: int = 512,
    modules: Sequence[str] = ("loop", "quota_v2"),
) -> Outcome:
    """Boot a machine, run `argv` in it as root, and return how it ended.

    Inside, the host's files are read-only except below `writable`; TMPDIR is a tmpfs (at most half of the
    memory); disks are /dev/ubda and so on in their order. Nothing of the machine outlives this call, or this
    process.

    Raises:
        subprocess.TimeoutExpired: the machine was killed.
        BootError: it stopped by itself before the command ended.
    """
    with tempfile.TemporaryDirectory(prefix="uml-") as job_directory:
        job = Path(job_directory)
        wanted = {
            "argv": list(argv),
            "directory": str(directory),
            "environment": _environment(environment or {}),
            "modules": list(modules),
            "writable": [str(path) for path in writable],
        }
        (job / "job.json").write_text(json.dumps(wanted))
        start = time.monotonic()
        console = _boot(_kernel_command(job, disks, memory_mib), timeout)
        return _outcome(job, console, time.monotonic() - start)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    standard = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/run/tmp",
        "TMPDIR": "/run/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if without_xstate.is_needed():
        standard |= without_xstate.ENVIRONMENT | {"PYTHONPATH": str(INIT.with_name("guest_site"))}
    return {**standard, **more}


def _kernel_command(job: Path, disks: Sequence[Path], memory_mib: int) -> list[str]:
    small = without_xstate.is_needed()
    return [
        *([sys.executable, without_xstate.__file__] if small else []),
        KERNEL,
        f"mem={memory_mib}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "quiet",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        f"uml_dir={job}/",
        "umid=machine",
        *(f"ubd{number}={path}" for number, path in enumerate(disks)),
        # What the kernel does not know becomes the environment of its first process.
        *(f"{name}={value}" for name, value in without_xstate.ENVIRONMENT.items() if small),
        f"init={sys.executable}",
        "--",
        "-Bu",
        str(INIT),
        str(job),
    ]


def _boot(command: Sequence[str], timeout: float) -> str:
    # Each process inside is one of the host. They die with the first process of their namespace, that one
    # with unshare, and unshare with us.
    bound = ["setpriv", "--pdeathsig", "KILL", "--"]
    bound += ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    done = subprocess.run(
        [*bound, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def _outcome(job: Path, console: str, seconds: float) -> Outcome:
    if not (job / "returncode").exists():
        raise BootError(console[-4000:])
    return Outcome(
        returncode=int((job / "returncode").read_text()),
        stdout=(job / "stdout").read_text(errors="replace"),
        stderr=(job / "stderr").read_text(errors="replace"),
        console=console,
        seconds=seconds,
    )
