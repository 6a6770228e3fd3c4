"""A driver in a process of its own, a caller that speaks raw CSI to it, and pools on real filesystems."""

from tests.harness.calls import DIRECTORY, Caller, Code, Failure, Mode, capability, create_request, import_requests
from tests.harness.driver import Driver, only_by_resize2fs
from tests.harness.places import CLONE_NEWNS, GIB, MIB, PoolPlace, backing_files, leave_mount_namespace, place, run
from tests.harness.process import PROGRAM, ended, hostvol, start_fork, waited
from tests.harness.workloads import PodVolume, Workload, admin_pools, admin_volumes, exported

__all__ = [
    "CLONE_NEWNS",
    "DIRECTORY",
    "GIB",
    "MIB",
    "PROGRAM",
    "Caller",
    "Code",
    "Driver",
    "Failure",
    "Mode",
    "PodVolume",
    "PoolPlace",
    "Workload",
    "admin_pools",
    "admin_volumes",
    "backing_files",
    "capability",
    "create_request",
    "ended",
    "exported",
    "hostvol",
    "import_requests",
    "leave_mount_namespace",
    "only_by_resize2fs",
    "place",
    "run",
    "start_fork",
    "waited",
]
