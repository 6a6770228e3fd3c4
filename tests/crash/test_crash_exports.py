"""The driver is killed at every step of an export and of an import.

- Killed at any step of an import and started again, the volume is there whole or not at all; the same stream makes it,
  also onto a snapshot, which stays as it is.
- Killed when it is staged for the first time, a volume is known for what was imported only if nobody could write to it.
- Nothing is left of one that was half-built, nor of the cut that an export of a volume in use makes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi_driver import faults
from csi_driver.errors import CallFailed
from csi_driver.rpc.client import Client
from tests.crash.lane import numbered
from tests.crash.tally import Tally
from tests.harness import DIRECTORY, MIB, Driver, Failure, PoolPlace, Workload
from tests.waiting import until

KINDS: dict[str, dict[str, Any]] = {
    "image": {"block": True, "size_bytes": 16 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 16 * MIB},
}
OPERATIONS = ("export", "import", "onto")
MATRIX = [pytest.param(kind, operation, id=f"{kind}-{operation}") for kind in KINDS for operation in OPERATIONS]
MATRIX += [pytest.param(kind, "stage", id=f"{kind}-stage") for kind in KINDS]
# The rest of an import is every create's.
WANTED = ("transfer.", "image.rec", "image.followed", "directory.rec", "directory.follow", "create.", "move.")
# What is otherwise when it begins with a copy.
WANTED_ONTO = ("image.shared", "image.received", "directory.received", "create.content", "create.committed")
# A create's own steps are those of the image.
WANTED_DIRECTORY = ("directory.rec", "directory.follow", "create.content", "create.built")


class Scene:
    """A driver that can be told where to end, and the stream of a volume."""

    def __init__(self, home: Path, place: PoolPlace) -> None:
        self.home = home
        environment = {faults.CRASH_AT: f"@{home / 'at'}", faults.CRASH_LOG: str(home / "points")}
        self.driver = Driver(home / "driver", [place], environment=environment)

    def source(self, kind: str, operation: str) -> str:
        volume = Workload(self.driver, f"{kind}-{operation}", **KINDS[kind])
        volume.create()
        place = self.content(volume.volume_id)
        if kind == "image":
            with place.open("r+b") as file:
                file.write(os.urandom(2 * MIB))
        else:
            (place / "file").write_bytes(os.urandom(100_000))
        return volume.volume_id

    def content(self, volume_id: str) -> Path:
        room = "snapshots" if volume_id.startswith("snap-") else "volumes"
        [found] = [path for path in (self.driver.pool / room / volume_id).iterdir() if path.name != "record.json"]
        return found

    def passed(self) -> list[str]:
        log = self.home / "points"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return numbered(names)

    def arm(self, point: str) -> None:
        (self.home / "at").write_text(point)

    def exported(self, volume_id: str) -> bytes:
        client = Client(self.driver.endpoint)
        try:
            return b"".join(client.export(volume_id))
        finally:
            client.close()

    def cuts(self, volume_id: str) -> list[str]:
        """Two snapshots, and something written between them."""
        cuts = []
        place = self.content(volume_id)
        for number in range(2):
            with (place if place.is_file() else place / "file").open("r+b") as file:
                file.seek(number * 4 * MIB)
                file.write(os.urandom(8192))
            made = self.driver.call("CreateSnapshot", name=f"{volume_id}-{number}", source_volume_id=volume_id)
            cuts.append(made.snapshot.snapshot_id)
        return cuts

    def relative(self, cuts: list[str]) -> bytes:
        client = Client(self.driver.endpoint)
        try:
            return b"".join(client.export(cuts[1], cuts[0]))
        finally:
            client.close()

    def imported(self, stream: bytes, name: str, onto_id: str = "") -> str:
        client = Client(self.driver.endpoint)
        try:
            options = {"name": name, "onto_id": onto_id}
            return str(client.import_volume(iter([stream[:MIB], stream[MIB:]]), options)["volume_id"])
        finally:
            client.close()

    def restarted(self) -> None:
        self.driver.wait_dead()
        (self.home / "at").unlink()
        self.driver.start()
        until(lambda: not self.left(), what=self.left)

    def left(self) -> list[str]:
        return [path for path in self.driver.files() if path.startswith(("tmp/", "trash/"))]


def digest(place: Path) -> str:
    file = place if place.is_file() else place / "file"
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("exports")
    with ExitStack() as stack:
        place = PoolPlace.make(home / "xfs", "xfs", 1 << 30)
        stack.callback(place.remove)
        made = Scene(home, place)
        stack.enter_context(made.driver.serving())
        yield made


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_the_driver_is_killed_at_every_step(kind: str, operation: str, scene: Scene, tally: Tally) -> None:
    source = scene.source(kind, operation)
    if operation == "stage":
        _staged(scene, kind, source, tally)
        return
    cuts = [] if operation == "export" else scene.cuts(source)
    onto = cuts[0] if operation == "onto" else ""
    told = digest(scene.content(source))
    scene.passed()
    if operation == "export":
        stream = scene.exported(source)
    else:
        stream = (b"" if onto else scene.exported(cuts[0])) + scene.relative(cuts)
        base = digest(scene.content(cuts[0]))
        scene.passed()
        scene.imported(stream, f"{kind}-{operation}-first", onto)
    points = scene.passed()
    tally.meet(f"exports {kind} {operation}", points)
    of_directory = WANTED_DIRECTORY if (kind, operation) == ("directory", "import") else WANTED
    wanted = [point for point in points if point.startswith(WANTED_ONTO if onto else of_directory)]
    assert wanted
    for number, point in enumerate(wanted):
        name = f"{kind}-{operation}-{number}"
        scene.arm(point)
        with pytest.raises(CallFailed):
            scene.exported(source) if operation == "export" else scene.imported(stream, name, onto)
        scene.restarted()
        if operation == "export":
            assert scene.exported(source)
            tally.count(held=True)
            continue
        try:
            copy = scene.imported(stream, name, onto)
        except CallFailed as failure:
            assert failure.code == "ALREADY_EXISTS", point
            copy = _named(scene, name)
        assert (digest(scene.content(copy)), digest(scene.content(cuts[0]))) == (told, base), point
        scene.driver.call("DeleteVolume", volume_id=copy)
        tally.count(held=True)


def _staged(scene: Scene, kind: str, source: str, tally: Tally) -> None:
    cuts = scene.cuts(source)
    stream = scene.relative(cuts)
    copy = Workload(scene.driver, f"{kind}-staged", **KINDS[kind])
    copy.volume_id = scene.imported(scene.exported(cuts[0]), copy.name)
    scene.passed()
    scene.arm("stage.disowned")
    with pytest.raises(Failure):
        copy.stage()
    tally.meet(f"exports {kind} stage", scene.passed())
    scene.restarted()
    with pytest.raises(CallFailed, match="nobody knows"):
        scene.imported(stream, f"{kind}-onto-staged", copy.volume_id)
    copy.stage()
    copy.unstage()
    tally.count(held=True)


def _named(scene: Scene, name: str) -> str:
    client = Client(scene.driver.endpoint)
    try:
        return str(client.volume_named(name)["volume_id"])
    finally:
        client.close()
