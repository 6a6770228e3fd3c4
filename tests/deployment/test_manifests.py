"""The chart keeps what the documents and the programs promise each other.

- The defaults name this version's image, and the chart is this version's.
- A node has no rights in the orchestrator's API; the controller's are named and argued for one by one.
- The controller runs as nobody, with nothing; a node's pod is one container that shares no network with its host.
- What the pods' arguments say is understood by the programs, as it is meant.
- Selectors, ports and probes meet what they are for.
- Another driver name, kubelet directory, namespace and other pools are taken everywhere, or nowhere.
- A sidecar that is switched on comes with its privileges; one that is off leaves none.
- Wrong values are refused by the place where they stand.
"""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest
import yaml

from csi_driver import __version__, app, app_controller
from csi_driver.domain.pools import PoolOptions
from csi_driver.model import DEFAULT_DRIVER_NAME, PoolName
from tests.deployment.chart import (
    CHART,
    Object,
    Objects,
    Refused,
    container,
    helm,
    pod_of,
    render,
    render_text,
    strings,
)

pytestmark = pytest.mark.usefixtures("needs_helm")

NODE, CONTROLLER = ("DaemonSet", "hostvol-node"), ("StatefulSet", "hostvol-controller")
ROLES, BINDINGS = ("Role", "ClusterRole"), ("RoleBinding", "ClusterRoleBinding")
OTHER: Object = {
    "driverName": "disks.example.com",
    "kubeletDir": "/var/lib/other/kubelet",
    "pools": [
        {
            "name": "fast",
            "path": "/nvme/volumes",
            "overcommit": 1.5,
            "ephemeral": "1.5Gi",
            "retention": "30d",
            "trash": "20%",
        },
        {"name": "slow", "path": "/hdd", "init": True, "backingFile": "100Gi"},
    ],
}


def variables(workload: Object) -> dict[str, str]:
    """The driver's environment, downward fields by their path."""
    listed = container(workload, "hostvol").get("env", [])
    return {one["name"]: one.get("value") or one["valueFrom"]["fieldRef"]["fieldPath"] for one in listed}


def asked_of(workload: Object, monkeypatch: pytest.MonkeyPatch, **downward: str) -> dict[str, Any]:
    """What its arguments and variables ask of the `hostvol` command, by option."""
    for name, value in (variables(workload) | downward).items():
        monkeypatch.setenv(name, value)
    name, *arguments = container(workload, "hostvol")["args"]
    # Below the group as in the program: a command keeps the first help option that it is asked for.
    group = click.Context(app.cli, **app.cli.context_settings)
    return app.cli.commands[name].make_context(name, list(arguments), parent=group).params


def node_configuration(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> app.NodeConfig:
    return app.node_config(asked_of(objects[NODE], monkeypatch, HOSTVOL_NODE_ID="worker-1"))


def test_the_defaults_are_of_this_version(objects: Objects) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    for workload in (NODE, CONTROLLER):
        assert container(objects[workload], "hostvol")["image"].endswith(f":{__version__}")


def test_the_linter_has_nothing_to_say() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


def test_the_notes_say_where_the_data_remains() -> None:
    notes = helm("install", "hostvol", str(CHART), "--dry-run=client", values=OTHER)
    assert "/nvme/volumes/volumes" in notes
    assert "/hdd/volumes" in notes


def test_a_node_has_no_rights(objects: Objects) -> None:
    subjects = [subject for (kind, _), one in objects.items() if kind in BINDINGS for subject in one["subjects"]]
    assert {(subject["kind"], subject["name"]) for subject in subjects} == {("ServiceAccount", "hostvol-controller")}
    assert objects["ServiceAccount", "hostvol-node"]["automountServiceAccountToken"] is False
    pod = pod_of(objects[NODE])
    assert pod["serviceAccountName"] == "hostvol-node"
    assert pod["automountServiceAccountToken"] is False


def test_a_nodes_token_is_made_for_the_controller_alone() -> None:
    pod = pod_of(render(OTHER)[NODE])
    [source] = [volume["projected"]["sources"] for volume in pod["volumes"] if "projected" in volume]
    assert source == [
        {"serviceAccountToken": {"audience": "disks.example.com", "expirationSeconds": 3600, "path": "token"}}
    ]


@pytest.mark.parametrize("enabled", [False, True])
def test_privileges_are_named_one_by_one(enabled: bool) -> None:
    for (kind, _), role in render(sidecars(enabled)).items():
        for rule in role["rules"] if kind in ROLES else []:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "nonResourceURLs" not in rule
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])
            assert not {"pods/exec", "serviceaccounts/token", "nodes/proxy"} & set(rule["resources"])
            if "secrets" in rule["resources"]:
                assert kind == "Role"
                assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["hostvol-controller-ca"]


