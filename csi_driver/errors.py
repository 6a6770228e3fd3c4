"""Everything that can go wrong, one exception per failure, worded for an operator; knows neither gRPC nor errno."""

from __future__ import annotations

from collections.abc import Sequence


class HostvolError(Exception):
    """Base of every failure that hostvol explains to its caller."""


class InvalidField(HostvolError):
    """A field of a request holds something that can never be accepted."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        self.field, self.given, self.allowed = field, given, allowed
        shown = given if isinstance(given, int) else repr(str(given)[:160])
        super().__init__(f"{field}: {shown} is not accepted; allowed: {allowed}")


class MissingField(InvalidField):
    """A required field is empty."""

    def __init__(self, field: str) -> None:
        self.field, self.given, self.allowed = field, "", "something"
        HostvolError.__init__(self, f"{field}: required, but empty")


class VolumeNotFound(HostvolError):
    """No volume of this node bears the id."""

    def __init__(self, volume_id: str) -> None:
        super().__init__(f"volume_id {volume_id[:128]!r}: no such volume on this node")


class SnapshotNotFound(HostvolError):
    """No snapshot of this node bears the id."""

    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"snapshot_id {snapshot_id[:128]!r}: no such snapshot on this node")


class SourceNotFound(HostvolError):
    """What is to be copied is not there."""

    def __init__(self, field: str, object_id: str) -> None:
        super().__init__(f"{field}: {object_id[:128]!r} is not on this node")


class SnapshotConflict(HostvolError):
    """The name is taken by a snapshot that differs from what is asked."""

    def __init__(self, name: str, snapshot_id: str, field: str, held: object, asked: object) -> None:
        super().__init__(
            f"name {name!r} belongs to snapshot {snapshot_id}, which differs in {field}: it has {held}, asked was "
            f"{asked}"
        )


class GroupNotFound(HostvolError):
    """No group snapshot of this node bears the id."""

    def __init__(self, group_snapshot_id: str) -> None:
        super().__init__(f"group_snapshot_id {group_snapshot_id[:128]!r}: no such group snapshot on this node")


class GroupConflict(HostvolError):
    """The name is taken by a group snapshot of other volumes."""

    def __init__(self, name: str, group_snapshot_id: str, held: object, asked: object) -> None:
        super().__init__(
            f"name {name!r} belongs to group snapshot {group_snapshot_id}, which differs in source_volume_ids: it has "
            f"{held}, asked were {asked}"
        )


class GroupRefused(HostvolError):
    """A volume cannot be cut at one instant together with others."""

    def __init__(self, volume_id: str, reason: str, remedy: str) -> None:
        super().__init__(f"source_volume_ids: {volume_id[:128]} cannot be a member: {reason}; {remedy}")


class GroupIncomplete(HostvolError):
    """A member of a group snapshot is not there any more."""

    def __init__(self, group_snapshot_id: str, snapshot_id: str) -> None:
        super().__init__(
            f"group snapshot {group_snapshot_id}: its member {snapshot_id} is missing from its pool; restore it there, "
            "or delete the group"
        )


class MemberOfGroup(HostvolError):
    """A snapshot is deleted only with the group that it is a member of."""

    def __init__(self, snapshot_id: str, group_snapshot_id: str) -> None:
        super().__init__(
            f"snapshot_id: {snapshot_id} is a member of group snapshot {group_snapshot_id} and goes only with it; "
            "delete the group"
        )


class FreezeExpired(HostvolError):
    """What was to be done while volumes are frozen takes longer than they may be."""

    def __init__(self, volumes: str, seconds: float, budget_seconds: float) -> None:
        super().__init__(
            f"volumes {volumes}: still not done {seconds:.1f} s after the first was frozen, and none may be for longer "
            f"than {budget_seconds:.0f} s; nothing was kept. Choose a time with less load, or fewer volumes, or "
            "defragment the images"
        )


class FreezeBroken(HostvolError):
    """Somebody else has thawed a volume that was held still."""

    def __init__(self, volumes: str) -> None:
        super().__init__(f"volumes {volumes}: thawed by somebody else while they were cut; repeat the call")


class SourceBusy(HostvolError):
    """The content of a volume cannot be copied while something may write to it."""

    def __init__(self, volume_id: str, pool: str, user: str, remedy: str) -> None:
        super().__init__(f"volume {volume_id} in pool {pool}: {user}; a copy made beside a writer is torn: {remedy}")


class SourceElsewhere(HostvolError):
    """The source of a copy is on another node than the one that the copy is to be on."""

    def __init__(self, object_id: str, node_id: str, reason: str = "without a controller nothing is fetched") -> None:
        super().__init__(
            f"volume_content_source: {object_id} is not on this node ({node_id}), and {reason}; let the topology "
            "choose its node"
        )


class CopyFailed(HostvolError):
    """The bytes of a snapshot cannot be copied."""

    def __init__(self, snapshot_id: str, reason: str) -> None:
        super().__init__(
            f"snapshot {snapshot_id}: its content could not be copied: {reason}; delete it, and take another"
        )


class HasNoBlocks(HostvolError):
    """What blocks are asked of is a tree of files."""

    def __init__(self, field: str, snapshot_id: str) -> None:
        super().__init__(
            f"{field}: {snapshot_id} is a snapshot of a directory volume, which has no blocks: make a volume from it "
            "and back up its files, or keep such data in volumes of type image"
        )


class SnapshotUnfinished(HostvolError):
    """A snapshot whose bytes are still being copied, or could not be."""

    def __init__(self, field: str, snapshot_id: str) -> None:
        super().__init__(
            f"{field}: {snapshot_id} is not ready to use: its content is being copied; wait until ready_to_use is true"
        )


class Unrelated(InvalidField):
    """Two snapshots that are to be compared come from different volumes, neither of which was made from the other."""

    def __init__(self, field: str, snapshot_id: str, volume_id: str, wanted_id: str) -> None:
        super().__init__(field, f"{snapshot_id} (of {volume_id})", f"a snapshot of {wanted_id}, as the target is")


class OffsetBeyondEnd(HostvolError):
    """A list of blocks is to begin behind the last one."""

    def __init__(self, offset: int, size_bytes: int) -> None:
        super().__init__(f"starting_offset: {offset} is behind the end of the snapshot, which has {size_bytes} bytes")


class VolumeNotAtPath(HostvolError):
    """The volume exists, but is not mounted where the caller says."""

    def __init__(self, volume_id: str, path: str) -> None:
        super().__init__(f"volume_path {path[:160]!r}: volume {volume_id} is not mounted there")


class VolumeConflict(HostvolError):
    """The name is taken by a volume that differs from what is asked."""

    def __init__(self, name: str, volume_id: str, field: str, held: object, asked: object) -> None:
        super().__init__(
            f"name {name!r} belongs to volume {volume_id}, which differs in {field}: it has {held}, asked was {asked}"
        )


class PublicationConflict(HostvolError):
    """The path already shows this volume in another way, or something that is not this volume."""

    def __init__(self, path: str, difference: str) -> None:
        super().__init__(f"{path}: {difference}")


class TargetOccupied(HostvolError):
    """A path holds content or a mount that is not ours to hide or to remove."""

    def __init__(self, field: str, path: str, reason: str) -> None:
        super().__init__(f"{field} {path}: {reason}")


class CapabilityExceeded(HostvolError):
    """The volume cannot be used in the way that a Node call asks for."""


class CapabilityAbsent(HostvolError):
    """An expansion names a capability that the volume does not have."""


class VolumeInUse(HostvolError):
    """The volume cannot be taken away because something still uses it."""

    def __init__(self, volume_id: str, users: str) -> None:
        super().__init__(f"volume {volume_id} is in use: {users}")


class VolumeBusy(HostvolError):
    """Something holds the volume for the moment; the same call may succeed soon."""

    def __init__(self, volume_id: str, holder: str) -> None:
        super().__init__(f"volume {volume_id} is still held: {holder}; repeat the call")


class RemainsHeld(HostvolError):
    """An object is deleted, but its bytes cannot be given back yet."""

    def __init__(self, object_id: str, cause: OSError) -> None:
        super().__init__(
            f"{object_id} is deleted, but its remains in the trash cannot be cleared: {cause}; repeat the call"
        )


class NotStaged(HostvolError):
    """A publish needs the volume staged at the path that it names."""

    def __init__(self, volume_id: str, path: str) -> None:
        where = f"at {path}" if path else "(staging_target_path is empty)"
        super().__init__(f"volume {volume_id} is not staged {where}; call NodeStageVolume first")


class OperationPending(HostvolError):
    """Another operation on the same object is under way."""

    def __init__(self, what: str) -> None:
        super().__init__(f"an operation on {what} is under way; repeat the call")


class CapacityOutOfRange(HostvolError):
    """No size satisfies both the request and the kind of volume."""


class NoRoom(HostvolError):
    """A pool cannot promise what is asked of it; `shortfall_bytes` is what it lacks."""

    shortfall_bytes: int = 0


class InsufficientCapacity(NoRoom):
    """The pool cannot promise so many bytes."""

    def __init__(self, pool: str, asked_bytes: int, grantable_bytes: int) -> None:
        self.shortfall_bytes = max(1, asked_bytes - grantable_bytes)
        super().__init__(
            f"pool {pool}: {asked_bytes} bytes asked, {max(0, grantable_bytes)} can be granted; "
            "delete volumes, enlarge the pool's filesystem or choose another pool"
        )


class InsufficientForCut(NoRoom):
    """The pool cannot promise that a volume whose blocks a snapshot or clone shares can be written over."""

    def __init__(self, volume_id: str, pool: str, more_bytes: int, grantable_bytes: int) -> None:
        self.shortfall_bytes = max(1, more_bytes - grantable_bytes)
        super().__init__(
            f"volume {volume_id}: once its blocks are shared, writing over them may take {more_bytes} bytes more, and "
            f"pool {pool} can promise {max(0, grantable_bytes)}; delete volumes or snapshots, or enlarge the pool's "
            "filesystem"
        )


class NoRoomToGrow(NoRoom):
    """The pool cannot promise what a volume wants to grow by."""

    def __init__(self, volume_id: str, pool: str, from_bytes: int, to_bytes: int, grantable_bytes: int) -> None:
        self.shortfall_bytes = max(1, to_bytes - from_bytes - grantable_bytes)
        super().__init__(
            f"volume {volume_id}: to grow from {from_bytes} to {to_bytes} bytes it needs {to_bytes - from_bytes} more, "
            f"and pool {pool} can grant {max(0, grantable_bytes)}; delete volumes, enlarge the pool's filesystem or "
            "ask for less"
        )


class GrowthRefused(HostvolError):
    """The volume cannot grow in the state that it is in."""

    def __init__(self, volume_id: str, reason: str) -> None:
        super().__init__(f"volume {volume_id} cannot grow now: {reason}")


class ModificationRefused(HostvolError):
    """A parameter of the volume cannot be changed in the state that the volume or its pool is in."""

    def __init__(self, volume_id: str, key: str, reason: str) -> None:
        super().__init__(f"volume {volume_id}: mutable_parameters.{key} cannot be changed now: {reason}")


class NotInTrash(HostvolError):
    """No entry of the trash is called so."""

    def __init__(self, name: str) -> None:
        super().__init__(f"trash entry {name[:200]!r}: not in the trash of any pool; see `hostvol trash list`")


class StillLive(HostvolError):
    """What is to come back from the trash is there, or another object has taken its name."""

    def __init__(self, entry: str, reason: str) -> None:
        super().__init__(f"trash entry {entry} cannot come back: {reason}")


class RollbackRefused(HostvolError):
    """A snapshot cannot take the place of a volume's content."""

    def __init__(self, volume_id: str, reason: str) -> None:
        super().__init__(f"volume {volume_id} cannot be rolled back: {reason}")


