"""Kubernetes' own end-to-end specs for CSI drivers ("External Storage") that match what this driver can do: all pass.

What they skip by themselves, they skip for one of the reasons here and no other. The specs of groups run beside the
others, with a class whose volumes are all on one node: a group has its members on one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from tests.kubernetes.kubernetes import (
    ROOT,
    SHARED,
    TOPOLOGY_KEY,
    CommandFailed,
    Kubernetes,
    attributes_class,
    run,
    storage_class,
    with_shared_pool,
)

# A spec's own words, and why it does not concern this driver.
SKIPPED = {
    "does not support online volume expansion": "asks for CAP_SYS_RESOURCE with ext4; see test_growth.py",
    "does not support ROX access mode": "a volume lives on one node",
    "VolumeBindingMode immediate is not compatible with a multi-topology environment": "the same",
    "Multiple generic ephemeral volumes with immediate binding may cause pod startup failures": "the same",
    "raw block volumes cannot be read-only": "of the spec itself",
    "Test is not valid for Block volume mode": "of the spec itself",
    "skipping multiple PV mount test for block mode": "of the spec itself",
    "Block volumes do not support mount options": "of the spec itself",
    'volume type "GenericEphemeralVolume" is ephemeral': "of the spec itself",
    'volume type "DynamicPV" is not ephemeral': "of the spec itself",
    "Skipping CSIInlineVolume test for expansion": "of the spec itself",
}
# Left out from the beginning: their pods' images are not part of the suite (volume populators).
LEFT_OUT = r"\[Disruptive\]|\[Slow\]|\[Feature:Windows\]|any volume data source|AnyVolumeDataSource"


# Snapshots of a group that was made by hand: their cleanup deletes the group while the cluster's snapshot controller
# still adds its finalizer to it, and then waits without an end for what nobody finalizes any more.
LEFT_OUT_OF_GROUPS = "Pre-provisioned"


@pytest.fixture
def allowed(kubernetes: Kubernetes) -> Iterator[None]:
    """A pool that can do everything, with classes of its own, and attributes to change volumes to."""
    kubernetes.install(*with_shared_pool("12Gi", ephemeral="8Gi"))
    on_one_node = [{"matchLabelExpressions": [{"key": TOPOLOGY_KEY, "values": [kubernetes.nodes()[-1]]}]}]
    kubernetes.apply(
        storage_class("test-upstream", {"pool": SHARED}, allowVolumeExpansion=True),
        storage_class("test-upstream-groups", {"pool": SHARED}, allowedTopologies=on_one_node),
        attributes_class("test-attributes", {"provisioning": "thick"}),
    )
    yield
    kubernetes.delete("volumeattributesclass", "test-attributes")
    kubernetes.delete("storageclass", "test-upstream", "test-upstream-groups")
    kubernetes.install()


@pytest.mark.cluster_tool
@pytest.mark.timeout(1500)
def test_the_upstream_specs_pass(kubernetes: Kubernetes, allowed: None, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as beside:
        of_groups = ("External.Storage.*VolumeGroupSnapshottable", "--procs", "2", "--skip", LEFT_OUT_OF_GROUPS)
        groups = beside.submit(specs, kubernetes, "e2e-driver-groups.yaml", tmp_path / "groups", *of_groups)
        others = ("External.Storage", "--procs", "4", "--skip", LEFT_OUT)
        cases = specs(kubernetes, "e2e-driver.yaml", tmp_path / "others", *others)
    assert len(passed(cases)) >= 53
    assert len(passed(groups.result())) == 2
    found = [one for case in (*cases, *groups.result()) for one in case.iter("skipped")]
    reasons = {why for one in found if (why := reason(str(one.get("message"))))}
    unknown = [why for why in reasons if not any(known in why for known in SKIPPED)]
    assert unknown == []


def specs(kubernetes: Kubernetes, definition: str, directory: Path, *chosen: str) -> list[Element]:
    """What became of the chosen specs for a definition of the driver; `directory` is made for the report.

    Raises: AssertionError naming those that failed.
    """
    directory.mkdir()
    command = [
        *(kubernetes.settings.tool, "e2e", "--driver", str(ROOT / "tests/kubernetes" / definition), *chosen),
        *("--", "--junit-report=junit.xml", f"--output-dir={directory}"),
    ]
    try:
        run(*command, seconds=1400)
    except CommandFailed as failure:
        raise AssertionError(f"{failed(directory / 'junit.xml')}\n{failure}") from failure
    return list(ElementTree.parse(directory / "junit.xml").iter("testcase"))


def passed(cases: list[Element]) -> list[Element]:
    return [case for case in cases if case.get("status") == "passed" and "[It]" in str(case.get("name"))]


def reason(message: str) -> str:
    """Why a spec skipped itself; nothing for one that was not chosen."""
    found = re.match(r"skipped - (.+)", message)
    return found[1] if found else ""


def failed(report: Path) -> list[str]:
    if not report.exists():
        return ["the suite did not report"]
    cases = ElementTree.parse(report).iter("testcase")
    return [str(case.get("name")) for case in cases if case.get("status") not in ("passed", "skipped")]
