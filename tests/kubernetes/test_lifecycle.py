"""The driver comes, changes and goes; volumes and pods stay.

- An update of the chart replaces every pod of the driver, one node after the other, and no mount of a workload.
- `helm uninstall` leaves the data and says where it is; pods go on; a new installation finds all of it.
- A record that is damaged is told as an Event at the node and at the claim; its volume is served again once restored.
- A StorageClass with a wrong parameter is refused at once, by name.
"""

from __future__ import annotations

import pytest

from tests.deployment.classes import ACCEPTED, REFUSED
from tests.kubernetes.conftest import volumes_of
from tests.kubernetes.kubernetes import NAMESPACE, NODE_PODS, POOL, Kubernetes, PodMaker, claim, storage_class, until


def mount_of(kubernetes: Kubernetes, namespace: str, name: str, path: str) -> str:
    """Which mount the pod sees there: its number changes with every new one."""
    for line in kubernetes.execute(name, "cat", "/proc/self/mountinfo", namespace=namespace).splitlines():
        if line.split()[4] == path:
            return line
    raise AssertionError(f"nothing is mounted at {path}")


def test_an_update_touches_no_mount(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    kubernetes.apply(claim("data", namespace, "hostvol"), pod("main", namespace, ["data"]))
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)
    kubernetes.execute("main", "sh", "-c", "echo kept > /data/file", namespace=namespace)
    mount = mount_of(kubernetes, namespace, "main", "/data")
    before = {one["metadata"]["uid"] for one in kubernetes.find("pods", NAMESPACE, NODE_PODS)}
    kubernetes.install("--set", "logFormat=json")
    try:
        # helm waits until all pods are ready, and they are only when the old ones are gone.
        after = {one["metadata"]["uid"] for one in kubernetes.find("pods", NAMESPACE, NODE_PODS)}
        assert not before & after
        assert mount_of(kubernetes, namespace, "main", "/data") == mount
        assert kubernetes.execute("main", "cat", "/data/file", namespace=namespace) == "kept\n"
        kubernetes.apply(claim("more", namespace, "hostvol"), pod("more", namespace, ["more"]))
        kubernetes.wait("pod", "more", condition="condition=Ready", namespace=namespace)
    finally:
        kubernetes.install()


def test_what_is_uninstalled_leaves_its_data(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    kubernetes.apply(claim("data", namespace, "hostvol"), pod("main", namespace, ["data"]))
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)
    mount = mount_of(kubernetes, namespace, "main", "/data")
    assert POOL in kubernetes.helm("get", "notes", "hostvol", "-n", NAMESPACE)
    kubernetes.uninstall()
    try:
        kubernetes.execute("main", "sh", "-c", "echo kept > /data/file && sync", namespace=namespace)
    finally:
        kubernetes.install()
    assert mount_of(kubernetes, namespace, "main", "/data") == mount
    kubernetes.delete("pod", "main", namespace=namespace)
    kubernetes.apply(pod("next", namespace, ["data"]))
    kubernetes.wait("pod", "next", condition="condition=Ready", namespace=namespace)
    assert kubernetes.execute("next", "cat", "/data/file", namespace=namespace) == "kept\n"


def test_a_damaged_record_is_told(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    kubernetes.apply(claim("data", namespace, "hostvol"), pod("main", namespace, ["data"]))
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)
    node = kubernetes.get("pod", "main", namespace)["spec"]["nodeName"]
    [volume] = volumes_of(kubernetes, namespace)
    record = f"{POOL}/volumes/{volume['spec']['csi']['volumeHandle']}/record.json"
    kubernetes.on_node(node, "cp", record, f"{record}.good")
    kubernetes.on_node(node, "truncate", "--size=-9", record)
    restart(kubernetes, node)
    try:
        for kind, name, place in (("PersistentVolumeClaim", "data", namespace), ("Node", node, "default")):
            message = until(
                lambda k=kind, n=name, p=place: quarantined(kubernetes, k, n, p), 90, f"an Event at the {kind}"
            )
            assert record in message
    finally:
        kubernetes.on_node(node, "mv", f"{record}.good", record)
        restart(kubernetes, node)
    until(lambda: [one for one in kubernetes.volumes_on(node) if one["state"] == "ready"], 60)


def quarantined(kubernetes: Kubernetes, kind: str, name: str, namespace: str) -> str:
    told = [event for event in kubernetes.events(kind, name, namespace) if event["reason"] == "RecordQuarantined"]
    return str(told[-1]["message"]) if told else ""


def restart(kubernetes: Kubernetes, node: str) -> None:
    """The driver on the node starts again and serves."""
    before = kubernetes.agent(node)
    kubernetes.delete("pod", before, namespace=NAMESPACE)
    until(lambda: kubernetes.agent(node) != before, 60)
    kubernetes.wait("pod", kubernetes.agent(node), condition="condition=Ready", namespace=NAMESPACE)


@pytest.mark.parametrize(("given", "name"), REFUSED, ids=str)
def test_a_class_with_a_wrong_parameter_is_refused(kubernetes: Kubernetes, given: dict[str, str], name: str) -> None:
    refusal = kubernetes.refused(storage_class("test-wrong", given))
    assert "denied request" in refusal
    assert name in refusal


@pytest.mark.parametrize("given", ACCEPTED, ids=str)
def test_a_class_with_good_parameters_is_taken(kubernetes: Kubernetes, given: dict[str, str]) -> None:
    kubernetes.dry_run(storage_class("test-good", given))


def test_a_class_of_another_driver_is_not_ours_to_judge(kubernetes: Kubernetes) -> None:
    foreign = {**storage_class("test-foreign", {"typo": "image"}), "provisioner": "csi.other.dev"}
    kubernetes.dry_run(foreign)
