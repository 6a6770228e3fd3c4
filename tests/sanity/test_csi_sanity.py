"""csi-sanity, the conformance test of the CSI project, against a fresh driver for every kind of volume.

- No spec fails, for image volumes with ext4, xfs and btrfs, raw block, and directories with and without a quota.
- Exactly the specs of capabilities that the driver does not offer are skipped: an offer that becomes real, or is
  lost, changes the list and fails the test.
- Afterwards neither mounts nor loop devices nor files are left.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.harness import MIB, Driver, PoolPlace
from tests.sanity import forwarder

BUILT = Path(__file__).resolve().parents[2] / ".tools/bin/csi-sanity"
CSI_SANITY = str(BUILT) if BUILT.exists() else shutil.which("csi-sanity")
needs_csi_sanity = pytest.mark.skipif(CSI_SANITY is None, reason="needs csi-sanity, which scripts/setup --test builds")

# What csi-sanity says it misses, and the specs that it skips for that.
SKIPPED: dict[str, set[str]] = {
    "Controller Publish, UnpublishVolume not supported": {
        "Controller Service volume lifecycle should be idempotent",
        "Controller Service volume lifecycle should work",
    },
    "ControllerPublishVolume not supported": {
        "Controller Service ControllerPublishVolume should fail when no node id is provided",
        "Controller Service ControllerPublishVolume should fail when no volume capability is provided",
        "Controller Service ControllerPublishVolume should fail when no volume id is provided",
        "Controller Service ControllerPublishVolume should fail when publishing more volumes than the node max attach limit",  # noqa: E501
        "Controller Service ControllerPublishVolume should fail when the node does not exist",
        "Controller Service ControllerPublishVolume should fail when the volume does not exist",
        "Controller Service ControllerPublishVolume should fail when the volume is already published but is incompatible",  # noqa: E501
    },
    "ControllerUnpublishVolume not supported": {
        "Controller Service ControllerUnpublishVolume should fail when no volume id is provided",
    },
}
# csi-sanity itself has switched this one off.
PENDING = {
    "Controller Service ListVolumes pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted",  # noqa: E501
}


@dataclass(frozen=True)
class Kind:
    """What is tested: parameters of the class, access type, filesystem, and the pool below it."""

    parameters: dict[str, str] = field(default_factory=dict)
    access_type: str = "mount"
    fs_type: str = ""
    size_bytes: int = 16 * MIB
    pool: str = "host"
    mutable_parameters: dict[str, str] = field(default_factory=lambda: {"provisioning": "thick"})


KINDS = {
    "ext4": Kind(),
    "xfs": Kind(fs_type="xfs", size_bytes=300 * MIB, pool="xfs"),
    "btrfs": Kind(fs_type="btrfs", size_bytes=128 * MIB),
    "block": Kind(access_type="block"),
    "directory": Kind(parameters={"type": "directory", "quota": "none"}, mutable_parameters={"quota": "none"}),
    "directory-qgroup": Kind(
        parameters={"type": "directory", "quota": "none"}, pool="btrfs", mutable_parameters={"quota": "required"}
    ),
}


@dataclass(frozen=True)
class Report:
    """What csi-sanity found, by the names of its specs."""

    passed: set[str]
    failed: dict[str, str]
    pending: set[str]
    skipped: dict[str, set[str]]

    @classmethod
    def read(cls, junit: Path) -> Report:
        report = cls(set(), {}, set(), {})
        for case in ElementTree.parse(junit).iter("testcase"):
            name, status = spec_name(case.attrib["name"]), case.attrib["status"]
            if not case.attrib["name"].startswith("[It] "):
                assert status == "passed", f"{name}: {status}"
            elif status == "passed":
                report.passed.add(name)
            elif status == "pending":
                report.pending.add(name)
            elif status == "skipped":
                reason = case.findall("skipped")[0].attrib["message"].removeprefix("skipped - ")
                report.skipped.setdefault(reason, set()).add(name)
            else:
                report.failed[name] = "".join(case.itertext()).strip()[:2000]
        return report


def spec_name(reported: str) -> str:
    """`[It] DeleteSnapshot [Controller Server] should …` without its labels."""
    return re.sub(r"\[[^]]*\] ", "", reported)


@contextmanager
def endpoint_for(kind: Kind, driver: Driver, where: Path) -> Iterator[str]:
    if not kind.fs_type:
        yield driver.endpoint
        return
    with forwarder.asking_for(kind.fs_type, driver.socket_path, where / "forwarder.sock") as endpoint:
        yield endpoint


def run_csi_sanity(endpoint: str, kind: Kind, where: Path) -> Report:
    parameters, mutable, junit = where / "parameters.yaml", where / "mutable.yaml", where / "junit.xml"
    for path, given in ((parameters, kind.parameters), (mutable, kind.mutable_parameters)):
        path.write_text("".join(f"{key}: {value}\n" for key, value in given.items()) or "{}\n")
    assert CSI_SANITY is not None
    command = [
        CSI_SANITY,
        f"-csi.endpoint={endpoint}",
        f"-csi.mountdir={where / 'target'}",
        f"-csi.stagingdir={where / 'staging'}",
        f"-csi.testvolumeparameters={parameters}",
        f"-csi.testvolumemutableparameters={mutable}",
        f"-csi.testvolumeaccesstype={kind.access_type}",
        f"-csi.testvolumesize={kind.size_bytes}",
        f"-csi.testvolumeexpandsize={2 * kind.size_bytes}",
        f"-ginkgo.junit-report={junit}",
        "-ginkgo.no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert junit.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    report = Report.read(junit)
    assert bool(done.returncode) == bool(report.failed), done.stdout[-4000:]
    return report


@needs_csi_sanity
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_spec_that_applies_passes_and_nothing_is_left(
    kind: Kind,
    tmp_path: Path,
    make_pool: Callable[..., PoolPlace],
    make_driver: Callable[..., Driver],
) -> None:
    driver = make_driver(make_pool(kind.pool))
    with endpoint_for(kind, driver, tmp_path) as endpoint:
        report = run_csi_sanity(endpoint, kind, tmp_path)
    assert report.failed == {}
    assert report.pending == PENDING
    assert report.skipped == SKIPPED
    assert len(report.passed) > 65
    print(f"csi-sanity: {len(report.passed)} passed, {sum(map(len, report.skipped.values()))} skipped")
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
    assert mounts_below(tmp_path / "target") + mounts_below(tmp_path / "staging") == []


def mounts_below(path: Path) -> list[str]:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in table if line.split()[4].startswith(f"{path}{os.sep}")]
