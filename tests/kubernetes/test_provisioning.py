"""A claim becomes a volume under a running pod, on the node that the scheduler chose.

- Image (ext4, xfs, raw block) and directory volumes: what is written survives the pod; deleting the claim removes all.
- The PersistentVolume can be used on its node only, and says so.
- The driver needs no attachment, and nothing is left afterwards, not even a VolumeAttachment.
- A pod with mount options, fsGroup, subPath, a read-only mount gets what Kubernetes promises.
- ReadWriteOncePod admits one pod; ReadWriteOnce admits several on the node.
"""

from __future__ import annotations

import pytest

from tests.kubernetes.conftest import DIRECTORY, XFS, volumes_of
from tests.kubernetes.kubernetes import TOPOLOGY_KEY, CommandFailed, Kubernetes, PodMaker, claim, until

CLASSES = ["hostvol", XFS, DIRECTORY]


def start(kubernetes: Kubernetes, namespace: str, *objects: dict[str, object]) -> None:
    """Apply the objects and wait until their pods run."""
    kubernetes.apply(*objects)  # type: ignore[arg-type]
    pods = [one["metadata"]["name"] for one in objects if one["kind"] == "Pod"]  # type: ignore[index]
    kubernetes.wait("pod", *pods, condition="condition=Ready", namespace=namespace)


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_pod_wrote_is_there_for_the_next_one(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str
) -> None:
    start(kubernetes, namespace, claim("data", namespace, name, "320Mi"), pod("first", namespace, ["data"]))
    kubernetes.execute("first", "sh", "-c", "echo kept > /data/file && sync", namespace=namespace)
    [volume] = volumes_of(kubernetes, namespace)
    node = kubernetes.get("pod", "first", namespace)["spec"]["nodeName"]
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": TOPOLOGY_KEY, "operator": "In", "values": [node]}]
    assert [one["volume_id"] for one in kubernetes.volumes_on(node)] == [volume["spec"]["csi"]["volumeHandle"]]
    kubernetes.delete("pod", "first", namespace=namespace)
    start(kubernetes, namespace, pod("second", namespace, ["data"]))
    assert kubernetes.get("pod", "second", namespace)["spec"]["nodeName"] == node
    assert kubernetes.execute("second", "cat", "/data/file", namespace=namespace) == "kept\n"


def test_an_image_has_the_size_that_was_asked_for(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, "hostvol", "64Mi"), pod("main", namespace, ["data"]))
    kilobytes = kubernetes.execute("main", "df", "-k", "/data", namespace=namespace).split()[-5]
    assert 48 << 10 < int(kilobytes) <= 64 << 10
    with pytest.raises(CommandFailed, match="No space left"):
        kubernetes.execute("main", "dd", "if=/dev/zero", "of=/data/fill", "bs=1M", "count=80", namespace=namespace)


def test_a_raw_block_volume_keeps_its_bytes(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    device = claim("disk", namespace, "hostvol", "16Mi", block=True)
    start(kubernetes, namespace, device, pod("first", namespace, devices=["disk"]))
    write = "echo kept | dd of=/dev/disk bs=4096 seek=7 conv=sync,fsync"
    kubernetes.execute("first", "sh", "-c", write, namespace=namespace)
    assert int(kubernetes.execute("first", "blockdev", "--getsize64", "/dev/disk", namespace=namespace)) == 16 << 20
    kubernetes.delete("pod", "first", namespace=namespace)
    start(kubernetes, namespace, pod("second", namespace, devices=["disk"]))
    read = "dd if=/dev/disk bs=4096 skip=7 count=1 2>/dev/null | head -n 1"
    assert kubernetes.execute("second", "sh", "-c", read, namespace=namespace).strip("\0") == "kept\n"


def test_options_of_the_class_are_those_of_the_mount(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, XFS, "320Mi"), pod("main", namespace, ["data"]))
    options = mount_options(kubernetes, namespace, "main", "/data")
    assert {"noatime", "nosuid", "nodev"} <= options
    assert "ro" not in options


def mount_options(kubernetes: Kubernetes, namespace: str, name: str, path: str) -> set[str]:
    for line in kubernetes.execute(name, "cat", "/proc/mounts", namespace=namespace).splitlines():
        fields = line.split()
        if fields[1] == path:
            return set(fields[3].split(","))
    raise AssertionError(f"nothing is mounted at {path}")


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_the_group_of_a_pod_may_write(kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str) -> None:
    context = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242}
    main = pod("main", namespace, ["data"], securityContext=context)
    start(kubernetes, namespace, claim("data", namespace, name), main)
    kubernetes.execute("main", "touch", "/data/mine", namespace=namespace)
    assert kubernetes.execute("main", "stat", "-c", "%g", "/data", "/data/mine", namespace=namespace).split() == [
        "4242",
        "4242",
    ]


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_a_pod_sees_only_the_path_that_it_asks_for(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str
) -> None:
    below = pod("main", namespace, ["data"], mounts={"subPath": "only/this"})
    start(kubernetes, namespace, claim("data", namespace, name), below, pod("all", namespace, ["data"]))
    kubernetes.execute("main", "touch", "/data/file", namespace=namespace)
    assert kubernetes.execute("all", "ls", "/data/only/this", namespace=namespace) == "file\n"


@pytest.mark.parametrize("name", ["hostvol", DIRECTORY])
def test_a_read_only_mount_cannot_be_written(kubernetes: Kubernetes, namespace: str, pod: PodMaker, name: str) -> None:
    reader = pod("reader", namespace, ["data"])
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = True
    start(kubernetes, namespace, claim("data", namespace, name), pod("writer", namespace, ["data"]), reader)
    kubernetes.execute("writer", "touch", "/data/file", namespace=namespace)
    assert kubernetes.execute("reader", "ls", "/data/file", namespace=namespace) == "/data/file\n"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        kubernetes.execute("reader", "touch", "/data/other", namespace=namespace)


def test_one_pod_alone_may_have_a_read_write_once_pod_volume(
    kubernetes: Kubernetes, namespace: str, pod: PodMaker
) -> None:
    alone = claim("data", namespace, "hostvol", mode="ReadWriteOncePod")
    start(kubernetes, namespace, alone, pod("first", namespace, ["data"]))
    kubernetes.apply(pod("second", namespace, ["data"]))
    until(
        lambda: "ReadWriteOncePod" in reasons(kubernetes, namespace, "second"), what="the scheduler says why it waits"
    )
    kubernetes.delete("pod", "first", namespace=namespace)
    kubernetes.wait("pod", "second", condition="condition=Ready", namespace=namespace)


def reasons(kubernetes: Kubernetes, namespace: str, name: str) -> str:
    return " ".join(event["message"] for event in kubernetes.events("Pod", name, namespace))


def test_a_claim_that_no_node_can_fulfil_says_why(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    kubernetes.apply(claim("data", namespace, "hostvol", "900Ti"), pod("main", namespace, ["data"]))
    until(lambda: "did not have enough free storage" in reasons(kubernetes, namespace, "main"), what="the pod's Event")