def test_every_privilege_is_argued_for() -> None:
    lines = (CHART / "templates/rbac.yaml").read_text().splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("  - apiGroups:")]
    assert rules
    assert [lines[number] for number in rules if not lines[number - 1].startswith("  # ")] == []


def test_the_controller_runs_as_nobody_with_nothing() -> None:
    pod = pod_of(render(sidecars(True))[CONTROLLER])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert [volume for volume in pod["volumes"] if "hostPath" in volume] == []
    assert len(pod["containers"]) == 4
    for one in pod["containers"]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_a_nodes_pod_is_one_container_outside_the_hosts_network(objects: Objects) -> None:
    pod = pod_of(objects[NODE])
    assert [one["name"] for one in pod["containers"]] == ["hostvol"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert container(objects[NODE], "hostvol")["securityContext"]["readOnlyRootFilesystem"] is True


def test_only_kubelets_directory_is_mounted_bidirectionally() -> None:
    mounts = container(render(OTHER)[NODE], "hostvol")["volumeMounts"]
    propagation = {mount["mountPath"]: mount.get("mountPropagation") for mount in mounts}
    assert propagation.pop("/var/lib/other/kubelet") == "Bidirectional"
    assert propagation.pop("/nvme/volumes") == propagation.pop("/hdd") == "HostToContainer"
    assert set(propagation.values()) == {None}


def test_host_paths_are_at_their_own_path_inside() -> None:
    node = render(OTHER)[NODE]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod_of(node)["volumes"] if "hostPath" in volume}
    inside = {mount["name"]: mount["mountPath"] for mount in container(node, "hostvol")["volumeMounts"]}
    assert {"/dev", "/run/hostvol", "/var/lib/other/kubelet", "/nvme/volumes", "/hdd"} == set(paths.values())
    assert {name: inside[name] for name in paths} == paths


def test_the_nodes_arguments_are_understood_as_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    config = node_configuration(render(OTHER, "elsewhere"), monkeypatch)
    assert config == app.NodeConfig(
        endpoint="unix:///var/lib/other/kubelet/plugins/disks.example.com/csi.sock",
        node_id="worker-1",
        driver_name="disks.example.com",
        pools=(
            PoolOptions(
                PoolName("fast"),
                "/nvme/volumes",
                1.5,
                ephemeral_bytes=3 << 29,
                retention_seconds=30 * 86400,
                trash_share=0.2,
            ),
            PoolOptions(PoolName("slow"), "/hdd", init=True, backing_bytes=100 << 30),
        ),
        state_dir="/run/hostvol",
        http_address=":9808",
        shutdown_seconds=20.0,
        controller="hostvol-controller.elsewhere.svc:9809",
        kubelet_dir="/var/lib/other/kubelet",
    )


