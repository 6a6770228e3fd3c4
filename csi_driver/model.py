"""The nouns of the driver as frozen values; knows no protobuf, no kernel and no file."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
from dataclasses import dataclass
from typing import NewType

VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)
GroupId = NewType("GroupId", str)
PoolName = NewType("PoolName", str)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
BLOCK_BYTES = 4096
DEFAULT_CAPACITY_BYTES = GIB
DEFAULT_DRIVER_NAME = "csi.hostvol.dev"
# Ids that this driver makes have at most 63 characters; a caller may name anything up to the protocol's 128.
_ID = re.compile(r"(?:vol|snap|grp)-([0-9a-f]{16})-[a-z0-9-]{1,107}")


class VolumeType(enum.StrEnum):
    """How the bytes of a volume are held."""

    IMAGE = "image"
    DIRECTORY = "directory"


class AccessType(enum.StrEnum):
    """What a workload sees: a mounted filesystem or a block device (CSI VolumeCapability.access_type)."""

    MOUNT = "mount"
    BLOCK = "block"


class Provisioning(enum.StrEnum):
    """Whether an image's blocks are allocated as they are written (thin) or at once (thick)."""

    THIN = "thin"
    THICK = "thick"


class QuotaPolicy(enum.StrEnum):
    """Whether a directory volume's size must be enforced."""

    REQUIRED = "required"
    NONE = "none"


class RetentionPolicy(enum.StrEnum):
    """Whether a deleted object must stay in the trash to its end, or gives way to whoever needs its space."""

    KEEP = "keep"
    YIELD = "yield"


class AccessMode(enum.StrEnum):
    """CSI VolumeCapability.AccessMode.Mode, the ones that a volume of one node can have."""

    SINGLE_NODE_WRITER = "SINGLE_NODE_WRITER"
    SINGLE_NODE_READER_ONLY = "SINGLE_NODE_READER_ONLY"
    SINGLE_NODE_SINGLE_WRITER = "SINGLE_NODE_SINGLE_WRITER"
    SINGLE_NODE_MULTI_WRITER = "SINGLE_NODE_MULTI_WRITER"

    @property
    def is_exclusive(self) -> bool:
        """At most one target path (CSI NodePublishVolume, second table of return codes)."""
        return self is not AccessMode.SINGLE_NODE_MULTI_WRITER

    @property
    def is_read_only(self) -> bool:
        return self is AccessMode.SINGLE_NODE_READER_ONLY


@dataclass(frozen=True, slots=True)
class VolumeCapability:
    """One way in which a volume is to be used: access type plus access mode."""

    access_type: AccessType
    access_mode: AccessMode
    fs_type: str = ""
    mount_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CapacityRange:
    """The size that is asked for, in bytes; 0 means unspecified."""

    required_bytes: int = 0
    limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class VolumeParameters:
    """What a StorageClass decides about a volume; defaults are the contract's.

    `retention_seconds`: how long the volume stays in the trash once it is deleted; 0: it is deleted at once.
    """

    volume_type: VolumeType = VolumeType.IMAGE
    pool: PoolName = PoolName("default")
    provisioning: Provisioning = Provisioning.THIN
    mkfs_options: str = ""
    quota: QuotaPolicy = QuotaPolicy.REQUIRED
    block_size: int = BLOCK_BYTES
    retention_seconds: int = 0
    retention_policy: RetentionPolicy = RetentionPolicy.KEEP


@dataclass(frozen=True, slots=True)
class ParameterChanges:
    """What is to become of a living volume's parameters (CSI mutable_parameters); None: stays as it is."""

    provisioning: Provisioning | None = None
    quota: QuotaPolicy | None = None
    retention_seconds: int | None = None
    retention_policy: RetentionPolicy | None = None

    def applied_to(self, held: VolumeParameters) -> VolumeParameters:
        """The parameters that a volume with these has afterwards."""
        wanted = ((one.name, getattr(self, one.name)) for one in dataclasses.fields(self))
        to = dataclasses.replace(held, **{name: value for name, value in wanted if value is not None})
        # What is not kept cannot give way either.
        return to if to.retention_seconds else dataclasses.replace(to, retention_policy=RetentionPolicy.KEEP)


