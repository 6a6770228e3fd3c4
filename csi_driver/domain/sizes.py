"""Which size a volume gets for the range that was asked; knows no pool and no free space."""

from __future__ import annotations

from csi_driver.errors import CapacityOutOfRange
from csi_driver.linux.filesystem import FILESYSTEMS
from csi_driver.model import (
    BLOCK_BYTES,
    DEFAULT_CAPACITY_BYTES,
    TIB,
    AccessType,
    CapacityRange,
    Snapshot,
    Volume,
    VolumeSpec,
    VolumeType,
    round_up,
)

# The largest file of an ext4 pool, 2^32 blocks of 4 KiB, less the last one.
_LARGEST_BYTES = 16 * TIB - BLOCK_BYTES


def minimum_bytes(volume_type: VolumeType, access_type: AccessType, fs_type: str) -> int:
    """The smallest volume of this kind."""
    if volume_type is VolumeType.IMAGE and access_type is AccessType.MOUNT:
        return FILESYSTEMS[fs_type].minimum_bytes
    return BLOCK_BYTES


def grown_minimum_bytes(volume_type: VolumeType, access_type: AccessType, fs_type: str) -> int:
    """The smallest size to which a volume of this kind can grow."""
    if volume_type is VolumeType.IMAGE and access_type is AccessType.MOUNT:
        return FILESYSTEMS[fs_type].grown_minimum_bytes
    return BLOCK_BYTES


def maximum_bytes(volume_type: VolumeType, access_type: AccessType, fs_type: str) -> int:
    """The largest volume of this kind."""
    if volume_type is VolumeType.IMAGE and access_type is AccessType.MOUNT:
        return min(FILESYSTEMS[fs_type].maximum_bytes, _LARGEST_BYTES)
    return _LARGEST_BYTES


def choose_capacity(asked: CapacityRange, *, minimum: int, maximum: int) -> int:
    """The size to give, in bytes: what is required, rounded up to whole blocks and to `minimum`, never above the limit.

    Nothing required: 1 GiB, or the limit when that is less.

    Raises: CapacityOutOfRange naming the fields and what is possible.
    """
    wanted = asked.required_bytes or min(DEFAULT_CAPACITY_BYTES, asked.limit_bytes or DEFAULT_CAPACITY_BYTES)
    if not asked.required_bytes:
        wanted = wanted // BLOCK_BYTES * BLOCK_BYTES
    given = max(round_up(wanted, BLOCK_BYTES), minimum)
    if given > maximum:
        raise CapacityOutOfRange(f"capacity_range.required_bytes: {wanted} is more than a volume can have, {maximum}")
    if asked.limit_bytes and given > asked.limit_bytes:
        raise CapacityOutOfRange(
            f"capacity_range.limit_bytes: {asked.limit_bytes} is too small; a volume of this kind that holds "
            f"{asked.required_bytes} bytes takes {given} (whole blocks of {BLOCK_BYTES}, at least {minimum})"
        )
    return given


def choose_copy_capacity(
    asked: CapacityRange, *, source_bytes: int, minimum: int, grown_minimum: int, maximum: int
) -> int:
    """The size of a volume whose content is copied: what is required, never less than the source has.

    Nothing required: the source's size. What is larger than the source is `grown_minimum` at least.

    Raises: CapacityOutOfRange naming the field and what is possible.
    """
    if asked.limit_bytes and asked.limit_bytes < source_bytes:
        raise CapacityOutOfRange(
            f"capacity_range.limit_bytes: {asked.limit_bytes} is less than the {source_bytes} bytes of the source"
        )
    if not asked.required_bytes:
        return source_bytes
    given = choose_capacity(asked, minimum=minimum, maximum=maximum)
    if given < source_bytes:
        raise CapacityOutOfRange(
            f"capacity_range.required_bytes: {asked.required_bytes} is less than the {source_bytes} bytes of the source"
        )
    if given > source_bytes:
        return choose_capacity(asked, minimum=grown_minimum, maximum=maximum)
    return given


def told_bytes(snapshot: Snapshot) -> int:
    """What must be asked for, for a volume from this snapshot; 0 (unspecified) where any size that is asked is enough.

    So it is at the least size of the kind, to which a smaller size is rounded up. A provisioner compares what is told
    with what its claim asks, and would refuse the very claim that the source was made for.
    """
    least = minimum_bytes(snapshot.volume_type, snapshot.access_type, snapshot.fs_type)
    return 0 if snapshot.size_bytes <= least else snapshot.size_bytes


def planned_bytes(spec: VolumeSpec) -> int:
    """The size that a new volume of this spec gets.

    Raises: CapacityOutOfRange.
    """
    kind = (spec.parameters.volume_type, spec.access_type, spec.fs_type)
    return choose_capacity(spec.capacity_range, minimum=minimum_bytes(*kind), maximum=maximum_bytes(*kind))


def satisfies(capacity_bytes: int, asked: CapacityRange) -> bool:
    """Whether a volume of this size is what was asked."""
    return capacity_bytes >= asked.required_bytes and (not asked.limit_bytes or capacity_bytes <= asked.limit_bytes)


def choose_larger(volume: Volume, asked: CapacityRange) -> int:
    """The size that an expansion gives the volume, rounded as at its creation; its own when it has what is asked.

    Raises: CapacityOutOfRange: a volume never becomes smaller.
    """
    _refuse_limit_below(volume, asked)
    if asked.required_bytes <= volume.capacity_bytes:
        return volume.capacity_bytes
    kind = (volume.volume_type, volume.access_type, volume.fs_type)
    return choose_capacity(asked, minimum=grown_minimum_bytes(*kind), maximum=maximum_bytes(*kind))


def require_reached(volume: Volume, asked: CapacityRange) -> None:
    """Refuse a range that the volume is not in.

    Raises: CapacityOutOfRange.
    """
    _refuse_limit_below(volume, asked)
    if asked.required_bytes > volume.capacity_bytes:
        raise CapacityOutOfRange(
            f"capacity_range.required_bytes: {asked.required_bytes} is more than volume {volume.volume_id} has, "
            f"{volume.capacity_bytes}; call ControllerExpandVolume first"
        )


def _refuse_limit_below(volume: Volume, asked: CapacityRange) -> None:
    if asked.limit_bytes and asked.limit_bytes < volume.capacity_bytes:
        raise CapacityOutOfRange(
            f"capacity_range.limit_bytes: {asked.limit_bytes} is less than volume {volume.volume_id} has, "
            f"{volume.capacity_bytes}, and a volume never becomes smaller"
        )
