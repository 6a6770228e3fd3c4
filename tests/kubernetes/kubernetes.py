"""A cluster as a person with kubectl and helm sees it: objects in, objects out, and looks into the driver's pods."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import waiting

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "daemonset/chart"
NAMESPACE = "hostvol-system"
RELEASE = "hostvol"
DRIVER = "csi.hostvol.dev"
TOPOLOGY_KEY = f"topology.{DRIVER}/node"
POOL = "/var/lib/hostvol"
SHARED = "shared"
NODE_PODS = "app.kubernetes.io/component=node"
CONTROLLER_PODS = "app.kubernetes.io/component=controller"

Object = dict[str, Any]


class CommandFailed(AssertionError):
    """kubectl, helm or the cluster's tool ended with an error."""


def run(*command: str, stdin: str = "", seconds: float = 120, environment: dict[str, str] | None = None) -> str:
    """What the command prints.

    Raises: CommandFailed.
    """
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=seconds,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)[:300]}: exit {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "", every: float = 0.25) -> Any:
    """The first true value of the condition; what it raises as CommandFailed counts as not yet."""
    last = ""

    def found() -> Any:
        nonlocal last
        try:
            return condition()
        except CommandFailed as failure:
            last = str(failure)

    return waiting.until(found, seconds, lambda: f"{what or condition} {last}", every=every)


@dataclass(frozen=True)
class Settings:
    """What scripts/test-cluster tells the tests, by environment variables."""

    kubeconfig: str
    image: str
    pod_image: str
    helm: str
    tool: str
    helm_arguments: tuple[str, ...]

    @classmethod
    def from_environment(cls) -> Settings:
        told = os.environ
        return cls(
            kubeconfig=told["HOSTVOL_TEST_KUBECONFIG"],
            image=told["HOSTVOL_TEST_IMAGE"],
            pod_image=told.get("HOSTVOL_TEST_POD_IMAGE") or "docker.io/library/busybox:1.37",
            helm=told.get("HOSTVOL_TEST_HELM") or "helm",
            tool=told.get("HOSTVOL_TEST_CLUSTER_TOOL", ""),
            helm_arguments=tuple(told.get("HOSTVOL_TEST_HELM_ARGUMENTS", "").split()),
        )


@dataclass
class Kubernetes:
    """kubectl and helm as the administrator."""

    settings: Settings
    _environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._environment = {"KUBECONFIG": self.settings.kubeconfig}

    def kubectl(self, *arguments: str, stdin: str = "", seconds: float = 120) -> str:
        return run("kubectl", *arguments, stdin=stdin, seconds=seconds, environment=self._environment)

    def helm(self, *arguments: str, seconds: float = 300) -> str:
        return run(self.settings.helm, *arguments, seconds=seconds, environment=self._environment)

    def tool(self, *arguments: str) -> str:
        """The program that crashes and starts nodes: `crash NODE`, `start NODE`, `restart NODE PROGRAM`."""
        return run(self.settings.tool, *arguments, seconds=300)

    def apply(self, *objects: Object) -> None:
        """Create or change."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(listed))

    def dry_run(self, *objects: Object) -> None:
        """Whether the API server would create the objects, all its policies included.

        Raises: CommandFailed.
        """
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(listed))

    def refused(self, *objects: Object) -> str:
        """Why the API server would not create the objects."""
        try:
            self.dry_run(*objects)
        except CommandFailed as failure:
            return str(failure)
        raise AssertionError(f"accepted: {objects}")

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        place = ("-n", namespace) if namespace else ()
        found: Object = json.loads(self.kubectl("get", kind, name, *place, "-o", "json"))
        return found

    def find(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        place = ("-n", namespace) if namespace else ("-A",)
        which = ("-l", selector) if selector else ()
        found: list[Object] = json.loads(self.kubectl("get", kind, *place, *which, "-o", "json"))["items"]
        return found

    def delete(self, kind: str, *names: str, namespace: str = "", wait: bool = True, now: bool = False) -> None:
        place = ("-n", namespace) if namespace else ()
        grace = ("--grace-period=0", "--force") if now else ()
        self.kubectl("delete", kind, *names, *place, *grace, f"--wait={str(wait).lower()}", "--ignore-not-found")

    def wait(self, kind: str, *names: str, condition: str, namespace: str, seconds: float = 120) -> None:
        """Wait until all of them fulfil a condition of `kubectl wait --for`."""
        self.kubectl(
            *("wait", f"--for={condition}", f"--timeout={int(seconds)}s", "-n", namespace),
            *(f"{kind}/{name}" for name in names),
            seconds=seconds + 30,
        )

    def execute(self, pod: str, *command: str, namespace: str, container: str = "") -> str:
        which = ("-c", container) if container else ()
        return self.kubectl("exec", "-n", namespace, pod, *which, "--", *command)

    def events(self, kind: str, name: str, namespace: str = "default") -> list[Object]:
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        listed = self.kubectl("get", "events", "-n", namespace, "--field-selector", selector, "-o", "json")
        found: list[Object] = json.loads(listed)["items"]
        return found

    # The driver.

    def install(self, *arguments: str, image: str = "") -> str:
        """`helm upgrade --install` of the chart in the tree; returns when all pods are ready."""
        repository, _, tag = (image or self.settings.image).rpartition(":")
        snapshots = ("--set", "sidecars.snapshotter.enabled=true") if self.has_snapshots() else ()
        if self.has_group_snapshots():
            snapshots += ("--set", "sidecars.snapshotter.groups=true")
        return self.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"),
            *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
            *(*snapshots, *self.settings.helm_arguments, *arguments, "--wait", "--timeout", "240s"),
        )

    def has_snapshots(self) -> bool:
        """Whether the cluster knows VolumeSnapshots."""
        return "volumesnapshots" in self.kubectl("api-resources", "--api-group=snapshot.storage.k8s.io", "-o", "name")

    def has_group_snapshots(self) -> bool:
        """Whether the cluster knows VolumeGroupSnapshots."""
        known = self.kubectl("api-resources", "--api-group=groupsnapshot.storage.k8s.io", "-o", "name")
        return "volumegroupsnapshots" in known

    def uninstall(self) -> str:
        return self.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "120s")

    def nodes(self) -> list[str]:
        """The names of the nodes on which the driver runs."""
        return sorted(pod["spec"]["nodeName"] for pod in self.find("pods", NAMESPACE, NODE_PODS))

    def agent(self, node: str) -> str:
        """The name of the driver's pod on the node."""
        for pod in self.find("pods", NAMESPACE, NODE_PODS):
            if pod["spec"]["nodeName"] == node and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        raise CommandFailed(f"no pod of the driver on {node}")

    def on_node(self, node: str, *command: str) -> str:
        """What a command prints in the driver's container on the node."""
        return self.execute(self.agent(node), *command, namespace=NAMESPACE)

    def has_attributes_classes(self) -> bool:
        """Whether the cluster has VolumeAttributesClasses as csi-resizer wants them."""
        found = self.kubectl("api-resources", "--api-group=storage.k8s.io", "--no-headers")
        return any("storage.k8s.io/v1 " in line for line in found.splitlines() if "volumeattributesclass" in line)

    def volumes_on(self, node: str) -> list[Object]:
        """What `hostvol volume list` tells there."""
        found: list[Object] = json.loads(self.on_node(node, "hostvol", "volume", "list", "--output", "json"))
        return found

    def python_on(self, node: str, program: str) -> Any:
        """What a Python program prints there, as JSON."""
        return json.loads(self.on_node(node, "python3", "-c", program))

    def remains_on(self, node: str) -> list[str]:
        """Every mount, loop device and file of a volume on the node."""
        found: list[str] = self.python_on(node, _REMAINS)
        return found

    def controllers_ready(self) -> bool:
        pods = self.find("pods", NAMESPACE, CONTROLLER_PODS)
        return bool(pods) and all(is_ready(pod) for pod in pods)


