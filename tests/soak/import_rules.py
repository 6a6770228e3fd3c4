"""The rules of export and import for the state machine, beside its models of volumes and snapshots."""

from __future__ import annotations

import time
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import rule

from tests.harness import Code, Failure, admin_volumes, import_requests
from tests.soak.snapshot_rules import LOSSES, SnapshotRules
from tests.soak.volume_model import KINDS, VolumeModel

# Most often one that nothing has.
NEW_NAMES = st.sampled_from(("blue", "blue", "blue", "red"))
DAMAGES = st.sampled_from(("", "", "", "", "", "cut off", "changed"))


class ImportRules(SnapshotRules):
    """Export of snapshots and of volumes, and import as new volumes."""

    @rule(name=NEW_NAMES, which=st.integers(0, 5), damage=DAMAGES, loss=LOSSES)
    def import_one(self, name: str, which: int, damage: str, loss: str) -> None:
        sources = self.exportable() or self.every_volume()
        if not sources:
            self.expect({Code.NOT_FOUND}, "Export", id="vol-nobody")
            return
        object_id, held, allowed = sources[which % len(sources)]
        stream = self.exported(object_id, allowed)
        self.import_from(name, held, damaged(stream, damage), damage, loss)

    def exportable(self) -> list[tuple[str, Any, set[Code]]]:
        """The snapshots, and the volumes that can be held still for sure."""
        cuts: list[tuple[str, Any, set[Code]]] = [(cut.snapshot_id, cut, {Code.OK}) for cut in self.cuts.values()]
        return cuts + [one for one in self.every_volume() if one[2] == {Code.OK}]

    def every_volume(self) -> list[tuple[str, Any, set[Code]]]:
        """The volumes, with what an export of them may be answered."""
        return [(one.volume_id, one, self.codes_of_a_copy(one)) for one in self.volumes.values()]

    def exported(self, object_id: str, allowed: set[Code]) -> bytes:
        """Empty when it was refused."""
        chunks = self.expect(allowed, "Export", id=object_id)
        return b"".join(chunk.data for chunk in chunks or ())

    def import_from(self, name: str, held: Any, stream: bytes, damage: str, loss: str) -> None:
        if not stream:
            return
        options = {"name": name, "pool": dict(held.kind.parameters).get("pool", "default")}
        if held.kind.is_image:
            options["provisioning"] = "thin"
        if loss:
            self.abandon(
                loss,
                lambda timeout: self.driver.caller.import_stub().future(
                    import_requests(stream, **options), timeout=timeout
                ),
            )
        code, volume_id = self.imported(stream, options)
        self.counts[f"import {code.name}"] += 1
        if name in self.volumes:
            assert code is Code.ALREADY_EXISTS
        elif damage:
            assert code is Code.INTERNAL
        else:
            # A call whose answer was lost has done it; no stream is the same as another.
            assert code is Code.OK or (loss and code is Code.ALREADY_EXISTS)
            self.volumes[name] = made = VolumeModel(without_retention(held.kind), held.size_bytes, volume_id)
            made.written = held.written

    def imported(self, stream: bytes, options: dict[str, str]) -> tuple[Code, str]:
        """How the import ends, and the id of the volume that has its name then."""
        for attempt in range(40):
            try:
                return Code.OK, self.driver.caller.import_volume(stream, **options).volume_id
            except Failure as failure:
                if failure.code is not Code.ABORTED:
                    named = [one.volume_id for one in admin_volumes(self.driver) if one.name == options["name"]]
                    return failure.code, next(iter(named), "")
            time.sleep(0.05 * (attempt + 1))
        raise AssertionError("Import is still answered ABORTED")


def damaged(stream: bytes, damage: str) -> bytes:
    if not stream:
        return stream
    if damage == "cut off":
        return stream[:-1]
    return stream[:-1] + bytes([stream[-1] ^ 1]) if damage else stream


def without_retention(kind: Any) -> Any:
    """What a stream tells of its source: what is to become of the deleted volume is the importer's to say."""
    return KINDS["block"] if kind == KINDS["kept"] else kind
