"""Bad and hostile input: refused with the code of the specification's table, in words, and without a trace.

- Every field of a request that is missing, too large, negative, unknown, of the future or not offered is refused; the
  message names the field and what is allowed. The table is REFUSED.
- An id that is no id is refused by every call that takes one, and looked up nowhere.
- A staging or target path that is relative, led astray by links, in use, in a pool or not there is refused; whatever it
  points to stays as it is.
- Nothing outside the pools and the given paths is touched: a tree of canaries beside them stays as it is.
- Bytes that are no request are refused by the transport, and the driver goes on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from csi_driver.errors import InvalidField
from csi_driver.pb import csi_pb2
from csi_driver.rpc import limits
from tests.conformance.probing import SPEC_METHODS, refused, request_of, traces, what_exists
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, Failure, Workload, capability, create_request, run

INVALID = Code.INVALID_ARGUMENT
PRECONDITION = Code.FAILED_PRECONDITION


@dataclass
class Given:
    """What a bad request can be made of: one staged volume with a filesystem, one staged block volume."""

    driver: Driver
    image: Workload
    device: Workload


@pytest.fixture(scope="module")
def given(driver: Driver) -> Iterator[Given]:
    image = Workload(driver, "image", size_bytes=16 * MIB)
    device = Workload(driver, "device", size_bytes=8 * MIB, block=True)
    for workload in (image, device):
        workload.create()
        workload.stage()
    yield Given(driver, image, device)
    for workload in (image, device):
        workload.unstage()
        workload.delete()
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Path]:
    """A tree that hostile paths point to; it must look the same afterwards, to the last time stamp."""
    tree = tmp_path / "canaries"
    (tree / "full" / "deep").mkdir(parents=True)
    (tree / "full" / "deep" / "file").write_text("precious")
    (tree / "empty").mkdir()
    (tree / "empty-file").touch()
    (tree / "file").write_text("precious")
    before = what_exists(tree)
    yield tree
    assert what_exists(tree) == before
    assert (tree / "full" / "deep" / "file").read_text() == (tree / "file").read_text() == "precious"


Build = Callable[[Given], Any]
Case = tuple[str, Build, Code | Collection[Code], tuple[str, ...]]


def create(**fields: Any) -> Build:
    """A CreateVolumeRequest that is sane except for `fields`."""
    return lambda _: create_request("refused", **fields)


def create_with(change: Callable[[Any], object]) -> Build:
    def build(_: Given) -> Any:
        request = create_request("refused")
        change(request)
        return request

    return build


def stage_with(change: Callable[[Any], object]) -> Build:
    def build(given: Given) -> Any:
        request = given.image.stage_request()
        change(request)
        return request

    return build


def publish_with(change: Callable[[Any], object]) -> Build:
    def build(given: Given) -> Any:
        request = given.image.publish_request()
        change(request)
        return request

    return build


def raw(method: str, **fields: Any) -> Build:
    return lambda _: request_of(method, **fields)


def first(request: Any) -> Any:
    """The first capability of a CreateVolumeRequest."""
    return request.volume_capabilities[0]


BLOCK = [capability(block=True)]
CREATE, STAGE, PUBLISH = "CreateVolume", "NodeStageVolume", "NodePublishVolume"
BIG = "x" * 129
HUGE_MAP = {f"key{number}": "v" * 100 for number in range(45)}

REFUSED: dict[str, Case] = {
    # What is required and missing
    "no name": (CREATE, create_with(lambda r: r.ClearField("name")), INVALID, ("name", "required")),
    "no capabilities": (
        CREATE,
        create_with(lambda r: r.ClearField("volume_capabilities")),
        INVALID,
        ("volume_capabilities", "required"),
    ),
    "no access type": (CREATE, create_with(lambda r: first(r).ClearField("mount")), INVALID, ("access_type",)),
    "no access mode": (CREATE, create_with(lambda r: first(r).ClearField("access_mode")), INVALID, ("access_mode",)),
    "access mode 0": (
        CREATE,
        create_with(lambda r: setattr(first(r).access_mode, "mode", 0)),
        INVALID,
        ("access_mode", "required"),
    ),
    "validate: no id": (
        "ValidateVolumeCapabilities",
        raw("ValidateVolumeCapabilities", volume_capabilities=[capability()]),
        INVALID,
        ("volume_id", "required"),
    ),
    "validate: no capabilities": (
        "ValidateVolumeCapabilities",
        lambda g: request_of("ValidateVolumeCapabilities", volume_id=g.image.volume_id),
        INVALID,
        ("volume_capabilities", "required"),
    ),
    "validate: no access type": (
        "ValidateVolumeCapabilities",
        lambda g: request_of(
            "ValidateVolumeCapabilities",
            volume_id=g.image.volume_id,
            volume_capabilities=[csi_pb2.VolumeCapability()],
        ),
        INVALID,
        ("volume_capabilities[0].access_type", "required"),
    ),
    "validate: no access mode": (
        "ValidateVolumeCapabilities",
        lambda g: request_of(
            "ValidateVolumeCapabilities",
            volume_id=g.image.volume_id,
            volume_capabilities=[csi_pb2.VolumeCapability(mount=csi_pb2.VolumeCapability.MountVolume())],
        ),
        INVALID,
        ("volume_capabilities[0].access_mode", "required"),
    ),
    "stage: no id": (STAGE, stage_with(lambda r: r.ClearField("volume_id")), INVALID, ("volume_id", "required")),
    "stage: no path": (
        STAGE,
        stage_with(lambda r: r.ClearField("staging_target_path")),
        INVALID,
        ("staging_target_path", "required"),
    ),
    "stage: no capability": (
        STAGE,
        stage_with(lambda r: r.ClearField("volume_capability")),
        INVALID,
        ("volume_capability", "required"),
    ),
    "stage: no access type": (
        STAGE,
        stage_with(lambda r: r.volume_capability.ClearField("mount")),
        INVALID,
        ("volume_capability.access_type", "required"),
    ),
    "stage: no access mode": (
        STAGE,
        stage_with(lambda r: r.volume_capability.ClearField("access_mode")),
        INVALID,
        ("volume_capability.access_mode", "required"),
    ),
    "publish: no id": (PUBLISH, publish_with(lambda r: r.ClearField("volume_id")), INVALID, ("volume_id", "required")),
    "publish: no path": (
        PUBLISH,
        publish_with(lambda r: r.ClearField("target_path")),
        INVALID,
        ("target_path", "required"),
    ),
    "publish: no capability": (
        PUBLISH,
        publish_with(lambda r: r.ClearField("volume_capability")),
        INVALID,
        ("volume_capability", "required"),
    ),
    "publish: no staging path": (
        PUBLISH,
        publish_with(lambda r: r.ClearField("staging_target_path")),
        PRECONDITION,
        ("staging_target_path", "NodeStageVolume"),
    ),
    "unstage: no path": (
        "NodeUnstageVolume",
        lambda g: request_of("NodeUnstageVolume", volume_id=g.image.volume_id),
        INVALID,
        ("staging_target_path", "required"),
    ),
    "unpublish: no path": (
        "NodeUnpublishVolume",
        lambda g: request_of("NodeUnpublishVolume", volume_id=g.image.volume_id),
        INVALID,
        ("target_path", "required"),
    ),
    "statistics: no path": (
        "NodeGetVolumeStats",
        lambda g: request_of("NodeGetVolumeStats", volume_id=g.image.volume_id),
        INVALID,
        ("volume_path", "required"),
    ),
    # Sizes
    "negative required_bytes": (
        CREATE,
        create(size_bytes=-1),
        INVALID,
        ("capacity_range.required_bytes", "-1", "0 to"),
    ),
    "negative limit_bytes": (
        CREATE,
        create(size_bytes=0, limit_bytes=-1),
        INVALID,
        ("capacity_range.limit_bytes", "-1", "0 to"),
    ),
    "the most negative": (CREATE, create(size_bytes=-(1 << 63)), INVALID, ("capacity_range.required_bytes",)),
    "required above limit": (
        CREATE,
        create(size_bytes=64 * MIB, limit_bytes=32 * MIB),
        {INVALID, Code.OUT_OF_RANGE},
        ("capacity_range.required_bytes", "limit_bytes", str(32 * MIB)),
    ),
    "the largest number": (CREATE, create(size_bytes=(1 << 63) - 1), Code.OUT_OF_RANGE, ("capacity_range",)),
    "more than the disk": (CREATE, create(size_bytes=8 << 40), Code.RESOURCE_EXHAUSTED, ("granted", "pool")),
    "a limit below every volume": (
        CREATE,
        create(size_bytes=0, limit_bytes=4095),
        Code.OUT_OF_RANGE,
        ("capacity_range.limit_bytes", "at least"),
    ),
    # Limits of the protocol
    "name of 129 bytes": (CREATE, create_with(lambda r: setattr(r, "name", BIG)), INVALID, ("name", "128 bytes")),
    "name of 65 characters of two bytes": (
        CREATE,
        create_with(lambda r: setattr(r, "name", "ü" * 65)),
        INVALID,
        ("name", "130 bytes", "128 bytes"),
    ),
    "parameters above 4 KiB": (CREATE, create(parameters=HUGE_MAP), INVALID, ("parameters", "4096 bytes")),
    "one parameter above 4 KiB": (
        CREATE,
        create(parameters={"csi.storage.k8s.io/x": "v" * 5000}),
        INVALID,
        ("parameters", "4096"),
    ),
    "secrets above 4 KiB": (CREATE, create(secrets=HUGE_MAP), INVALID, ("secrets", "4096 bytes")),
    "fs_type of 129 bytes": (
        CREATE,
        create_with(lambda r: setattr(first(r).mount, "fs_type", BIG)),
        INVALID,
        ("fs_type", "128 bytes"),
    ),
    "mount flags above 4 KiB": (
        CREATE,
        create_with(lambda r: first(r).mount.mount_flags.extend(["noatime"] * 600)),
        INVALID,
        ("mount_flags", "4096 bytes"),
    ),
    "a mount flag of 129 bytes": (
        CREATE,
        create_with(lambda r: first(r).mount.mount_flags.append(BIG)),
        INVALID,
        ("mount_flags", "128 bytes"),
    ),
    "topology above 4 KiB": (
        CREATE,
        create(accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments=HUGE_MAP)])),
        INVALID,
        ("requisite.segments", "4096 bytes"),
    ),
    "volume context above 4 KiB": (
        STAGE,
        stage_with(lambda r: r.volume_context.update(HUGE_MAP)),
        INVALID,
        ("volume_context", "4096 bytes"),
    ),
    "publish context above 4 KiB": (
        PUBLISH,
        publish_with(lambda r: r.publish_context.update(HUGE_MAP)),
        INVALID,
        ("publish_context", "4096 bytes"),
    ),
    "staging path of 4096 bytes": (
        STAGE,
        stage_with(lambda r: setattr(r, "staging_target_path", "/" + "x" * 4095)),
        INVALID,
        ("staging_target_path", "4095 bytes"),
    ),
    "target path of a megabyte": (
        PUBLISH,
        publish_with(lambda r: setattr(r, "target_path", "/x" * (1 << 19))),
        INVALID,
        ("target_path", "4095 bytes"),
    ),
    # Capabilities
    "a mode of the future": (
        CREATE,
        create_with(lambda r: setattr(first(r).access_mode, "mode", 99)),
        INVALID,
        ("access_mode", "99", "SINGLE_NODE_WRITER"),
    ),
    "a negative mode": (
        CREATE,
        create_with(lambda r: setattr(first(r).access_mode, "mode", -1)),
        INVALID,
        ("access_mode", "-1"),
    ),
    "stage: a mode of the future": (
        STAGE,
        stage_with(lambda r: setattr(r.volume_capability.access_mode, "mode", 99)),
        INVALID,
        ("volume_capability.access_mode", "99", "SINGLE_NODE_WRITER"),
    ),
    "publish: a mode of the future": (
        PUBLISH,
        publish_with(lambda r: setattr(r.volume_capability.access_mode, "mode", 99)),
        INVALID,
        ("volume_capability.access_mode", "99"),
    ),
    "several nodes": (
        CREATE,
        create(volume_capabilities=[capability("MULTI_NODE_MULTI_WRITER")]),
        INVALID,
        ("volume_capabilities[0].access_mode", "MULTI_NODE_MULTI_WRITER", "one node"),
    ),
    "block and mount at once": (
        CREATE,
        create(volume_capabilities=[capability(), capability(block=True)]),
        INVALID,
        ("volume_capabilities[1]", "one access type"),
    ),
    "two filesystems at once": (
        CREATE,
        create(volume_capabilities=[capability(fs_type="ext4"), capability(fs_type="xfs")]),
        INVALID,
        ("volume_capabilities[1]", "fs_type"),
    ),
    "an unknown filesystem": (
        CREATE,
        create(volume_capabilities=[capability(fs_type="ntfs")]),
        INVALID,
        ("fs_type", "'ntfs'", "ext4", "xfs", "btrfs"),
    ),
    "a filesystem that is an option": (
        CREATE,
        create(volume_capabilities=[capability(fs_type="ext4 -O journal_dev")]),
        INVALID,
        ("fs_type", "ext4, xfs, btrfs"),
    ),
    "a filesystem that is a path": (
        CREATE,
        create(volume_capabilities=[capability(fs_type="../ext4\0")]),
        INVALID,
        ("fs_type", "ext4, xfs, btrfs"),
    ),
    "a mount group": (
        CREATE,
        create_with(lambda r: setattr(first(r).mount, "volume_mount_group", "1000")),
        INVALID,
        ("volume_mount_group", "1000", "VOLUME_MOUNT_GROUP is not offered"),
    ),
    "stage: a mount group": (
        STAGE,
        stage_with(lambda r: setattr(r.volume_capability.mount, "volume_mount_group", "1000")),
        INVALID,
        ("volume_mount_group", "not offered"),
    ),
    "publish: a mount group": (
        PUBLISH,
        publish_with(lambda r: setattr(r.volume_capability.mount, "volume_mount_group", "1000")),
        INVALID,
        ("volume_mount_group", "not offered"),
    ),
    # What is not offered
    "mutable parameters": (
        CREATE,
        create(mutable_parameters={"iops": "100"}),
        INVALID,
        ("mutable_parameters", "iops", "provisioning, quota"),
    ),
    # Parameters
    "an unknown parameter": (
        CREATE,
        create(parameters={"colour": "red"}),
        INVALID,
        ("parameters.colour", "type, pool, provisioning"),
    ),
    "a parameter in another spelling": (CREATE, create(parameters={"Type": "image"}), INVALID, ("parameters.Type",)),
    "an empty key": (CREATE, create(parameters={"": "x"}), INVALID, ("parameters.", "type, pool")),
    "a filesystem among the parameters": (
        CREATE,
        create(parameters={"fsType": "xfs"}),
        INVALID,
        ("parameters.fsType",),
    ),
    "an unknown type": (
        CREATE,
        create(parameters={"type": "lvm"}),
        INVALID,
        ("parameters.type", "'lvm'", "image, directory"),
    ),
    "an empty type": (CREATE, create(parameters={"type": ""}), INVALID, ("parameters.type", "image, directory")),
    "an unknown pool": (
        CREATE,
        create(parameters={"pool": "third"}),
        INVALID,
        ("parameters.pool", "'third'", "default, second"),
    ),
    "a pool that is a path": (CREATE, create(parameters={"pool": "../second"}), INVALID, ("parameters.pool",)),
    "an unknown provisioning": (
        CREATE,
        create(parameters={"provisioning": "fat"}),
        INVALID,
        ("parameters.provisioning", "'fat'", "thin, thick"),
    ),
    "an unknown quota": (
        CREATE,
        create(parameters={"type": "directory", "quota": "soft"}),
        INVALID,
        ("parameters.quota", "'soft'", "required, none"),
    ),
    "a quota for an image": (CREATE, create(parameters={"quota": "none"}), INVALID, ("parameters.quota", "directory")),
    "retention": (
        CREATE,
        create(parameters={"retention": "1h1d"}),
        INVALID,
        ("parameters.retention", "'1h1d'", "0s"),
    ),
    "a retention that is no policy": (
        CREATE,
        create(parameters={"retentionPolicy": "lose"}),
        INVALID,
        ("parameters.retentionPolicy", "'lose'", "keep, yield"),
    ),
    "retention that is none": (CREATE, create(parameters={"retention": "-1s"}), INVALID, ("parameters.retention",)),
    "an unknown block size": (
        CREATE,
        create(parameters={"blockSize": "1024"}, volume_capabilities=BLOCK),
        INVALID,
        ("parameters.blockSize", "'1024'", "4096 or 512"),
    ),
    "a block size for a filesystem": (
        CREATE,
        create(parameters={"blockSize": "512"}),
        INVALID,
        ("parameters.blockSize", "raw block"),
    ),
    "a directory as a device": (
        CREATE,
        create(parameters=DIRECTORY, volume_capabilities=BLOCK),
        INVALID,
        ("parameters.type", "image"),
    ),
    "a directory with a filesystem": (
        CREATE,
        create(parameters=DIRECTORY, volume_capabilities=[capability(fs_type="ext4")]),
        INVALID,
        ("fs_type", "directory"),
    ),
    "a thick directory": (
        CREATE,
        create(parameters={**DIRECTORY, "provisioning": "thick"}),
        INVALID,
        ("parameters.provisioning", "type image"),
    ),
    "mkfs options for a device": (
        CREATE,
        create(parameters={"mkfsOptions": "-m 0"}, volume_capabilities=BLOCK),
        INVALID,
        ("parameters.mkfsOptions", "filesystem"),
    ),
    "mkfs options that are not allowed": (
        CREATE,
        create(parameters={"mkfsOptions": "-d /etc"}),
        INVALID,
        ("parameters.mkfsOptions", "'-d'", "allowed are -i"),
    ),
    "mkfs options with a wrong value": (
        CREATE,
        create(parameters={"mkfsOptions": "-m 90"}),
        INVALID,
        ("parameters.mkfsOptions", "'-m'", "0 to 50"),
    ),
    "mkfs options that name a device": (
        CREATE,
        create(parameters={"mkfsOptions": "-J device=/dev/vda"}),
        INVALID,
        ("parameters.mkfsOptions", "'-J'"),
    ),
    "mkfs options without end": (CREATE, create(parameters={"mkfsOptions": "-L 'x"}), INVALID, ("mkfsOptions",)),
    "mkfs options that run a shell": (
        CREATE,
        create(parameters={"mkfsOptions": "-L $(touch${IFS}/tmp/owned)"}),
        INVALID,
        ("parameters.mkfsOptions",),
    ),
    "mkfs options that are a path": (
        CREATE,
        create(parameters={"mkfsOptions": "/etc/passwd"}),
        INVALID,
        ("mkfsOptions",),
    ),
    "mkfs options of another filesystem": (
        CREATE,
        create(parameters={"mkfsOptions": "--csum xxhash"}),
        INVALID,
        ("parameters.mkfsOptions", "--csum", "ext4"),
    ),
    # Contexts that lie
    "stage: the context of another type": (
        STAGE,
        stage_with(lambda r: r.volume_context.update({"type": "directory"})),
        INVALID,
        ("volume_context.type", "'directory'", "'image'"),
    ),
    "publish: the context of another pool": (
        PUBLISH,
        publish_with(lambda r: r.volume_context.update({"pool": "../../etc"})),
        INVALID,
        ("volume_context.pool", "'default'"),
    ),
    # Questions for capacity
    "capacity of an unknown filesystem": (
        "GetCapacity",
        raw("GetCapacity", volume_capabilities=[capability(fs_type="zfs")]),
        INVALID,
        ("fs_type", "ext4, xfs, btrfs"),
    ),
    "capacity with an unknown parameter": (
        "GetCapacity",
        raw("GetCapacity", parameters={"colour": "red"}),
        INVALID,
        ("parameters.colour",),
    ),
    "topology without a segment": (
        CREATE,
        create(accessibility_requirements=csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology()])),
        INVALID,
        ("topology.segments", "topology.csi.hostvol.dev/node"),
    ),
}


@pytest.mark.parametrize(("method", "build", "codes", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_field_is_refused_in_words_and_leaves_no_trace(
    given: Given, method: str, build: Build, codes: Code | Collection[Code], words: tuple[str, ...]
) -> None:
    request = build(given)
    before = traces(given.driver)
    refused(given.driver, method, codes, *words, request=request)
    assert traces(given.driver) == before


BAD_FLAGS = {
    "unknown": "notaflag",
    "of another filesystem": "logbufs=4",
    "that shows torn data": "norecovery",
    "that names a device": "journal_path=/dev/vda",
    "that stops the machine": "errors=panic",
    "bind": "bind",
    "remount": "remount",
    "loop": "loop",
    "uid": "uid=0",
    "hidden behind a comma": "noatime,norecovery",
    "hidden behind an empty one": ",,norecovery",
    "empty": "",
    "with a wrong value": "commit=0",
    "without its value": "commit",
    "with a value too many": "noatime=1",
    "two equals signs": "commit=5=6",
    "white space": "noatime ",
    "NUL": "noatime\0",
    "line feed": "noatime\nsuid",
    "option": "-o",
    "upper case": "NOATIME",
    "contradiction": "ro,rw",
    "context": "context=system_u:object_r:etc_t:s0",
    "subvolume": "subvol=/",
}


@pytest.mark.parametrize("flag", BAD_FLAGS.values(), ids=BAD_FLAGS)
@pytest.mark.parametrize("method", [CREATE, STAGE, PUBLISH])
def test_a_mount_flag_that_is_not_on_the_list_is_refused_and_nothing_is_mounted(
    given: Given, method: str, flag: str
) -> None:
    fresh = Workload(given.driver, "flags", volume_id=given.image.volume_id, flags=[flag])
    requests: dict[str, Callable[[], Any]] = {
        CREATE: lambda: create_request("refused", volume_capabilities=[fresh.capability]),
        STAGE: fresh.stage_request,
        PUBLISH: fresh.publish_request,
    }
    before = traces(given.driver)
    words = ("mount_flags", "contradict" if flag == "ro,rw" else "allow")
    refused(given.driver, method, INVALID, *words, request=requests[method]())
    assert traces(given.driver) == before


# Ids

TAKES_ID: dict[str, dict[str, Any]] = {
    "DeleteVolume": {},
    "ControllerGetVolume": {},
    "ValidateVolumeCapabilities": {"volume_capabilities": [capability()]},
    STAGE: {"staging_target_path": "/nowhere/staging", "volume_capability": capability()},
    "NodeUnstageVolume": {"staging_target_path": "/nowhere/staging"},
    PUBLISH: {
        "staging_target_path": "/nowhere/staging",
        "target_path": "/nowhere/target",
        "volume_capability": capability(),
    },
    "NodeUnpublishVolume": {"target_path": "/nowhere/target"},
    "NodeGetVolumeStats": {"volume_path": "/nowhere"},
}
BAD_IDS = {
    "empty": "",
    "parent": "..",
    "this": ".",
    "traversal": "../../etc",
    "absolute": "/etc",
    "below": "a/b",
    "129 bytes": "v" * 129,
    "a megabyte": "v" * MIB,
    "NUL": "vol\0",
    "line feed": "vol\n",
    "space": "vol 1",
    "letters of no alphabet": "vоl-1",
    "option": "-rf",
    "trash": "vol@1",
    "glob": "*",
    "shell": "$(reboot)",
    "format": "%s%n",
}
GONE_IDS = ("vol-0000000000000000-0000000000000000", "fake-vol-id", "a" * 128, "record.json", "tmp", "CON")


@pytest.mark.parametrize("volume_id", BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.parametrize("method", TAKES_ID)
def test_an_id_that_is_none_is_refused(given: Given, method: str, volume_id: str) -> None:
    before = traces(given.driver)
    refused(given.driver, method, INVALID, "volume_id", volume_id=volume_id, **TAKES_ID[method])
    assert traces(given.driver) == before


@pytest.mark.parametrize("method", [method for method in TAKES_ID if method != "DeleteVolume"])
def test_an_id_of_nothing_is_not_found(given: Given, method: str) -> None:
    before = traces(given.driver)
    for volume_id in (*GONE_IDS, given.image.volume_id.upper(), f"{given.image.volume_id}0"):
        refused(given.driver, method, Code.NOT_FOUND, "volume_id", volume_id, volume_id=volume_id, **TAKES_ID[method])
    assert traces(given.driver) == before


# Paths


@pytest.fixture
def places(given: Given, canaries: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Paths that lead astray, by name."""
    home = tmp_path / "places"
    home.mkdir()
    links = {
        "link to a directory": canaries / "empty",
        "link to a full directory": canaries / "full",
        "link to /etc": Path("/etc"),
        "link to a file": canaries / "empty-file",
        "dangling link": tmp_path / "nothing" / "there",
        "link to a pool": given.driver.pool,
        "link to itself": home / "link-to-itself",
    }
    found = {}
    for name, leads_to in links.items():
        path = home / name.replace(" ", "-").replace("/", "")
        path.symlink_to(leads_to)
        found[name] = str(path)
    os.mkfifo(home / "fifo")
    (home / "a-file").write_text("precious")
    (home / "an-empty-file").touch()
    (home / "full").mkdir()
    (home / "full" / "file").write_text("precious")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(home / "sock"))
    pool = given.driver.pool
    found |= {
        "relative": "relative/path",
        "dot": ".",
        "parent": "..",
        "the root": "/",
        "the root twice": "//.",
        "through the parent": f"{home}/x/../../y",
        "ending in the parent": f"{home}/..",
        "NUL": f"{home}/a\0b",
        "a component of 256 bytes": f"{home}/{'x' * 256}",
        "no parent": f"{home}/missing/target",
        "a file as parent": f"{home}/a-file/target",
        "a link to itself as parent": f"{home}/link-to-itself/target",
        "a magic link": f"/proc/self/root{home}/target",
        "a descriptor": "/proc/self/fd/0/target",
        "a fifo": f"{home}/fifo",
        "a socket": f"{home}/sock",
        "a full file": f"{home}/a-file",
        "a full directory": f"{home}/full",
        "the pool": str(pool),
        "in the pool": f"{pool}/target",
        "a volume": f"{pool}/volumes/{given.image.volume_id}",
        "in a volume": f"{pool}/volumes/{given.image.volume_id}/target",
        "an image": f"{pool}/volumes/{given.image.volume_id}/disk.img",
        "the other pool": f"{given.driver.pools[1].directory}/target",
        "in the pool through a link": f"{home}/link-to-a-pool/target",
        "/etc": "/etc",
        "/dev/null": "/dev/null",
    }
    before = what_exists(home)
    yield found
    assert what_exists(home) == before
    assert (home / "a-file").read_text() == (home / "full" / "file").read_text() == "precious"


