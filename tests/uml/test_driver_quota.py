"""The whole driver on a kernel with project quotas: every claim of its guests, one machine per filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from .claims import check_claims, in_uml

pytestmark = in_uml

MIB = 1 << 20
GUESTS = [f"tests/uml/guest_{name}.py" for name in ("limits", "limit_changes", "lasting_limits", "capacity", "images")]
DISKS = ("xfs", "ext4", "btrfs")


@pytest.mark.parametrize("selection", ["xfs or qgroups", "ext4"])
def test_every_claim_about_the_driver_with_quotas_holds(tmp_path: Path, selection: str) -> None:
    check_claims(*GUESTS, select=selection, disks=[tmp_path / name for name in DISKS], disk_bytes=680 * MIB)