class EphemeralForbidden(HostvolError):
    """The operator allows no inline ephemeral volumes in the pool."""

    def __init__(self, pool: str) -> None:
        super().__init__(
            f"pool {pool}: inline ephemeral volumes are not allowed in it; an operator allows them up to a size by "
            f"--pool {pool}=DIR,ephemeral=SIZE (pools[].ephemeral of the chart)"
        )


class EphemeralCeiling(HostvolError):
    """All inline ephemeral volumes of a pool together would have more than its operator allows."""

    def __init__(self, pool: str, asked_bytes: int, held_bytes: int, ceiling_bytes: int) -> None:
        super().__init__(
            f"pool {pool}: {asked_bytes} bytes asked for an inline ephemeral volume, {held_bytes} of the "
            f"{ceiling_bytes} that its operator allows for all of them are taken; ask for less, end other pods, or "
            "raise `ephemeral` of the pool"
        )


class EphemeralUnfinished(HostvolError):
    """An inline ephemeral volume that was made before cannot be shown now; its data is kept for the next attempt."""

    def __init__(self, volume_id: str, cause: Exception) -> None:
        super().__init__(f"ephemeral volume {volume_id} is kept, but cannot be shown: {cause}; repeat the call")


class TopologyUnsatisfiable(HostvolError):
    """The topology asked for does not include this node."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"accessibility_requirements: none of the requisite topologies is this node ({node_id})")


class InvalidToken(HostvolError):
    """A list token was not made by this driver."""

    def __init__(self, token: str) -> None:
        super().__init__(f"starting_token {token[:80]!r} is not valid; list again from the beginning")


class NotReady(HostvolError):
    """The driver, or the pool that is asked for, is not serving yet or not any more."""


class RecordDamaged(HostvolError):
    """A record on disk cannot be trusted; the object is left exactly as it is."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"record {path} is damaged ({reason}); its data is untouched: restore the record or remove it")


