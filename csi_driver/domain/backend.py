"""What the domain needs of whatever holds a volume's bytes; the backends fulfil it without knowing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from csi_driver.linux.mountinfo import MountEntry, MountPoint
from csi_driver.model import Usage, Volume, VolumeParameters


class Backend(Protocol):
    """One way of holding volumes in one pool."""

    def choose_identity(self, volume: Volume) -> Volume:
        """The volume with whatever the kernel will know it by, chosen before anything is made.

        Raises: InvalidField when this pool cannot hold such a volume.
        """

    def build(self, volume: Volume, object_fd: int) -> None:
        """Make and fsync the content beside the record, in an object directory under `tmp/`."""

    def require_extendable(self, volume: Volume, to_bytes: int) -> None:
        """Refuse an extension that can be known to fail, before anything is intended.

        Raises: GrowthRefused naming the remedy; CapacityOutOfRange; VolumeDamaged.
        """

    def extend(self, volume: Volume, to_bytes: int) -> None:
        """The volume's bytes can be so many, durably; nobody sees them before `grow`. Idempotent, also after a crash.

        Raises: OSError: ENOSPC; part of it may be done then, which `retract` takes back.
        """

    def retract(self, volume: Volume) -> None:
        """What an extension did that was not finished is taken back, durably. Idempotent."""

    def grow(self, volume: Volume, mounted_fd: int | None) -> None:
        """Whoever uses the volume now sees all of its size. Idempotent; nobody is interrupted.

        `mounted_fd` is the root of a mount of it that is not read-only; None: nothing is mounted, or it is a device.

        Raises: GrowthRefused naming the remedy; VolumeBusy.
        """

    def require_changeable(self, volume: Volume, to: VolumeParameters) -> Volume:
        """The volume with whatever the kernel will know it by once it has the parameters `to`; it has its own still.

        Raises: ModificationRefused naming the remedy.
        """

    def change(self, volume: Volume, to: VolumeParameters, progress: Callable[[int], None]) -> None:
        """The volume's bytes are held as `to` says, durably; its users are not interrupted. Idempotent.

        `progress` is told the bytes that are done, of the volume's size.

        Raises: ModificationRefused; OSError: ENOSPC.
        """

    def restore(self, volume: Volume) -> None:
        """What a `change` did that was not finished is taken back, as far as anybody could notice it. Idempotent."""

    def own_bytes(self, volume: Volume) -> int:
        """What is allocated to this volume alone, measured now."""

    def stage(self, volume: Volume, target_fd: int, mount_flags: tuple[str, ...]) -> None:
        """Attach, and mount at the staging path unless the volume is raw block."""

    def finish_stage(self, volume: Volume, mounted_fd: int) -> None:
        """What a fresh mount needs before a workload sees it. Idempotent."""

    def is_attached(self, volume: Volume) -> bool:
        """Whether a loop device holds the volume."""

    def shows(self, volume: Volume, point: MountPoint) -> bool:
        """Whether what is seen at some path is this volume."""

    def mounts(self, volume: Volume) -> list[MountEntry]:
        """Everywhere the volume is mounted."""

    def device_fd(self, volume: Volume, *, read_only: bool) -> int | None:
        """What a publication binds when it is a device; None when it is the staging mount."""

    def is_device_read_only(self, volume: Volume) -> bool:
        """Whether a volume that is shown as a device refuses writes now; False for all others."""

    def release(self, volume: Volume) -> None:
        """Let go after the last unmount.

        Raises: VolumeBusy naming the holder.
        """

    def is_held(self, volume: Volume) -> bool:
        """Whether something outside this driver has the volume's bytes open."""

    def usage(self, volume: Volume, path_fd: int) -> Usage:
        """How full the volume is."""
