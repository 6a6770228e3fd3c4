"""The driver is killed at every step of an export and of an import.

- Killed at any step of an import and started again, the volume is there whole or not at all; the same stream makes it.
- Nothing is left of one that was half-built, nor of the cut that an export of a volume in use makes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver import faults
from csi_driver.errors import CallFailed
from csi_driver.rpc.client import Client
from tests.crash.lane import numbered, wait_until
from tests.crash.tally import Tally
from tests.harness import DIRECTORY, MIB, Driver, PoolPlace, Workload

KINDS: dict[str, dict[str, Any]] = {
    "image": {"block": True, "size_bytes": 16 * MIB},
    "directory": {"parameters": DIRECTORY, "size_bytes": 16 * MIB},
}
OPERATIONS = ("export", "import")
MATRIX = [pytest.param(kind, operation, id=f"{kind}-{operation}") for kind in KINDS for operation in OPERATIONS]
# The rest of an import is every create's.
WANTED = ("transfer.", "image.received", "image.receiving", "image.followed", "directory.received", "create.", "move.")


class Scene:
    """A driver that can be told where to end, and the stream of a volume."""

    def __init__(self, home: Path, place: PoolPlace) -> None:
        self.home = home
        environment = {faults.CRASH_AT: f"@{home / 'at'}", faults.CRASH_LOG: str(home / "points")}
        self.driver = Driver(home / "driver", [place], environment=environment)
        self.driver.start()

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
        [found] = [path for path in (self.driver.pool / "volumes" / volume_id).iterdir() if path.name != "record.json"]
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

    def followed(self, volume_id: str) -> bytes:
        """A whole stream and one that is relative to it."""
        cuts, client = [], Client(self.driver.endpoint)
        for number in range(2):
            with self.content(volume_id).open("r+b") as file:
                file.seek(number * 4 * MIB)
                file.write(os.urandom(8192))
            made = self.driver.call("CreateSnapshot", name=f"{volume_id}-{number}", source_volume_id=volume_id)
            cuts.append(made.snapshot.snapshot_id)
        try:
            return self.exported(cuts[0]) + b"".join(client.export(cuts[1], cuts[0]))
        finally:
            client.close()

    def imported(self, stream: bytes, name: str) -> str:
        client = Client(self.driver.endpoint)
        try:
            return str(client.import_volume(iter([stream[:MIB], stream[MIB:]]), {"name": name})["volume_id"])
        finally:
            client.close()

    def restarted(self) -> None:
        self.driver.wait_dead()
        (self.home / "at").unlink()
        self.driver.start()
        wait_until(lambda: not self.left(), self.left)

    def left(self) -> list[str]:
        return [path for path in self.driver.files() if path.startswith(("tmp/", "trash/"))]


def digest(place: Path) -> str:
    file = place if place.is_file() else place / "file"
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home = tmp_path_factory.mktemp("exports")
    place = PoolPlace.make(home / "xfs", "xfs", 1 << 30)
    made = Scene(home, place)
    yield made
    made.driver.stop()
    made.driver.clean_up()
    place.remove()


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_the_driver_is_killed_at_every_step(kind: str, operation: str, scene: Scene, tally: Tally) -> None:
    source = scene.source(kind, operation)
    scene.passed()
    stream = scene.followed(source) if (kind, operation) == ("image", "import") else scene.exported(source)
    if operation == "import":
        scene.passed()
        scene.imported(stream, f"{kind}-first")
    points = scene.passed()
    tally.meet(f"exports {kind} {operation}", points)
    wanted = [point for point in points if point.startswith(WANTED)]
    assert wanted
    for number, point in enumerate(wanted):
        name = f"{kind}-{number}"
        scene.arm(point)
        with pytest.raises(CallFailed):
            scene.exported(source) if operation == "export" else scene.imported(stream, name)
        scene.restarted()
        if operation == "export":
            assert scene.exported(source)
            tally.count(held=True)
            continue
        try:
            copy = scene.imported(stream, name)
        except CallFailed as failure:
            assert failure.code == "ALREADY_EXISTS", point
            copy = _named(scene, name)
        assert digest(scene.content(copy)) == digest(scene.content(source)), point
        scene.driver.call("DeleteVolume", volume_id=copy)
        tally.count(held=True)


def _named(scene: Scene, name: str) -> str:
    client = Client(scene.driver.endpoint)
    try:
        return str(client.volume_named(name)["volume_id"])
    finally:
        client.close()