def test_the_defaults_of_chart_and_driver_agree(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    config = node_configuration(objects, monkeypatch)
    assert config.driver_name == DEFAULT_DRIVER_NAME
    assert config.pools == (PoolOptions(PoolName("default"), app.DEFAULT_POOL_DIRECTORY, init=True),)
    mounts = {mount["mountPath"]: mount["name"] for mount in container(objects[NODE], "hostvol")["volumeMounts"]}
    assert mounts[config.controller_token.removesuffix("/token")] == "token"
    assert mounts[config.controller_ca.removesuffix("/ca.crt")] == "controller-ca"
    assert variables(objects[NODE])["HOSTVOL_NODE_ID"] == "spec.nodeName"


def test_a_pool_takes_ephemeral_volumes_only_where_its_operator_says_so(objects: Objects) -> None:
    driver = objects["CSIDriver", DEFAULT_DRIVER_NAME]
    assert driver["spec"]["volumeLifecycleModes"] == ["Persistent", "Ephemeral"]
    # Kubelet's word, which overrides a pod's and a PersistentVolume's.
    assert driver["spec"]["podInfoOnMount"] is True
    assert driver["metadata"]["labels"]["security.kubernetes.io/csi-ephemeral-volume-profile"] == "restricted"
    assert not [one for one in container(objects[NODE], "hostvol")["args"] if "ephemeral" in one]


def test_the_controllers_arguments_are_understood_as_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    # In the pod, its service account's files tell the namespace.
    asked = asked_of(render(OTHER, "elsewhere")[CONTROLLER], monkeypatch, HOSTVOL_NAMESPACE="elsewhere")
    config = app_controller.controller_config(asked)
    assert (config.endpoint, config.listen, config.http_address) == (
        "unix:///csi/csi.sock",
        app_controller.DEFAULT_LISTEN,
        ":9810",
    )
    assert (config.audience, config.node_account) == ("disks.example.com", "hostvol-node")
    # What nodes dial is on the certificate, and what it keeps is what it may keep.
    assert "hostvol-controller.elsewhere.svc" in config.tls_names
    assert config.authority == "hostvol-controller-ca"


def test_pods_outlive_what_the_programs_take_to_stop(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    config = node_configuration(objects, monkeypatch)
    for workload in (NODE, CONTROLLER):
        assert pod_of(objects[workload])["terminationGracePeriodSeconds"] > config.shutdown_seconds


def sidecars(enabled: bool) -> Object:
    return {"sidecars": {"resizer": {"enabled": enabled}, "snapshotter": {"enabled": enabled}}}


@pytest.mark.parametrize("name", ["resizer", "snapshotter"])
def test_a_sidecar_comes_and_goes_with_its_privileges(name: str) -> None:
    without = sidecars(False)
    with_it = render({"sidecars": {**without["sidecars"], name: {"enabled": True}}})
    objects = render(without)
    own = {"ClusterRole", "ClusterRoleBinding"}
    more = with_it.keys() - objects.keys()
    assert {one for one in more if one[0] in own} == {(kind, f"hostvol-{name}") for kind in own}
    assert {kind for kind, _ in more} - own == ({"VolumeSnapshotClass"} if name == "snapshotter" else set())
    assert container(with_it[CONTROLLER], name)["image"].startswith(f"registry.k8s.io/sig-storage/csi-{name}:v")
    assert name not in [one["name"] for one in pod_of(objects[CONTROLLER])["containers"]]
    assert leases_of(objects) == ["csi-hostvol-dev"]
    [lease] = set(leases_of(with_it)) - set(leases_of(objects))
    assert lease.startswith(f"external-{name}-")


def test_group_snapshots_come_and_go_with_their_class_and_their_privileges() -> None:
    def rendered(groups: bool) -> Objects:
        return render({"sidecars": {"snapshotter": {"enabled": True, "groups": groups}}})

    without, with_them = rendered(False), rendered(True)
    assert with_them.keys() - without.keys() == {("VolumeGroupSnapshotClass", "hostvol")}
    gate = "--feature-gates=CSIVolumeGroupSnapshot=true"
    assert [gate in container(one[CONTROLLER], "snapshotter")["args"] for one in (without, with_them)] == [False, True]
    groups = [
        {group for rule in one["ClusterRole", "hostvol-snapshotter"]["rules"] for group in rule["apiGroups"]}
        for one in (without, with_them)
    ]
    assert groups[1] - groups[0] == {"groupsnapshot.storage.k8s.io"}


def leases_of(objects: Objects) -> list[str]:
    rules = objects["Role", "hostvol-controller"]["rules"]
    [names] = [rule["resourceNames"] for rule in rules if rule["resources"] == ["leases"] and "resourceNames" in rule]
    return names


@pytest.mark.parametrize("enabled", [False, True])
def test_selectors_and_ports_meet_the_pods(enabled: bool) -> None:
    objects = render(sidecars(enabled))
    pods = [objects[one]["spec"]["template"] for one in (NODE, CONTROLLER)]
    for (kind, name), one in objects.items():
        if kind == "Service":
            [pod] = selected(pods, one["spec"]["selector"])
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports_of(pod)
        elif kind in ("StatefulSet", "DaemonSet", "PodDisruptionBudget"):
            [pod] = selected(pods, one["spec"]["selector"]["matchLabels"])
            assert pod["spec"]["serviceAccountName"] == name
        elif kind == "NetworkPolicy":
            [pod] = selected(pods, one["spec"]["podSelector"]["matchLabels"])
            allowed = {port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]}
            assert allowed == ports_of(pod)


def selected(pods: list[Object], labels: dict[str, str]) -> list[Object]:
    return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]


