"""ext4 grown while it is mounted: every claim of `guest_growth.py`, on pools of XFS and ext4."""

from __future__ import annotations

from pathlib import Path

import pytest

from .claims import check_claims, in_uml

pytestmark = in_uml

GIB = 1 << 30
GUEST = "tests/uml/guest_growth.py"


# By the name of the parameter in brackets, since "ext4" is in the names of tests too. A gigabyte takes a minute to be
# written and read in this machine: once is enough.
@pytest.mark.parametrize("selection", ["[xfs] or root", "[ext4] and not writer"])
def test_every_claim_about_growth_holds(tmp_path: Path, selection: str) -> None:
    check_claims(GUEST, select=selection, disks=[tmp_path / "xfs", tmp_path / "ext4"], disk_bytes=12 * GIB)
