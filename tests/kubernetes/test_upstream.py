"""Kubernetes' own end-to-end specs for CSI drivers ("External Storage") that match what this driver can do: all pass.

What they skip by themselves, they skip for one of the reasons here and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kubernetes.kubernetes import (
    ROOT,
    SHARED,
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


@pytest.fixture
def allowed(kubernetes: Kubernetes) -> Iterator[None]:
    """A pool that can do everything, with a class of its own, and attributes to change volumes to."""
    kubernetes.install(*with_shared_pool("12Gi", ephemeral="8Gi"))
    kubernetes.apply(
        storage_class("test-upstream", {"pool": SHARED}, allowVolumeExpansion=True),
        attributes_class("test-attributes", {"provisioning": "thick"}),
    )
    yield
    kubernetes.delete("volumeattributesclass", "test-attributes")
    kubernetes.delete("storageclass", "test-upstream")
    kubernetes.install()


@pytest.mark.cluster_tool
@pytest.mark.timeout(1500)
def test_the_upstream_specs_pass(kubernetes: Kubernetes, allowed: None, tmp_path: Path) -> None:
    command = [
        *(kubernetes.settings.tool, "e2e", "--driver", str(ROOT / "tests/kubernetes/e2e-driver.yaml")),
        *("External.Storage", "--procs", "4", "--skip", LEFT_OUT),
        *("--", "--junit-report=junit.xml", f"--output-dir={tmp_path}"),
    ]
    try:
        run(*command, seconds=1400)
    except CommandFailed as failure:
        raise AssertionError(f"{failed(tmp_path / 'junit.xml')}\n{failure}") from failure
    cases = list(ElementTree.parse(tmp_path / "junit.xml").iter("testcase"))
    passed = [case for case in cases if case.get("status") == "passed" and "[It]" in str(case.get("name"))]
    assert len(passed) >= 53
    reasons = {why for case in cases for found in case.iter("skipped") if (why := reason(str(found.get("message"))))}
    unknown = [why for why in reasons if not any(known in why for known in SKIPPED)]
    assert unknown == []


def reason(message: str) -> str:
    """Why a spec skipped itself; nothing for one that was not chosen."""
    found = re.match(r"skipped - (.+)", message)
    return found[1] if found else ""


def failed(report: Path) -> list[str]:
    if not report.exists():
        return ["the suite did not report"]
    cases = ElementTree.parse(report).iter("testcase")
    return [str(case.get("name")) for case in cases if case.get("status") not in ("passed", "skipped")]
