"""Controller of CSI 1.13 for volumes that come from no source; expansion, lists and capacity have modules of their own.

- CreateVolume: what is given satisfies what is asked; the same name and a compatible request give the same volume,
  however it is spelled; a difference in any field is ALREADY_EXISTS and names the field; nothing that is refused
  leaves a trace.
- Names are any text of 128 bytes without banned control characters; ids have at most 128 bytes and come from no name.
- DeleteVolume is OK for what is not there, refused while the volume is used, and takes everything along.
- ValidateVolumeCapabilities confirms what CreateVolume would have given and nothing else, and says why.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.conftest import NODE_ID
from tests.conformance.probing import created, list_volume_ids, refused, traces
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, Workload, capability, create_request

TOPOLOGY_KEY = "topology.csi.hostvol.dev/node"
SINGLE_NODE_MODES = (
    "SINGLE_NODE_WRITER",
    "SINGLE_NODE_READER_ONLY",
    "SINGLE_NODE_SINGLE_WRITER",
    "SINGLE_NODE_MULTI_WRITER",
)
MULTI_NODE_MODES = ("MULTI_NODE_READER_ONLY", "MULTI_NODE_SINGLE_WRITER", "MULTI_NODE_MULTI_WRITER")


def topology(*nodes: str, preferred: tuple[str, ...] = ()) -> csi_pb2.TopologyRequirement:
    def place(node: str) -> csi_pb2.Topology:
        return csi_pb2.Topology(segments={TOPOLOGY_KEY: node})

    return csi_pb2.TopologyRequirement(requisite=map(place, nodes), preferred=map(place, preferred))


# CreateVolume

CREATED: dict[str, dict[str, Any]] = {
    "no capacity range": {"size_bytes": 0},
    "required only": {"size_bytes": 20 * MIB},
    "limit only": {"size_bytes": 0, "limit_bytes": 64 * MIB},
    "a small limit only": {"size_bytes": 0, "limit_bytes": 9 * MIB + 5},
    "both, equal": {"size_bytes": 12 * MIB, "limit_bytes": 12 * MIB},
    "one byte": {"size_bytes": 1},
    "an odd number": {"size_bytes": 10 * MIB + 1},
    "a directory": {"size_bytes": 5 * MIB + 1, "parameters": DIRECTORY},
    "a block device of 4 KiB": {
        "size_bytes": 4096,
        "limit_bytes": 4096,
        "volume_capabilities": [capability(block=True)],
    },
    "xfs": {"size_bytes": MIB, "volume_capabilities": [capability(fs_type="xfs")]},
    "btrfs": {"size_bytes": MIB, "volume_capabilities": [capability(fs_type="btrfs")]},
    "thick": {"size_bytes": 8 * MIB, "parameters": {"provisioning": "thick"}},
}


@pytest.mark.parametrize("asked", CREATED.values(), ids=CREATED)
def test_what_is_given_satisfies_what_is_asked(driver: Driver, asked: dict[str, Any]) -> None:
    request = create_request("satisfied", **asked)
    with created(driver, request) as volume:
        assert volume.capacity_bytes >= max(1, asked.get("size_bytes", 0))
        if asked.get("limit_bytes"):
            assert volume.capacity_bytes <= asked["limit_bytes"]
        assert 0 < len(volume.volume_id.encode()) <= 128
        assert volume.volume_id == volume.volume_id.lower()
        assert [dict(one.segments) for one in volume.accessible_topology] == [{TOPOLOGY_KEY: NODE_ID}]
        assert not volume.HasField("content_source")
        assert sum(len(key) + len(value) for key, value in volume.volume_context.items()) <= 4096
        told = driver.call("ControllerGetVolume", volume_id=volume.volume_id)
        assert told.volume == volume
        assert told.HasField("status")
        assert [one.volume for one in driver.call("ListVolumes").entries] == [volume]
        assert driver.call("CreateVolume", request).volume == volume


def test_without_a_capacity_range_a_volume_has_one_gibibyte(driver: Driver) -> None:
    with created(driver, create_request("default size", 0)) as volume:
        assert volume.capacity_bytes == GIB


NAMES = {
    "128 bytes": "n" * 128,
    "128 bytes of two each": "ü" * 64,
    "128 bytes of four each": "\U0001f600" * 32,
    "one byte": "x",
    "spaces": "  a name with spaces  ",
    "slashes": "/a/b/",
    "parent": "../../etc/passwd",
    "dots": "..",
    "leading dot": ".hidden",
    "quotes": "\"'`$(reboot)`;",
    "percent": "%s%n%00",
    "line feed": "two\nlines",
    "tab and carriage return": "a\tb\rc",
    "line separator": "a\u2028b",
    "right to left": "\u202eabc",
    "unassigned": "\u0378\uffff",
    "combining": "e\u0301",
    "composed": "\u00e9",
    "an id": "vol-0000000000000000-0000000000000000",
    "upper case": "PVC",
    "lower case": "pvc",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_any_text_and_names_one_volume(driver: Driver, name: str) -> None:
    request = create_request(name, 8 * MIB)
    with created(driver, request) as volume:
        assert driver.call("CreateVolume", request).volume.volume_id == volume.volume_id
        assert [len(page) for page in list_volume_ids(driver)] == [1]
        assert sorted(os.listdir(driver.pool / "volumes")) == [volume.volume_id]


def test_names_that_look_alike_name_different_volumes(driver: Driver) -> None:
    names = ["pvc", "PVC", "pvc ", " pvc", "pvc\n", "pvс", "e\u0301", "\u00e9", "."]
    volumes = {name: driver.call("CreateVolume", create_request(name, 8 * MIB)).volume for name in names}
    assert len({volume.volume_id for volume in volumes.values()}) == len(names)
    for volume in volumes.values():
        driver.call("DeleteVolume", volume_id=volume.volume_id)


@pytest.mark.parametrize("code", [*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0x80, 0x85, 0x9F])
def test_a_banned_control_character_in_a_name_is_refused(driver: Driver, code: int) -> None:
    refused(
        driver,
        "CreateVolume",
        Code.INVALID_ARGUMENT,
        "name",
        "control characters",
        request=create_request(f"a{chr(code)}b"),
    )


# One and the same volume

PLAIN = {"parameters": {}, "volume_capabilities": [capability()]}
EQUIVALENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults spelled out": (
        PLAIN,
        {
            "parameters": {
                "type": "image",
                "pool": "default",
                "provisioning": "thin",
                "mkfsOptions": "",
                "retention": "0s",
                "blockSize": "4096",
            }
        },
    ),
    "the default filesystem spelled out": (PLAIN, {"volume_capabilities": [capability(fs_type="ext4")]}),
    "retention spelled otherwise": ({"parameters": {"retention": "0s"}}, {"parameters": {"retention": "0h"}}),
    "keys of sidecars": (PLAIN, {"parameters": {"csi.storage.k8s.io/pvc/name": "claim"}}),
    "other secrets": ({"secrets": {"key": "1"}}, {"secrets": {"key": "2"}}),
    "capabilities in another order": (
        {"volume_capabilities": [capability("SINGLE_NODE_WRITER"), capability("SINGLE_NODE_READER_ONLY")]},
        {"volume_capabilities": [capability("SINGLE_NODE_READER_ONLY"), capability("SINGLE_NODE_WRITER")]},
    ),
    "fewer capabilities": (
        {"volume_capabilities": [capability("SINGLE_NODE_WRITER"), capability("SINGLE_NODE_READER_ONLY")]},
        {"volume_capabilities": [capability("SINGLE_NODE_WRITER")]},
    ),
    "another access mode of one node": (PLAIN, {"volume_capabilities": [capability("SINGLE_NODE_SINGLE_WRITER")]}),
    "mount flags, which belong to a mount": (PLAIN, {"volume_capabilities": [capability(flags=["noatime"])]}),
    "a range that the volume satisfies": (
        {"size_bytes": 16 * MIB},
        {"size_bytes": 10 * MIB, "limit_bytes": 20 * MIB},
    ),
    "no range": ({"size_bytes": 16 * MIB}, {"size_bytes": 0}),
    "a requirement that includes this node": (PLAIN, {"accessibility_requirements": topology("elsewhere", NODE_ID)}),
    "a directory's defaults": (
        {"parameters": DIRECTORY},
        {"parameters": {**DIRECTORY, "pool": "default", "retention": "0"}},
    ),
}


@pytest.mark.parametrize(("first", "second"), EQUIVALENT.values(), ids=EQUIVALENT)
def test_an_equivalent_request_gives_the_same_volume(
    driver: Driver, first: dict[str, Any], second: dict[str, Any]
) -> None:
    with created(driver, create_request("same", **{"size_bytes": 16 * MIB, **first})) as volume:
        again = create_request("same", **{"size_bytes": 16 * MIB, **second})
        assert driver.call("CreateVolume", again).volume == volume
        assert [len(page) for page in list_volume_ids(driver)] == [1]


BLOCK = {"volume_capabilities": [capability(block=True)]}
DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "larger": ({"size_bytes": 16 * MIB}, {"size_bytes": 32 * MIB}, "capacity_range"),
    "one byte larger": ({"size_bytes": 16 * MIB}, {"size_bytes": 16 * MIB + 1}, "capacity_range"),
    "a lower limit": ({"size_bytes": 16 * MIB}, {"size_bytes": 0, "limit_bytes": 15 * MIB}, "capacity_range"),
    "a lower limit than any volume has": (
        {"size_bytes": 16 * MIB},
        {"size_bytes": 0, "limit_bytes": 4096},
        "capacity_range",
    ),
    "more than there is": ({"size_bytes": 16 * MIB}, {"size_bytes": 1 << 50}, "capacity_range"),
    "block": (PLAIN, BLOCK, "volume_capabilities"),
    "mount": (BLOCK, PLAIN, "volume_capabilities"),
    "filesystem": (PLAIN, {"volume_capabilities": [capability(fs_type="xfs")]}, "fs_type"),
    "type": (PLAIN, {"parameters": DIRECTORY}, "type"),
    "pool": (PLAIN, {"parameters": {"pool": "second"}}, "parameters.pool"),
    "provisioning": (PLAIN, {"parameters": {"provisioning": "thick"}}, "parameters.provisioning"),
    "mkfs options": (PLAIN, {"parameters": {"mkfsOptions": "-m 1"}}, "parameters.mkfsOptions"),
    "block size": (BLOCK, {**BLOCK, "parameters": {"blockSize": "512"}}, "parameters.blockSize"),
    "topology": (PLAIN, {"accessibility_requirements": topology("elsewhere")}, "accessibility_requirements"),
    "quota": ({"parameters": DIRECTORY}, {"parameters": {"type": "directory"}}, "parameters.quota"),
}


@pytest.mark.parametrize(("first", "second", "field"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_name_that_is_taken_by_a_different_volume_is_refused(
    driver: Driver, first: dict[str, Any], second: dict[str, Any], field: str
) -> None:
    with created(driver, create_request("taken", **{"size_bytes": 16 * MIB, **first})) as volume:
        before = traces(driver)
        asked = create_request("taken", **{"size_bytes": 16 * MIB, **second})
        refused(driver, "CreateVolume", Code.ALREADY_EXISTS, "'taken'", volume.volume_id, field, request=asked)
        assert traces(driver) == before
        assert driver.call("ControllerGetVolume", volume_id=volume.volume_id).volume == volume


def test_calls_for_one_name_at_the_same_time_make_one_volume(driver: Driver) -> None:
    answers: list[str] = []
    request = create_request("at once", 16 * MIB)

    def create() -> None:
        code = driver.code("CreateVolume", request)
        answers.append(code.name)

    driver.caller.stub("CreateVolume")
    threads = [threading.Thread(target=create) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {"OK", "ABORTED"}
    assert "OK" in answers
    with created(driver, request) as volume:
        assert list(list_volume_ids(driver)) == [[volume.volume_id]]


# Topology

OTHER_KEY = csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={"topology.other.example/zone": "a"})])
ELSEWHERE = {
    "another node": topology("elsewhere"),
    "two other nodes": topology("elsewhere", "elsewhere2"),
    "another key": OTHER_KEY,
    "this node, and a zone it does not know": csi_pb2.TopologyRequirement(
        requisite=[csi_pb2.Topology(segments={TOPOLOGY_KEY: NODE_ID, "zone": "a"})]
    ),
    "this node in another spelling": topology(NODE_ID.upper()),
}
HERE = {
    "this node": topology(NODE_ID),
    "this node among others": topology("elsewhere", NODE_ID, "elsewhere2"),
    "this node, others preferred": topology("elsewhere", NODE_ID, preferred=("elsewhere", NODE_ID)),
    "another node preferred, none required": topology(preferred=("elsewhere",)),
}


@pytest.mark.parametrize("requirement", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_volume_that_must_be_elsewhere_is_refused(driver: Driver, requirement: csi_pb2.TopologyRequirement) -> None:
    before = traces(driver)
    asked = create_request("elsewhere", 16 * MIB, accessibility_requirements=requirement)
    refused(driver, "CreateVolume", Code.RESOURCE_EXHAUSTED, "accessibility_requirements", NODE_ID, request=asked)
    assert traces(driver) == before


@pytest.mark.parametrize("requirement", HERE.values(), ids=HERE)
def test_a_volume_that_may_be_here_is_here(driver: Driver, requirement: csi_pb2.TopologyRequirement) -> None:
    with created(driver, create_request("here", 16 * MIB, accessibility_requirements=requirement)) as volume:
        assert [dict(one.segments) for one in volume.accessible_topology] == [{TOPOLOGY_KEY: NODE_ID}]


# Modes


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
@pytest.mark.parametrize("mode", SINGLE_NODE_MODES)
def test_every_mode_of_one_node_is_accepted(driver: Driver, mode: str, block: bool) -> None:
    asked = [capability(mode, block=block)]
    with created(driver, create_request("mode", 16 * MIB, volume_capabilities=asked)) as volume:
        answer = driver.call("ValidateVolumeCapabilities", volume_id=volume.volume_id, volume_capabilities=asked)
        assert list(answer.confirmed.volume_capabilities) == asked


@pytest.mark.parametrize("mode", MULTI_NODE_MODES)
def test_a_mode_of_several_nodes_is_refused_also_beside_one_that_is_possible(driver: Driver, mode: str) -> None:
    before = traces(driver)
    for asked in ([capability(mode)], [capability(), capability(mode)], [capability(mode, block=True)]):
        request = create_request("many nodes", volume_capabilities=asked)
        refused(driver, "CreateVolume", Code.INVALID_ARGUMENT, "access_mode", mode, "SINGLE_NODE", request=request)
    assert traces(driver) == before


# DeleteVolume


@pytest.mark.parametrize(
    "volume_id", ["no-such-volume", "vol-0000000000000000-0000000000000000", "csi-" + "a" * 64, "x" * 128, "A.b_c"]
)
def test_a_volume_that_does_not_exist_is_deleted(driver: Driver, volume_id: str) -> None:
    before = traces(driver)
    driver.call("DeleteVolume", volume_id=volume_id)
    assert traces(driver) == before


def test_a_deleted_volume_is_gone_from_every_answer_and_from_the_disk(driver: Driver) -> None:
    with created(driver, create_request("deleted", 16 * MIB)) as volume:
        pass
    driver.call("DeleteVolume", volume_id=volume.volume_id)
    refused(driver, "ControllerGetVolume", Code.NOT_FOUND, "volume_id", volume.volume_id, volume_id=volume.volume_id)
    assert list(list_volume_ids(driver)) == [[]]
    assert driver.files() == []
    again = driver.call("CreateVolume", create_request("deleted", 16 * MIB)).volume
    assert again.volume_id != volume.volume_id
    driver.call("DeleteVolume", volume_id=again.volume_id)


@pytest.mark.parametrize("kind", ["ext4", "block", "directory"])
def test_a_published_volume_is_not_deleted_and_a_staged_one_is(driver: Driver, kind: str) -> None:
    workload = Workload(
        driver, f"used-{kind}", block=kind == "block", parameters=DIRECTORY if kind == "directory" else {}
    )
    target = workload.up()
    before = traces(driver)
    refused(driver, "DeleteVolume", Code.FAILED_PRECONDITION, workload.volume_id, target, volume_id=workload.volume_id)
    assert traces(driver) == before
    workload.unpublish()
    workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


# ValidateVolumeCapabilities


def test_a_volume_confirms_what_it_was_made_with_and_echoes_it(driver: Driver) -> None:
    asked = {"type": "image", "mkfsOptions": "-m 1"}
    with created(driver, create_request("valid", 16 * MIB, parameters=asked)) as volume:
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id,
            volume_context=volume.volume_context,
            volume_capabilities=[capability(mode, fs_type="ext4", flags=["noatime"]) for mode in SINGLE_NODE_MODES],
            parameters=asked,
        )
        answer = driver.call("ValidateVolumeCapabilities", request)
        assert answer.confirmed.volume_context == volume.volume_context
        assert list(answer.confirmed.volume_capabilities) == list(request.volume_capabilities)
        assert answer.confirmed.parameters == asked
        assert not answer.message
        assert driver.call("ValidateVolumeCapabilities", request) == answer


NOT_CONFIRMED: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"volume_capabilities": [capability(block=True)]}, "block"),
    "another filesystem": ({"volume_capabilities": [capability(fs_type="xfs")]}, "fs_type"),
    "no filesystem at all": ({"volume_capabilities": [capability(fs_type="ntfs")]}, "fs_type"),
    "one of two": ({"volume_capabilities": [capability(), capability("MULTI_NODE_MULTI_WRITER")]}, "MULTI_NODE"),
    "a mode of the future": ({"volume_capabilities": [capability()], "_mode": 99}, "99"),
    "a mount flag": ({"volume_capabilities": [capability(flags=["norecovery"])]}, "norecovery"),
    "a mount group": ({"volume_capabilities": [capability()], "_group": "1000"}, "volume_mount_group"),
    "the context of another": (
        {"volume_capabilities": [capability()], "volume_context": {"type": "directory"}},
        "volume_context.type",
    ),
    "other parameters": (
        {"volume_capabilities": [capability()], "parameters": {"provisioning": "thick"}},
        "parameters",
    ),
    "unknown parameters": ({"volume_capabilities": [capability()], "parameters": {"colour": "red"}}, "colour"),
    "mutable parameters": (
        {"volume_capabilities": [capability()], "mutable_parameters": {"iops": "1"}},
        "mutable_parameters",
    ),
}


@pytest.mark.parametrize(("asked", "word"), NOT_CONFIRMED.values(), ids=NOT_CONFIRMED)
def test_what_a_volume_does_not_have_is_not_confirmed_and_the_answer_says_why(
    driver: Driver, asked: dict[str, Any], word: str
) -> None:
    fields = {key: value for key, value in asked.items() if not key.startswith("_")}
    with created(driver, create_request("not confirmed", 16 * MIB)) as volume:
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id=volume.volume_id, **fields)
        if "_mode" in asked:
            request.volume_capabilities[0].access_mode.mode = asked["_mode"]
        if "_group" in asked:
            request.volume_capabilities[0].mount.volume_mount_group = asked["_group"]
        answer = driver.call("ValidateVolumeCapabilities", request)
        assert not answer.HasField("confirmed")
        assert word in answer.message
