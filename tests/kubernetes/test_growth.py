"""A claim that is raised becomes a larger volume under its pod.

- XFS, raw block and directories grow while the pod uses them: it is not started again, and sees the new size.
- ext4 grows under the pod where the driver may do that (CAP_SYS_RESOURCE), and otherwise when the pod comes next.
- What the pool cannot give is refused with the numbers, which the claim tells.
"""

from __future__ import annotations

import json

from tests.kubernetes.conftest import DIRECTORY, XFS
from tests.kubernetes.kubernetes import Kubernetes, PodMaker, claim, until


def start(kubernetes: Kubernetes, namespace: str, *objects: dict[str, object]) -> None:
    kubernetes.apply(*objects)
    kubernetes.wait("pod", "main", condition="condition=Ready", namespace=namespace)


def raise_to(kubernetes: Kubernetes, namespace: str, size: str) -> None:
    """Ask for more."""
    patch = {"spec": {"resources": {"requests": {"storage": size}}}}
    kubernetes.kubectl("patch", "pvc", "data", "-n", namespace, "--type=merge", "-p", json.dumps(patch))


def has(kubernetes: Kubernetes, namespace: str, size: str) -> bool:
    """Whether the claim says that it is so large now."""
    return bool(kubernetes.get("pvc", "data", namespace)["status"]["capacity"]["storage"] == size)


def mebibytes(kubernetes: Kubernetes, namespace: str) -> int:
    return int(kubernetes.execute("main", "df", "-k", "/data", namespace=namespace).split()[-5]) >> 10


def restarts(kubernetes: Kubernetes, namespace: str) -> int:
    status = kubernetes.get("pod", "main", namespace)["status"]["containerStatuses"][0]
    return int(status["restartCount"])


def test_xfs_grows_under_its_pod(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, XFS, "320Mi"), pod("main", namespace, ["data"]))
    before = mebibytes(kubernetes, namespace)
    raise_to(kubernetes, namespace, "640Mi")
    until(lambda: mebibytes(kubernetes, namespace) > before + 300, 90, "the filesystem has grown")
    until(lambda: has(kubernetes, namespace, "640Mi"), 60, "the claim says so")
    assert restarts(kubernetes, namespace) == 0


def test_a_device_grows_under_its_pod(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    disk = claim("data", namespace, "hostvol", "16Mi", block=True)
    start(kubernetes, namespace, disk, pod("main", namespace, devices=["data"]))
    raise_to(kubernetes, namespace, "48Mi")

    def size() -> int:
        return int(kubernetes.execute("main", "blockdev", "--getsize64", "/dev/data", namespace=namespace))

    until(lambda: size() == 48 << 20, 90, "the device has grown")
    until(lambda: has(kubernetes, namespace, "48Mi"), 60, "the claim says so")
    assert restarts(kubernetes, namespace) == 0


def test_a_directory_grows(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, DIRECTORY, "16Mi"), pod("main", namespace, ["data"]))
    raise_to(kubernetes, namespace, "48Mi")
    until(lambda: has(kubernetes, namespace, "48Mi"), 90, "the claim says so")


def test_ext4_grows_under_its_pod_or_for_the_next_one(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, "hostvol", "64Mi"), pod("main", namespace, ["data"]))
    node = kubernetes.get("pod", "main", namespace)["spec"]["nodeName"]
    before = mebibytes(kubernetes, namespace)
    raise_to(kubernetes, namespace, "256Mi")

    def grown_or_told() -> bool:
        return mebibytes(kubernetes, namespace) > before or "CAP_SYS_RESOURCE" in told(kubernetes, namespace)

    until(grown_or_told, 120, "it has grown, or the claim says why not")
    if mebibytes(kubernetes, namespace) == before:
        kubernetes.delete("pod", "main", namespace=namespace)
        until(lambda: not kubernetes.volumes_on(node)[0]["staging_paths"], 60, "it is unstaged")
        start(kubernetes, namespace, pod("main", namespace, ["data"]))
    assert mebibytes(kubernetes, namespace) > before + 150
    until(lambda: has(kubernetes, namespace, "256Mi"), 120, "the claim says so")


def test_what_the_pool_cannot_give_is_refused(kubernetes: Kubernetes, namespace: str, pod: PodMaker) -> None:
    start(kubernetes, namespace, claim("data", namespace, XFS, "320Mi"), pod("main", namespace, ["data"]))
    raise_to(kubernetes, namespace, "900Gi")
    until(lambda: "can grant" in told(kubernetes, namespace), 90, "the claim says how much there is")


def told(kubernetes: Kubernetes, namespace: str) -> str:
    """What the claim's Events and conditions say."""
    events = kubernetes.events("PersistentVolumeClaim", "data", namespace)
    conditions = kubernetes.get("pvc", "data", namespace)["status"].get("conditions", [])
    return " ".join(str(one.get("message", "")) for one in (*events, *conditions))
