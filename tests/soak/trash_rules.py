"""The rules of the trash and of rollbacks for the state machine, beside its models of volumes and snapshots."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import invariant, rule

from tests.harness import Code
from tests.soak.snapshot_rules import CUT_NAMES, LOSSES, NAMES, SnapshotRules


class TrashRules(SnapshotRules):
    """RestoreTrash, PurgeTrash and RollbackVolume."""

    def __init__(self) -> None:
        super().__init__()
        self.buried: dict[str, tuple[str, Any]] = {}

    def bury(self, name: str, volume: Any) -> None:
        """The volume was deleted; it is in the trash if it is of a kind that is kept."""
        if "retention" in dict(volume.kind.parameters):
            self.buried[volume.volume_id] = (name, volume)

    @rule(name=NAMES, loss=LOSSES)
    def undelete(self, name: str, loss: str) -> None:
        found = [(volume_id, held) for volume_id, (was, held) in self.buried.items() if was == name]
        if not found:
            self.expect({Code.NOT_FOUND}, "RestoreTrash", entry="vol-nobody")
            return
        volume_id, volume = found[-1]
        if name in self.volumes:
            self.expect({Code.FAILED_PRECONDITION}, "RestoreTrash", entry=volume_id, loss=loss)
            return
        # A call whose answer was lost has done it: then there is nothing of that id in the trash any more.
        allowed = {Code.OK, Code.NOT_FOUND} if loss else {Code.OK}
        self.expect(allowed, "RestoreTrash", entry=volume_id, loss=loss)
        del self.buried[volume_id]
        self.gone.remove(volume_id)
        volume.staged_at, volume.shown_bytes = "", 0
        self.volumes[name] = volume

    @rule()
    def purge(self) -> None:
        for entry in self.driver.call("ListTrash").entries:
            self.expect({Code.OK}, "PurgeTrash", entry=entry.entry)
        self.buried.clear()

    @rule(name=NAMES, cut=CUT_NAMES, undo=st.booleans(), loss=LOSSES)
    def rollback(self, name: str, cut: str, undo: bool, loss: str) -> None:
        volume, held = self.volumes.get(name), self.cuts.get(cut)
        if volume is None or held is None:
            allowed = {Code.NOT_FOUND}
        elif held.source_id != volume.volume_id or volume.staged_at:
            allowed = {Code.FAILED_PRECONDITION}
        else:
            allowed = {Code.OK}
        fields = {
            "volume_id": self.id_of(name),
            "snapshot_id": held.snapshot_id if held is not None else "snap-nobody",
        }
        answer = self.expect(allowed, "RollbackVolume", loss=loss, **fields)
        if answer is None or volume is None or held is None:
            return
        if undo and not loss:
            self.expect({Code.OK}, "RestoreTrash", entry=answer.entry)
        else:
            volume.written = held.written

    @invariant()
    def the_trash_holds_what_was_deleted(self) -> None:
        entries = self.driver.call("ListTrash").entries
        kept = [one.object_id for one in entries if one.kind == "volume" and one.state == "retained"]
        assert sorted(kept) == sorted(self.buried)
        assert {one.state for one in entries} <= {"retained", "replaced"}
