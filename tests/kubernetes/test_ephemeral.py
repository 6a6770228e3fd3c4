"""Inline ephemeral volumes of real pods, on nodes whose operator allows a gibibyte of them.

- A pod gets the filesystem and the size that it describes, its group may write, and after it nothing is left.
- The volume outlives a restart of the driver; a pod that is deleted while the driver is away still takes it along.
- Over the ceiling a pod waits, its Events say why, and it starts when there is room.
- A wrong attribute is told by name in the pod's Events.
- No PersistentVolume, no claim and no orphan comes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kubernetes.kubernetes import DRIVER, NAMESPACE, CommandFailed, Kubernetes, Object, PodMaker, until, with_pool
from tests.kubernetes.test_lifecycle import mount_of, restart


@pytest.fixture(scope="module", autouse=True)
def allowed(kubernetes: Kubernetes) -> Iterator[None]:
    """The operator's word for it, taken back at the end."""
    kubernetes.install(*with_pool(ephemeral="1Gi"))
    yield
    kubernetes.install()


def with_scratch(pod: Object, size: str = "64Mi", *, fs_type: str = "", read_only: bool = False, **more: str) -> Object:
    """The pod with an inline volume at /scratch."""
    source: Object = {"driver": DRIVER, "readOnly": read_only, "volumeAttributes": {"size": size, **more}}
    if fs_type:
        source["fsType"] = fs_type
    pod["spec"]["containers"][0]["volumeMounts"].append({"name": "scratch", "mountPath": "/scratch"})
    pod["spec"]["volumes"].append({"name": "scratch", "csi": source})
    return pod


def start(kubernetes: Kubernetes, namespace: str, *pods: Object) -> None:
    kubernetes.apply(*pods)
    names = [one["metadata"]["name"] for one in pods]
    kubernetes.wait("pod", *names, condition="condition=Ready", namespace=namespace)


def node_of(kubernetes: Kubernetes, namespace: str, name: str) -> str:
    return str(kubernetes.get("pod", name, namespace)["spec"]["nodeName"])


def messages(kubernetes: Kubernetes, namespace: str, name: str) -> str:
    return " ".join(event["message"] for event in kubernetes.events("Pod", name, namespace))


@pytest.mark.parametrize(("fs_type", "mebibytes"), [("", 64), ("xfs", 320)])
def test_a_pod_gets_what_it_describes_and_leaves_nothing(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, fs_type: str, mebibytes: int
) -> None:
    start(kubernetes, namespace, with_scratch(pod("main", namespace), f"{mebibytes}Mi", fs_type=fs_type))
    node = node_of(kubernetes, namespace, "main")
    [volume] = kubernetes.volumes_on(node)
    assert (volume["pod"], volume["filesystem"]) == (f"{namespace}/main", fs_type or "ext4")
    kilobytes = kubernetes.execute("main", "df", "-k", "/scratch", namespace=namespace).split()[-5]
    assert mebibytes // 2 < int(kilobytes) >> 10 <= mebibytes
    fill = ("dd", "if=/dev/zero", "of=/scratch/fill", "bs=1M", f"count={mebibytes + 8}")
    with pytest.raises(CommandFailed, match="No space left"):
        kubernetes.execute("main", *fill, namespace=namespace)
    kubernetes.delete("pod", "main", namespace=namespace)
    until(lambda: kubernetes.remains_on(node) == [], 60, f"nothing is left on {node}")


def test_its_group_may_write_and_a_reader_may_not(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242}
    writer = with_scratch(pod("writer", namespace, securityContext=context))
    start(kubernetes, namespace, writer, with_scratch(pod("reader", namespace), read_only=True))
    kubernetes.execute("writer", "touch", "/scratch/mine", namespace=namespace)
    assert kubernetes.execute("writer", "stat", "-c", "%g", "/scratch/mine", namespace=namespace) == "4242\n"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        kubernetes.execute("reader", "touch", "/scratch/mine", namespace=namespace)


def test_it_outlives_the_driver_and_not_its_pod(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, with_scratch(pod("main", namespace)))
    node = node_of(kubernetes, namespace, "main")
    kubernetes.execute("main", "sh", "-c", "echo kept > /scratch/file", namespace=namespace)
    mount = mount_of(kubernetes, namespace, "main", "/scratch")
    restart(kubernetes, node)
    assert mount_of(kubernetes, namespace, "main", "/scratch") == mount
    assert kubernetes.execute("main", "cat", "/scratch/file", namespace=namespace) == "kept\n"
    kubernetes.delete("pod", kubernetes.agent(node), namespace=NAMESPACE, wait=False)
    kubernetes.delete("pod", "main", namespace=namespace, wait=False)
    until(lambda: kubernetes.remains_on(node) == [], 180, f"nothing is left on {node}")


def test_over_the_ceiling_a_pod_waits_for_room(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    node = kubernetes.nodes()[0]
    start(kubernetes, namespace, with_scratch(pod("first", namespace, node=node), "900Mi"))
    kubernetes.apply(with_scratch(pod("second", namespace, node=node), "200Mi"))
    until(lambda: "that its operator allows" in messages(kubernetes, namespace, "second"), what="the pod's Event")
    kubernetes.delete("pod", "first", namespace=namespace)
    kubernetes.wait("pod", "second", condition="condition=Ready", namespace=namespace, seconds=240)


def test_a_wrong_attribute_is_told(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    kubernetes.apply(with_scratch(pod("main", namespace), sise="1Gi"))
    until(lambda: "volume_context.sise" in messages(kubernetes, namespace, "main"), what="the pod's Event")
    assert kubernetes.remains_on(node_of(kubernetes, namespace, "main")) == []


def test_the_cluster_has_no_object_of_it(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, with_scratch(pod("main", namespace)))
    ours = [one for one in kubernetes.find("persistentvolumes") if one["spec"].get("csi", {}).get("driver") == DRIVER]
    assert ours == []
    assert kubernetes.find("persistentvolumeclaims", namespace) == []
    told = kubernetes.execute(
        "hostvol-controller-0", "hostvol", "orphans", "--output", "json", namespace=NAMESPACE, container="hostvol"
    )
    assert json.loads(told) == []
