"""A claim that names another VolumeAttributesClass has its volume changed under its pod.

- A claim made with attributes has them from the beginning, whatever its StorageClass says.
- Changed to another class, the volume follows while the pod goes on, and the claim says so.
- A class that does not go with the volume is refused by name, which the claim tells; the pod goes on.
- A class with a wrong parameter is refused at once, by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.deployment.classes import ATTRIBUTES_ACCEPTED, ATTRIBUTES_REFUSED
from tests.kubernetes.kubernetes import Kubernetes, Object, PodMaker, attributes_class, claim, until

THICK, THIN, FREE = "test-thick", "test-thin", "test-free"


@pytest.fixture
def classes(kubernetes: Kubernetes) -> Iterator[None]:
    if not kubernetes.has_attributes_classes():
        pytest.skip("needs storage.k8s.io/v1 VolumeAttributesClass (Kubernetes 1.34)")
    kubernetes.apply(
        attributes_class(THICK, {"provisioning": "thick"}),
        attributes_class(THIN, {"provisioning": "thin"}),
        attributes_class(FREE, {"quota": "none"}),
    )
    yield
    kubernetes.delete("volumeattributesclass", THICK, THIN, FREE)


def with_attributes(one: Object, name: str) -> Object:
    return {**one, "spec": {**one["spec"], "volumeAttributesClassName": name}}


def change_to(kubernetes: Kubernetes, namespace: str, name: str) -> None:
    patch = {"spec": {"volumeAttributesClassName": name}}
    kubernetes.kubectl("patch", "pvc", "data", "-n", namespace, "--type=merge", "-p", json.dumps(patch))


def current(kubernetes: Kubernetes, namespace: str) -> str:
    return str(kubernetes.get("pvc", "data", namespace)["status"].get("currentVolumeAttributesClassName"))


def provisioning(kubernetes: Kubernetes, namespace: str) -> str:
    """As the node of the pod tells it of its volume."""
    bound = kubernetes.get("pvc", "data", namespace)["spec"]["volumeName"]
    handle = kubernetes.get("pv", bound)["spec"]["csi"]["volumeHandle"]
    node = kubernetes.get("pod", "main", namespace)["spec"]["nodeName"]
    [found] = [one for one in kubernetes.volumes_on(node) if one["volume_id"] == handle]
    return str(found["provisioning"])


def restarts(kubernetes: Kubernetes, namespace: str) -> int:
    return int(kubernetes.get("pod", "main", namespace)["status"]["containerStatuses"][0]["restartCount"])


@pytest.mark.usefixtures("classes")
def test_a_volume_follows_the_class_of_its_claim(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    data = with_attributes(claim("data", namespace, "hostvol"), THICK)
    kubernetes.apply(data, pod("main", namespace, ["data"]))
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)
    assert provisioning(kubernetes, namespace) == "thick"
    kubernetes.execute("main", "sh", "-c", "echo kept > /data/file", namespace=namespace)
    for name, wanted in ((THIN, "thin"), (THICK, "thick")):
        change_to(kubernetes, namespace, name)
        until(lambda name=name: current(kubernetes, namespace) == name, 120, "the claim says so")
        assert provisioning(kubernetes, namespace) == wanted
    assert kubernetes.execute("main", "cat", "/data/file", namespace=namespace) == "kept\n"
    assert restarts(kubernetes, namespace) == 0


@pytest.mark.usefixtures("classes")
def test_a_class_that_does_not_go_with_the_volume_is_told(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker
) -> None:
    kubernetes.apply(claim("data", namespace, "hostvol"), pod("main", namespace, ["data"]))
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)
    change_to(kubernetes, namespace, FREE)

    def is_told() -> bool:
        events = kubernetes.events("PersistentVolumeClaim", "data", namespace)
        return any("mutable_parameters.quota" in str(one.get("message")) for one in events)

    until(is_told, 120, "the claim names the parameter")
    assert provisioning(kubernetes, namespace) == "thin"
    assert restarts(kubernetes, namespace) == 0


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize(("given", "name"), ATTRIBUTES_REFUSED, ids=str)
def test_attributes_with_a_wrong_parameter_are_refused(
    kubernetes: Kubernetes, given: dict[str, str], name: str
) -> None:
    refusal = kubernetes.refused(attributes_class("test-wrong", given))
    assert "denied request" in refusal
    assert name in refusal


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("given", ATTRIBUTES_ACCEPTED, ids=str)
def test_attributes_with_good_parameters_are_taken(kubernetes: Kubernetes, given: dict[str, str]) -> None:
    kubernetes.dry_run(attributes_class("test-good", given))
