"""VolumeGroupSnapshots through Kubernetes' objects.

- Two volumes in use by one pod are cut together in a pool that shares blocks, and each member's snapshot makes a claim
  that holds what was written before. The pool is one in a backing file, since nodes mostly have ext4.
- With the group its members go.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.kubernetes import (
    SHARED,
    Kubernetes,
    Object,
    PodMaker,
    claim,
    storage_class,
    until,
    with_shared_pool,
)
from tests.kubernetes.test_snapshots import copy_of, run

GROUP = "volumegroupsnapshot"
CLASS = "test-shared"


@pytest.fixture(scope="module", autouse=True)
def shared_pool(kubernetes: Kubernetes) -> Iterator[None]:
    if not kubernetes.has_group_snapshots():
        pytest.skip("needs the CustomResourceDefinitions and the controller of VolumeGroupSnapshots")
    kubernetes.install(*with_shared_pool("2Gi"))
    kubernetes.apply(storage_class(CLASS, {"pool": SHARED}))
    yield
    kubernetes.delete("storageclass", CLASS)
    kubernetes.install()


def group(name: str, namespace: str, label: str) -> Object:
    return {
        "apiVersion": "groupsnapshot.storage.k8s.io/v1",
        "kind": "VolumeGroupSnapshot",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"volumeGroupSnapshotClassName": "hostvol", "source": {"selector": {"matchLabels": {"group": label}}}},
    }


def labelled(target: Object, label: str) -> Object:
    target["metadata"]["labels"] = {"group": label}
    return target


def test_two_volumes_in_use_are_cut_together(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    node = kubernetes.nodes()[-1]
    claims = [labelled(claim(name, namespace, CLASS, "64Mi"), "pair") for name in ("one", "two")]
    run(kubernetes, namespace, *claims, pod("main", namespace, ["one", "two"], node=node))
    kubernetes.execute("main", "sh", "-c", "echo first > /one/file; echo second > /two/file", namespace=namespace)
    kubernetes.apply(group("cut", namespace, "pair"))

    def status() -> Object:
        found: Object = kubernetes.get(GROUP, "cut", namespace).get("status") or {}
        return found

    until(lambda: status().get("readyToUse"), 120, "the group is ready")
    check_members(kubernetes, namespace, pod, node)
    kubernetes.delete(GROUP, "cut", namespace=namespace)
    until(lambda: not kubernetes.find("volumesnapshot", namespace), 90, "the members are gone")


def check_members(kubernetes: Kubernetes, namespace: str, pod: PodMaker, node: str) -> None:
    members = kubernetes.find("volumesnapshot", namespace)
    by_claim = {one["status"]["boundVolumeSnapshotContentName"]: one["metadata"]["name"] for one in members}
    assert len(by_claim) == 2
    names = sorted(by_claim.values())
    copies = [
        copy_of("VolumeSnapshot", name, claim(f"copy-{n}", namespace, CLASS, "64Mi")) for n, name in enumerate(names)
    ]
    run(kubernetes, namespace, *copies, pod("second", namespace, ["copy-0", "copy-1"], node=node))
    found = kubernetes.execute("second", "cat", "/copy-0/file", "/copy-1/file", namespace=namespace).split()
    assert sorted(found) == ["first", "second"]
