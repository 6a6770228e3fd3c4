"""VolumeSnapshots and claims with a source, through Kubernetes' objects.

- What a pod had written is in a claim that is made of a snapshot, and of a clone, after the pod has gone; the snapshot
  outlives its source.
- The same on another node than the source's.
- A restored claim may be larger, and its filesystem is.
- A small image in use is cut in any pool, a directory in use where blocks are shared; elsewhere the VolumeSnapshot says
  why not.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kubernetes.conftest import DIRECTORY
from tests.kubernetes.kubernetes import Kubernetes, Object, PodMaker, claim, until

CLASS = "hostvol"


@pytest.fixture(autouse=True)
def needs_snapshots(kubernetes: Kubernetes) -> None:
    if not kubernetes.has_snapshots():
        pytest.skip("needs the CustomResourceDefinitions and the controller of VolumeSnapshots")


def snapshot(name: str, namespace: str, source: str) -> Object:
    return {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"volumeSnapshotClassName": CLASS, "source": {"persistentVolumeClaimName": source}},
    }


def copy_of(kind: str, source: str, target: Object) -> Object:
    """The claim, with a source."""
    reference: dict[str, Any] = {"kind": kind, "name": source}
    if kind == "VolumeSnapshot":
        reference["apiGroup"] = "snapshot.storage.k8s.io"
    target["spec"]["dataSource"] = reference
    return target


def run(kubernetes: Kubernetes, namespace: str, *objects: Object) -> None:
    kubernetes.apply(*objects)
    pods = [one["metadata"]["name"] for one in objects if one["kind"] == "Pod"]
    kubernetes.wait("pod", *pods, condition="condition=Ready", namespace=namespace)


def status(kubernetes: Kubernetes, namespace: str, name: str) -> Object:
    found: Object = kubernetes.get("volumesnapshot", name, namespace).get("status") or {}
    return found


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_a_snapshot_and_a_clone_hold_what_was_written(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str
) -> None:
    node = kubernetes.nodes()[-1]
    run(kubernetes, namespace, claim("data", namespace, name, "64Mi"), pod("first", namespace, ["data"], node=node))
    kubernetes.execute("first", "sh", "-c", "echo kept > /data/file && sync", namespace=namespace)
    kubernetes.delete("pod", "first", namespace=namespace)
    until(lambda: not kubernetes.volumes_on(node)[0]["staging_paths"], 60, "it is unstaged")
    kubernetes.apply(snapshot("cut", namespace, "data"))
    until(lambda: status(kubernetes, namespace, "cut").get("readyToUse"), 90, "the snapshot is ready")
    clone = copy_of("PersistentVolumeClaim", "data", claim("clone", namespace, name, "64Mi"))
    run(kubernetes, namespace, clone, pod("cloned", namespace, ["clone"], node=node))
    kubernetes.delete("pvc", "data", namespace=namespace)
    restored = copy_of("VolumeSnapshot", "cut", claim("restored", namespace, name, "128Mi"))
    run(kubernetes, namespace, restored, pod("second", namespace, ["restored"], node=node))
    for where, path in (("cloned", "clone"), ("second", "restored")):
        assert kubernetes.execute(where, "cat", f"/{path}/file", namespace=namespace) == "kept\n"
    if name == "hostvol":
        kilobytes = kubernetes.execute("second", "df", "-k", "/restored", namespace=namespace).split()[-5]
        assert int(kilobytes) > 100 << 10
    kubernetes.delete("volumesnapshot", "cut", namespace=namespace)


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_a_pod_on_another_node_gets_the_content_too(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str
) -> None:
    nodes = kubernetes.nodes()
    if len(nodes) < 2:
        pytest.skip("needs two nodes")
    here, there = nodes[0], nodes[-1]
    run(kubernetes, namespace, claim("data", namespace, name, "64Mi"), pod("first", namespace, ["data"], node=here))
    write = "echo kept > /data/file && dd if=/dev/urandom of=/data/more bs=1M count=32 && sync"
    kubernetes.execute("first", "sh", "-c", write, namespace=namespace)
    told = kubernetes.execute("first", "sha256sum", "/data/file", "/data/more", namespace=namespace).split()[::2]
    kubernetes.delete("pod", "first", namespace=namespace)
    until(lambda: not any(one["staging_paths"] for one in kubernetes.volumes_on(here)), 60, "it is unstaged")
    kubernetes.apply(snapshot("cut", namespace, "data"))
    until(lambda: status(kubernetes, namespace, "cut").get("readyToUse"), 90, "the snapshot is ready")
    clone = copy_of("PersistentVolumeClaim", "data", claim("clone", namespace, name, "64Mi"))
    restored = copy_of("VolumeSnapshot", "cut", claim("restored", namespace, name, "128Mi"))
    run(kubernetes, namespace, clone, pod("cloned", namespace, ["clone"], node=there))
    run(kubernetes, namespace, restored, pod("second", namespace, ["restored"], node=there))
    for where, path in (("cloned", "clone"), ("second", "restored")):
        files = (f"/{path}/file", f"/{path}/more")
        assert kubernetes.execute(where, "sha256sum", *files, namespace=namespace).split()[::2] == told
    assert len(kubernetes.volumes_on(there)) == 2
    kubernetes.delete("volumesnapshot", "cut", namespace=namespace)


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_a_volume_in_use_is_cut_or_refused_with_the_remedy(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str
) -> None:
    node = kubernetes.nodes()[-1]
    run(kubernetes, namespace, claim("data", namespace, name, "64Mi"), pod("main", namespace, ["data"], node=node))
    kubernetes.apply(snapshot("cut", namespace, "data"))
    if name == "hostvol" or shares_blocks(kubernetes, node):
        # Where blocks are not shared, an image as small as this is frozen while it is copied.
        until(lambda: status(kubernetes, namespace, "cut").get("readyToUse"), 90, "the snapshot is ready")
    else:

        def refusal() -> str:
            return str(status(kubernetes, namespace, "cut").get("error", {}).get("message", ""))

        until(lambda: "staged" in refusal(), 90, "the snapshot says what to do")
    kubernetes.delete("volumesnapshot", "cut", namespace=namespace)


def shares_blocks(kubernetes: Kubernetes, node: str) -> bool:
    pools = json.loads(kubernetes.on_node(node, "hostvol", "pool", "list", "--output", "json"))
    return bool(next(one["reflink"] for one in pools if one["name"] == "default"))
