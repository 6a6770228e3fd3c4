"""Tests on a real cluster, whichever it is; scripts/test-cluster tells where. Without one they are not collected."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator

import pytest

from tests.kubernetes.kubernetes import (
    DRIVER,
    NAMESPACE,
    CommandFailed,
    Kubernetes,
    Object,
    PodMaker,
    Settings,
    claim,
    storage_class,
    until,
)

collect_ignore_glob = [] if os.environ.get("HOSTVOL_TEST_KUBECONFIG") else ["test_*.py"]

# Classes of the tests, beside those of the chart: a size that nothing enforces is had on every filesystem.
DIRECTORY, XFS = "test-directory", "test-xfs"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a tool that can crash nodes, where there is none."""
    if os.environ.get("HOSTVOL_TEST_CLUSTER_TOOL"):
        return
    needing = [item for item in items if item.get_closest_marker("cluster_tool")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session", autouse=True)
def private_mounts() -> None:
    """Nothing is mounted here: the nodes mount, wherever they are."""


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Kubernetes]:
    """The cluster with the driver installed; uninstalled at the end."""
    kubernetes = Kubernetes(Settings.from_environment())
    kubernetes.install()
    until(lambda: len(kubernetes.nodes()) > 1, what="at least two nodes")
    kubernetes.apply(
        storage_class(DIRECTORY, {"type": "directory", "quota": "none"}, allowVolumeExpansion=True),
        storage_class(XFS, {"csi.storage.k8s.io/fstype": "xfs"}, mountOptions=["noatime"], allowVolumeExpansion=True),
    )
    yield kubernetes
    kubernetes.delete("storageclass", DIRECTORY, XFS)
    with contextlib.suppress(CommandFailed):
        kubernetes.uninstall()


@pytest.fixture
def pod(kubernetes: Kubernetes) -> PodMaker:
    return PodMaker(kubernetes.settings.pod_image)


@pytest.fixture
def namespace(kubernetes: Kubernetes) -> Iterator[str]:
    """A namespace of the test's own; afterwards nothing is left of it anywhere."""
    name = f"test-{secrets.token_hex(4)}"
    kubernetes.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kubernetes.delete("namespace", name, wait=False)
    assert_nothing_left(kubernetes, name)


def assert_nothing_left(kubernetes: Kubernetes, namespace: str) -> None:
    """The namespace, its PersistentVolumes, and all that they were on the nodes are gone, within two minutes."""
    until(lambda: namespace not in [one["metadata"]["name"] for one in kubernetes.find("namespaces")], 120)
    until(lambda: volumes_of(kubernetes, namespace) == [], 120, "no PersistentVolume is left")
    for node in kubernetes.nodes():
        until(lambda node=node: kubernetes.remains_on(node) == [], 60, f"nothing is left on {node}")
    assert kubernetes.find("volumeattachments") == []


def volumes_of(kubernetes: Kubernetes, namespace: str) -> list[Object]:
    """PersistentVolumes that claims of the namespace are or were bound to."""
    return [
        volume
        for volume in kubernetes.find("persistentvolumes")
        if (volume["spec"].get("claimRef") or {}).get("namespace") == namespace
        and volume["spec"].get("csi", {}).get("driver") == DRIVER
    ]


__all__ = ["DIRECTORY", "NAMESPACE", "XFS", "claim"]
