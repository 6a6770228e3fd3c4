"""What travels on a stream, with a node that is spoken by hand.

- The bytes of a request reach the node as they came, unknown fields included, with what is left of the deadline.
- The bytes of an answer, a code and its words reach the caller as the node gave them; so does ABORTED.
- A call whose caller gives up leaves nothing behind, and a late reply harms nobody.
- Streamed answers arrive in order, the node is never more than a few messages ahead, and it hears when nobody reads.
- What the other side does not know yet is ignored: unknown kinds up, unknown methods down.
- A newer stream of a node takes over; what was asked on the old one is answered there, and then it ends.
- A node that is gone in the middle of a call is UNAVAILABLE at once.
- A change that is told before a reply is listed when the caller has the reply.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from csi_driver.pb import csi_pb2, peer_pb2
from tests.cluster.cluster import Cluster, Controller, on
from tests.cluster.peer import Peer, item, volume_id
from tests.harness import Failure
from tests.waiting import until

Code = grpc.StatusCode
ALLOCATED = "/csi.v1.SnapshotMetadata/GetMetadataAllocated"


@pytest.fixture
def controller(empty_cluster: Cluster) -> Controller:
    return empty_cluster.add_controller()


@pytest.fixture
def dial(controller: Controller, empty_cluster: Cluster) -> Iterator[Callable[[str], Peer]]:
    peers: list[Peer] = []

    def dialled(node: str) -> Peer:
        empty_cluster.api.nodes[node] = True
        peers.append(Peer(empty_cluster.port, empty_cluster.api.token(node), empty_cluster.ca_file))
        return peers[-1]

    yield dialled
    for peer in peers:
        peer.close()


@pytest.fixture
def node(controller: Controller, dial: Callable[[str], Peer]) -> Peer:
    """node-a, attached, with one volume."""
    peer = dial("node-a")
    peer.attach("node-a", "1")
    until(lambda: controller.attached() == 1)
    return peer


class Asking(threading.Thread):
    """A call in the background."""

    def __init__(self, controller: Controller, method: str, request: Any = None, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.answer: Any = None
        self.failure: Failure | None = None
        self._ask = lambda: controller.call(method, request, **fields)
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except Failure as failure:
            self.failure = failure


def channel_to(controller: Controller) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{controller.socket_path}", options=[("grpc.default_authority", "localhost")])


def test_bytes_go_down_and_up_as_they_are(controller: Controller, node: Peer) -> None:
    request = csi_pb2.ControllerGetVolumeRequest(volume_id=volume_id("node-a", "1")).SerializeToString()
    future = b"\xfa\x3f\x03abc"  # field 1023, of a protocol to come
    with channel_to(controller) as channel:
        call = channel.unary_unary("/csi.v1.Controller/ControllerGetVolume").future(request + future, timeout=7)
        down = node.next().call
        assert (down.method, down.request) == ("/csi.v1.Controller/ControllerGetVolume", request + future)
        # gRPC tells the server in hundredths of a second, rounded up.
        assert 6000 < down.timeout_milliseconds <= 7010
        node.reply(down, response=b"\xfa\x3f\x03xyz")
        assert call.result() == b"\xfa\x3f\x03xyz"


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
def test_codes_and_their_words_go_up_as_they_are(controller: Controller, node: Peer, code: grpc.StatusCode) -> None:
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    node.reply(node.next().call, code=code.value[0], message="in the node's own words, ü")
    asking.join(10)
    assert asking.failure is not None
    assert (asking.failure.code, asking.failure.details) == (code, "in the node's own words, ü")


def test_a_caller_without_a_deadline_sets_none(controller: Controller, node: Peer) -> None:
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"), timeout=None)
    down = node.next().call
    assert down.timeout_milliseconds == 0
    node.reply(down)
    asking.join(10)
    assert asking.failure is None


def test_a_late_reply_harms_nobody(controller: Controller, node: Peer) -> None:
    failure = controller.failure("DeleteVolume", volume_id=volume_id("node-a", "1"), timeout=0.5)
    assert failure.code is Code.DEADLINE_EXCEEDED
    late = node.next().call
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    again = node.next().call
    assert again.call_id != late.call_id
    node.reply(late, code=13, message="too late")
    node.reply(again)
    asking.join(10)
    assert asking.failure is None


def test_a_create_whose_end_nobody_heard_goes_to_the_same_node_again(
    controller: Controller, node: Peer, dial: Callable[[str], Peer]
) -> None:
    rich = dial("node-b")
    rich.attach("node-b", pools=peer_pb2.Pools(pools=[peer_pb2.Pool(name="default", available_bytes=1 << 40)]))
    until(lambda: controller.attached() == 2)
    request = csi_pb2.CreateVolumeRequest(name="free")
    assert controller.failure("CreateVolume", request, timeout=0.5).code is Code.DEADLINE_EXCEEDED
    assert rich.next().HasField("call")
    rich.send(inventory=peer_pb2.Inventory(pools=peer_pb2.Pools()))
    node.send(
        inventory=peer_pb2.Inventory(
            pools=peer_pb2.Pools(pools=[peer_pb2.Pool(name="default", available_bytes=1 << 41)])
        )
    )
    assert controller.failure("CreateVolume", request, timeout=0.5).code is Code.DEADLINE_EXCEEDED
    assert rich.next().HasField("call")
    assert node.received.empty()


def test_a_node_without_space_is_followed_by_the_next(
    controller: Controller, node: Peer, dial: Callable[[str], Peer]
) -> None:
    space = {"node-a": 3 << 30, "node-b": 2 << 30, "node-c": 1 << 20}
    peers = {"node-a": node, "node-b": dial("node-b"), "node-c": dial("node-c")}
    for name in ("node-b", "node-c"):
        peers[name].attach(name)
    until(lambda: controller.attached() == 3)
    for name, peer in peers.items():
        pools = peer_pb2.Pools(pools=[peer_pb2.Pool(name="default", available_bytes=space[name])])
        peer.send(inventory=peer_pb2.Inventory(items=[item(name, "told")], pools=pools))
    until(lambda: len([one for one in controller.volumes() if one.endswith("-told")]) == 3)
    asking = Asking(controller, "CreateVolume", name="free")
    node.reply(node.next().call, code=8, message="full after all")
    peers["node-b"].reply(peers["node-b"].next().call, code=8, message="full too")
    asking.join(10)
    assert asking.failure is not None
    assert (asking.failure.code, asking.failure.details) == (Code.RESOURCE_EXHAUSTED, "full too")
    assert peers["node-c"].received.empty()


def stream_of(controller: Controller) -> tuple[grpc.Channel, Any]:
    channel = channel_to(controller)
    snapshot_id = volume_id("node-a", "1").replace("vol-", "snap-")
    request = csi_pb2.GetMetadataAllocatedRequest(snapshot_id=snapshot_id).SerializeToString()
    return channel, channel.unary_stream(ALLOCATED)(request, timeout=30)


def test_streamed_answers_come_in_order_and_end_with_the_nodes_code(controller: Controller, node: Peer) -> None:
    channel, answers = stream_of(controller)
    down = node.next().call
    assert (down.method, down.credit) == (ALLOCATED, 4)
    for number in range(3):
        node.reply(down, response=b"\x08\x01" * (number + 1), more=True)
    node.reply(down, code=Code.DATA_LOSS.value[0], message="gone")
    assert [next(answers) for _ in range(3)] == [b"\x08\x01" * (number + 1) for number in range(3)]
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert (failure.value.code(), failure.value.details()) == (Code.DATA_LOSS, "gone")
    channel.close()


def test_credit_is_given_as_the_caller_reads_and_the_end_is_the_end(controller: Controller, node: Peer) -> None:
    channel, answers = stream_of(controller)
    down = node.next().call
    read = []
    for number in range(10):
        node.reply(down, response=bytes([8, number]), more=True)
        read.append(next(answers))
    granted = 0
    while granted < 9:
        message = node.next()
        assert message.credit.call_id == down.call_id
        granted += message.credit.messages
    node.reply(down)
    assert (read, list(answers)) == ([bytes([8, number]) for number in range(10)], [])
    channel.close()


def test_the_node_hears_when_nobody_reads_any_more(controller: Controller, node: Peer) -> None:
    channel, answers = stream_of(controller)
    down = node.next().call
    node.reply(down, response=b"\x08\x01", more=True)
    next(answers)
    answers.cancel()
    until(lambda: node.next().cancel.call_id == down.call_id, what="a cancel for the call")
    channel.close()


def test_a_stream_on_a_node_that_goes_away_is_unavailable(controller: Controller, node: Peer) -> None:
    channel, answers = stream_of(controller)
    node.reply(node.next().call, response=b"\x08\x01", more=True)
    assert next(answers) == b"\x08\x01"
    node.close()
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert failure.value.code() is Code.UNAVAILABLE
    channel.close()


def test_kinds_from_the_future_are_ignored(controller: Controller, node: Peer) -> None:
    node.send()  # a FromNode without any kind that is known
    node.send(reply=peer_pb2.Reply(call_id=1 << 60, code=0))
    future = peer_pb2.FromNode.FromString(b"\xfa\x3f\x03abc")
    node._up.put(future)
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    node.reply(node.next().call)
    asking.join(10)
    assert asking.failure is None


def test_the_newest_stream_of_a_node_wins(controller: Controller, node: Peer, dial: Callable[[str], Peer]) -> None:
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    asked = node.next().call
    newer = dial("node-a")
    newer.attach("node-a", "1", "2")
    until(lambda: controller.volumes() == [volume_id("node-a", end) for end in "12"])
    again = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    newer.reply(newer.next().call)
    again.join(10)
    assert again.failure is None
    assert asking.is_alive()
    node.reply(asked)
    asking.join(10)
    assert asking.failure is None
    assert node.refusal()[0] is Code.UNAVAILABLE


def test_an_older_stream_that_breaks_takes_only_its_own_calls_along(
    controller: Controller, node: Peer, dial: Callable[[str], Peer]
) -> None:
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    node.next()
    newer = dial("node-a")
    newer.attach("node-a", "1", "2")
    until(lambda: len(controller.volumes()) == 2)
    node.close()
    asking.join(10)
    assert asking.failure is not None
    assert asking.failure.code is Code.UNAVAILABLE
    again = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"))
    newer.reply(newer.next().call)
    again.join(10)
    assert again.failure is None


def test_a_node_that_goes_away_in_a_call_is_unavailable_at_once(controller: Controller, node: Peer) -> None:
    asking = Asking(controller, "DeleteVolume", volume_id=volume_id("node-a", "1"), timeout=30)
    node.next()
    began = time.monotonic()
    node.close()
    asking.join(10)
    assert asking.failure is not None
    assert asking.failure.code is Code.UNAVAILABLE
    assert time.monotonic() - began < 2


def test_a_change_is_listed_when_its_reply_is_there(controller: Controller, node: Peer) -> None:
    for number in range(50):
        asking = Asking(controller, "CreateVolume", on(f"n{number}", "node-a"))
        down = node.next().call
        node.send(inventory=peer_pb2.Inventory(items=[item("node-a", f"new{number:03}")]))
        node.reply(down)
        asking.join(10)
        assert volume_id("node-a", f"new{number:03}") in controller.volumes()


def test_a_node_takes_no_calls_before_its_inventory_is_complete(
    controller: Controller, dial: Callable[[str], Peer]
) -> None:
    slow = dial("node-a")
    slow.hello("node-a")
    slow.next()
    slow.send(inventory=peer_pb2.Inventory(items=[item("node-a", "1")]))
    failure = controller.failure("DeleteVolume", volume_id=volume_id("node-a", "1"))
    assert failure.code is Code.UNAVAILABLE
    slow.send(inventory=peer_pb2.Inventory(items=[item("node-a", "2")], complete=True))
    until(lambda: controller.volumes() == [volume_id("node-a", end) for end in "12"])