class PoolRefused(HostvolError):
    """A directory cannot be served as a pool."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(f"pool {directory}: {reason}")


class PoolMisconfigured(PoolRefused):
    """The same, and no disk that comes back will change it: what the driver was told is wrong."""


class PoolNotGrowable(HostvolError):
    """The filesystem of a pool is not the driver's to enlarge."""

    def __init__(self, pool: str) -> None:
        super().__init__(f"pool {pool} has no backing file: enlarge its filesystem by means of its own")


class VolumeDamaged(HostvolError):
    """The data of a volume is not what its record says."""

    def __init__(self, volume_id: str, reason: str) -> None:
        super().__init__(f"volume {volume_id}: {reason}")


class UndoFailed(HostvolError):
    """A failed operation could not be undone completely; what it left is cleared later."""


class NodeUnreachable(HostvolError):
    """The node that must serve a call is not attached to the router, or went away in the middle."""


class ObjectUnknown(HostvolError):
    """No node of the cluster can hold an object with the id."""

    def __init__(self, field: str, object_id: str) -> None:
        super().__init__(f"{field} {object_id[:128]!r}: no node of this cluster holds it")


class ObjectsApart(HostvolError):
    """Objects that must be on one node are on several."""

    def __init__(self, field: str, first: str, other: str) -> None:
        super().__init__(f"{field}: {other[:128]!r} is not on the node of {first[:128]!r}; all must be on one node")


