"""Many claims, and nodes that are not alike.

- A hundred claims with pods at once: all are bound and run; afterwards nothing is left.
- The scheduler does not choose a node whose pool is promised already.
- A claim that is deleted while its volume is made leaves nothing.
"""

from __future__ import annotations

import time

from tests.kubernetes.conftest import DIRECTORY, volumes_of
from tests.kubernetes.kubernetes import DRIVER, NAMESPACE, TOPOLOGY_KEY, Kubernetes, PodMaker, claim, until

MANY = 100


def test_a_hundred_claims_at_once(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    names = [f"c{number:03}" for number in range(MANY)]
    claims = [
        claim(name, namespace, DIRECTORY if number % 4 == 0 else "hostvol", block=number % 4 == 1)
        for number, name in enumerate(names)
    ]
    pods = [
        pod(name, namespace, [] if number % 4 == 1 else [name], devices=[name] if number % 4 == 1 else [])
        for number, name in enumerate(names)
    ]
    kubernetes.apply(*claims, *pods)
    kubernetes.wait("pod", *names, condition="condition=Ready", namespace=namespace, seconds=480)
    volumes = volumes_of(kubernetes, namespace)
    assert len(volumes) == MANY
    held = {one["volume_id"] for node in kubernetes.nodes() for one in kubernetes.volumes_on(node)}
    assert held == {volume["spec"]["csi"]["volumeHandle"] for volume in volumes}
    assert kubernetes.find("volumeattachments") == []


def test_the_scheduler_goes_where_there_is_space(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    full, *others = kubernetes.nodes()
    free = until(lambda: capacity(kubernetes, full), 90, "the node's capacity is known")
    most, least = free * 9 // 10, free // 5
    kubernetes.apply(claim("most", namespace, "hostvol", str(most)), pod("first", namespace, ["most"], node=full))
    kubernetes.wait("pod", "first", condition="condition=Ready", namespace=namespace)
    # The provisioner looks again after each create, and each minute.
    until(lambda: 0 < capacity(kubernetes, full) < least, 120, "the node's capacity has fallen")
    names = [f"c{number}" for number in range(4)]
    kubernetes.apply(*(claim(name, namespace, "hostvol", str(least)) for name in names))
    kubernetes.apply(*(pod(name, namespace, [name]) for name in names))
    kubernetes.wait("pod", *names, condition="condition=Ready", namespace=namespace, seconds=180)
    chosen = {kubernetes.get("pod", name, namespace)["spec"]["nodeName"] for name in names}
    assert chosen <= set(others)


def capacity(kubernetes: Kubernetes, node: str) -> int:
    """What the scheduler believes that the node can give to the class `hostvol`."""
    for found in kubernetes.find("csistoragecapacities", NAMESPACE):
        labels = (found.get("nodeTopology") or {}).get("matchLabels", {})
        if found["storageClassName"] == "hostvol" and labels.get(TOPOLOGY_KEY) == node:
            return quantity(found.get("capacity", "0"))
    return 0


def quantity(text: str) -> int:
    units = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}
    return int(text[:-2]) << units[text[-2:]] if text[-2:] in units else int(text)


def test_a_claim_that_is_deleted_meanwhile_leaves_nothing(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker
) -> None:
    for attempt in range(12):
        name = f"c{attempt}"
        kubernetes.apply(claim(name, namespace, "hostvol"), pod(name, namespace, [name]))
        time.sleep(attempt * 0.15)
        kubernetes.delete("pod", name, namespace=namespace, wait=False, now=True)
        kubernetes.delete("pvc", name, namespace=namespace, wait=False)
    until(lambda: volumes_of(kubernetes, namespace) == [], 120, "no PersistentVolume is left")
    for node in kubernetes.nodes():
        until(lambda node=node: kubernetes.remains_on(node) == [], 60, f"nothing is left on {node}")


def test_the_driver_is_what_kubernetes_knows_of_it(kubernetes: Kubernetes) -> None:
    for node in kubernetes.nodes():
        [driver] = [one for one in kubernetes.get("csinode", node)["spec"]["drivers"] if one["name"] == DRIVER]
        assert driver == {"name": DRIVER, "nodeID": node, "topologyKeys": [TOPOLOGY_KEY]}
        assert kubernetes.get("node", node)["metadata"]["labels"][TOPOLOGY_KEY] == node
