"""The directory of a pool: its identity, its rooms, and the moves between them; knows no kernel beyond files.

<pool>/hostvol-pool.json   identity; without it the directory is refused, so an unmounted disk is never written to
       volumes/<id>/       live volumes: record.json beside disk.img or data/, and growth.redo while an ext4 that
                           nobody has mounted is made larger
       snapshots/<id>/     snapshots, alike; without content while that is still being copied
       groups/<id>.json    records of group snapshots, whose members are snapshots
       trash/<id>@<time>/  deleted objects during their retention; the end of a name says what else they are:
                           .kept a retired duplicate, .replaced content that a rollback replaced (an operator decides),
                           .out on its way out, .rollback-<token> about to take the place of a volume's content
       templates/          formatted images that new ones are cloned from; can be rebuilt at any time
       tmp/                objects being built; emptied at start, but for what is on its way between nodes: .sent what
                           is held to be sent, and volumes in part arrived
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.errors import PoolMisconfigured, PoolRefused, RecordDamaged, UndoFailed
from csi_driver.faults import crash_point
from csi_driver.store import durable, records

IDENTITY = "hostvol-pool.json"
VOLUMES, SNAPSHOTS, TRASH, TEMPLATES, TMP = "volumes", "snapshots", "trash", "templates", "tmp"
GROUPS = "groups"
# The ends of names in the trash. Only what is on its way out is cleared whatever it holds.
KEPT, REPLACED, OUT, ROLLBACK = ".kept", ".replaced", ".out", ".rollback-"
_ROOMS = (VOLUMES, SNAPSHOTS, TRASH, TEMPLATES, TMP, GROUPS)
# What an earlier build was about to write into the image of the volume whose id stands before it.
REDO_SUFFIX = ".redo"
# A snapshot whose group decides, at a start, whether it was made.
MEMBER_SUFFIX = ".member"
# A content that is held to be sent to another node.
SENT_SUFFIX = ".sent"
# In the directory of a volume whose content comes from another node: what of it has come.
JOURNAL = "arrived"
_LIMIT_BYTES = 4096
# The path leads nowhere, or to what never was a directory (a symbolic link, too).
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What `hostvol-pool.json` says."""

    pool_uuid: str
    driver_name: str


def member_name(snapshot_id: str) -> str:
    """What a member of a group is called under `tmp/`."""
    return f"{snapshot_id}{MEMBER_SUFFIX}"


def initialise(root_fd: int, directory: str, driver_name: str) -> PoolIdentity:
    """Make the directory behind `root_fd` a pool, or find that it is one already. Idempotent.

    Raises: PoolRefused when it belongs to another driver, or is not empty; OSError.
    """
    identity = _identity_if_there(root_fd, directory)
    if identity is None:
        identity = _write_identity(root_fd, directory, driver_name)
    _check_driver(identity, directory, driver_name)
    return identity


def identity(root_fd: int, directory: str) -> PoolIdentity | None:
    """What the identity file in the directory behind `root_fd` says; None when there is none.

    Raises: PoolRefused when it is damaged; OSError.
    """
    return _identity_if_there(root_fd, directory)


