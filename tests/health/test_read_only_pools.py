"""A pool whose ext4 takes no more writes after an error (errors=remount-ro) is read-only, whatever statvfs says.

- It is told so, GetCapacity promises nothing, and whatever would write is UNAVAILABLE, naming the pool and the remedy,
  and leaves nothing.
- What is so already is answered as ever: a repeated create, an expansion to the size that there is.
- A copy that meets it in the middle is no failure of the copy: nobody is told to delete it. Nor is what cannot be
  cleared because of it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from csi_driver.domain.pools import Pool
from csi_driver.errors import NotReady, UndoFailed
from csi_driver.linux import filesystem_state
from csi_driver.model import PoolName
from tests.conformance.probing import refused
from tests.driver.copying import snapshots, written
from tests.driver.test_copies_under_way import Cutting, admin_snapshot, frozen
from tests.harness import GIB, MIB, Code, Driver, PoolPlace, Workload, create_request, run
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


def test_a_copy_that_meets_it_is_no_failure_of_the_copy(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]
) -> None:
    place = make_pool("ext4", size_bytes=3 * GIB, mount="errors=remount-ro")
    driver = make_driver(place)
    source = written(driver, 400 * MIB)
    same = {"name": "cut", "source_volume_id": source.volume_id}
    cutting = Cutting(driver, source.volume_id)
    with frozen(place):
        [snapshot] = snapshots(driver)
        assert not snapshot.ready_to_use
        fail(place)
        until(lambda: driver.call("GetCapacity").available_capacity == 0)
    cutting.join()
    assert cutting.code in (Code.OK, Code.UNAVAILABLE)
    until(lambda: admin_snapshot(driver, "cut").state == "stopped")
    for _ in range(2):
        refused(driver, "CreateSnapshot", Code.UNAVAILABLE, *WORDS, **same)
    assert [one.snapshot_id for one in snapshots(driver)] == [snapshot.snapshot_id]


class Failing(Pool):
    """A pool that says whether it is read-only, or cannot say so."""

    def __init__(self, answer: bool | OSError) -> None:
        self.name = PoolName("default")
        self.store = cast(Any, SimpleNamespace(directory="/pool"))
        self._slots = threading.BoundedSemaphore(1)
        self.answer = answer

    @property
    def is_read_only(self) -> bool:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def undone(pool: Pool) -> None:
    """An operation that met it, and met it again when it was taken back."""
    with pool.slot():
        try:
            raise OSError(errno.EROFS, "Read-only file system")
        except OSError as cause:
            raise UndoFailed("could not be cleared") from cause


def test_what_cannot_be_undone_because_of_it_is_told_as_a_pool_that_is_read_only() -> None:
    with pytest.raises(NotReady, match="is read-only"):
        undone(Failing(True))
    with pytest.raises(UndoFailed):
        undone(Failing(False))
    with pytest.raises(ValueError, match="another"), Failing(True).slot():
        raise ValueError("another")


def test_a_pool_that_cannot_say_whether_it_is_read_only_does_not_hide_what_failed() -> None:
    met = OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(OSError, match="Read-only") as told, Failing(OSError(errno.EIO, "shut down")).slot():
        raise met
    assert told.value is met


def test_a_device_number_that_is_used_again_is_asked_for_its_name_again(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = iter(["../../block/loop1", "../../block/loop2"])
    monkeypatch.setattr(os, "readlink", lambda _: next(devices))
    number = os.makedev(7, 1)
    assert [filesystem_state._device_name(number) for _ in range(2)] == ["loop1", "loop2"]