PATHS = (
    *("link to a directory", "link to a full directory", "link to /etc", "link to a file", "dangling link"),
    *("link to a pool", "link to itself", "relative", "dot", "parent", "the root", "the root twice"),
    *("through the parent", "ending in the parent", "NUL", "a component of 256 bytes", "no parent", "a file as parent"),
    *("a link to itself as parent", "a magic link", "a descriptor", "a fifo", "a socket", "a full file"),
    *("a full directory", "the pool", "in the pool", "a volume", "in a volume", "an image", "the other pool"),
    *("in the pool through a link", "/etc", "/dev/null"),
)
# What is in the way, rather than wrong in itself.
OCCUPIED = {"a full directory", "a full file", "/etc", "link to /etc", "/dev/null"}


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_target_path_is_refused_and_touched_by_no_call(
    given: Given, places: dict[str, str], name: str, block: bool
) -> None:
    workload = given.device if block else given.image
    request = workload.publish_request()
    request.target_path = places[name]
    before = traces(given.driver)
    codes = {INVALID, PRECONDITION} if name in OCCUPIED else {INVALID}
    refused(given.driver, PUBLISH, codes, "target_path", request=request)
    code = given.driver.code("NodeUnpublishVolume", volume_id=workload.volume_id, target_path=places[name])
    assert code in {INVALID, PRECONDITION} or name in ("no parent", "a file as parent")
    assert traces(given.driver) == before


