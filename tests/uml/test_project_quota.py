"""Project quotas on XFS and ext4, and qgroups of an older kernel, in a machine whose kernel has them."""

from __future__ import annotations

from pathlib import Path

from .claims import check_claims, in_uml

pytestmark = in_uml

MIB = 1 << 20


def test_every_claim_about_project_quotas_holds(tmp_path: Path) -> None:
    disks = [tmp_path / name for name in ("xfs", "ext4", "spare")]
    check_claims("tests/uml/guest_quota.py", disks=disks, disk_bytes=512 * MIB, memory_mib=1536)


def test_qgroups_of_an_older_kernel_are_reaped() -> None:
    """Linux 6.1 keeps the qgroup of a subvolume that is gone."""
    check_claims("tests/linux/test_btrfs.py", select="qgroup or subvolume or quota", memory_mib=1536)
