"""Directory volumes: a directory of the pool, its size a project quota or a btrfs qgroup; knows no record."""

from __future__ import annotations

import dataclasses
import enum
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from csi_driver.backends import options
from csi_driver.errors import GrowthRefused, InvalidField, ModificationRefused
from csi_driver.faults import crash_point
from csi_driver.linux import btrfs, btrfs_quota, filesystem, mount, mountinfo, project_tree, quota, sync
from csi_driver.model import QuotaPolicy, Usage, Volume, VolumeParameters
from csi_driver.store import durable
from csi_driver.store.pool import PoolDirectory

DATA: Final = "data"
_ATTEMPTS = 64
_REMEDIES: Final = {
    "xfs": "mount the pool's filesystem with -o prjquota",
    "ext4": "make it with `-O quota,project`, mount it with -o prjquota, on a kernel with CONFIG_QFMT_V2",
}


class QuotaKind(enum.StrEnum):
    """How the size of a directory is enforced on a filesystem."""

    PROJECT = "project"
    QGROUP = "qgroup"
    NONE = "none"


def quota_kind(root_fd: int) -> QuotaKind:
    """Which quota the filesystem below a pool can enforce now."""
    if btrfs.is_btrfs(root_fd):
        return QuotaKind.QGROUP
    return QuotaKind.PROJECT if quota.project_quota_enforced(root_fd) else QuotaKind.NONE


def quota_remedy(root_fd: int) -> str:
    """What an operator can do where no quota is enforced; empty where one is."""
    if quota_kind(root_fd) is not QuotaKind.NONE:
        return ""
    if quota.project_quota_state(root_fd) is quota.ProjectQuotaState.UNSUPPORTED:
        return "this kernel or filesystem has no project quotas: use XFS or ext4 on a kernel that has them, or btrfs"
    return _REMEDIES.get(filesystem.filesystem_name(root_fd), "use XFS, ext4 or btrfs")


def tend_quotas(pool: PoolDirectory) -> None:
    """Keep the qgroups of a btrfs truthful: those that deleted volumes left, and counts that the kernel gave up.

    Linux 6.11 and later remove the qgroup of a subvolume that is gone. After some operations (a qgroup assigned by
    hand, a large subtree dropped) the kernel stops counting until somebody asks for a rescan, and limits hold only as
    far as the stale counts say.
    """
    if not btrfs.is_btrfs(pool.root_fd) or not btrfs_quota.quota_enabled(pool.root_fd):
        return
    for subvolume in btrfs_quota.stale_qgroups(pool.root_fd):
        btrfs_quota.destroy_qgroup(pool.root_fd, subvolume)
    if not btrfs_quota.quota_consistent(pool.root_fd):
        btrfs_quota.rescan_quota(pool.root_fd)


