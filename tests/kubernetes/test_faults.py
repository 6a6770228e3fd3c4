"""Everything that can die, dies while pods write: each fault heals alone, and nothing is lost or left.

A writer appends numbered records with fsync, and reads them all again after each restart; its log tells the first
error that it met. Faults: a controller, both controllers, a node's driver, kubelet, the API server, a whole node, the
network between a node and the controllers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kubernetes.conftest import DIRECTORY
from tests.kubernetes.kubernetes import (
    CONTROLLER_PODS,
    NAMESPACE,
    NODE_PODS,
    CommandFailed,
    Kubernetes,
    PodMaker,
    claim,
    is_ready,
    until,
)

WRITER = """
trap 'exit 0' TERM
n=0
[ ! -f /data/records ] || n=$(tail -n 1 /data/records)
[ "$n" = "$(wc -l < /data/records 2>/dev/null || echo 0)" ] || { echo "HOLE at $n"; exit 7; }
while :; do
    n=$((n + 1))
    echo $n >> /data/records && sync /data/records || { echo "ERROR at $n"; exit 8; }
    echo $n > /tmp/next && mv /tmp/next /tmp/acknowledged
    sleep 0.1
done
"""


@pytest.fixture
def writers(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> dict[str, str]:
    """A writer for each kind of volume on each of two nodes; the node of each by its name."""
    chosen = {}
    for node in kubernetes.nodes()[:2]:
        for kind, name in (("image", "hostvol"), ("directory", DIRECTORY)):
            writer = f"{kind}-{node}"
            kubernetes.apply(
                claim(writer, namespace, name),
                pod(
                    writer,
                    namespace,
                    [writer],
                    node=node,
                    command=WRITER.replace("/data/", f"/{writer}/"),
                    restartPolicy="Always",
                ),
            )
            chosen[writer] = node
    kubernetes.wait("pod", *chosen, condition="condition=Ready", namespace=namespace)
    return chosen


def acknowledged(kubernetes: Kubernetes, namespace: str, writer: str) -> int:
    return int(kubernetes.execute(writer, "cat", "/tmp/acknowledged", namespace=namespace))


@contextmanager
def undisturbed(kubernetes: Kubernetes, namespace: str, writers: list[str]) -> Iterator[None]:
    """None of the writers met an error or was started again, and each wrote on."""
    before = {writer: acknowledged(kubernetes, namespace, writer) for writer in writers}
    yield
    for writer in writers:
        until(lambda w=writer: acknowledged(kubernetes, namespace, w) > before[w], 60, f"{writer} writes on")
        status = kubernetes.get("pod", writer, namespace)["status"]["containerStatuses"][0]
        assert status["restartCount"] == 0, kubernetes.kubectl("logs", "-n", namespace, "--previous", writer)


def provision(kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str, node: str) -> None:
    """A new claim becomes a running pod on the node."""
    kubernetes.apply(claim(name, namespace, "hostvol"), pod(name, namespace, [name], node=node))
    kubernetes.wait("pod", name, condition="condition=Ready", namespace=namespace)


def settled(kubernetes: Kubernetes) -> bool:
    """All pods of the driver are ready."""
    pods = [*kubernetes.find("pods", NAMESPACE, NODE_PODS), *kubernetes.find("pods", NAMESPACE, CONTROLLER_PODS)]
    return all(is_ready(one) and "deletionTimestamp" not in one["metadata"] for one in pods)


def test_controllers_die(kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]) -> None:
    with undisturbed(kubernetes, namespace, list(writers)):
        kubernetes.delete("pod", "hostvol-controller-0", namespace=NAMESPACE, wait=False, now=True)
        provision(kubernetes, namespace, pod, "one-dead", next(iter(writers.values())))
        both = [one["metadata"]["name"] for one in kubernetes.find("pods", NAMESPACE, CONTROLLER_PODS)]
        kubernetes.delete("pod", *both, namespace=NAMESPACE, wait=False, now=True)
        provision(kubernetes, namespace, pod, "both-dead", next(iter(writers.values())))
    until(lambda: settled(kubernetes), 120)


def test_the_drivers_of_nodes_die(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]
) -> None:
    nodes = sorted(set(writers.values()))
    with undisturbed(kubernetes, namespace, list(writers)):
        for number, node in enumerate(nodes):
            kubernetes.delete("pod", kubernetes.agent(node), namespace=NAMESPACE, wait=False, now=True)
            provision(kubernetes, namespace, pod, f"after-{number}", node)
    # What was mounted before is unmounted by the driver that came after.
    for number in range(len(nodes)):
        kubernetes.delete("pod", f"after-{number}", namespace=namespace)
    until(lambda: settled(kubernetes), 120)


def test_a_pod_that_goes_while_its_driver_is_away(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]
) -> None:
    writer, node = next(iter(writers.items()))
    last = acknowledged(kubernetes, namespace, writer)
    kubernetes.delete("pod", kubernetes.agent(node), namespace=NAMESPACE, wait=False, now=True)
    kubernetes.delete("pod", writer, namespace=namespace)
    reader = pod("reader", namespace, [writer])
    kubernetes.apply(reader)
    kubernetes.wait("pod", "reader", condition="condition=Ready", namespace=namespace)
    assert records(kubernetes, namespace, "reader", writer) >= last


def records(kubernetes: Kubernetes, namespace: str, name: str, volume: str) -> int:
    """How many records are there, in order and without a hole."""
    found = kubernetes.execute(name, "cat", f"/{volume}/records", namespace=namespace).split()
    assert found == [str(number + 1) for number in range(len(found))]
    return len(found)


@pytest.mark.cluster_tool
def test_kubelet_starts_again(kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]) -> None:
    node = next(iter(writers.values()))
    with undisturbed(kubernetes, namespace, list(writers)):
        kubernetes.tool("restart", node, "kubelet")
        provision(kubernetes, namespace, pod, "after", node)
    kubernetes.delete("pod", "after", namespace=namespace)


@pytest.mark.cluster_tool
def test_the_api_server_starts_again(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]
) -> None:
    with undisturbed(kubernetes, namespace, list(writers)):
        kubernetes.tool("restart", control_plane(kubernetes), "kube-apiserver")
        until(lambda: kubernetes.find("nodes"), 60, "the API server answers")
        for number, node in enumerate(sorted(set(writers.values()))):
            provision(kubernetes, namespace, pod, f"after-{number}", node)


@pytest.mark.cluster_tool
def test_a_node_dies_and_returns(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]
) -> None:
    gone = next(node for node in writers.values() if node != control_plane(kubernetes))
    others = {writer for writer, node in writers.items() if node != gone}
    survivor = next(node for node in writers.values() if node != gone)
    mine = sorted(set(writers) - others)
    last = {writer: acknowledged(kubernetes, namespace, writer) for writer in mine}
    with undisturbed(kubernetes, namespace, sorted(others)):
        kubernetes.tool("crash", gone)
        try:
            # With one node down, the others go on at once, also behind routers that have just started.
            provision(kubernetes, namespace, pod, "meanwhile", survivor)
            alive = [
                one["metadata"]["name"]
                for one in kubernetes.find("pods", NAMESPACE, CONTROLLER_PODS)
                if one["spec"].get("nodeName") != gone
            ]
            kubernetes.delete("pod", *alive, namespace=NAMESPACE, wait=False, now=True)
            began = time.monotonic()
            provision(kubernetes, namespace, pod, "routers-new", survivor)
            assert time.monotonic() - began < 60
        finally:
            kubernetes.tool("start", gone)
    for writer in mine:
        until(lambda w=writer: came_back(kubernetes, namespace, w, last[w]), 180, f"{writer} writes again")
        assert records(kubernetes, namespace, writer, writer) >= last[writer]
    until(lambda: settled(kubernetes), 120)


def came_back(kubernetes: Kubernetes, namespace: str, writer: str, last: int) -> bool:
    return is_ready(kubernetes.get("pod", writer, namespace)) and (acknowledged(kubernetes, namespace, writer) > last)


@pytest.mark.cluster_tool
def test_the_network_to_a_node_is_cut_for_a_minute(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, writers: dict[str, str]
) -> None:
    cut, other = sorted(set(writers.values()), reverse=True)
    rule = ("FORWARD", "-p", "tcp", "--dport", "9809", "-j", "DROP")
    with undisturbed(kubernetes, namespace, list(writers)):
        kubernetes.tool("exec", cut, "iptables", "-I", *rule)
        try:
            ends = time.monotonic() + 60
            kubernetes.apply(claim("waits", namespace, "hostvol"), pod("waits", namespace, ["waits"], node=cut))
            provision(kubernetes, namespace, pod, "goes-on", other)
            time.sleep(max(0.0, ends - time.monotonic()))
        finally:
            kubernetes.tool("exec", cut, "iptables", "-D", *rule)
        kubernetes.wait("pod", "waits", condition="condition=Ready", namespace=namespace, seconds=180)


def control_plane(kubernetes: Kubernetes) -> str:
    """The node that runs the API server."""
    addresses = {
        address: node["metadata"]["name"]
        for node in kubernetes.find("nodes")
        for address in (one["address"] for one in node["status"]["addresses"])
    }
    [slice_] = kubernetes.find("endpointslices", "default", "kubernetes.io/service-name=kubernetes")
    for endpoint in slice_["endpoints"]:
        for address in endpoint["addresses"]:
            if address in addresses:
                return addresses[address]
    raise CommandFailed("no node is known to run the API server")
