"""Snapshots and copies on a kernel with project quotas: every claim of `guest_snapshots.py`, one machine for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from .claims import check_claims, in_uml

pytestmark = in_uml

MIB = 1 << 20
GUEST = "tests/uml/guest_snapshots.py"
# In the order of the devices that `directories.py` expects.
DISKS = ("xfs", "ext4")


@pytest.mark.parametrize("selection", DISKS)
def test_every_claim_about_snapshots_with_quotas_holds(tmp_path: Path, selection: str) -> None:
    check_claims(GUEST, select=selection, disks=[tmp_path / name for name in DISKS], disk_bytes=600 * MIB)
