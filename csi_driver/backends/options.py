"""Mount flags of a request as the kernel's attributes and options; knows no volume."""

from __future__ import annotations

from csi_driver.errors import InvalidField
from csi_driver.linux import filesystem
from csi_driver.linux.mount import MountFlag
from csi_driver.model import VolumeCapability

_FIELD = "volume_capability.mount.mount_flags"


def checked(fs_type: str, mount_flags: tuple[str, ...]) -> filesystem.MountOptions:
    """The flags in two heaps: attributes of the mount, and the filesystem's own options.

    `fs_type` is empty for a directory volume, which has no filesystem of its own.

    Raises: InvalidField naming the flag and what is allowed.
    """
    try:
        return filesystem.check_mount_options(fs_type or None, mount_flags)
    except ValueError as cause:
        raise InvalidField(_FIELD, filesystem.flag_names(mount_flags), str(cause)) from cause


def expected_flags(fs_type: str, capability: VolumeCapability) -> MountFlag:
    """The flags that a mount asked for with this capability has, as the kernel would tell them."""
    return checked(fs_type, capability.mount_flags).flags
