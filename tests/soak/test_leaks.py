"""What two thousand random operations of four callers leave behind: nothing.

- Every answer is a code of the specification's tables.
- After draining: no mount, loop device, file or state file is left, no descriptor more than after the warm-up, no
  more threads than the pools may have.
- Memory does not grow without bound: the second thousand operations add next to nothing. It is looked at whenever all
  is drained, and the least of several looks counts: what the C library keeps for its next threads comes and goes by
  many MiB.

HOSTVOL_OPERATIONS says how many operations are made, HOSTVOL_SEED lets them differ.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from csi_driver.pb import csi_pb2
from tests.backing.backed import Backed
from tests.harness import (
    DIRECTORY,
    MIB,
    Code,
    Driver,
    Failure,
    PoolPlace,
    Workload,
    admin_pools,
    admin_volumes,
    create_request,
    exported,
)
from tests.soak.observing import assert_nothing_remains, descriptors, mount_table, remains, status_number, together

OPERATIONS = int(os.environ.get("HOSTVOL_OPERATIONS", "2000"))
SEED = int(os.environ.get("HOSTVOL_SEED", "1"))
CALLERS = 4
PARTS = 8
# 4 + 64 + 128 of the server's pools; the main thread, the housekeeper, and gRPC's own.
MOST_THREADS = 4 + 64 + 128 + 24
GROWTH_KIB = 8 * 1024

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"size_bytes": 8 * MIB},
    "clone": {"size_bytes": 8 * MIB, "parameters": {"pool": "pool1"}},
    "thick": {"size_bytes": 8 * MIB, "parameters": {"provisioning": "thick"}},
    "block": {"size_bytes": 4 * MIB, "block": True},
    "directory": {"parameters": DIRECTORY},
    "kept": {"size_bytes": 8 * MIB, "parameters": {"pool": "pool1", "retention": "1d"}},
}
STEPS = (
    *("create", "stage", "publish", "stats", "list", "expand", "expand on node", "unpublish", "unstage", "delete"),
    *("snapshot", "restore", "clone", "delete snapshot", "delete copy", "modify"),
    *("undelete", "rollback", "purge", "group", "delete group"),
    *("import", "import damaged", "grow pool"),
)
CHANCES = (6, 6, 8, 2, 2, 2, 2, 4, 3, 2, 3, 2, 1, 3, 3, 2, 2, 2, 1, 3, 2, 3, 1, 1)
ALWAYS = {Code.OK, Code.ABORTED}
ALLOWED = {
    "create": ALWAYS | {Code.ALREADY_EXISTS},
    "delete": ALWAYS | {Code.FAILED_PRECONDITION},
    "stage": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION},
    "unstage": ALWAYS | {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "publish": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION},
    "unpublish": ALWAYS | {Code.NOT_FOUND},
    "stats": ALWAYS | {Code.NOT_FOUND},
    "expand": ALWAYS | {Code.NOT_FOUND},
    # An ext4 that is mounted, where root lacks CAP_SYS_RESOURCE.
    "expand on node": ALWAYS | {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    # A directory has no provisioning; its name is looked up first.
    "modify": ALWAYS | {Code.NOT_FOUND, Code.INVALID_ARGUMENT},
    "list": {Code.OK},
    "snapshot": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    # A source that has grown is more than what is asked for.
    "restore": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED, Code.OUT_OF_RANGE},
    "clone": ALWAYS
    | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED, Code.OUT_OF_RANGE},
    "delete snapshot": ALWAYS,
    "delete copy": ALWAYS,
    "undelete": ALWAYS | {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    "rollback": ALWAYS | {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    "purge": ALWAYS | {Code.NOT_FOUND},
    "group": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    "delete group": ALWAYS,
    # Nothing to export; a volume in use in a pool that cannot share blocks.
    "import": ALWAYS | {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    "import damaged": {Code.ABORTED, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED},
    # Another caller was faster and let it grow further.
    "grow pool": ALWAYS | {Code.INVALID_ARGUMENT},
}


@dataclass
class Storm:
    """Random calls on a few volumes that all callers share, so that they often meet."""

    driver: Driver
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workloads = [
            Workload(self.driver, f"{kind}-{number}", **options)
            for kind, options in KINDS.items()
            for number in range(2)
        ]
        self.driver.target("any")
        for workload in self.workloads:
            workload.volume_id = "vol-nobody"

    def run(self, operations: int, seed: int) -> None:
        """Make this many operations, shared by the callers."""

        def caller(number: int) -> Code:
            chance = random.Random(f"{seed} {number}")
            for _ in range(operations // CALLERS):
                self.one(chance)
            return Code.OK

        together(CALLERS, caller)
        assert not self.wrong, self.wrong[:5]

    def one(self, chance: random.Random) -> None:
        workload = chance.choice(self.workloads)
        # Forward more often than back, or hardly anything would ever be published.
        step = chance.choices(STEPS, CHANCES)[0]
        number, readonly, is_lost = chance.randrange(2), chance.random() < 0.2, chance.random() < 0.05
        try:
            self.call(step, workload, number, readonly=readonly, timeout=0.003 if is_lost else 60)
        except Failure as failure:
            self.codes[f"{step} {failure.code.name}"] += 1
            if failure.code not in ALLOWED[step] and not (is_lost and failure.code is Code.DEADLINE_EXCEEDED):
                self.wrong.append(str(failure))
        else:
            self.codes[f"{step} OK"] += 1

    def call(self, step: str, workload: Workload, number: int, *, readonly: bool, timeout: float) -> None:
        driver = workload.driver
        if step == "create":
            workload.create()
        elif step == "delete":
            driver.call("DeleteVolume", volume_id=workload.volume_id, timeout=timeout)
        elif step == "stage":
            driver.call("NodeStageVolume", workload.stage_request(), timeout=timeout)
        elif step == "publish":
            driver.call("NodePublishVolume", workload.publish_request(number, readonly=readonly), timeout=timeout)
        elif step == "unpublish":
            driver.call(
                "NodeUnpublishVolume",
                volume_id=workload.volume_id,
                target_path=workload.target(number),
                timeout=timeout,
            )
        elif step == "unstage":
            driver.call(
                "NodeUnstageVolume",
                volume_id=workload.volume_id,
                staging_target_path=workload.staging,
                timeout=timeout,
            )
        elif step in COPYING:
            COPYING[step](workload, f"{workload.name}-{number}", timeout)
        elif step == "modify":
            changed = {"provisioning": ("thick", "thin")[number]}
            driver.call(
                "ControllerModifyVolume",
                volume_id=workload.volume_id,
                mutable_parameters=changed,
                timeout=timeout,
            )
        elif step == "expand":
            request = workload.expand_request((2 + number) * 4 * MIB)
            driver.call("ControllerExpandVolume", request, timeout=timeout)
        elif step == "expand on node":
            driver.call(
                "NodeExpandVolume",
                volume_id=workload.volume_id,
                volume_path=workload.target(number),
                timeout=timeout,
            )
        elif step == "stats":
            driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target(number))
        else:
            driver.call("ListVolumes", max_entries=3)

    def drain(self) -> None:
        """Take down whatever there is, until nothing comes any more of calls whose answer nobody waited for."""
        ends = time.monotonic() + 60
        looks = 0
        while looks < 2 and time.monotonic() < ends:
            self.drain_once()
            looks = 0 if any(remains(self.driver).values()) else looks + 1
            time.sleep(0.1)

    def drain_once(self) -> None:
        """Take down what the mount table and the lists tell."""
        for group_id in groups(self.driver):
            call = partial(self.driver.call, "DeleteVolumeGroupSnapshot", group_snapshot_id=group_id)
            self.insist(call)
        for entry in self.driver.call("ListSnapshots").entries:
            snapshot_id = entry.snapshot.snapshot_id
            self.insist(lambda snapshot_id=snapshot_id: self.driver.call("DeleteSnapshot", snapshot_id=snapshot_id))
        for workload in self.workloads:
            for number in range(2):
                if workload.target(number) in [target for target, _ in mount_table(self.driver.home)]:
                    self.insist(workload.unpublish, number)
        for entry in self.driver.call("ListVolumes").entries:
            volume_id = entry.volume.volume_id
            self.insist(
                lambda volume_id=volume_id: self.driver.call(
                    "NodeUnstageVolume", volume_id=volume_id, staging_target_path=self.driver.staging(volume_id)
                )
            )
            self.insist(lambda volume_id=volume_id: self.driver.call("DeleteVolume", volume_id=volume_id))
        for entry in self.driver.call("ListTrash").entries:
            self.insist(lambda name=entry.entry: self.driver.call("PurgeTrash", entry=name))

    @staticmethod
    def insist(step: Callable[..., object], *arguments: object) -> None:
        for attempt in range(3):
            try:
                step(*arguments)
            except Failure as failure:
                if failure.code is not Code.ABORTED or attempt == 2:
                    raise
                time.sleep(0.5)
            else:
                return


def snapshot(workload: Workload, name: str, timeout: float) -> None:
    asked = {"name": name, "source_volume_id": workload.volume_id}
    workload.driver.call("CreateSnapshot", timeout=timeout, **asked)


def snapshot_ids(workload: Workload) -> list[str]:
    found = workload.driver.call("ListSnapshots", source_volume_id=workload.volume_id).entries
    return [entry.snapshot.snapshot_id for entry in found]


def copy(workload: Workload, name: str, timeout: float, content: csi_pb2.VolumeContentSource) -> None:
    request = create_request(
        f"copy-{name}",
        workload.size_bytes,
        parameters=workload.parameters,
        volume_capabilities=[workload.capability],
        volume_content_source=content,
    )
    workload.driver.call("CreateVolume", request, timeout=timeout)


def restore(workload: Workload, name: str, timeout: float) -> None:
    content = csi_pb2.VolumeContentSource()
    content.snapshot.snapshot_id = next(iter(snapshot_ids(workload)), "snap-nobody")
    copy(workload, name, timeout, content)


def clone(workload: Workload, name: str, timeout: float) -> None:
    content = csi_pb2.VolumeContentSource()
    content.volume.volume_id = workload.volume_id
    copy(workload, name, timeout, content)


def groups(driver: Driver) -> list[str]:
    found = {entry.snapshot.group_snapshot_id for entry in driver.call("ListSnapshots").entries}
    return sorted(found - {""})


def group(workload: Workload, name: str, timeout: float) -> None:
    asked = {"name": f"group-{name}", "source_volume_ids": [workload.volume_id]}
    workload.driver.call("CreateVolumeGroupSnapshot", timeout=timeout, **asked)


def delete_group(workload: Workload, name: str, timeout: float) -> None:
    group_id = next(iter(groups(workload.driver)), "grp-nobody")
    workload.driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=group_id, timeout=timeout)


def delete_snapshot(workload: Workload, name: str, timeout: float) -> None:
    found = workload.driver.call("ListSnapshots", source_volume_id=workload.volume_id).entries
    alone = [entry.snapshot.snapshot_id for entry in found if not entry.snapshot.group_snapshot_id]
    snapshot_id = next(iter(alone), "snap-nobody")
    workload.driver.call("DeleteSnapshot", snapshot_id=snapshot_id, timeout=timeout)


def delete_copy(workload: Workload, name: str, timeout: float) -> None:
    for volume in admin_volumes(workload.driver):
        if volume.name.startswith(("copy-", "import-")):
            workload.driver.call("DeleteVolume", volume_id=volume.volume_id, timeout=timeout)
            return


def stream_of(workload: Workload, timeout: float) -> bytes:
    object_id = next(iter(snapshot_ids(workload)), workload.volume_id)
    return exported(workload.driver, object_id, timeout=timeout)


def import_(workload: Workload, name: str, timeout: float) -> None:
    options = {"name": f"import-{name}", "pool": workload.parameters.get("pool", "default")}
    workload.driver.caller.import_volume(stream_of(workload, timeout), timeout=timeout, **options)


def import_damaged(workload: Workload, name: str, timeout: float) -> None:
    stream = stream_of(workload, timeout)
    try:
        workload.driver.caller.import_volume(stream[:-1], timeout=timeout, name=f"damaged-{name}")
    except Failure as failure:
        if failure.code is not Code.INTERNAL:
            raise
    else:
        raise Failure("Import", Code.OK, "a stream without its end was taken for a whole one")


def grow_pool(workload: Workload, name: str, timeout: float) -> None:
    [held] = [pool for pool in admin_pools(workload.driver) if pool.name == "pool1"]
    wanted = held.backing_bytes + (16 * MIB if name.endswith("1") else 0)
    workload.driver.call("GrowPool", name="pool1", size_bytes=wanted, timeout=timeout)


def undelete(workload: Workload, name: str, timeout: float) -> None:
    found = [one.entry for one in workload.driver.call("ListTrash").entries if one.kind == "volume"]
    workload.driver.call("RestoreTrash", entry=next(iter(found), "vol-nobody"), timeout=timeout)


def purge(workload: Workload, name: str, timeout: float) -> None:
    found = [one.entry for one in workload.driver.call("ListTrash").entries]
    workload.driver.call("PurgeTrash", entry=next(iter(found), "vol-nobody"), timeout=timeout)


def rollback(workload: Workload, name: str, timeout: float) -> None:
    """Of a volume that nobody uses, whichever has a snapshot."""
    idle = {one.volume_id for one in admin_volumes(workload.driver) if not one.staging_paths}
    cuts = [entry.snapshot for entry in workload.driver.call("ListSnapshots").entries]
    pairs = [(cut.source_volume_id, cut.snapshot_id) for cut in cuts if cut.source_volume_id in idle]
    volume_id, snapshot_id = next(iter(pairs), (workload.volume_id, "snap-nobody"))
    workload.driver.call("RollbackVolume", volume_id=volume_id, snapshot_id=snapshot_id, timeout=timeout)


COPYING: dict[str, Callable[[Workload, str, float], None]] = {
    "snapshot": snapshot,
    "restore": restore,
    "clone": clone,
    "delete snapshot": delete_snapshot,
    "delete copy": delete_copy,
    "undelete": undelete,
    "rollback": rollback,
    "purge": purge,
    "group": group,
    "delete group": delete_group,
    "import": import_,
    "import damaged": import_damaged,
    "grow pool": grow_pool,
}


def occupy_every_thread(driver: Driver) -> None:
    """Have the server start all the threads that it will ever start."""

    def many(_: int) -> Code:
        for _ in range(6):
            with contextlib.suppress(Failure):
                driver.call("NodeGetVolumeStats", volume_id="vol-nobody", volume_path="/nowhere")
            driver.call("DeleteVolume", volume_id="vol-nobody")
        return Code.OK

    together(48, many)


def test_two_thousand_random_operations_leave_nothing_behind(
    plain: PoolPlace, backed: Backed, make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(plain, backed.place, forked=False)
    occupy_every_thread(driver)
    storm = Storm(driver)
    storm.run(200, seed=0)
    storm.drain()
    before = descriptors(driver.pid)
    before_growth = backed.image.stat().st_size
    resident = []

    storm = Storm(driver)
    began = time.monotonic()
    for part in range(PARTS):
        storm.run(OPERATIONS // PARTS, seed=PARTS * SEED + part)
        storm.drain()
        resident.append(status_number(driver.pid, "VmRSS"))
    seconds = time.monotonic() - began

    threads = status_number(driver.pid, "Threads")
    after = descriptors(driver.pid)
    print(f"{OPERATIONS} operations in {seconds:.0f} s: {dict(sorted(storm.codes.items()))}")
    print(f"resident after each part: {resident} KiB; threads {threads}; descriptors {len(before)}, then {len(after)}")
    assert_nothing_remains(driver)
    assert after == before
    assert len(backed.loops()) == 1
    [pool] = [pool for pool in admin_pools(driver) if pool.name == "pool1"]
    assert backed.image.stat().st_size == pool.backing_bytes > before_growth
    assert threads <= MOST_THREADS
    assert min(resident[PARTS // 2 :]) - min(resident[: PARTS // 2]) <= GROWTH_KIB
    for step in STEPS:
        assert storm.codes[f"{step} OK"], f"no {step} succeeded: the test did not test it"
