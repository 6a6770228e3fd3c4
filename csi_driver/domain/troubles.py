"""What can be wrong with a pool or a volume, in words with a remedy; looks at nothing.

A sentence stays the same while its cause lasts, so that whoever hears it again knows it: no counters in it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from csi_driver.errors import RecordDamaged
from csi_driver.model import Volume

# How errors are found and, but for what is lost, mended, so that they are not told any more.
_MENDED_BY = {
    "ext4": "stop its pods and run e2fsck -f on its image",
    "xfs": "stop its pods and run xfs_repair on its image",
    "btrfs": "run btrfs scrub where it is mounted, replace the files that it names in the kernel's log, and say btrfs "
    "device stats --reset",
}
_REPAIRED_BY = {
    "ext4": "run e2fsck -f on its image",
    "xfs": "run xfs_repair on its image",
    "btrfs": "run btrfs rescue super-recover on a loop device of its image",
}
_POD_AGAIN = "delete the pods that use it, so that it is mounted again"


class Severity(enum.StrEnum):
    """CSI VolumeHealthErrorType; UNKNOWN is said to operators only, where nobody has looked yet."""

    UNKNOWN = "UNKNOWN"
    DEGRADED = "DEGRADED"
    INACCESSIBLE = "INACCESSIBLE"
    DATA_LOSS = "DATA_LOSS"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One cause; `reason` is one word for programs, unique among the troubles of one volume.

    `only_growing`: of a pool's troubles, one that concerns only volumes that may still take space from it.
    """

    severity: Severity
    reason: str
    message: str
    only_growing: bool = False


def _degraded(reason: str, message: str, *, only_growing: bool = False) -> Trouble:
    return Trouble(Severity.DEGRADED, reason, message, only_growing)


def _inaccessible(reason: str, message: str) -> Trouble:
    return Trouble(Severity.INACCESSIBLE, reason, message)


def _lost(reason: str, message: str) -> Trouble:
    return Trouble(Severity.DATA_LOSS, reason, message)


# Pools


def pool_unavailable(name: str, why: str) -> Trouble:
    return _inaccessible("PoolUnavailable", f"pool {name} is not served: {why}")


def pool_silent(name: str, directory: str) -> Trouble:
    return _inaccessible(
        "PoolNotAnswering", f"pool {name} ({directory}) does not answer: look at its disk and at the kernel's log"
    )


def pool_not_looked_at(name: str, directory: str) -> Trouble:
    return Trouble(
        Severity.UNKNOWN,
        "PoolNotLookedAt",
        f"pool {name} ({directory}) has not been looked at since it is served: ask again in some seconds",
    )


def volumes_not_looked_at(name: str, directory: str) -> Trouble:
    return Trouble(
        Severity.UNKNOWN,
        "VolumesNotLookedAt",
        f"pool {name} ({directory}): not all of its volumes have been looked at since it is served: ask again in a "
        "minute",
    )


def pool_look_failed(name: str, directory: str, why: str) -> Trouble:
    return _degraded(
        "PoolLookFailed",
        f"pool {name} ({directory}) cannot be looked at, so what is wrong with it and its volumes is not known: {why}; "
        "look at its disk, at the kernel's log and at the driver's",
    )


def pool_detached(name: str, directory: str) -> Trouble:
    return _degraded(
        "PoolDetached",
        f"pool {name}: {directory} does not lead to the pool any more: mount its disk there and restart the driver",
    )


def pool_shut_down(name: str, directory: str) -> Trouble:
    return _inaccessible(
        "PoolShutDown",
        f"pool {name}: its filesystem at {directory} was shut down by the kernel: look at its disk, then unmount, "
        "check and mount it again",
    )


def pool_read_only(name: str, directory: str) -> Trouble:
    return _degraded(
        "PoolReadOnly",
        f"pool {name}: its filesystem at {directory} is read-only: look at the kernel's log and its disk, check it and "
        "mount it again",
    )


def pool_errors(name: str, directory: str) -> Trouble:
    return _degraded(
        "PoolFilesystemErrors",
        f"pool {name}: the kernel has counted errors of the filesystem at {directory}: look at its disk and at the "
        "kernel's log, and check the filesystem",
    )


def backing_file_damaged(name: str, problem: str) -> Trouble:
    return _degraded("BackingFileDamaged", f"pool {name}: {problem}")


def pool_full(name: str, directory: str) -> Trouble:
    return _degraded(
        "PoolFull",
        f"pool {name} ({directory}) has less space than its reserve: writes to thin volumes may fail; delete what is "
        "not needed or enlarge the filesystem",
        only_growing=True,
    )


# Volumes


def quarantined(volume_id: str, damage: RecordDamaged) -> Trouble:
    return _inaccessible("RecordQuarantined", f"{volume_id} is not served: {damage}")


def silent(volume: Volume) -> Trouble:
    return _inaccessible(
        "NotAnswering",
        f"{volume.volume_id} does not answer: look at the disk of pool {volume.pool} and at the kernel's log",
    )


def content_missing(volume: Volume, path: str) -> Trouble:
    return _lost("ContentMissing", f"{volume.volume_id}: {path} is gone: restore it, or a snapshot, or a backup")


def content_unreadable(volume: Volume, path: str, why: str) -> Trouble:
    return _inaccessible("ContentUnreadable", f"{volume.volume_id}: {path} cannot be looked at: {why}")


def look_failed(volume: Volume, why: str) -> Trouble:
    return _degraded(
        "LookFailed",
        f"{volume.volume_id} could not be looked at ({why}), so nothing else is known of it: look at its image and at "
        "the driver's log, and report it",
    )


def image_short(volume: Volume, path: str) -> Trouble:
    return _lost(
        "ImageShort",
        f"{volume.volume_id}: {path} was cut, it is shorter than the volume: restore it, or a snapshot, or a backup",
    )


def image_deleted(volume: Volume, path: str) -> Trouble:
    return _lost(
        "ImageDeleted",
        f"{volume.volume_id}: {path} was deleted or replaced while it is attached: copy the data out before its pods "
        "end, since it is gone with the last of them",
    )


def device_gone(volume: Volume) -> Trouble:
    return _inaccessible(
        "DeviceGone", f"{volume.volume_id} is published, but no loop device holds its image any more: {_POD_AGAIN}"
    )


def filesystem_shut_down(volume: Volume) -> Trouble:
    return _inaccessible(
        "FilesystemShutDown",
        f"{volume.volume_id}: its {volume.fs_type} was shut down by the kernel: look at the kernel's log and the "
        f"pool's disk, then {_POD_AGAIN}",
    )


def filesystem_read_only(volume: Volume) -> Trouble:
    return _degraded(
        "FilesystemReadOnly",
        f"{volume.volume_id}: its {volume.fs_type} went read-only: look at the kernel's log and the pool's disk, then "
        f"{_POD_AGAIN}",
    )


def filesystem_errors(volume: Volume, first_error: str = "") -> Trouble:
    first = f" (the first {first_error})" if first_error else ""
    return _degraded(
        "FilesystemErrors",
        f"{volume.volume_id}: the kernel has met errors of its {volume.fs_type}{first}: "
        f"{_MENDED_BY[volume.fs_type]}, or restore a snapshot or a backup",
    )


def filesystem_damaged(volume: Volume, damage: str) -> Trouble:
    return _inaccessible(
        "FilesystemDamaged",
        f"{volume.volume_id}: its {volume.fs_type} cannot be mounted, {damage}: {_REPAIRED_BY[volume.fs_type]}, or "
        "restore a snapshot or a backup",
    )
