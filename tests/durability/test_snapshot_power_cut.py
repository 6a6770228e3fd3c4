"""The power fails while snapshots are taken and deleted, and volumes are made from them, on every filesystem.

- A snapshot that was acknowledged is there afterwards, with what was in its volume; one whose delete was acknowledged
  stays away. The same holds for copies.
- One that was not acknowledged is whole or not there; a copy that was under way is finished.
- The driver starts on what the cut left and clears the rest away; nothing is quarantined.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from csi_driver.pb import csi_pb2
from tests.durability.disks import Disk
from tests.durability.load import KINDS, read_number, write_number
from tests.harness import Driver, Failure, Workload, create_request, polled

CUTS = 6
SOURCES = ("ext4", "block", "directory")
_MOST = 3


@dataclass
class Caller(threading.Thread):
    """Takes snapshots of one volume, makes copies of them and deletes both, and knows what it was told."""

    driver: Driver
    kind: str
    source: Workload
    seed: str
    can_share: bool
    cuts: dict[str, int] = field(default_factory=dict)  # acknowledged snapshots: the number that was in the volume
    copies: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    acknowledged: int = 0
    number: int = 1
    complaint: str = ""
    is_cut: bool = False

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        choices = random.Random(self.seed)
        step = 0
        try:
            while not self.is_cut:
                step += 1
                if self.can_share and choices.random() < 0.5:
                    write_number(self.source.target(), self.number + 1)
                    self.number += 1
                self._step(choices, f"{self.seed}-{step}")
        except (Failure, OSError) as failure:
            if not self.is_cut:
                self.complaint = str(failure)

    def _step(self, choices: random.Random, name: str) -> None:
        chance = choices.random()
        if chance < 0.45 and len(self.cuts) < _MOST:
            number = self.number
            self._told(self.cuts, self._cut(name), number)
        elif chance < 0.7 and self.cuts and len(self.copies) < _MOST:
            snapshot_id = choices.choice(sorted(self.cuts))
            self._told(self.copies, self._copy(name, snapshot_id), self.cuts[snapshot_id])
        elif self.cuts and chance < 0.85:
            self._take_away("DeleteSnapshot", "snapshot_id", self.cuts, choices.choice(sorted(self.cuts)))
        elif self.copies:
            self._take_away("DeleteVolume", "volume_id", self.copies, choices.choice(sorted(self.copies)))

    def _told(self, known: dict[str, int], object_id: str, number: int) -> None:
        if not self.is_cut:
            known[object_id] = number
            self.acknowledged += 1

    def _cut(self, name: str) -> str:
        asked = {"name": name, "source_volume_id": self.source.volume_id}
        return str(self.driver.call("CreateSnapshot", **asked).snapshot.snapshot_id)

    def _copy(self, name: str, snapshot_id: str) -> str:
        content = csi_pb2.VolumeContentSource()
        content.snapshot.snapshot_id = snapshot_id
        request = create_request(
            name,
            self.source.size_bytes,
            parameters=self.source.parameters,
            volume_capabilities=[self.source.capability],
            volume_content_source=content,
        )
        return str(self.driver.call("CreateVolume", request).volume.volume_id)

    def _take_away(self, method: str, field_name: str, known: dict[str, int], object_id: str) -> None:
        # Until it is answered nobody knows.
        del known[object_id]
        self.unsure.add(object_id)
        self.driver.call(method, **{field_name: object_id})
        if not self.is_cut:
            self.unsure.discard(object_id)
            self.gone.add(object_id)
            self.acknowledged += 1


@pytest.fixture
def driver(tmp_path: Path, disk: Disk) -> Iterator[Driver]:
    driver = Driver(tmp_path / "driver", [disk.place])
    driver.start()
    yield driver
    driver.stop()
    driver.clean_up()
    assert "unforeseen" not in driver.log(), driver.log()


def can_share(disk: Disk) -> bool:
    return disk.fs_type != "ext4"


def source_of(driver: Driver, kind: str, *, published: bool) -> Workload:
    source = Workload(driver, f"source-{kind}", **KINDS[kind])  # type: ignore[arg-type]
    write_number(source.up(), 1)
    if not published:
        source.unpublish()
        source.unstage()
    return source


def reboot(driver: Driver, disk: Disk) -> None:
    driver.kill()
    driver.clean_up()
    disk.recover()
    shutil.rmtree(driver.home / "state")
    driver.start()


def number_in(driver: Driver, volume_id: str, like: Workload) -> int:
    """The number in a volume, which is mounted for it."""
    looked_at = Workload(driver, f"look-{volume_id}", like.block, like.fs_type, like.size_bytes, like.parameters)
    looked_at.volume_id = volume_id
    looked_at.stage()
    try:
        return read_number(looked_at.publish())
    finally:
        looked_at.unpublish()
        looked_at.unstage()


def check(driver: Driver, caller: Caller) -> None:
    """Compare what is there with what the caller knows, and forget what nobody knows."""
    snapshots = {
        entry.snapshot.snapshot_id: entry.snapshot
        for entry in driver.call("ListSnapshots", source_volume_id=caller.source.volume_id).entries
    }
    volumes = {entry.volume.volume_id for entry in driver.call("ListVolumes").entries}
    assert set(caller.cuts) <= set(snapshots), "an acknowledged snapshot is lost"
    assert set(caller.copies) <= volumes, "an acknowledged copy is lost"
    assert not caller.gone & (set(snapshots) | volumes), "what was deleted has risen"
    for snapshot_id, at_least in caller.cuts.items():
        restored = caller._copy(f"check-{snapshot_id}", snapshot_id)
        assert number_in(driver, restored, caller.source) >= at_least
        driver.call("DeleteVolume", volume_id=restored)
    for volume_id, at_least in caller.copies.items():
        assert number_in(driver, volume_id, caller.source) >= at_least
    for snapshot_id in set(snapshots) - set(caller.cuts):
        driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
    for volume_id in caller.unsure & volumes:
        driver.call("DeleteVolume", volume_id=volume_id)
    caller.unsure.clear()


def leftovers(driver: Driver) -> list[str]:
    return [path for path in driver.files() if path.startswith(("tmp/", "trash/"))]


@pytest.mark.timeout(280)
def test_cuts_lose_no_snapshot_and_no_copy_that_was_acknowledged(
    driver: Driver, disk: Disk, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    choices = random.Random(name)
    shares = can_share(disk)
    sources = {kind: source_of(driver, kind, published=shares) for kind in SOURCES}
    callers = [Caller(driver, kind, source, f"{name}-{kind}-0", shares) for kind, source in sources.items()]
    acknowledged = 0
    for number in range(CUTS):
        callers = [
            Caller(
                driver, one.kind, one.source, f"{name}-{one.kind}-{number}", shares, one.cuts, one.copies, one.gone,
                number=one.number,
            )
            for one in callers
        ]  # fmt: skip
        _ = driver.caller
        for caller in callers:
            caller.start()
        time.sleep(choices.uniform(0.05, 0.6))  # the moment of the cut is the point, nothing is waited for
        for caller in callers:
            caller.is_cut = True
        disk.cut()
        for caller in callers:
            caller.join(60)
        assert [caller.complaint for caller in callers if caller.complaint] == []
        acknowledged += sum(caller.acknowledged for caller in callers)
        reboot(driver, disk)
        assert "quarantine" not in driver.log()
        for caller in callers:
            check(driver, caller)
            # What was made of calls that nobody heard the end of.
            for entry in driver.call("ListVolumes").entries:
                known = {key for one in callers for key in one.copies} | {one.volume_id for one in sources.values()}
                if entry.volume.volume_id not in known:
                    driver.call("DeleteVolume", volume_id=entry.volume.volume_id)
        assert polled(lambda: not leftovers(driver), 20), leftovers(driver)
        if shares:
            for one in sources.values():
                one.stage()
                one.publish()
    print(f"{name}: {CUTS} cuts, {acknowledged} calls about snapshots and copies acknowledged, none lost")
    assert acknowledged > CUTS, "the driver hardly worked: the cuts proved little"
    assert os.path.isdir(driver.pool / "snapshots")
