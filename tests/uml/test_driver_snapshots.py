"""Snapshots and copies on a kernel with project quotas: every claim of `guest_snapshots.py`, one machine for each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .machine import needs_uml, run_in_uml

pytestmark = [pytest.mark.uml, needs_uml]

MIB = 1 << 20
GUEST = "tests/uml/guest_snapshots.py"
# In the order of the devices that `guest_driver.py` expects.
DISKS = ("xfs", "ext4")


@pytest.mark.parametrize("selection", DISKS)
def test_every_claim_about_snapshots_with_quotas_holds(tmp_path: Path, selection: str) -> None:
    disks = [tmp_path / name for name in DISKS]
    for disk in disks:
        with open(disk, "wb") as file:
            file.truncate(600 * MIB)
    outcome = run_in_uml(
        [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", "-k", selection, GUEST],
        disks=disks,
        timeout=280,
        memory_mib=1024,
    ).check()
    assert "skipped" not in outcome.stdout
    print(f"{outcome.stdout}{outcome.seconds:.0f} s")