class NotOffered(HostvolError):
    """The driver does not have the RPC."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not offered")


class NoNodeForTopology(HostvolError):
    """No topology that is asked for names a node of this driver."""

    def __init__(self, key: str) -> None:
        super().__init__(f"accessibility_requirements: no requisite topology has the segment {key}")


class TokenRefused(HostvolError):
    """A node's token proves nothing: missing, expired, or made for somebody else."""


class NodeRefused(HostvolError):
    """The token is good, but not for what its bearer does with it."""


class NodeKeyTaken(HostvolError):
    """Another node of the cluster has the same key."""

    def __init__(self, node_id: str, holder: str) -> None:
        super().__init__(f"node {node_id} has the same key as {holder}, which is attached; rename one of them")


class OrchestratorUnavailable(HostvolError):
    """The orchestrator's API does not answer, or refuses us."""


class CallFailed(HostvolError):
    """The driver answered a command of the operator with an error."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{message} ({code})")


class TransferInterrupted(HostvolError):
    """A transfer cannot go on now, and can be taken up where it is."""


class TransferLost(HostvolError):
    """A transfer cannot go on, and has to begin again."""

    def __init__(self, object_id: str, reason: str) -> None:
        super().__init__(f"the content of {object_id} did not arrive: {reason}; repeat the call to begin again")


class TransferUnderWay(HostvolError):
    """The content of a volume is on its way from another node."""

    def __init__(self, name: str, source_id: str, come_bytes: int, total_bytes: int) -> None:
        of = f" of about {total_bytes}" if total_bytes else ""
        super().__init__(
            f"volume {name!r}: {come_bytes}{of} bytes have come from the node of {source_id}; repeat the call"
        )


class TooManyTransfers(HostvolError):
    """As many contents cross between this node and others as may at one time."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} transfers are under way on this node, which is the most at one time; repeat the call")


class SourceRefused(HostvolError):
    """The node of a source does not give its content away now."""

    def __init__(self, object_id: str, reason: str) -> None:
        super().__init__(f"volume_content_source: the node of {object_id} refuses: {reason}")


class StreamDamaged(HostvolError):
    """A stream of a content is not what was sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream is damaged: {reason}")


class OtherContent(HostvolError):
    """What a relative stream is to be applied to is not what it is relative to."""

    def __init__(self, object_id: str, held: Sequence[str], wanted: str) -> None:
        has = f"{object_id} holds {' and '.join(held)}" if held else f"nobody knows what {object_id} holds any more"
        super().__init__(
            f"onto_id: the stream is relative to {wanted}, and {has}; name a snapshot that was taken of what was "
            "imported before anybody used it, or send the whole stream first"
        )


class CallerGone(HostvolError):
    """Whoever sends a streamed request has gone away before its end."""

    def __init__(self) -> None:
        super().__init__("the caller went away before its end; nothing is left of it")