class SourceKind(enum.StrEnum):
    """What a volume's first content was copied from."""

    SNAPSHOT = "snapshot"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class ContentSource:
    """CSI VolumeContentSource: the object whose content a volume begins with."""

    kind: SourceKind
    object_id: str


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A volume as it is asked for; two equal specs ask for the same volume.

    With a `source`, `inherits` names what the request left open and the copy therefore has from its source.
    `pod` makes it ephemeral: the `namespace/name` of the pod that it begins and ends with, empty where it is unknown.
    """

    name: str
    capacity_range: CapacityRange
    access_type: AccessType
    fs_type: str
    parameters: VolumeParameters
    source: ContentSource | None = None
    inherits: frozenset[str] = frozenset()
    pod: str | None = None

    @property
    def is_ephemeral(self) -> bool:
        return self.pod is not None


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is held; sizes in bytes, times in seconds since the epoch.

    `lineage` names the volume that this one has blocks from, directly or by others; empty: its own id.
    `growing_to_bytes` is 0, or the size that an expansion intends which was neither finished nor taken back yet;
    `content_id` names the stream whose content it has, as long as nobody could have written to it; else empty. Somebody
    else's writes show by `content_mark`, the mark of its content then (`domain/unwritten.py`).
    `becoming` likewise the parameters that a modification intends. `created_as` are those of its creation, which its
    name stands for, where a modification has changed them since. `pod` as in its VolumeSpec. `rollback` is empty, or
    what tells the content that a rollback gave it from the one before.
    """

    volume_id: VolumeId
    name: str
    capacity_bytes: int
    access_type: AccessType
    fs_type: str
    parameters: VolumeParameters
    created_at: float
    fs_uuid: str = ""
    project_id: int = 0
    growing_to_bytes: int = 0
    source: ContentSource | None = None
    lineage: str = ""
    pod: str | None = None
    becoming: VolumeParameters | None = None
    created_as: VolumeParameters | None = None
    rollback: str = ""
    content_id: str = ""
    content_mark: str = ""

    @property
    def object_id(self) -> str:
        return self.volume_id

    @property
    def content_ids(self) -> frozenset[str]:
        """The names by which streams know its content."""
        return frozenset({self.content_id} - {""})

    @property
    def first_parameters(self) -> VolumeParameters:
        """The parameters that it was created with."""
        return self.created_as or self.parameters

    @property
    def family(self) -> str:
        """The same for all objects that may share blocks."""
        return self.lineage or self.volume_id

    @property
    def promised_bytes(self) -> int:
        """What the volume may come to hold."""
        return max(self.capacity_bytes, self.growing_to_bytes)

    @property
    def is_ephemeral(self) -> bool:
        return self.pod is not None

    @property
    def pool(self) -> PoolName:
        return self.parameters.pool

    @property
    def volume_type(self) -> VolumeType:
        return self.parameters.volume_type

    @property
    def is_thick(self) -> bool:
        return self.parameters.provisioning is Provisioning.THICK

    @property
    def is_block(self) -> bool:
        return self.access_type is AccessType.BLOCK

    @property
    def has_filesystem(self) -> bool:
        """Whether a filesystem of its own lies in it, which has to grow with it."""
        return bool(self.fs_type)


@dataclass(frozen=True, slots=True)
class SnapshotSpec:
    """A snapshot as it is asked for; a retention of None is that of its volume."""

    name: str
    source_volume_id: str
    retention_seconds: int | None = None
    retention_policy: RetentionPolicy | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a volume at one time, with all that a volume made from it needs to know of its source.

    `size_bytes` is the source's capacity then, `created_at` the time of the cut in seconds since the epoch;
    `is_ready` is false while the bytes are still being copied. A member of a group snapshot names it, and the pool that
    has the group's record; else both are empty. `content_id` is the volume's at the cut.
    """

    snapshot_id: SnapshotId
    name: str
    source_volume_id: VolumeId
    size_bytes: int
    access_type: AccessType
    fs_type: str
    parameters: VolumeParameters
    created_at: float
    is_ready: bool
    lineage: str
    group_snapshot_id: str = ""
    group_pool: str = ""
    content_id: str = ""

    @property
    def object_id(self) -> str:
        return self.snapshot_id

    @property
    def content_ids(self) -> frozenset[str]:
        """The names by which streams know its content: its own, and that of what its volume was imported from."""
        return frozenset({str(self.snapshot_id), self.content_id} - {""})

    @property
    def family(self) -> str:
        """The same for all objects that may share blocks."""
        return self.lineage

    @property
    def pool(self) -> PoolName:
        return self.parameters.pool

    @property
    def volume_type(self) -> VolumeType:
        return self.parameters.volume_type


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group snapshot as it is asked for."""

    name: str
    source_volume_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """Snapshots of several volumes as of one instant, `created_at` (seconds since the epoch).

    `snapshot_ids` are in the order of `source_volume_ids`, `pool` has the record. `is_leaving`: it is being deleted.
    """

    group_snapshot_id: GroupId
    name: str
    source_volume_ids: tuple[str, ...]
    snapshot_ids: tuple[str, ...]
    pool: PoolName
    created_at: float
    is_leaving: bool = False

    @property
    def object_id(self) -> str:
        return self.group_snapshot_id


@dataclass(frozen=True, slots=True)
class Publication:
    """A volume shown to a workload at one target path."""

    target_path: str
    capability: VolumeCapability
    read_only: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What NodeGetVolumeStats tells; bytes, and inodes where the volume has them (else 0)."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
    total_inodes: int = 0
    used_inodes: int = 0
    available_inodes: int = 0


def node_key(node_id: str) -> str:
    """The part of every id that names the node: 16 hexadecimal digits of SHA-256 of the node id."""
    return hashlib.sha256(node_id.encode()).hexdigest()[:16]


def key_of(object_id: str) -> str:
    """The node key in an id that a node of ours made; empty in any other."""
    found = _ID.fullmatch(object_id)
    return found[1] if found is not None else ""


def topology_key(driver_name: str) -> str:
    """The topology segment's key; its value is the node id."""
    return f"topology.{driver_name}/node"


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit
