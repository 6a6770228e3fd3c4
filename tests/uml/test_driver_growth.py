"""ext4 grown while it is mounted: every claim of `guest_growth.py`, on pools of XFS and ext4."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .machine import needs_uml, run_in_uml

pytestmark = [pytest.mark.uml, needs_uml]

GIB = 1 << 30
GUEST = "tests/uml/guest_growth.py"


# By the name of the parameter in brackets, since "ext4" is in the names of tests too. A gigabyte takes a minute to be
# written and read in this machine: once is enough.
@pytest.mark.parametrize("selection", ["[xfs] or root", "[ext4] and not writer"])
def test_every_claim_about_growth_holds(tmp_path: Path, selection: str) -> None:
    disks = [tmp_path / name for name in ("xfs", "ext4")]
    for disk in disks:
        with open(disk, "wb") as file:
            file.truncate(12 * GIB)
    outcome = run_in_uml(
        [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", "-k", selection, GUEST],
        disks=disks,
        timeout=290,
        memory_mib=1024,
    ).check()
    assert "skipped" not in outcome.stdout
    print(f"{outcome.stdout}{outcome.seconds:.0f} s")
