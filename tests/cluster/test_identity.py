"""Who may attach, and what a stolen node can do.

- A stream without a token, with an unknown, an expired one, or one for another audience is UNAUTHENTICATED.
- A token of another service account or namespace, or one that is bound to no node, is refused.
- The node's name comes from the token's review: a stream that says another name, key or driver is refused.
- An API server that names no node is asked for the pod, whose uid must be the token's.
- Inventory with another node's ids ends the stream, and nothing of it is listed.
- Who does not trust the controller's authority, or dials another name, never shows a token.
- A stream ends with its token; with a renewed file the node is there all the while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from csi_driver.model import node_key
from csi_driver.pb import peer_pb2
from tests.cluster.cluster import Cluster, on
from tests.cluster.peer import Peer, item, volume_id
from tests.waiting import until

Code = grpc.StatusCode
Dial = Callable[..., Peer]


@pytest.fixture
def lone(empty_cluster: Cluster) -> Cluster:
    """A controller without nodes."""
    empty_cluster.add_controller()
    return empty_cluster


@pytest.fixture
def dial(lone: Cluster) -> Iterator[Dial]:
    peers: list[Peer] = []

    def dialled(token: str, **options: object) -> Peer:
        peers.append(Peer(lone.port, token, lone.ca_file, **options))
        return peers[-1]

    yield dialled
    for peer in peers:
        peer.close()


def test_a_stream_that_proves_nothing_is_unauthenticated(lone: Cluster, dial: Dial) -> None:
    tokens = {
        "none": "",
        "unknown": "a.b.c",
        "expired": lone.api.token("node-a", seconds=-1),
        "for another audience": lone.api.token("node-a", audience="https://kubernetes.default.svc"),
    }
    codes = {}
    for why, token in tokens.items():
        peer = dial(token)
        peer.hello("node-a")
        codes[why] = peer.refusal()[0]
    assert codes == dict.fromkeys(codes, Code.UNAUTHENTICATED)


def test_a_token_of_somebody_else_is_refused(lone: Cluster, dial: Dial) -> None:
    bound = {"authentication.kubernetes.io/node-name": ["node-a", "node-b"]}
    tokens = [
        lone.api.token("node-a", account="default"),
        lone.api.token("node-a", namespace="kube-system"),
        lone.api.token("node-a", extra={}),
        lone.api.token("node-a", extra=bound),
    ]
    for token in tokens:
        peer = dial(token)
        peer.hello("node-a")
        assert peer.refusal()[0] is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "lie",
    [{"node_id": "node-b"}, {"node_key": node_key("node-b")}, {"driver_name": "other"}],
    ids=["node_id", "node_key", "driver_name"],
)
def test_a_node_is_not_believed_about_itself(lone: Cluster, dial: Dial, lie: dict[str, str]) -> None:
    peer = dial(lone.api.token("node-a"))
    peer.hello("node-a", **lie)
    code, details = peer.refusal()
    assert code is Code.PERMISSION_DENIED
    assert next(iter(lie)) in details


def test_the_pod_is_asked_where_it_runs_when_the_token_does_not_say(lone: Cluster, dial: Dial) -> None:
    extra = {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": ["uid-1"]}
    lone.api.pods["p"] = {"metadata": {"uid": "uid-1"}, "spec": {"nodeName": "node-a"}}
    good = dial(lone.api.token("", extra=extra))
    good.attach("node-a")
    replaced = dial(lone.api.token("", extra={**extra, "authentication.kubernetes.io/pod-uid": ["uid-0"]}))
    replaced.hello("node-a")
    assert replaced.refusal()[0] is Code.PERMISSION_DENIED


def test_inventory_of_another_node_is_refused(lone: Cluster, dial: Dial) -> None:
    honest = dial(lone.api.token("node-b"))
    honest.attach("node-b", "1")
    forger = dial(lone.api.token("node-a"))
    forger.hello("node-a")
    forger.next()
    forger.send(inventory=peer_pb2.Inventory(items=[item("node-a", "1"), item("node-b", "2")], complete=True))
    assert forger.refusal()[0] is Code.PERMISSION_DENIED
    until(lambda: lone.controller.volumes() == [volume_id("node-b", "1")])

    later = dial(lone.api.token("node-a"))
    later.attach("node-a", "3")
    later.send(inventory=peer_pb2.Inventory(items=[item("node-b", "4")]))
    assert later.refusal()[0] is Code.PERMISSION_DENIED
    assert not honest.ended.is_set()
    assert volume_id("node-b", "4") not in lone.controller.volumes()


def test_removing_another_nodes_volume_from_the_inventory_removes_nothing(lone: Cluster, dial: Dial) -> None:
    dial(lone.api.token("node-b")).attach("node-b", "1")
    forger = dial(lone.api.token("node-a"))
    forger.attach("node-a", "2")
    forger.send(inventory=peer_pb2.Inventory(removed=[volume_id("node-b", "1"), volume_id("node-a", "2")]))
    until(lambda: lone.controller.volumes() == [volume_id("node-b", "1")])


def test_a_name_that_a_node_claims_never_attracts_a_create_for_another_node(lone: Cluster, dial: Dial) -> None:
    thief, honest = dial(lone.api.token("node-a")), dial(lone.api.token("node-b"))
    thief.attach("node-a", "wanted")
    honest.attach("node-b")
    until(lambda: lone.controller.attached() == 2)
    request = on("name-wanted", "node-b")
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        lone.controller.call("CreateVolume", request, timeout=1)
    assert honest.next().call.request == request.SerializeToString()
    assert thief.received.empty()


def test_the_authority_must_be_known_and_the_name_must_be_ours(lone: Cluster) -> None:
    token = lone.api.token("node-a")
    strangers = [Peer(lone.port, token, None), Peer(lone.port, token, lone.ca_file, name="evil.example")]
    for stranger in strangers:
        stranger.hello("node-a")
        code, details = stranger.refusal()
        stranger.close()
        assert code is Code.UNAVAILABLE
        assert "certificate" in details.lower() or "handshake" in details.lower() or "verif" in details.lower(), details
    assert not [request for request in lone.api.requests if "tokenreviews" in request]


def test_plaintext_is_not_spoken_to(lone: Cluster) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{lone.port}") as channel:
        attach = channel.stream_stream("/hostvol.peer.v1.Peer/Attach")
        with pytest.raises(grpc.RpcError) as failure:
            next(attach(iter([b""])))
    assert failure.value.code() is Code.UNAVAILABLE


def test_csi_is_not_served_to_the_network(lone: Cluster) -> None:
    credentials = grpc.ssl_channel_credentials(lone.ca_file.read_bytes())
    channel = grpc.secure_channel(f"127.0.0.1:{lone.port}", credentials)
    with channel, pytest.raises(grpc.RpcError) as failure:
        channel.unary_unary("/csi.v1.Identity/GetPluginInfo")(b"", timeout=10)
    assert failure.value.code() is Code.UNIMPLEMENTED


def test_a_stream_ends_with_its_token(lone: Cluster, dial: Dial) -> None:
    peer = dial(lone.api.token("node-a", seconds=3))
    peer.attach("node-a", "1")
    began = time.monotonic()
    code, details = peer.refusal()
    assert (code, "expired" in details) == (Code.UNAVAILABLE, True)
    assert time.monotonic() - began < 5


def test_a_renewed_token_keeps_the_node_there_all_the_while(lone: Cluster) -> None:
    lone.api.nodes["node-a"] = True
    lone.write_token("node-a", lone.api.token("node-a", seconds=8))
    lone.add_node("node-a", constants={"cluster.link._TOKEN_POLL_SECONDS": 1.0})
    lone.write_token("node-a", lone.api.token("node-a", seconds=3600))
    ends = time.monotonic() + 9
    number = 0
    while time.monotonic() < ends:
        lone.controller.call("CreateVolume", on(f"v{number}", "node-a"))
        number += 1
        time.sleep(0.05)
    assert lone.controller.attached() == 2
    assert number > 50


def test_a_node_whose_token_was_refused_attaches_once_it_has_a_good_one(lone: Cluster) -> None:
    lone.api.nodes["node-a"] = True
    lone.write_token("node-a", lone.api.token("node-a", account="other"))
    node = lone.prepare_node("node-a")
    node.start()
    until(lambda: "PERMISSION_DENIED" in node.log(), what="the refusal is in the node's log")
    lone.write_token("node-a", lone.api.token("node-a"))
    lone.wait_attached("node-a")


def test_an_api_server_that_fails_refuses_nobody_for_good(lone: Cluster) -> None:
    lone.api.broken = True
    node = lone.prepare_node("node-a")
    node.start()
    until(lambda: "UNAVAILABLE" in node.log(), what="the node is told to come again")
    lone.api.broken = False
    lone.wait_attached("node-a")


def test_no_token_is_ever_logged(lone: Cluster) -> None:
    lone.add_node("node-a")
    secret = lone.token_file("node-a").read_text().rpartition(".")[2]
    assert secret not in lone.controller.log() + lone.nodes["node-a"].log()
