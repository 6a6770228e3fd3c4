"""The tests of a guest module, run in a machine of their own; each that holds there is a claim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from .machine import Outcome, needs_uml, run_in_uml

# A machine is many times slower than its host, and its host may be busy: a hang is found, slowness is none.
_CLAIM_SECONDS: Final = 300
_MACHINE_SECONDS: Final = 420
in_uml = [pytest.mark.uml, needs_uml, pytest.mark.timeout(2 * _MACHINE_SECONDS + 60)]


def check_claims(
    *guests: str, select: str = "", disks: Sequence[Path] = (), disk_bytes: int = 0, memory_mib: int = 1024
) -> None:
    """Run the tests of `guests` that `select` (pytest -k) chooses, with empty disks; none may fail or be skipped.

    A claim that hangs fails before the machine is given up: one that says nothing at all then has hung itself, which
    happened once in hundreds of boots of User-Mode Linux, and is booted once more.
    """
    selection = ["-k", select] if select else []
    limit = ["-o", f"timeout={_CLAIM_SECONDS}"]
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", *limit, *selection, *guests]

    def boot() -> Outcome:
        for disk in disks:
            with open(disk, "wb") as file:
                file.truncate(disk_bytes)
        return run_in_uml(command, disks=disks, timeout=_MACHINE_SECONDS, memory_mib=memory_mib)

    try:
        outcome = boot().check()
    except subprocess.TimeoutExpired:
        print("the machine hung; it is booted again")
        outcome = boot().check()
    assert "skipped" not in outcome.stdout
    print(f"{outcome.stdout}{outcome.seconds:.0f} s")
