"""Bad and hostile fields: refused with the code of the specification's table, in words, and without a trace.

Every field of a request that is missing, too large, negative, unknown, of the future or not offered is refused; the
message names the field and what is allowed. The table is REFUSED.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.bad_requests import (
    BIG,
    BLOCK,
    CREATE,
    HUGE_MAP,
    INVALID,
    PRECONDITION,
    PUBLISH,
    STAGE,
    Build,
    Case,
    Given,
    create,
    create_with,
    first,
    publish_with,
    raw,
    stage_with,
)
from tests.conformance.probing import refused, request_of, traces
from tests.harness import DIRECTORY, GIB, MIB, Code, capability, create_request

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
