"""The tests of a guest module, run in a machine of their own; each that holds there is a claim."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from .machine import needs_uml, run_in_uml

# A machine is many times slower than its host, and its host may be busy: a hang is found, slowness is none.
_CLAIM_SECONDS: Final = 600
_MACHINE_SECONDS: Final = 840
in_uml = [pytest.mark.uml, needs_uml, pytest.mark.timeout(_MACHINE_SECONDS + 60)]


def check_claims(
    *guests: str, select: str = "", disks: Sequence[Path] = (), disk_bytes: int = 0, memory_mib: int = 1024
) -> None:
    """Run the tests of `guests` that `select` (pytest -k) chooses, with empty disks; none may fail or be skipped."""
    for disk in disks:
        with open(disk, "wb") as file:
            file.truncate(disk_bytes)
    selection = ["-k", select] if select else []
    limit = ["-o", f"timeout={_CLAIM_SECONDS}"]
    outcome = run_in_uml(
        [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", *limit, *selection, *guests],
        disks=disks,
        timeout=_MACHINE_SECONDS,
        memory_mib=memory_mib,
    ).check()
    assert "skipped" not in outcome.stdout
    print(f"{outcome.stdout}{outcome.seconds:.0f} s")
