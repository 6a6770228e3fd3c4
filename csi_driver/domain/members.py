"""The volumes of a group while they are cut: held, judged, frozen together, and shared; knows no record.

A volume that is mounted is frozen; one that nobody uses need not be. What is neither (a raw block device in use, a
directory that is mounted) cannot be held still, and is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from csi_driver.domain import cuts, unwritten
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.freezing import Freezing, Mounted
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import GroupRefused, InvalidField, SourceNotFound, VolumeBusy, VolumeNotFound
from csi_driver.faults import crash_point
from csi_driver.linux import sync
from csi_driver.linux.reflink import Cost
from csi_driver.model import GroupSnapshot, Volume, VolumeType, key_of, node_key

# Of the budget of a freeze, what sharing may be expected to take.
_SHARING_SECONDS: Final = 1.0


@dataclass(slots=True)
class Member:
    """One volume of a group. `content_fd` is its content, and once it is cut, its content as of then."""

    pool: Pool
    volume: Volume
    content_fd: int
    mounted: Mounted | None


class Members:
    """The volumes of this node as members of groups."""

    def __init__(self, node_id: str, pools: Pools, volumes: Catalogue, claims: Claims, freezing: Freezing) -> None:
        self._node_id = node_id
        self._pools = pools
        self._volumes = volumes
        self._claims = claims
        self._freezing = freezing

    def pool_of(self, volume_id: str) -> Pool:
        """The pool of a volume that is to be a member.

        Raises: SourceNotFound; GroupRefused when it is on another node.
        """
        return self._pools.of(self._volume(volume_id))

    def enter(self, volume_id: str, held: ExitStack) -> Member:
        """The volume, which is neither staged nor unpublished nor grown nor deleted until `held` ends.

        Raises: SourceNotFound; GroupRefused; OperationPending; VolumeBusy; VolumeDamaged; NotReady.
        """
        held.enter_context(self._claims.reading(("volume", volume_id)))
        volume = self._volume(volume_id)
        pool = self._pools.of(volume)
        pool.require_writable()
        contents = pool.contents(volume.volume_type)
        if not contents.can_share:
            raise GroupRefused(
                volume_id,
                f"its pool {pool.name} ({pool.filesystem_name}) cannot share blocks, and a copy takes too long",
                "keep the members of groups in pools on XFS or btrfs",
            )
        content_fd = contents.open(pool.store.volumes_fd, volume_id)
        held.callback(os.close, content_fd)
        volume = unwritten.known(pool, volume, content_fd)
        mounted = _mounted(pool, volume)
        if mounted is not None:
            held.callback(os.close, mounted.fd)
        elif not contents.is_at_rest(volume, content_fd):
            raise GroupRefused(volume_id, "something has its content open", "stop what uses it")
        return Member(pool, volume, content_fd, mounted)

    def cut(self, members: Sequence[Member], held: ExitStack) -> float:
        """Each member's content is as of one instant from now on; returns that time, in seconds since the epoch.

        Raises: GroupRefused when it would take too long; FreezeExpired; FreezeBroken; VolumeBusy; OSError.
        """
        frozen = [(member, member.mounted) for member in members if member.mounted is not None]
        for _, mounted in frozen:
            # Before, so that the freeze itself has little to write.
            sync.sync_filesystem(mounted.fd)
        crash_point("group.flushed")
        # Behind the syncs: what they wrote lies in extents of its own.
        expected = _require_quick([member for member, _ in frozen])
        if not frozen:
            return time.time()
        with self._freezing.frozen([mounted for _, mounted in frozen]) as freeze:
            cut_at = time.time()
            for (member, _), cost in zip(frozen, expected, strict=True):
                _share(member, cost, held)
                freeze.check()
            crash_point("group.cut")
        return cut_at

    def _volume(self, volume_id: str) -> Volume:
        try:
            return self._volumes.persistent(volume_id)
        except VolumeNotFound as cause:
            if key_of(volume_id) not in ("", node_key(self._node_id)):
                raise GroupRefused(
                    volume_id,
                    f"it is not on this node ({self._node_id})",
                    "all members of a group must be on one node",
                ) from cause
            raise SourceNotFound("source_volume_ids", volume_id) from cause


def check_members(group: GroupSnapshot, snapshot_ids: Sequence[str]) -> None:
    """Refuse a list of snapshots that are not the group's; an empty one names none.

    Raises: InvalidField.
    """
    if snapshot_ids and set(snapshot_ids) != set(group.snapshot_ids):
        raise InvalidField(
            "snapshot_ids", " ".join(snapshot_ids), f"the snapshots of the group: {' '.join(group.snapshot_ids)}"
        )


def _mounted(pool: Pool, volume: Volume) -> Mounted | None:
    """The filesystem to freeze; None where nobody uses the volume.

    Raises: GroupRefused; VolumeBusy.
    """
    backend = pool.backend(volume)
    if volume.volume_type is VolumeType.DIRECTORY:
        if backend.mounts(volume):
            # Its filesystem is the pool's own: to freeze it would freeze whoever makes the snapshots.
            raise GroupRefused(
                volume.volume_id,
                "a directory that is mounted cannot be held still",
                "unpublish and unstage it, or use an image volume",
            )
        return None
    if not backend.is_attached(volume):
        return None
    if volume.is_block:
        raise GroupRefused(
            volume.volume_id,
            "a raw block volume that is staged or published cannot be held still",
            "unpublish and unstage it, or use an image volume with a filesystem",
        )
    mounted = cuts.open_mounted(volume, backend)
    if mounted is None and backend.is_attached(volume):
        raise VolumeBusy(volume.volume_id, "its filesystem is attached, but not mounted where the driver sees it")
    return mounted


def _require_quick(members: Sequence[Member]) -> list[Cost]:
    """What sharing each member will cost.

    Raises: GroupRefused.
    """
    costs = [member.pool.contents(member.volume.volume_type).sharing_cost(member.content_fd) for member in members]
    seconds = sum(cost.seconds for cost in costs)
    if seconds > _SHARING_SECONDS:
        worst, member = max(zip(costs, members, strict=True), key=lambda pair: pair[0].seconds)
        raise GroupRefused(
            member.volume.volume_id,
            f"it lies in {worst.extents} extents or more, and the writers would wait {seconds:.1f} s for the cut",
            "defragment it, or preallocate it and write it once in sequence",
        )
    return costs


def _share(member: Member, expected: Cost, held: ExitStack) -> None:
    contents = member.pool.contents(member.volume.volume_type)
    began = time.monotonic()
    still_fd = contents.still(member.volume, member.content_fd, expected)
    assert still_fd is not None
    held.callback(os.close, still_fd)
    member.content_fd = still_fd
    member.pool.last_cut.extents, member.pool.last_cut.seconds = expected.extents, time.monotonic() - began