def ports_of(pod: Object) -> set[str]:
    return {port["name"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}


def test_probes_ask_ports_that_are_there() -> None:
    objects = render(sidecars(True))
    for workload in (NODE, CONTROLLER):
        for one in pod_of(objects[workload])["containers"]:
            names = {port["name"] for port in one["ports"]}
            assert one["livenessProbe"]["httpGet"]["port"] in names
            assert one.get("readinessProbe", one["livenessProbe"])["httpGet"]["port"] in names


def test_other_names_are_taken_everywhere() -> None:
    text = render_text(OTHER, "elsewhere")
    for default in ("csi.hostvol.dev", "csi-hostvol-dev", "/var/lib/kubelet", "/var/lib/hostvol", "hostvol-system"):
        assert default not in text
    objects = render(OTHER, "elsewhere")
    assert ("CSIDriver", "disks.example.com") in objects
    assert all(lease.endswith("disks-example-com") for lease in leases_of(objects))
    provisioners = {one["provisioner"] for (kind, _), one in objects.items() if kind == "StorageClass"}
    assert provisioners == {"disks.example.com"}


def test_every_object_of_a_namespace_says_which(objects: Objects) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CSIDriver", "StorageClass", "ValidatingAdmissionPolicy"}
    cluster_wide.add("ValidatingAdmissionPolicyBinding")
    for (kind, _), one in objects.items():
        assert one["metadata"].get("namespace") == (None if kind in cluster_wide else "hostvol-system"), kind


def test_annotations_of_the_operator_win() -> None:
    values = {"podAnnotations": {"prometheus.io/scrape": "false", "a/b": "c"}}
    for workload, one in render({"node": values, "controller": values}).items():
        if workload in (NODE, CONTROLLER):
            annotations = one["spec"]["template"]["metadata"]["annotations"]
            assert (annotations["prometheus.io/scrape"], annotations["a/b"]) == ("false", "c")
            assert "prometheus.io/port" in annotations


def test_the_schema_and_the_values_name_the_same() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part: Object, value: Object, where: str) -> None:
        properties = part["properties"]
        assert properties.keys() - {"global"} == value.keys() == set(part["required"]), where
        for key, inner in value.items():
            if "properties" in properties[key]:
                compare(properties[key], inner, f"{where}/{key}")

    compare(schema, values, "")


