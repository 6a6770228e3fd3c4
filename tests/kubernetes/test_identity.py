"""Who may speak for a node, on a real cluster with real tokens.

- A pod's token speaks for the node on which the pod runs, and for no other.
- No token, one for another audience, one of another service account, one that is bound to no pod, one whose pod is
  gone: refused.
- Who has not the controller's authority sees nothing; nor does anybody without TLS.
- The node's service account may do nothing in the API.
"""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.cluster.peer import Peer
from tests.kubernetes.kubernetes import DRIVER, NAMESPACE, CommandFailed, Kubernetes, PodMaker, until

Code = grpc.StatusCode
NAME = f"hostvol-controller.{NAMESPACE}.svc"
Dial = Callable[[str], Peer]


@pytest.fixture
def port(kubernetes: Kubernetes) -> Iterator[int]:
    """A controller's port for nodes, on loopback."""
    command = [
        "kubectl",
        "port-forward",
        "-n",
        NAMESPACE,
        "pod/hostvol-controller-0",
        ":9809",
        "--address",
        "127.0.0.1",
    ]
    environment = {"KUBECONFIG": kubernetes.settings.kubeconfig, "PATH": "/usr/bin:/bin", **path_of("kubectl")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1])
        process.terminate()


def path_of(program: str) -> dict[str, str]:
    found = subprocess.run(["sh", "-c", f"command -v {program}"], check=True, capture_output=True, text=True)
    return {"PATH": f"{Path(found.stdout.strip()).parent}:/usr/bin:/bin"}


@pytest.fixture
def authority(kubernetes: Kubernetes, tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text(kubernetes.get("configmap", "hostvol-controller-ca", NAMESPACE)["data"]["ca.crt"])
    return path


@pytest.fixture
def dial(port: int, authority: Path) -> Iterator[Dial]:
    peers: list[Peer] = []

    def dialled(token: str) -> Peer:
        peers.append(Peer(port, token, authority, name=NAME))
        return peers[-1]

    yield dialled
    for peer in peers:
        peer.close()


def token(kubernetes: Kubernetes, account: str = "hostvol-node", pod: str = "", audience: str = DRIVER) -> str:
    """A token as kubelet would ask for it."""
    bound = []
    if pod:
        uid = kubernetes.get("pod", pod, NAMESPACE)["metadata"]["uid"]
        bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}", f"--bound-object-uid={uid}"]
    created = kubernetes.kubectl("create", "token", account, "-n", NAMESPACE, f"--audience={audience}", *bound)
    return created.strip()


def refusal(dial: Dial, proof: str, node: str) -> grpc.StatusCode | None:
    peer = dial(proof)
    peer.hello(node)
    return peer.refusal()[0]


def test_a_pod_speaks_for_its_own_node_only(kubernetes: Kubernetes, dial: Dial) -> None:
    first, second = kubernetes.nodes()[:2]
    proof = token(kubernetes, pod=kubernetes.agent(first))
    assert refusal(dial, proof, second) is Code.PERMISSION_DENIED
    peer = dial(proof)
    peer.hello(first)
    assert peer.next().HasField("welcome")


def test_other_tokens_are_refused(kubernetes: Kubernetes, dial: Dial) -> None:
    node = kubernetes.nodes()[0]
    agent = kubernetes.agent(node)
    assert refusal(dial, "", node) is Code.UNAUTHENTICATED
    assert refusal(dial, token(kubernetes, pod=agent, audience="other"), node) is Code.UNAUTHENTICATED
    assert refusal(dial, token(kubernetes, "hostvol-controller"), node) is Code.PERMISSION_DENIED
    assert refusal(dial, token(kubernetes), node) is Code.PERMISSION_DENIED


def test_a_token_ends_with_its_pod(kubernetes: Kubernetes, dial: Dial, pod: PodMaker) -> None:
    name = f"short-{uuid.uuid4().hex[:8]}"
    kubernetes.apply(pod(name, NAMESPACE, serviceAccountName="hostvol-node"))
    kubernetes.wait("pod", name, condition="condition=Ready", namespace=NAMESPACE)
    node = kubernetes.get("pod", name, NAMESPACE)["spec"]["nodeName"]
    proof = token(kubernetes, pod=name)
    kubernetes.delete("pod", name, namespace=NAMESPACE, now=True)
    # The API server keeps an answer for ten seconds.
    until(lambda: refusal(dial, proof, node) is Code.UNAUTHENTICATED, 40, "the token is worth nothing")


def test_without_the_authority_nothing_is_seen(port: int, tmp_path: Path) -> None:
    peer = Peer(port, "any", None, name=NAME)
    peer.hello("any")
    code, details = peer.refusal()
    assert code is Code.UNAVAILABLE
    assert re.search("certificate|handshake|SSL", details, re.IGNORECASE)
    peer.close()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/csi.v1.Identity/GetPluginInfo")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    assert caught.value.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)  # type: ignore[attr-defined]


def test_the_nodes_have_no_rights_in_the_api(kubernetes: Kubernetes) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:hostvol-node"
    for verb, kind in (("list", "secrets"), ("get", "nodes"), ("create", "pods"), ("list", "persistentvolumes")):
        with pytest.raises(CommandFailed, match="exit 1"):
            kubernetes.kubectl("auth", "can-i", verb, kind, account, "-n", NAMESPACE)
    mounted = kubernetes.get("pod", kubernetes.agent(kubernetes.nodes()[0]), NAMESPACE)["spec"]["volumes"]
    assert not any("kube-api-access" in volume["name"] for volume in mounted)
