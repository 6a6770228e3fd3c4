"""Project quotas on XFS and ext4, and qgroups of an older kernel, in a machine whose kernel has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .machine import Outcome, needs_uml, run_in_uml

pytestmark = [pytest.mark.uml, needs_uml]

MIB = 1 << 20


def pytest_in_uml(*selection: str, disks: list[Path] | None = None) -> Outcome:
    arguments = [sys.executable, "-m", "pytest", "-q", "-rP", "-p", "no:cacheprovider", *selection]
    return run_in_uml(arguments, disks=disks or [], timeout=280, memory_mib=1536)


def test_every_claim_about_project_quotas_holds(tmp_path: Path) -> None:
    disks = [tmp_path / "xfs", tmp_path / "ext4", tmp_path / "spare"]
    for disk in disks:
        with open(disk, "wb") as file:
            file.truncate(512 * MIB)
    outcome = pytest_in_uml("tests/uml/guest_quota.py", disks=disks).check()
    assert "skipped" not in outcome.stdout
    print(outcome.stdout)


def test_qgroups_of_an_older_kernel_are_reaped() -> None:
    """Linux 6.1 keeps the qgroup of a subvolume that is gone."""
    outcome = pytest_in_uml("tests/linux/test_btrfs.py", "-k", "qgroup or subvolume or quota").check()
    assert "skipped" not in outcome.stdout
    print(outcome.stdout)
