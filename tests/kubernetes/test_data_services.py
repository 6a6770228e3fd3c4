"""What has no object of Kubernetes' own, tried on volumes that Kubernetes made, in the pods of the driver.

- A deleted claim comes back by the steps of docs/undelete.md, with its data, and is deleted as before.
- The changed blocks of two VolumeSnapshots are told by the controller; an increment of the later one, behind a stream
  of the earlier one, makes a volume with what was written last.
- A claim has the content of a VolumeSnapshot again after a rollback between two of its pods.
- A volume whose image is lost is told at its claim and its node until it is there again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kubernetes.kubernetes import (
    DRIVER,
    NAMESPACE,
    POOL,
    SHARED,
    TOPOLOGY_KEY,
    Kubernetes,
    Object,
    PodMaker,
    claim,
    storage_class,
    until,
    with_shared_pool,
)
from tests.kubernetes.test_snapshots import run, snapshot, status

RETAINED, SHARING = "test-retained", "test-sharing"
MIB = 1 << 20

# That the sidecars use.
SOCKET = "unix:///csi/csi.sock"
# All changed blocks of TARGET since BASE.
_CHANGED = """
import grpc, json, sys
from csi_driver.pb import csi_pb2
with grpc.insecure_channel(sys.argv[1]) as channel:
    changed = channel.unary_stream(
        "/csi.v1.SnapshotMetadata/GetMetadataDelta",
        csi_pb2.GetMetadataDeltaRequest.SerializeToString,
        csi_pb2.GetMetadataDeltaResponse.FromString,
    )
    request = csi_pb2.GetMetadataDeltaRequest(base_snapshot_id=sys.argv[2], target_snapshot_id=sys.argv[3])
    answers = changed(request, timeout=60)
    print(json.dumps([[one.byte_offset, one.size_bytes] for answer in answers for one in answer.block_metadata]))
"""
# The reasons why volumes are ill, by the volumes' ids.
_ILL = """
import grpc, json, sys
from csi_driver.pb import csi_pb2
with grpc.insecure_channel(sys.argv[1]) as channel:
    listed = channel.unary_unary(
        "/csi.v1.Controller/ControllerListVolumeHealth",
        csi_pb2.ControllerListVolumeHealthRequest.SerializeToString,
        csi_pb2.ControllerListVolumeHealthResponse.FromString,
    )
    entries = listed(csi_pb2.ControllerListVolumeHealthRequest(), timeout=60).entries
    print(json.dumps({one.volume_id: [status.reason for status in one.health_statuses] for one in entries}))
