"""The one table from failures to gRPC codes; a code is a message to the orchestrator's state machine.

CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED mean "may still be running"; everything else is final for
somebody. INVALID_ARGUMENT, OUT_OF_RANGE and NOT_FOUND mean infeasible: never for a passing cause. RESOURCE_EXHAUSTED
makes the provisioner choose another node: only for a real lack of space. Spec: error tables of each RPC.
"""

from __future__ import annotations

import errno
from typing import Final

import grpc

from csi_driver import errors, logs

CODES: Final[dict[type[errors.HostvolError], grpc.StatusCode]] = {
    errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CallerGone: grpc.StatusCode.CANCELLED,
    errors.MissingField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.VolumeNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SnapshotNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SourceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SnapshotConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.SourceBusy: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SourceElsewhere: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.GroupNotFound: grpc.StatusCode.NOT_FOUND,
    errors.GroupConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.GroupRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GroupIncomplete: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MemberOfGroup: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FreezeExpired: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FreezeBroken: grpc.StatusCode.ABORTED,
    errors.CopyFailed: grpc.StatusCode.INTERNAL,
    errors.InsufficientForCut: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.HasNoBlocks: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SnapshotUnfinished: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unrelated: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OffsetBeyondEnd: grpc.StatusCode.OUT_OF_RANGE,
    errors.VolumeNotAtPath: grpc.StatusCode.NOT_FOUND,
    errors.VolumeConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.PublicationConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.TargetOccupied: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CapabilityExceeded: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CapabilityAbsent: grpc.StatusCode.INVALID_ARGUMENT,
    errors.VolumeInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GrowthRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModificationRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotStaged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RecordDamaged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VolumeBusy: grpc.StatusCode.ABORTED,
    errors.RemainsHeld: grpc.StatusCode.ABORTED,
    errors.OperationPending: grpc.StatusCode.ABORTED,
    errors.UndoFailed: grpc.StatusCode.ABORTED,
    errors.NotInTrash: grpc.StatusCode.NOT_FOUND,
    errors.StillLive: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RollbackRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidToken: grpc.StatusCode.ABORTED,
    errors.CapacityOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.NoRoom: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.InsufficientCapacity: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoRoomToGrow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    # Kubelet takes RESOURCE_EXHAUSTED for "may still be running", and unpublishes what may be there.
    errors.EphemeralCeiling: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.EphemeralForbidden: grpc.StatusCode.FAILED_PRECONDITION,
    errors.EphemeralUnfinished: grpc.StatusCode.ABORTED,
    errors.TopologyUnsatisfiable: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TransferInterrupted: grpc.StatusCode.UNAVAILABLE,
    # On its way each part is checked: what is wrong here was sent so.
    errors.OtherContent: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StreamDamaged: grpc.StatusCode.INTERNAL,
    errors.TransferLost: grpc.StatusCode.ABORTED,
    errors.TransferUnderWay: grpc.StatusCode.ABORTED,
    errors.TooManyTransfers: grpc.StatusCode.ABORTED,
    errors.SourceRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.VolumeDamaged: grpc.StatusCode.INTERNAL,
    errors.PoolNotGrowable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PoolRefused: grpc.StatusCode.UNAVAILABLE,
    errors.PoolMisconfigured: grpc.StatusCode.UNAVAILABLE,
    errors.NodeUnreachable: grpc.StatusCode.UNAVAILABLE,
    errors.OrchestratorUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ObjectUnknown: grpc.StatusCode.NOT_FOUND,
    errors.ObjectsApart: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoNodeForTopology: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    errors.TokenRefused: grpc.StatusCode.UNAUTHENTICATED,
    errors.NodeRefused: grpc.StatusCode.PERMISSION_DENIED,
    errors.NodeKeyTaken: grpc.StatusCode.ALREADY_EXISTS,
}

# What the machine lacks for the moment; the same call may succeed soon.
_PASSING: Final = frozenset(
    # EROFS passes when an operator mends it: nothing that the caller changes would help.
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EROFS}
)
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY_REMEDY: Final = "; look at the kernel's log, check the filesystem and mount it again"


def explain(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and sentence."""
    return code_of(error), message_of(error)


def code_of(error: Exception) -> grpc.StatusCode:
    """The code that tells the caller what to do next."""
    if isinstance(error, errors.HostvolError):
        return CODES.get(type(error), grpc.StatusCode.INTERNAL)
    if isinstance(error, OSError):
        return _code_of_kernel(error)
    return grpc.StatusCode.INTERNAL


def message_of(error: Exception) -> str:
    """The sentence for the caller; an unforeseen failure shows its kind, and not its text, which may hold anything."""
    return logs.one_line(_text_of(error))


def _text_of(error: Exception) -> str:
    if isinstance(error, errors.HostvolError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if isinstance(error.filename, str) else ""
        remedy = _READ_ONLY_REMEDY if error.errno == errno.EROFS else ""
        return f"the kernel refused: {error.strerror or error}{where}{remedy}"
    return f"unforeseen {type(error).__name__}; the driver's log has the details"


def _code_of_kernel(error: OSError) -> grpc.StatusCode:
    if error.errno in _NO_SPACE:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    if error.errno in _PASSING:
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.INTERNAL