def has_identity(root_fd: int) -> bool:
    """Whether an identity file lies in the directory, readable or not."""
    try:
        os.stat(IDENTITY, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_identity(root: int, directory: str, driver_name: str) -> PoolIdentity:
    # An earlier attempt that was cut short may have left the rooms or the temporary file of the identity.
    expected = {"lost+found", f"{IDENTITY}.new", *_ROOMS}
    strangers = [name for name in os.listdir(root) if name not in expected]
    strangers += [f"{room}/{name}" for room in (VOLUMES, SNAPSHOTS, TRASH, GROUPS) for name in _content(root, room)]
    if strangers:
        raise PoolRefused(directory, f"it is not empty ({strangers[0]!r}); a new pool needs an empty directory")
    os.fchmod(root, 0o700)
    for room in _ROOMS:
        durable.ensure_directory(root, room)
    crash_point("init.rooms_made")
    identity = PoolIdentity(str(uuid.uuid4()), driver_name)
    body = {"uuid": identity.pool_uuid, "driver": driver_name, "created_at": time.time()}
    durable.replace(root, IDENTITY, records.seal("pool", body))
    crash_point("init.identified")
    return identity


def _content(root: int, room: str) -> list[str]:
    try:
        room_fd = durable.open_directory(room, dir_fd=root)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(room_fd)
    finally:
        os.close(room_fd)


def _identity_if_there(root: int, directory: str) -> PoolIdentity | None:
    where = f"{directory}/{IDENTITY}"
    try:
        content = durable.read_small(root, IDENTITY, limit_bytes=_LIMIT_BYTES)
        body = records.unseal(content, "pool", where)
        return PoolIdentity(str(body["uuid"]), str(body["driver"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, RecordDamaged) as cause:
        raise PoolRefused(directory, f"its identity file {IDENTITY} is damaged: {cause}") from cause


def _check_driver(identity: PoolIdentity, directory: str, driver_name: str) -> None:
    if identity.driver_name != driver_name:
        raise PoolMisconfigured(
            directory,
            f"it belongs to the driver {identity.driver_name}; start with --driver-name of that name",
        )


class PoolDirectory:
    """Owner of the descriptors of one pool's rooms; every object is named relative to them."""

    def __init__(self, directory: str, driver_name: str) -> None:
        """Open the pool.

        Raises: PoolRefused when the identity is missing, damaged or another driver's; OSError.
        """
        try:
            self.root_fd = durable.open_directory(directory)
        except OSError as cause:
            kind = PoolMisconfigured if cause.errno in _NO_DIRECTORY else PoolRefused
            raise kind(directory, f"cannot be opened: {cause.strerror}") from cause
        self.directory = os.path.realpath(directory)
        try:
            self.identity = self._checked_identity(driver_name)
            rooms = {room: self._open_room(room) for room in _ROOMS}
        except BaseException:
            os.close(self.root_fd)
            raise
        self.volumes_fd, self.snapshots_fd, self.trash_fd, self.templates_fd, self.tmp_fd, self.groups_fd = (
            rooms.values()
        )
        self.device = os.fstat(self.root_fd).st_dev
        # Listed before the first request: what is built later is not among them.
        self.leftovers_at_open = self._leftovers()
        self.members_at_open = [name for name in os.listdir(self.tmp_fd) if name.endswith(MEMBER_SUFFIX)]
        self.sent_at_open = [name for name in os.listdir(self.tmp_fd) if name.endswith(SENT_SUFFIX)]
        self.arrived_at_open = [name for name in os.listdir(self.tmp_fd) if self._is_arriving(name)]

    def close(self) -> None:
        """Close every descriptor; the object is unusable afterwards."""
        rooms = (self.volumes_fd, self.snapshots_fd, self.trash_fd, self.templates_fd, self.tmp_fd, self.groups_fd)
        for descriptor in (*rooms, self.root_fd):
            os.close(descriptor)

    def path_of(self, volume_id: str) -> str:
        """The absolute path of a live volume's directory, for messages and for tools that take only paths."""
        return f"{self.directory}/{VOLUMES}/{volume_id}"

    def snapshot_path(self, snapshot_id: str) -> str:
        """The absolute path of a snapshot's directory, for messages."""
        return f"{self.directory}/{SNAPSHOTS}/{snapshot_id}"

    def building_path(self, object_id: str) -> str:
        """The absolute path of an object that is being built."""
        return f"{self.directory}/{TMP}/{object_id}"

    def begin(self, object_id: str) -> int:
        """Make the directory of an object that is being built; the caller closes the descriptor.

        Idempotent in effect: what an earlier attempt left there is the caller's to remove first.
        """
        os.mkdir(object_id, 0o700, dir_fd=self.tmp_fd)
        return durable.open_directory(object_id, dir_fd=self.tmp_fd)

    def commit(self, object_id: str, object_fd: int) -> None:
        """Give a finished volume its place, whole and durable, in one rename."""
        self._commit(object_id, object_fd, self.volumes_fd)

    def commit_snapshot(self, object_id: str, object_fd: int) -> None:
        """Give a finished snapshot its place, whole and durable, in one rename."""
        self._commit(object_id, object_fd, self.snapshots_fd)

    def place_member(self, snapshot_id: str) -> None:
        """Give a member of a group that is built and durable its place, durably."""
        self._move(member_name(snapshot_id), self.tmp_fd, snapshot_id, self.snapshots_fd)

    def move_in(self, entry: str, source_fd: int, object_fd: int) -> None:
        """Move the content that was built in one object's directory into that of another, durably."""
        self._move(entry, source_fd, entry, object_fd)

    def discard(self, volume_id: str, mark: str = OUT) -> str:
        """Move a live volume to the trash, durably; returns its name there, which ends with `mark`."""
        return self._discard(volume_id, self.volumes_fd, mark)

    def discard_snapshot(self, snapshot_id: str, mark: str = OUT) -> str:
        """Move a snapshot to the trash, durably; returns its name there, which ends with `mark`."""
        return self._discard(snapshot_id, self.snapshots_fd, mark)

    def undelete(self, trash_name: str, object_id: str, room_fd: int) -> None:
        """Move an object from the trash back to its room, durably."""
        self._move(trash_name, self.trash_fd, object_id, room_fd)

    def condemn(self, trash_name: str) -> str:
        """What lies in the trash is on its way out, durably: from now on it may be half cleared. Returns its name."""
        name = self._unused(trash_name.partition(".")[0], OUT)
        self._move(trash_name, self.trash_fd, name, self.trash_fd)
        return name

    def move_to_trash(self, building: str, object_id: str, mark: str) -> str:
        """Move what was built under `tmp/` to the trash, durably; returns its name there."""
        name = self._unused(f"{object_id}@{int(time.time())}", mark)
        self._move(building, self.tmp_fd, name, self.trash_fd)
        return name

    def mark_replaced(self, trash_name: str) -> str:
        """What a rollback put into the trash stays there until an operator decides. Returns its name."""
        name = self._unused(trash_name.partition(".")[0], REPLACED)
        self._move(trash_name, self.trash_fd, name, self.trash_fd)
        return name

    def restamp(self, trash_name: str, deleted_at: int) -> str:
        """The object counts as deleted at that time. Returns its name."""
        name = self._unused(f"{trash_name.rpartition('@')[0]}@{deleted_at}", "")
        self._move(trash_name, self.trash_fd, name, self.trash_fd)
        return name

    def trash_names(self) -> list[str]:
        """What lies in the trash and is not on its way out."""
        return sorted(name for name in os.listdir(self.trash_fd) if not name.endswith(OUT))

    def volume_names(self) -> Iterator[str]:
        """The names of all directories under `volumes/`, in no order."""
        return _names(self.volumes_fd)

    def snapshot_names(self) -> Iterator[str]:
        """The names of all directories under `snapshots/`, in no order."""
        return _names(self.snapshots_fd)

    def group_names(self) -> list[str]:
        """The files under `groups/`, but for those that an interrupted write left."""
        return [name for name in os.listdir(self.groups_fd) if name.endswith(records.GROUP_SUFFIX)]

    def leftover_group_names(self) -> list[str]:
        """What an interrupted write of a record left under `groups/`."""
        return [name for name in os.listdir(self.groups_fd) if not name.endswith(records.GROUP_SUFFIX)]

    def forget_group(self, group_snapshot_id: str) -> None:
        """The record of a group is gone, durably. Idempotent."""
        durable.unlink_if_there(self.groups_fd, records.group_name(group_snapshot_id))
        os.fsync(self.groups_fd)

    def group_path(self, name: str) -> str:
        """The absolute path of a group's record, for messages."""
        return f"{self.directory}/{GROUPS}/{name}"

    def _commit(self, object_id: str, object_fd: int, room_fd: int) -> None:
        os.fsync(object_fd)
        crash_point("commit.object_synced")
        self._move(object_id, self.tmp_fd, object_id, room_fd)

    def _discard(self, object_id: str, room_fd: int, mark: str = "") -> str:
        name = self._unused(f"{object_id}@{int(time.time())}", mark)
        self._move(object_id, room_fd, name, self.trash_fd)
        return name

    def _unused(self, stem: str, mark: str) -> str:
        """A name in the trash that nothing bears, with a later time where it must be."""
        object_id, _, seconds = stem.rpartition("@")
        at = int(seconds)
        while any(os.path.lexists(f"{self.directory}/{TRASH}/{object_id}@{at}{end}") for end in ("", mark)):
            at += 1
        return f"{object_id}@{at}{mark}"

    def _leftovers(self) -> list[tuple[int, str]]:
        """What a start has to clear: half-built objects and those on their way out, as (room descriptor, name)."""
        building = [
            (self.tmp_fd, name)
            for name in os.listdir(self.tmp_fd)
            if not name.endswith((REDO_SUFFIX, MEMBER_SUFFIX, SENT_SUFFIX)) and not self._is_arriving(name)
        ]
        return building + [(self.trash_fd, name) for name in os.listdir(self.trash_fd) if name.endswith(OUT)]

    def _is_arriving(self, name: str) -> bool:
        try:
            object_fd = durable.open_directory(name, dir_fd=self.tmp_fd)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.stat(JOURNAL, dir_fd=object_fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False
        finally:
            os.close(object_fd)

    def kept_names(self) -> list[str]:
        """What lies in the trash until an operator removes it."""
        return sorted(name for name in os.listdir(self.trash_fd) if name.endswith(KEPT))

    def has_identity(self) -> bool:
        """Whether the path still leads to this pool: an unmounted or replaced directory does not."""
        try:
            found = os.stat(f"{self.directory}/{IDENTITY}", follow_symlinks=False)
            held = os.stat(IDENTITY, dir_fd=self.root_fd, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    @staticmethod
    def _move(source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Rename durably, or not at all: a rename that cannot be made durable is taken back.

        The rename is one transaction of both directories, so fsync of the new parent is enough (see `durable`).
        """
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        crash_point("move.renamed")
        try:
            os.fsync(target_fd)
        except OSError as cause:
            try:
                os.rename(target, source, src_dir_fd=target_fd, dst_dir_fd=source_fd)
            except OSError:
                raise UndoFailed(f"{source}: moved, neither durably nor back: {cause}; restart the driver") from cause
            raise

    def _checked_identity(self, driver_name: str) -> PoolIdentity:
        identity = _identity_if_there(self.root_fd, self.directory)
        if identity is None:
            raise PoolRefused(
                self.directory,
                f"no {IDENTITY} there. Is its disk mounted? A new pool is made by: hostvol pool init {self.directory}",
            )
        _check_driver(identity, self.directory, driver_name)
        return identity

    def _open_room(self, room: str) -> int:
        if durable.ensure_directory(self.root_fd, room):
            os.fsync(self.root_fd)
        return durable.open_directory(room, dir_fd=self.root_fd)


def _names(room_fd: int) -> Iterator[str]:
    with os.scandir(room_fd) as entries:
        for entry in entries:
            yield entry.name
