"""No crash point in the source is left out, but those of project quotas where the kernel has none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import csi_driver
from tests.crash import (
    test_crash_backing,
    test_crash_ephemeral,
    test_crash_exports,
    test_crash_groups,
    test_crash_modify,
    test_crash_points,
    test_crash_snapshots,
    test_crash_transfers,
    test_crash_trash,
)
from tests.crash.tally import Tally

MATRIX = [*test_crash_points.MATRIX, *test_crash_snapshots.MATRIX]
# Passed only where the pool's filesystem enforces project quotas.
OF_PROJECT_QUOTAS = {"directory.project_set", "clear.project_freed", "directory.charged"}


def test_no_crash_point_in_the_source_is_left_out(tally: Tally) -> None:
    wanted = {f"{kind} {operation}" for kind, operation in (param.values for param in MATRIX)}
    of_pods = (param.values for param in test_crash_ephemeral.MATRIX)
    wanted |= {f"ephemeral {kind} {operation}" for kind, operation in of_pods}
    wanted |= {f"modify {name}" for param in test_crash_modify.MATRIX for name in param.values}
    wanted |= {f"backing {operation}" for operation in test_crash_backing.OPERATIONS}
    of_nodes = (param.values for param in test_crash_transfers.MATRIX)
    wanted |= {"transfer dropped", *(f"transfer {kind} {node}" for kind, node in of_nodes)}
    of_exports = (param.values for param in test_crash_exports.MATRIX)
    wanted |= {f"exports {kind} {operation}" for kind, operation in of_exports}
    of_trash = (param.values for param in test_crash_trash.MATRIX)
    wanted |= {f"trash {kind} {operation}" for kind, operation in of_trash}
    wanted |= {*test_crash_groups.OPERATIONS, test_crash_groups.STILL}
    if not wanted <= tally.operations:
        pytest.skip("only a part of the crash matrix was selected")
    source = Path(csi_driver.__file__).parent
    named = {
        name
        for path in source.rglob("*.py")
        for name in re.findall(r'crash_point\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    }
    assert named - tally.names == OF_PROJECT_QUOTAS
