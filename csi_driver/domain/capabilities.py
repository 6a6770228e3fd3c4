"""Whether a volume can be used as a capability asks; knows no mount."""

from __future__ import annotations

from csi_driver.backends import options
from csi_driver.errors import CapabilityAbsent, CapabilityExceeded
from csi_driver.model import AccessType, Volume, VolumeCapability, VolumeType


def check_capability(volume: Volume, capability: VolumeCapability) -> None:
    """Refuse a capability that the volume does not have.

    Raises: CapabilityExceeded naming the field; InvalidField for a mount flag that is not allowed.
    """
    if capability.access_type is not volume.access_type:
        raise CapabilityExceeded(
            f"volume_capability: volume {volume.volume_id} is a {volume.access_type} volume, asked was "
            f"{capability.access_type}"
        )
    if capability.fs_type and volume.volume_type is VolumeType.IMAGE and capability.fs_type != volume.fs_type:
        raise CapabilityExceeded(
            f"volume_capability.mount.fs_type: volume {volume.volume_id} holds {volume.fs_type}, asked was "
            f"{capability.fs_type!r}"
        )
    if capability.access_type is AccessType.MOUNT:
        options.checked(volume.fs_type, capability.mount_flags)


def require_capability(volume: Volume, capability: VolumeCapability | None) -> None:
    """The same for an expansion, which may name none and has a code of its own for it.

    Raises: CapabilityAbsent; InvalidField for a mount flag that is not allowed.
    """
    if capability is None:
        return
    try:
        check_capability(volume, capability)
    except CapabilityExceeded as cause:
        raise CapabilityAbsent(str(cause)) from cause


def same_access(held: VolumeCapability, asked: VolumeCapability) -> bool:
    """Whether two capabilities ask for the same; an empty fs_type means the volume's own."""
    return (held.access_mode, held.mount_flags) == (asked.access_mode, asked.mount_flags)