# Below the kubelet's directory and the pools; templates are the driver's own cache.
_REMAINS = f"""
import glob, json, os
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
found = [path for path in mounts if "/{DRIVER}/" in path or "kubernetes.io~csi" in path]
for path in glob.glob("/sys/block/loop*/loop/backing_file"):
    name = open(path).read().strip()
    if "/volumes/vol-" in name and "hostvol" in name and os.path.exists(name.removesuffix(" (deleted)")):
        found.append(name)
for room in ("volumes", "snapshots", "tmp", "trash"):
    found += [f"{{room}}/{{name}}" for name in os.listdir("{POOL}/" + room)]
found += ["state/" + name for name in glob.glob("/run/hostvol/**/vol-*", recursive=True)]
print(json.dumps(found))
"""


def with_pool(**settings: str) -> tuple[str, ...]:
    """Arguments of `install`: the default pool, with more settings. Helm replaces a list as a whole."""
    return _pool(0, {"name": "default", "path": POOL, "init": "true", **settings})


def with_shared_pool(size: str, **settings: str) -> tuple[str, ...]:
    """Arguments of `install`: beside the default pool one that can share blocks, in a backing file of that size."""
    backed = {"name": SHARED, "path": f"{POOL}-{SHARED}", "init": "true", "backingFile": size, **settings}
    return with_pool() + _pool(1, backed)


def _pool(index: int, settings: dict[str, str]) -> tuple[str, ...]:
    return tuple(word for key, value in settings.items() for word in ("--set", f"pools[{index}].{key}={value}"))


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def storage_class(name: str, parameters: dict[str, str] | None = None, **fields: Any) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "parameters": parameters or {},
        **fields,
    }


def attributes_class(name: str, parameters: dict[str, str]) -> Object:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttributesClass",
        "metadata": {"name": name},
        "driverName": DRIVER,
        "parameters": parameters,
    }


def claim(
    name: str,
    namespace: str,
    storage_class: str,
    size: str = "64Mi",
    *,
    block: bool = False,
    mode: str = "ReadWriteOnce",
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": [mode],
            "storageClassName": storage_class,
            "volumeMode": "Block" if block else "Filesystem",
            "resources": {"requests": {"storage": size}},
        },
    }


@dataclass
class PodMaker:
    """Pods of a tiny image that sleep until they are told otherwise."""

    image: str

    def __call__(
        self,
        name: str,
        namespace: str,
        claims: Sequence[str] = (),
        *,
        command: str = "trap 'exit 0' TERM; while :; do sleep 1; done",
        devices: Sequence[str] = (),
        mounts: dict[str, Any] | None = None,
        node: str = "",
        **spec: Any,
    ) -> Object:
        """Claims are mounted at /NAME, devices shown as /dev/NAME; `mounts` adds fields to each mount."""
        container: Object = {
            "name": "main",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command],
            "volumeMounts": [{"name": one, "mountPath": f"/{one}", **(mounts or {})} for one in claims],
            "volumeDevices": [{"name": one, "devicePath": f"/dev/{one}"} for one in devices],
        }
        container.update(spec.pop("container", {}))
        volumes = [{"name": one, "persistentVolumeClaim": {"claimName": one}} for one in (*claims, *devices)]
        chosen = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "containers": [container],
                "volumes": volumes,
                "terminationGracePeriodSeconds": 1,
                **chosen,
                **spec,
            },
        }