@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_staging_path_is_refused_and_touched_by_no_call(
    given: Given, places: dict[str, str], name: str
) -> None:
    fresh = Workload(given.driver, "fresh", size_bytes=8 * MIB)
    fresh.create()
    request = fresh.stage_request()
    os.rmdir(fresh.staging)
    request.staging_target_path = places[name]
    before = traces(given.driver)
    codes = {INVALID, PRECONDITION} if name in OCCUPIED else {INVALID}
    refused(given.driver, STAGE, codes, "staging_target_path", request=request)
    # Nothing is staged there: OK says so, and must have touched nothing either.
    code = given.driver.code("NodeUnstageVolume", volume_id=fresh.volume_id, staging_target_path=places[name])
    assert code in {Code.OK, INVALID, PRECONDITION}
    assert traces(given.driver) == before
    given.driver.call("DeleteVolume", volume_id=fresh.volume_id)


@pytest.mark.parametrize("name", ["relative", "through the parent", "NUL", "in the pool", "link to a directory"])
def test_a_hostile_staging_path_of_a_publish_is_refused(given: Given, places: dict[str, str], name: str) -> None:
    request = given.image.publish_request()
    request.staging_target_path = places[name]
    before = traces(given.driver)
    refused(given.driver, PUBLISH, {INVALID, PRECONDITION}, "staging", request=request)
    assert traces(given.driver) == before


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
def test_a_target_that_is_the_staging_path_is_refused(given: Given, block: bool) -> None:
    workload = given.device if block else given.image
    request = workload.publish_request()
    request.target_path = request.staging_target_path
    before = traces(given.driver)
    refused(given.driver, PUBLISH, {INVALID, PRECONDITION}, "target_path", workload.staging, request=request)
    refused(
        given.driver,
        "NodeUnpublishVolume",
        {INVALID, PRECONDITION},
        "target_path",
        volume_id=workload.volume_id,
        target_path=workload.staging,
    )
    assert traces(given.driver) == before


