"""Callers that import volumes, change the parameters of one, and put snapshots in the place of another's content."""

from __future__ import annotations

import hashlib
import json
import os
import random

from tests.durability.callers import Caller, content, source_of
from tests.durability.load import read_number, write_number
from tests.harness import MIB, Code, Driver, Failure, admin_volumes, exported

_MOST = 3


class ImportCaller(Caller):
    """Imports one stream again and again, and deletes what came of it."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, "imports")
        source = source_of(driver, "block", "import-source", published=False)
        image = content(driver, "volumes", source.volume_id)
        with image.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(os.urandom(MIB))
        self._stream = exported(driver, source.volume_id)
        self._digest = self._digest_of(source.volume_id)
        source.delete()
        self._made: set[str] = set()
        self._gone: set[str] = set()
        self._asked: set[str] = set()  # names of imports without an answer

    def step(self, choices: random.Random, name: str) -> None:
        if len(self._made) < _MOST and choices.random() < 0.7:
            self._asked.add(name)
            volume_id = self._import(name)
            if self.heard():
                self._asked.discard(name)
                self._made.add(volume_id)
        elif self._made:
            volume_id = choices.choice(sorted(self._made))
            self._made.discard(volume_id)
            self.driver.call("DeleteVolume", volume_id=volume_id)
            if self.heard():
                self._gone.add(volume_id)

    def check(self) -> None:
        there = {one.volume_id: one.name for one in admin_volumes(self.driver)}
        assert self._made <= set(there), "an acknowledged import is lost"
        assert not self._gone & set(there), "what was deleted has risen"
        for volume_id in self._made:
            assert self._digest_of(volume_id) == self._digest, "an acknowledged import is not whole"
        for name in self._asked:
            self._finish(name, name in there.values())
        self._asked.clear()

    def _finish(self, name: str, is_there: bool) -> None:
        try:
            volume_id = self._import(name)
        except Failure as failure:
            assert failure.code is Code.ALREADY_EXISTS
            assert is_there
            volume_id = next(one.volume_id for one in admin_volumes(self.driver) if one.name == name)
        assert self._digest_of(volume_id) == self._digest, "a part of an import was left"
        self.driver.call("DeleteVolume", volume_id=volume_id)

    def _import(self, name: str) -> str:
        return str(self.driver.caller.import_volume(self._stream, name=name).volume_id)

    def _digest_of(self, volume_id: str) -> str:
        return hashlib.sha256(content(self.driver, "volumes", volume_id).read_bytes()).hexdigest()

    def volumes(self) -> set[str]:
        return set(self._made)


class ModifyCaller(Caller):
    """Changes how a volume is provisioned and how long it is kept."""

    CHANGES = (("provisioning", "thick"), ("provisioning", "thin"), ("retention", "1h"), ("retention", "2h"))

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, "changes")
        self._volume_id = source_of(driver, "block", "changed", published=False).volume_id
        self._told = {"provisioning": "thin", "retention": "0"}
        self._pending: tuple[str, str] | None = None

    def step(self, choices: random.Random, name: str) -> None:
        self._pending = key, value = choices.choice(self.CHANGES)
        self.driver.call("ControllerModifyVolume", volume_id=self._volume_id, mutable_parameters={key: value})
        if self.heard():
            self._told[key], self._pending = value, None

    def check(self) -> None:
        found = self._found()
        for key, value in self._told.items():
            allowed = {value} | ({self._pending[1]} if self._pending is not None and self._pending[0] == key else set())
            assert found[key] in allowed, "an acknowledged change is lost"
        if found["provisioning"] == "thick":
            image = content(self.driver, "volumes", self._volume_id).stat()
            assert image.st_blocks * 512 >= image.st_size, "a thick image has holes"
        if self._pending is not None:
            key, value = self._pending
            self.driver.call("ControllerModifyVolume", volume_id=self._volume_id, mutable_parameters={key: value})
        self._told, self._pending = self._found(), None

    def _found(self) -> dict[str, str]:
        """What the driver and the record say."""
        [told] = [one for one in admin_volumes(self.driver) if one.volume_id == self._volume_id]
        record = json.loads((self.driver.pool / "volumes" / self._volume_id / "record.json").read_text())["record"]
        seconds = record.get("retention_seconds", 0)
        assert record["provisioning"] == told.provisioning
        return {"provisioning": told.provisioning, "retention": {0: "0", 3600: "1h", 7200: "2h"}[seconds]}

    def volumes(self) -> set[str]:
        return {self._volume_id}


class RollbackCaller(Caller):
    """Puts one of two snapshots in the place of a volume's content, and purges what was there before."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, "rollbacks")
        self._volume_id = source_of(driver, "block", "rolled-back", published=False).volume_id
        self._snapshots = {}
        for number in (1, 2):
            write_number(self._image(), number)
            asked = {"name": f"rollback-{number}", "source_volume_id": self._volume_id}
            self._snapshots[number] = str(driver.call("CreateSnapshot", **asked).snapshot.snapshot_id)
        self._possible = {2}
        self._kept: dict[str, int] = {}  # acknowledged trash entries: the number that is in them

    def step(self, choices: random.Random, name: str) -> None:
        if len(self._kept) < _MOST:
            number, [before] = choices.choice((1, 2)), self._possible
            self._possible.add(number)
            asked = {"volume_id": self._volume_id, "snapshot_id": self._snapshots[number]}
            entry = self.driver.call("RollbackVolume", **asked).entry
            if self.heard():
                self._possible = {number}
                self._kept[entry] = before
        else:
            entry = choices.choice(sorted(self._kept))
            del self._kept[entry]
            self.driver.call("PurgeTrash", entry=entry)
            self.heard()

    def check(self) -> None:
        number = read_number(self._image())
        assert number in self._possible, "an acknowledged rollback is lost"
        found = {entry.entry for entry in self.driver.call("ListTrash").entries if entry.object_id == self._volume_id}
        assert set(self._kept) <= found, "what was there before an acknowledged rollback is lost"
        # That of the call without an answer; names are used again within a second, so they tell nothing.
        assert len(found - set(self._kept)) <= 1, "what was purged has risen"
        for entry, before in self._kept.items():
            assert read_number(str(content(self.driver, "trash", entry))) == before
        for entry in found:
            self.driver.call("PurgeTrash", entry=entry)
        self._possible = {number}
        self._kept.clear()

    def _image(self) -> str:
        return str(content(self.driver, "volumes", self._volume_id))

    def volumes(self) -> set[str]:
        return {self._volume_id}