POOL = {"name": "a", "path": "/a"}
WRONG: list[tuple[Any, str]] = [
    ({"pool": []}, "'pool' not allowed"),
    ({"image": {"name": "x"}}, "at '/image': additional properties 'name'"),
    ({"image": {"tag": 1.1}}, "at '/image/tag'"),
    ({"image": {"tag": "a/b"}}, "at '/image/tag'"),
    ({"image": {"repository": "Upper/case"}}, "at '/image/repository'"),
    ({"image": {"repository": "name:tag"}}, "at '/image/repository'"),
    ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy'"),
    ({"imagePullSecrets": ["secret"]}, "at '/imagePullSecrets/0'"),
    ({"sidecars": {"provisioner": {"image": "registry.k8s.io/sig-storage/csi-provisioner"}}}, "/provisioner/image'"),
    ({"sidecars": {"provisioner": {"image": "localhost:5000/csi-provisioner"}}}, "/provisioner/image'"),
    ({"sidecars": {"provisioner": {"enabled": False}}}, "at '/sidecars/provisioner'"),
    ({"sidecars": {"resizer": {"enabled": "yes"}}}, "at '/sidecars/resizer/enabled'"),
    ({"kubeletDir": "var/lib/kubelet"}, "at '/kubeletDir'"),
    ({"kubeletDir": "/var/lib/kubelet/"}, "at '/kubeletDir'"),
    ({"kubeletDir": "/var/../lib"}, "at '/kubeletDir'"),
    ({"kubeletDir": None}, "missing property 'kubeletDir'"),
    ({"kubeletDir": "/" + "k" * 90}, "longer than the 107 bytes"),
    ({"driverName": "Upper.example.com"}, "at '/driverName'"),
    ({"driverName": "a..b"}, "at '/driverName'"),
    ({"driverName": "a" * 55}, "at '/driverName'"),
    ({"pools": []}, "at '/pools'"),
    ({"pools": {"a": "/a"}}, "at '/pools'"),
    ({"pools": [{"path": "/a"}]}, "at '/pools/0': missing property 'name'"),
    ({"pools": [POOL | {"name": "A_B"}]}, "at '/pools/0/name'"),
    ({"pools": [POOL | {"path": "a"}]}, "at '/pools/0/path'"),
    ({"pools": [POOL | {"path": "/a,init=true"}]}, "at '/pools/0/path'"),
    ({"pools": [POOL | {"path": "/a/.."}]}, "at '/pools/0/path'"),
    ({"pools": [POOL | {"overcommit": 0.5}]}, "at '/pools/0/overcommit'"),
    ({"pools": [POOL | {"overcommit": "2"}]}, "at '/pools/0/overcommit'"),
    ({"pools": [POOL | {"init": "true"}]}, "at '/pools/0/init'"),
    ({"pools": [POOL | {"ephemeral": "10GiB"}]}, "at '/pools/0/ephemeral'"),
    ({"pools": [POOL | {"ephemeral": "1Gi,init=true"}]}, "at '/pools/0/ephemeral'"),
    ({"pools": [POOL | {"ephemeral": 10}]}, "at '/pools/0/ephemeral'"),
    ({"pools": [POOL | {"init": True, "backingFile": "10GiB"}]}, "at '/pools/0/backingFile'"),
    ({"pools": [POOL | {"backingFile": "10Gi"}]}, "at '/pools/0': missing property 'init'"),
    ({"pools": [POOL | {"init": False, "backingFile": "10Gi"}]}, "at '/pools/0/init'"),
    ({"pools": [POOL | {"retention": "1h1d"}]}, "at '/pools/0/retention'"),
    ({"pools": [POOL | {"trash": "101%"}]}, "at '/pools/0/trash'"),
    ({"pools": [POOL | {"thick": True}]}, "at '/pools/0': additional properties 'thick'"),
    ({"pools": [POOL, POOL | {"path": "/b"}]}, "pools[1].name"),
    ({"pools": [POOL, POOL | {"name": "b"}]}, "pools[1].path"),
    ({"pools": [POOL | {"path": "/run/pool"}]}, "pools[0].path"),
    ({"storageClasses": [{"parameters": {}}]}, "at '/storageClasses/0': missing property 'name'"),
    ({"storageClasses": [{"name": "a", "reclaimPolicy": "Recycle"}]}, "at '/storageClasses/0/reclaimPolicy'"),
    ({"storageClasses": [{"name": "a", "parameters": {"blockSize": 512}}]}, "/storageClasses/0/parameters/blockSize'"),
    ({"logFormat": "xml"}, "at '/logFormat'"),
    ({"logLevel": "loud"}, "at '/logLevel'"),
    ({"controller": {"replicas": 0}}, "at '/controller/replicas'"),
    ({"controller": {"resources": {"request": {}}}}, "at '/controller/resources'"),
    ({"node": {"resources": {"limits": {"memory": "1 GiB"}}}}, "at '/node/resources/limits/memory'"),
    ({"node": {"tolerations": [{"operator": "Is"}]}}, "at '/node/tolerations/0/operator'"),
    ({"node": {"nodeSelector": {"disk": True}}}, "at '/node/nodeSelector/disk'"),
    ({"node": {"affinity": {"nodes": {}}}}, "at '/node/affinity'"),
    ({"node": {"maxUnavailable": 0}}, "at '/node/maxUnavailable'"),
    ({"node": {"maxUnavailable": "all"}}, "at '/node/maxUnavailable'"),
    ({"node": {"priorityClassName": "Very High"}}, "at '/node/priorityClassName'"),
    ({"networkPolicy": {"enabled": "no"}}, "at '/networkPolicy/enabled'"),
    ({"networkPolicy": {"metricsFrom": [{"namespace": "monitoring"}]}}, "at '/networkPolicy/metricsFrom/0'"),
]


@pytest.mark.parametrize(("values", "place"), WRONG, ids=[f"{json.dumps(values)[:60]}" for values, _ in WRONG])
def test_a_wrong_value_is_refused_by_its_place(values: Object, place: str) -> None:
    with pytest.raises(Refused) as refusal:
        render(values)
    assert place in re.sub(r"\s+", " ", str(refusal.value))


def test_odd_but_right_values_are_taken() -> None:
    odd = {
        "image": {"repository": "registry.example.com:5000/team/hostvol", "tag": "1.0-rc.1"},
        "kubeletDir": "/var/snap/microk8s/common/var/lib/kubelet",
        "storageClasses": [],
        "controller": {"priorityClassName": "", "resources": {"limits": {"cpu": 0.5, "memory": "1Gi"}}},
        "node": {"maxUnavailable": "10%", "tolerations": [], "resources": {}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "imagePullSecrets": [{"name": "pull"}],
        "global": {"anything": "of a parent chart"},
    }
    odd["sidecars"] = {"provisioner": {"image": f"registry.example.com:5000/p@sha256:{'0' * 64}"}}
    objects = render(odd)
    assert "registry.example.com:5000/team/hostvol:1.0-rc.1" in strings(objects[NODE])
    assert not [kind for kind, _ in objects if kind == "StorageClass"]
