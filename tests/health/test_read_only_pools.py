"""A pool whose ext4 takes no more writes after an error (errors=remount-ro) is read-only, whatever statvfs says.

- It is told so, GetCapacity promises nothing, and whatever would write is UNAVAILABLE, naming the pool and the remedy,
  and leaves nothing.
- What is so already is answered as ever: a repeated create, an expansion to the size that there is.
- A copy that meets it in the middle is no failure of the copy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from csi_driver.domain import copies
from tests.conformance.probing import refused
from tests.harness import MIB, Code, Driver, PoolPlace, Workload, create_request, run
from tests.health.asking import WORSE, troubles
from tests.waiting import until

WORDS = ("pool default", "read-only", "kernel's log")


def fail(place: PoolPlace) -> None:
    """The kernel meets an error of the filesystem."""
    source = run("findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", str(place.mount_point)).strip()
    Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error").write_text("a test")


def test_an_ext4_that_takes_no_more_writes_promises_nothing_and_says_so(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    place = make_pool("ext4", size_bytes=512 * MIB, mount="errors=remount-ro")
    driver = make_driver(place)
    volume = Workload(driver, "v", size_bytes=16 * MIB)
    volume.create()
    kept = Workload(driver, "kept", block=True, size_bytes=4 * MIB, parameters={"retention": "1d"})
    kept.create()
    kept.delete()
    [entry] = driver.call("ListTrash").entries
    cut = driver.call("CreateSnapshot", name="cut", source_volume_id=volume.volume_id).snapshot
    until(lambda: driver.call("GetSnapshot", snapshot_id=cut.snapshot_id).snapshot.ready_to_use)
    assert driver.call("GetCapacity").available_capacity > 0
    before = driver.files()
    fail(place)
    # The kernel does it in a work queue.
    until(lambda: driver.call("GetCapacity").available_capacity == 0)
    assert troubles(driver, volume.volume_id).items() >= {"PoolReadOnly": WORSE}.items()
    refused(driver, "CreateVolume", Code.UNAVAILABLE, *WORDS, request=create_request("more"))
    refused(driver, "CreateSnapshot", Code.UNAVAILABLE, *WORDS, name="next", source_volume_id=volume.volume_id)
    refused(
        driver,
        "CreateVolumeGroupSnapshot",
        Code.UNAVAILABLE,
        *WORDS,
        name="group",
        source_volume_ids=[volume.volume_id],
    )
    refused(driver, "ControllerExpandVolume", Code.UNAVAILABLE, *WORDS, request=volume.expand_request(32 * MIB))
    longer = {"volume_id": volume.volume_id, "mutable_parameters": {"retention": "1h"}}
    refused(driver, "ControllerModifyVolume", Code.UNAVAILABLE, *WORDS, **longer)
    refused(driver, "DeleteVolume", Code.UNAVAILABLE, *WORDS, volume_id=volume.volume_id)
    refused(driver, "DeleteSnapshot", Code.UNAVAILABLE, *WORDS, snapshot_id=cut.snapshot_id)
    refused(driver, "RestoreTrash", Code.UNAVAILABLE, *WORDS, entry=entry.entry)
    refused(driver, "PurgeTrash", Code.UNAVAILABLE, "Read-only", "kernel's log", entry=entry.entry)
    back = {"volume_id": volume.volume_id, "snapshot_id": cut.snapshot_id}
    refused(driver, "RollbackVolume", Code.UNAVAILABLE, *WORDS, **back)
    volume_id = volume.volume_id
    assert volume.create() == volume_id
    assert volume.expand(16 * MIB) == 16 * MIB
    refused(driver, "NodeStageVolume", Code.UNAVAILABLE, *WORDS, request=volume.stage_request())
    assert driver.files() == before


def test_a_copy_that_meets_it_is_not_given_up_for_a_fault_of_its_own() -> None:
    job = cast(Any, SimpleNamespace(snapshot=SimpleNamespace(snapshot_id="snap-1")))
    met = OSError(errno.EROFS, "Read-only file system")
    assert copies._explained(job, met) is met
