"""csi-sanity with the controller's calls through a router and the node's calls to one of its nodes.

- The same specs pass as on a single node, and exactly the same are skipped.
- Nothing is left on any node.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.harness import MIB
from tests.sanity.test_csi_sanity import CSI_SANITY, PENDING, SKIPPED, Report, needs_csi_sanity


@needs_csi_sanity
def test_a_router_with_its_node_passes_what_a_node_alone_passes(empty_cluster: Cluster, tmp_path: Path) -> None:
    controller = empty_cluster.add_controller()
    node = empty_cluster.add_node("node-a")
    junit = tmp_path / "junit.xml"
    command = [
        str(CSI_SANITY),
        f"-csi.endpoint={node.endpoint}",
        f"-csi.controllerendpoint=unix://{controller.socket_path}",
        f"-csi.mountdir={tmp_path / 'target'}",
        f"-csi.stagingdir={tmp_path / 'staging'}",
        f"-csi.testvolumesize={16 * MIB}",
        f"-ginkgo.junit-report={junit}",
        "-ginkgo.no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert junit.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    report = Report.read(junit)
    assert report.failed == {}
    assert report.pending == PENDING
    assert report.skipped == SKIPPED
    assert len(report.passed) > 60
    assert (node.mounts(), node.loops(), node.files()) == ([], [], [])
    assert controller.volumes() == []
