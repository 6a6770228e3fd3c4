"""StorageClass parameters parsed and judged: an unknown key is refused by name; knows no pool's state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from csi_driver import durations
from csi_driver.errors import InvalidField
from csi_driver.linux import filesystem
from csi_driver.model import (
    AccessType,
    PoolName,
    Provisioning,
    QuotaPolicy,
    RetentionPolicy,
    VolumeCapability,
    VolumeParameters,
    VolumeType,
)

# Keys under this prefix are the sidecars' own; those that we do not know are ignored.
SIDECAR_PREFIX: Final = "csi.storage.k8s.io/"
_KEYS: Final = ("type", "pool", "provisioning", "mkfsOptions", "quota", "retention", "retentionPolicy", "blockSize")
_OF_SNAPSHOTS: Final = ("retention", "retentionPolicy")
_POOL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BLOCK_SIZES: Final = {"4096": 4096, "512": 512}
_FILESYSTEMS: Final = ", ".join(filesystem.FILESYSTEMS)
_DEFAULT_FILESYSTEM: Final = "ext4"

Choice = TypeVar("Choice", VolumeType, Provisioning, QuotaPolicy, RetentionPolicy)


def parse(given: Mapping[str, str], access_type: AccessType) -> VolumeParameters:
    """The parameters of a class, defaults filled in.

    Raises: InvalidField naming the key, the value and what is allowed.
    """
    own = {key: value for key, value in given.items() if not key.startswith(SIDECAR_PREFIX)}
    for key in own:
        if key not in _KEYS:
            # Without its value, which may be a secret that strayed here.
            raise InvalidField(f"parameters.{key}", key, ", ".join(_KEYS))
    volume_type = _choice("type", own, VolumeType.IMAGE)
    _check_type(volume_type, own, access_type)
    retention_seconds, retention_policy = _retention(own)
    return VolumeParameters(
        volume_type=volume_type,
        pool=_pool(own.get("pool", "default")),
        provisioning=_choice("provisioning", own, Provisioning.THIN),
        mkfs_options=own.get("mkfsOptions", ""),
        quota=_choice("quota", own, QuotaPolicy.REQUIRED),
        block_size=_block_size(own.get("blockSize", "4096"), access_type),
        retention_seconds=retention_seconds,
        retention_policy=retention_policy,
    )


def snapshot_retention(given: Mapping[str, str]) -> tuple[int, RetentionPolicy] | None:
    """What a snapshot class decides: how long its snapshots stay in the trash; None: as long as their volumes.

    Raises: InvalidField naming the key.
    """
    own = {key: value for key, value in given.items() if not key.startswith(SIDECAR_PREFIX)}
    for key in own:
        if key not in _OF_SNAPSHOTS:
            allowed = f"{', '.join(_OF_SNAPSHOTS)}: for the rest a snapshot has the parameters of its volume"
            raise InvalidField(f"parameters.{key}", key, allowed)
    return _retention(own) if own else None


def check_group(given: Mapping[str, str]) -> None:
    """A class of group snapshots decides nothing: a key that is not a sidecar's is a mistake.

    Kubernetes' own specs repeat a field of the class, `deletionPolicy`, among its parameters: without effect.

    Raises: InvalidField naming the key.
    """
    for key, value in given.items():
        is_field = key == "deletionPolicy" and value in {"Delete", "Retain"}
        if not is_field and not key.startswith(SIDECAR_PREFIX):
            raise InvalidField(f"parameters.{key}", key, "none: a member has the parameters of its volume")


def left_open(given: Mapping[str, str], fs_type: str) -> frozenset[str]:
    """What a request does not decide, so that a copy has it from its source."""
    return frozenset(
        name for name, is_open in (("fs_type", not fs_type), ("block_size", "blockSize" not in given)) if is_open
    )


def filesystem_of(values: VolumeParameters, access_type: AccessType, fs_type: str) -> str:
    """The filesystem of an image, ext4 unless another is asked; empty where the volume has none of its own.

    Raises: InvalidField.
    """
    if values.volume_type is VolumeType.DIRECTORY and fs_type:
        raise InvalidField(
            "volume_capabilities.mount.fs_type",
            fs_type,
            "nothing with type directory: it shows the pool's filesystem",
        )
    if values.volume_type is VolumeType.DIRECTORY or access_type is AccessType.BLOCK:
        return ""
    if fs_type and fs_type not in filesystem.FILESYSTEMS:
        raise InvalidField("volume_capabilities.mount.fs_type", fs_type, _FILESYSTEMS)
    return fs_type or _DEFAULT_FILESYSTEM


def check_mkfs_options(values: VolumeParameters, fs_type: str) -> None:
    """Refuse options that mkfs must not be given.

    Raises: InvalidField.
    """
    if not values.mkfs_options:
        return
    if not fs_type:
        raise InvalidField("parameters.mkfsOptions", values.mkfs_options, "only for an image with a filesystem")
    try:
        filesystem.parse_mkfs_options(filesystem.FILESYSTEMS[fs_type], values.mkfs_options)
    except ValueError as cause:
        raise InvalidField("parameters.mkfsOptions", values.mkfs_options, str(cause)) from cause


def check_mount_flags(fs_type: str, capability: VolumeCapability, field: str) -> None:
    """Refuse mount flags that the volume could not be staged with later.

    Raises: InvalidField.
    """
    if capability.access_type is AccessType.BLOCK:
        return
    try:
        filesystem.check_mount_options(fs_type or None, capability.mount_flags)
    except ValueError as cause:
        names = filesystem.flag_names(capability.mount_flags)
        raise InvalidField(f"{field}.mount.mount_flags", names, str(cause)) from cause


def _check_type(volume_type: VolumeType, own: Mapping[str, str], access_type: AccessType) -> None:
    if volume_type is VolumeType.DIRECTORY:
        if access_type is AccessType.BLOCK:
            raise InvalidField("parameters.type", volume_type, "image for a raw block volume")
        only_for_images = [key for key in ("provisioning", "mkfsOptions", "blockSize") if key in own]
        if only_for_images:
            key = only_for_images[0]
            raise InvalidField(f"parameters.{key}", own[key], "only with type image")
    elif "quota" in own:
        raise InvalidField("parameters.quota", own["quota"], "only with type directory: an image has a hard size")


def _retention(own: Mapping[str, str]) -> tuple[int, RetentionPolicy]:
    policy = _choice("retentionPolicy", own, RetentionPolicy.KEEP)
    try:
        seconds = durations.parse_seconds(own.get("retention", "0s"))
    except ValueError as cause:
        raise InvalidField("parameters.retention", own["retention"], str(cause)) from cause
    # What is not kept cannot give way either.
    return seconds, policy if seconds else RetentionPolicy.KEEP


def _pool(value: str) -> PoolName:
    if not _POOL.fullmatch(value):
        raise InvalidField("parameters.pool", value, "lower-case letters, digits and '-', at most 63")
    return PoolName(value)


def _block_size(value: str, access_type: AccessType) -> int:
    if value not in _BLOCK_SIZES:
        raise InvalidField("parameters.blockSize", value, "4096 or 512")
    if access_type is not AccessType.BLOCK and value != "4096":
        raise InvalidField("parameters.blockSize", value, "4096 except for raw block volumes")
    return _BLOCK_SIZES[value]


def _choice(key: str, own: Mapping[str, str], default: Choice) -> Choice:
    value = own.get(key)
    if value is None:
        return default
    try:
        return type(default)(value)
    except ValueError as cause:
        raise InvalidField(f"parameters.{key}", value, ", ".join(type(default))) from cause