class DirectoryBackend:
    """Directories of one pool."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._kind = quota_kind(pool.root_fd)

    def choose_identity(self, volume: Volume) -> Volume:
        """The volume with the project id that its directory will bear.

        Raises: InvalidField when a quota is required and the filesystem has none.
        """
        if volume.parameters.quota is QuotaPolicy.NONE:
            return volume
        if self._kind is QuotaKind.NONE:
            raise InvalidField(
                "parameters.quota",
                "required",
                f"`none` in pool {volume.pool}, whose filesystem enforces no quota; {quota_remedy(self._pool.root_fd)}",
            )
        if self._kind is QuotaKind.QGROUP:
            return volume
        return dataclasses.replace(volume, project_id=self._free_project())

    def build(self, volume: Volume, object_fd: int) -> None:
        """Make the empty directory with its limit."""
        if self._kind is QuotaKind.QGROUP:
            btrfs.create_subvolume(object_fd, DATA)
        else:
            os.mkdir(DATA, 0o755, dir_fd=object_fd)
        crash_point("directory.made")
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
        try:
            os.fchmod(data_fd, 0o755)
            self._limit(volume, data_fd)
            crash_point("directory.limited")
            os.fsync(data_fd)
        finally:
            os.close(data_fd)

    def require_extendable(self, volume: Volume, to_bytes: int) -> None:
        """A limit can be raised only where one is enforced.

        Raises: GrowthRefused.
        """
        if volume.parameters.quota is QuotaPolicy.REQUIRED and not self._is_limited(volume):
            remedy = quota_remedy(self._pool.root_fd) or "enable the quotas of its btrfs"
            raise GrowthRefused(volume.volume_id, f"no quota is enforced in pool {volume.pool}; {remedy}")

    def extend(self, volume: Volume, to_bytes: int) -> None:
        """The limit is `to_bytes`, at once and durably."""
        self.require_extendable(volume, to_bytes)
        self._set_limit(volume, to_bytes)
        crash_point("directory.limit_raised")

    def retract(self, volume: Volume) -> None:
        """The limit is the volume's size again; what was written beyond it meanwhile stays."""
        self.require_extendable(volume, volume.capacity_bytes)
        self._set_limit(volume, volume.capacity_bytes)

    def grow(self, volume: Volume, mounted_fd: int | None) -> None:
        """A raised limit holds at once: nothing is left to do."""

    def require_changeable(self, volume: Volume, to: VolumeParameters) -> Volume:
        """A limit can be given only where one is enforced.

        Raises: ModificationRefused.
        """
        if to.quota is QuotaPolicy.NONE or volume.parameters.quota is QuotaPolicy.REQUIRED:
            return volume
        if self._kind is QuotaKind.NONE:
            remedy = quota_remedy(self._pool.root_fd)
            raise ModificationRefused(volume.volume_id, "quota", f"pool {volume.pool} cannot limit it; {remedy}")
        if self._kind is QuotaKind.PROJECT:
            if self.mounts(volume):
                # While only a part of it bears the project, its users could not rename files.
                raise ModificationRefused(volume.volume_id, "quota", "it is mounted; stop what uses it")
            return dataclasses.replace(volume, project_id=volume.project_id or self._free_project())
        with self._opened(volume) as data_fd:
            if not btrfs.is_subvolume(data_fd):
                raise ModificationRefused(volume.volume_id, "quota", "its directory is no subvolume; clone it")
            if not btrfs_quota.quota_enabled(data_fd):
                btrfs_quota.enable_quota(data_fd)
        return volume

    def change(self, volume: Volume, to: VolumeParameters, progress: Callable[[int], None]) -> None:
        """The directory has a limit, or none, at once and durably.

        Raises: ModificationRefused when it holds more than the limit.
        """
        if to.quota is volume.parameters.quota:
            return
        if to.quota is QuotaPolicy.REQUIRED:
            if self._kind is QuotaKind.PROJECT:
                self._charge(volume, inherited=True)
                crash_point("directory.charged")
            self._require_within(volume)
        self._hold_to(volume, to.quota)
        crash_point("directory.limit_changed")

    def restore(self, volume: Volume) -> None:
        """The limit is what it was; a directory without one may again be renamed in, whatever of it was charged."""
        self._hold_to(volume, volume.parameters.quota)
        if self._kind is QuotaKind.PROJECT and volume.project_id and volume.parameters.quota is QuotaPolicy.NONE:
            self._charge(volume, inherited=False)

    def _charge(self, volume: Volume, *, inherited: bool) -> None:
        with self._opened(volume) as data_fd:
            project_tree.charge_tree(data_fd, volume.project_id, inherited=inherited)
            sync.sync_filesystem(data_fd)

    def holds_bytes(self, volume: Volume) -> int:
        """What the directory holds now, whether it has a limit or not; btrfs counts when it commits."""
        if self._kind is QuotaKind.QGROUP:
            with self._opened(volume) as data_fd:
                sync.sync_filesystem(data_fd)
                return btrfs_quota.qgroup_usage(data_fd, btrfs.subvolume_id(data_fd)).referenced
        return self._used_bytes(volume)

    def own_bytes(self, volume: Volume) -> int:
        """What the directory holds and nobody else, as its quota counts it.

        A project quota also counts the blocks that files share: where the directory has relatives that is too much.
        """
        if not self._is_limited(volume):
            return 0
        if self._kind is QuotaKind.PROJECT:
            return self._used_bytes(volume)
        with self._opened(volume) as data_fd:
            return btrfs_quota.qgroup_usage(data_fd, btrfs.subvolume_id(data_fd)).exclusive

    @property
    def counts_shared(self) -> bool:
        """Whether `own_bytes` counts blocks that other directories share."""
        return self._kind is QuotaKind.PROJECT

    def limit(self, volume: Volume, object_fd: int) -> None:
        """The directory below `object_fd`, which was made from another one, has the volume's limit."""
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
        try:
            self._limit(volume, data_fd)
            crash_point("directory.limited")
            os.fsync(data_fd)
        finally:
            os.close(data_fd)

    def used_in(self, volume: Volume, object_fd: int) -> int:
        """What the directory below `object_fd` holds, as its quota counts it; 0 without a limit."""
        if volume.parameters.quota is QuotaPolicy.NONE:
            return 0
        if self._kind is QuotaKind.PROJECT:
            return self._used_bytes(volume)
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
        try:
            return btrfs_quota.qgroup_usage(data_fd, btrfs.subvolume_id(data_fd)).referenced
        finally:
            os.close(data_fd)

    def stage(self, volume: Volume, target_fd: int, mount_flags: tuple[str, ...]) -> None:
        """Show the directory at the staging path."""
        data_fd = self._open_data(volume)
        try:
            mount.bind(data_fd, target_fd, flags=options.checked("", mount_flags).flags)
        finally:
            os.close(data_fd)

    def finish_stage(self, volume: Volume, mounted_fd: int) -> None:
        """Nothing is left to do once the directory is shown."""

    def is_attached(self, volume: Volume) -> bool:
        return False

    def shows(self, volume: Volume, point: mountinfo.MountPoint) -> bool:
        """Whether what is seen at some path is this directory."""
        found = os.stat(f"{volume.volume_id}/{DATA}", dir_fd=self._pool.volumes_fd, follow_symlinks=False)
        return (found.st_dev, found.st_ino) == (point.device, point.inode)

    def mounts(self, volume: Volume) -> list[mountinfo.MountEntry]:
        """Everywhere the directory, or one inside it (a subPath), is mounted in this mount namespace."""
        root = f"/{volume.volume_id}/{DATA}"
        found = mountinfo.read_mounts(root.encode())
        return [entry for entry in found if entry.root.endswith(root) or f"{root}/" in entry.root]

    def device_fd(self, volume: Volume, *, read_only: bool) -> int | None:
        return None

    def is_device_read_only(self, volume: Volume) -> bool:
        return False

    def release(self, volume: Volume) -> None:
        """Nothing outlives the last unmount of a directory."""

    def is_held(self, volume: Volume) -> bool:
        return False

    def usage(self, volume: Volume, path_fd: int) -> Usage:
        """Usage by its quota; without one, of the whole filesystem of the pool, which is what the volume can fill."""
        space = filesystem.space(path_fd)
        if not self._is_limited(volume):
            return Usage(
                space.total_bytes,
                space.used_bytes,
                space.available_bytes,
                space.inodes_total,
                space.inodes_used,
                space.inodes_free,
            )
        used, total = self._used_bytes(volume), volume.capacity_bytes
        available = max(0, min(total - used, space.available_bytes))
        return Usage(total, used, available, space.inodes_total, space.inodes_used, space.inodes_free)

    def _require_within(self, volume: Volume) -> None:
        used_bytes = self.holds_bytes(volume)
        if used_bytes > volume.capacity_bytes:
            raise ModificationRefused(
                volume.volume_id,
                "quota",
                f"it holds {used_bytes} bytes, and its size is {volume.capacity_bytes}; expand it, or delete files",
            )

    def _hold_to(self, volume: Volume, policy: QuotaPolicy) -> None:
        """The limit is the volume's size, or there is none; a filesystem that enforces none any more needs nothing."""
        if self._kind is QuotaKind.NONE or (self._kind is QuotaKind.PROJECT and not volume.project_id):
            return
        if self._kind is QuotaKind.QGROUP and not btrfs_quota.quota_enabled(self._pool.root_fd):
            return
        self._write_limit(volume, volume.capacity_bytes if policy is QuotaPolicy.REQUIRED else 0)

    def _set_limit(self, volume: Volume, limit_bytes: int) -> None:
        if volume.parameters.quota is QuotaPolicy.REQUIRED:
            self._write_limit(volume, limit_bytes)

    def _write_limit(self, volume: Volume, limit_bytes: int) -> None:
        data_fd = self._open_data(volume)
        try:
            if self._kind is QuotaKind.PROJECT:
                # In the log before the record that follows it, which is fsynced.
                quota.set_limit(data_fd, volume.project_id, limit_bytes)
            else:
                btrfs_quota.set_qgroup_limit(data_fd, btrfs.subvolume_id(data_fd), limit_bytes)
                # An fsync of the record does not carry the quota tree along.
                btrfs.commit(data_fd)
        finally:
            os.close(data_fd)

    def _limit(self, volume: Volume, data_fd: int) -> None:
        if volume.parameters.quota is QuotaPolicy.NONE:
            return
        if self._kind is QuotaKind.QGROUP:
            if not btrfs_quota.quota_enabled(data_fd):
                btrfs_quota.enable_quota(data_fd)
                crash_point("directory.quota_enabled")
            btrfs_quota.set_qgroup_limit(data_fd, btrfs.subvolume_id(data_fd), volume.capacity_bytes)
            return
        quota.set_project(data_fd, volume.project_id)
        crash_point("directory.project_set")
        quota.set_limit(data_fd, volume.project_id, volume.capacity_bytes)

    def _is_limited(self, volume: Volume) -> bool:
        """Whether a quota holds the volume now: the filesystem may be mounted without the one that it was made with."""
        if volume.parameters.quota is QuotaPolicy.NONE or self._kind is QuotaKind.NONE:
            return False
        return self._kind is QuotaKind.PROJECT or btrfs_quota.quota_enabled(self._pool.root_fd)

    def _used_bytes(self, volume: Volume) -> int:
        if self._kind is QuotaKind.PROJECT:
            return quota.usage(self._pool.root_fd, volume.project_id).used_bytes
        with self._opened(volume) as data_fd:
            return btrfs_quota.qgroup_usage(data_fd, btrfs.subvolume_id(data_fd)).referenced

    @contextmanager
    def _opened(self, volume: Volume) -> Iterator[int]:
        data_fd = self._open_data(volume)
        try:
            yield data_fd
        finally:
            os.close(data_fd)

    def _free_project(self) -> int:
        for _ in range(_ATTEMPTS):
            # The upper half of the ids, so that those which people give out by hand stay theirs.
            candidate = (1 << 30) | secrets.randbits(30)
            if quota.is_free(self._pool.root_fd, candidate):
                return candidate
        raise OSError(f"no free project id after {_ATTEMPTS} attempts")

    def _open_data(self, volume: Volume) -> int:
        return durable.open_directory(f"{volume.volume_id}/{DATA}", dir_fd=self._pool.volumes_fd)