def test_an_empty_directory_or_file_at_the_target_is_taken(given: Given) -> None:
    os.mkdir(given.image.target())
    Path(given.device.target()).touch()
    for workload in (given.image, given.device):
        workload.publish()
        workload.unpublish()
        assert not os.path.lexists(workload.target())


def test_a_directory_at_the_target_of_a_device_is_refused_and_kept(given: Given) -> None:
    target = Path(given.device.target())
    target.mkdir()
    before = traces(given.driver)
    refused(given.driver, PUBLISH, INVALID, "target_path", "an empty file", request=given.device.publish_request())
    assert traces(given.driver) == before
    target.rmdir()


def test_a_file_at_the_target_of_a_filesystem_is_refused_and_kept(given: Given) -> None:
    target = Path(given.image.target())
    target.touch()
    before = traces(given.driver)
    refused(given.driver, PUBLISH, INVALID, "target_path", "a directory", request=given.image.publish_request())
    assert traces(given.driver) == before
    target.unlink()


def test_ancestors_of_a_path_may_be_links(given: Given, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    request = given.image.publish_request()
    request.target_path = str(tmp_path / "link" / "target")
    given.driver.call(PUBLISH, request)
    assert run("findmnt", "-n", "-o", "TARGET", "--mountpoint", str(tmp_path / "real" / "target")).strip()
    given.driver.call("NodeUnpublishVolume", volume_id=given.image.volume_id, target_path=request.target_path)
    assert os.listdir(tmp_path / "real") == []


# The wire

NOT_REQUESTS = {
    "noise": b"\xff" * 64,
    "a field that ends early": b"\x0a\x7fabc",
    "a name that is no text": b"\x0a\x02\xff\xfe",
    "a name of another type": b"\x08\x01",
    "nesting without end": b"\x1a\x7f" * 200,
}


@pytest.mark.parametrize("content", NOT_REQUESTS.values(), ids=NOT_REQUESTS)
def test_bytes_that_are_no_request_are_refused_and_the_driver_goes_on(given: Given, content: bytes) -> None:
    before = traces(given.driver)
    with grpc.insecure_channel(
        f"unix:{given.driver.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        call: Any = channel.unary_unary("/csi.v1.Controller/CreateVolume")
        with pytest.raises(grpc.RpcError) as caught:
            call(content, timeout=10)
    error: Any = caught.value
    assert error.code() in {INVALID, Code.INTERNAL}
    assert "Traceback" not in error.details()
    assert traces(given.driver) == before
    assert given.driver.call("Probe").ready.value


def test_fields_of_the_future_are_ignored(given: Given) -> None:
    request = create_request("future", 8 * MIB).SerializeToString() + b"\xfa\x3e\x03abc"
    with grpc.insecure_channel(
        f"unix:{given.driver.socket_path}", [("grpc.default_authority", "localhost")]
    ) as channel:
        call: Any = channel.unary_unary("/csi.v1.Controller/CreateVolume")
        answer = csi_pb2.CreateVolumeResponse.FromString(call(request))
    given.driver.call("DeleteVolume", volume_id=answer.volume.volume_id)


def test_a_message_above_four_mebibytes_is_refused(given: Given) -> None:
    with pytest.raises(Failure) as caught:
        given.driver.call("CreateVolume", create_request("x" * (5 * MIB)))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert given.driver.call("Probe").ready.value


# Every field of every request, without a driver


def string_fields(descriptor: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every string field of a message and of the messages in it, by its path."""
    for field in descriptor.fields:
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            yield prefix + field.name, field
        elif is_message and not field.message_type.GetOptions().map_entry:
            yield from string_fields(field.message_type, f"{prefix}{field.name}.")


FIELDS = [
    (method, path)
    for method, descriptor in SPEC_METHODS.items()
    for path, _ in string_fields(descriptor.input_type)
    if not path.endswith("starting_token")
]


def put(message: Any, path: str, value: str) -> None:
    name, _, rest = path.partition(".")
    if not rest:
        setattr(message, name, value)
        return
    inner = getattr(message, name)
    put(inner.add() if hasattr(inner, "add") else inner, rest, value)


@pytest.mark.parametrize(("method", "path"), FIELDS, ids=[f"{method}.{path}" for method, path in FIELDS])
def test_every_string_of_every_request_has_the_limit_of_the_protocol(method: str, path: str) -> None:
    limit = 4095 if path.endswith("_path") else 256 if path.endswith("node_id") else 128
    request = request_of(method)
    put(request, path, "x" * limit)
    limits.check_limits(request)
    request = request_of(method)
    put(request, path, "x" * (limit + 1))
    with pytest.raises(InvalidField, match=rf"{path}: '{limit + 1} bytes' .* at most {limit} bytes"):
        limits.check_limits(request)


def test_more_than_the_disk_can_be_asked_and_is_told(given: Given) -> None:
    available = given.driver.call("GetCapacity").available_capacity
    failure = refused(
        given.driver,
        CREATE,
        Code.RESOURCE_EXHAUSTED,
        str(available + 10 * GIB),
        "choose another pool",
        request=create_request("refused", available + 10 * GIB),
    )
    assert "delete volumes" in failure.details