"""


@pytest.fixture(scope="module", autouse=True)
def classes(kubernetes: Kubernetes) -> Iterator[None]:
    kubernetes.install(*with_shared_pool("2Gi"))
    kubernetes.apply(storage_class(RETAINED, {"retention": "1h"}), storage_class(SHARING, {"pool": SHARED}))
    yield
    kubernetes.delete("storageclass", RETAINED, SHARING)
    kubernetes.install()


@pytest.fixture
def node(kubernetes: Kubernetes) -> str:
    return kubernetes.nodes()[-1]


def hostvol(kubernetes: Kubernetes, node: str, *command: str) -> Any:
    return json.loads(kubernetes.on_node(node, "hostvol", *command, "--output", "json"))


def bound(kubernetes: Kubernetes, namespace: str, name: str) -> str:
    """The PersistentVolume of the claim, which is the name of its volume."""
    return str(kubernetes.get("pvc", name, namespace)["spec"]["volumeName"])


def cut(kubernetes: Kubernetes, namespace: str, name: str) -> str:
    """The id of a snapshot of the claim `data`."""
    kubernetes.apply(snapshot(name, namespace, "data"))
    until(lambda: status(kubernetes, namespace, name).get("readyToUse"), 90, "the snapshot is ready")
    content = status(kubernetes, namespace, name)["boundVolumeSnapshotContentName"]
    return str(kubernetes.get("volumesnapshotcontent", content)["status"]["snapshotHandle"])


def write(kubernetes: Kubernetes, namespace: str, text: str) -> None:
    more = "dd if=/dev/urandom of=/data/more bs=1M count=1"
    kubernetes.execute("main", "sh", "-c", f"echo {text} > /data/file && {more} && sync", namespace=namespace)


def content(kubernetes: Kubernetes, namespace: str) -> str:
    return kubernetes.execute("main", "cat", "/data/file", namespace=namespace).strip()


def names_in_trash(kubernetes: Kubernetes, node: str) -> list[str]:
    return [str(one["name"]) for one in hostvol(kubernetes, node, "trash", "list")]


def unstaged(kubernetes: Kubernetes, node: str) -> bool:
    return not any(one["staging_paths"] for one in kubernetes.volumes_on(node))


def by_hand(name: str, namespace: str, volume: Object, node: str) -> list[Object]:
    """The PersistentVolume and the claim of docs/undelete.md."""
    wanted = claim("data", namespace, RETAINED, str(volume["capacity_bytes"]))
    wanted["spec"]["volumeName"] = name
    where = {"matchExpressions": [{"key": TOPOLOGY_KEY, "operator": "In", "values": [node]}]}
    spec = {
        "capacity": {"storage": str(volume["capacity_bytes"])},
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": RETAINED,
        "claimRef": {"namespace": namespace, "name": "data"},
        "csi": {"driver": DRIVER, "volumeHandle": volume["volume_id"], "fsType": volume["filesystem"]},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [where]}},
    }
    annotations = {"pv.kubernetes.io/provisioned-by": DRIVER}
    made = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    }
    return [made, wanted]


def test_a_deleted_claim_comes_back(kubernetes: Kubernetes, namespace: str, pod: PodMaker, node: str) -> None:
    pods = pod("main", namespace, ["data"], node=node)
    run(kubernetes, namespace, claim("data", namespace, RETAINED), pods)
    write(kubernetes, namespace, "kept")
    name = bound(kubernetes, namespace, "data")
    kubernetes.delete("pod", "main", namespace=namespace)
    kubernetes.delete("pvc", "data", namespace=namespace)
    until(
        lambda: [one["name"] for one in hostvol(kubernetes, node, "trash", "list")] == [name], 60, "it is in the trash"
    )
    kubernetes.on_node(node, "hostvol", "trash", "restore", name)
    volume = hostvol(kubernetes, node, "volume", "show", name)
    run(kubernetes, namespace, *by_hand(name, namespace, volume, node), pods)
    assert content(kubernetes, namespace) == "kept"
    kubernetes.kubectl("patch", "pv", name, "-p", '{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}')
    kubernetes.delete("pod", "main", namespace=namespace)
    kubernetes.delete("pvc", "data", namespace=namespace)
    until(lambda: names_in_trash(kubernetes, node) == [name], 60, "it is in the trash again")
    kubernetes.on_node(node, "hostvol", "trash", "purge", "--all", "--yes")


def test_changed_blocks_increments_and_a_rollback(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, node: str
) -> None:
    if not kubernetes.has_snapshots():
        pytest.skip("needs the CustomResourceDefinitions and the controller of VolumeSnapshots")
    pods = pod("main", namespace, ["data"], node=node)
    run(kubernetes, namespace, claim("data", namespace, SHARING), pods)
    write(kubernetes, namespace, "monday")
    monday = cut(kubernetes, namespace, "monday")
    write(kubernetes, namespace, "tuesday")
    tuesday = cut(kubernetes, namespace, "tuesday")
    changed = ("python3", "-c", _CHANGED, SOCKET, monday, tuesday)
    blocks = json.loads(kubernetes.execute("hostvol-controller-0", *changed, namespace=NAMESPACE, container="hostvol"))
    assert MIB <= sum(size for _, size in blocks) <= 8 * MIB
    check_increment(kubernetes, node, monday, tuesday, name=namespace)
    kubernetes.delete("pod", "main", namespace=namespace)
    until(lambda: unstaged(kubernetes, node), 60, "it is unstaged")
    kubernetes.on_node(node, "hostvol", "volume", "rollback", "--yes", bound(kubernetes, namespace, "data"), monday)
    run(kubernetes, namespace, pods)
    assert content(kubernetes, namespace) == "monday"
    [entry] = hostvol(kubernetes, node, "trash", "list")
    kubernetes.on_node(node, "hostvol", "trash", "purge", "--yes", entry["entry"])
    kubernetes.delete("volumesnapshot", "monday", "tuesday", namespace=namespace)


def check_increment(kubernetes: Kubernetes, node: str, base: str, target: str, name: str) -> None:
    """Exported, imported and looked at in the driver's pod."""
    program = f"""
        set -euo pipefail
        (hostvol export {base} && hostvol export {target} --base {base}) |
            hostvol import --name {name} --pool {SHARED} >&2
        mkdir -p /dev/shm/imported
        hostvol volume mount {name} /dev/shm/imported >&2
        cat /dev/shm/imported/file
        hostvol volume umount {name} /dev/shm/imported >&2
        hostvol volume delete --yes {name} >&2
    """
    assert kubernetes.on_node(node, "bash", "-c", program).strip() == "tuesday"


@contextmanager
def away(kubernetes: Kubernetes, node: str, path: str) -> Iterator[None]:
    """The file of the node has another name meanwhile."""
    kubernetes.on_node(node, "mv", path, f"{path}.away")
    try:
        yield
    finally:
        kubernetes.on_node(node, "mv", f"{path}.away", path)


def ill(kubernetes: Kubernetes) -> dict[str, list[str]]:
    """What is wrong now, by volume."""
    listed = ("python3", "-c", _ILL, SOCKET)
    told = kubernetes.execute("hostvol-controller-0", *listed, namespace=NAMESPACE, container="hostvol")
    found: dict[str, list[str]] = json.loads(told)
    return found


def test_a_lost_image_is_told_until_it_is_there_again(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, node: str
) -> None:
    run(kubernetes, namespace, claim("data", namespace, "hostvol"), pod("main", namespace, ["data"], node=node))
    kubernetes.delete("pod", "main", namespace=namespace)
    until(lambda: unstaged(kubernetes, node), 60, "it is unstaged")
    handle = kubernetes.get("pv", bound(kubernetes, namespace, "data"))["spec"]["csi"]["volumeHandle"]
    image = f"{POOL}/volumes/{handle}/disk.img"

    def told(kind: str, name: str, where: str) -> bool:
        events = kubernetes.events(kind, name, where)
        return any(one["reason"] == "ContentMissing" and handle in str(one["message"]) for one in events)

    with away(kubernetes, node, image):
        until(lambda: told("PersistentVolumeClaim", "data", namespace), 90, "the claim tells it")
        until(lambda: told("Node", node, "default"), 30, "the node tells it")
        until(lambda: ill(kubernetes).get(handle) == ["ContentMissing"], 30, "the controller lists it")
    until(lambda: handle not in ill(kubernetes), 60, "it is well again")
    run(kubernetes, namespace, pod("main", namespace, ["data"], node=node))
