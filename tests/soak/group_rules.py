"""The rules of group snapshots for the state machine, beside those of snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import rule

from tests.harness import Code
from tests.soak.snapshot_rules import CUT_NAMES, LOSSES, NAMES, SnapshotModel, SnapshotRules


@dataclass
class GroupModel:
    """What must be true of one group snapshot; `members` are told by the id of their volume."""

    group_id: str
    members: dict[str, SnapshotModel]


class GroupRules(SnapshotRules):
    """CreateVolumeGroupSnapshot and DeleteVolumeGroupSnapshot, and what becomes of the members."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, GroupModel] = {}

    def codes_of_a_group(self, volumes: list[Any]) -> set[Code]:
        if None in volumes:
            return {Code.NOT_FOUND}
        held_still = [not one.staged_at or (one.kind.is_image and not one.kind.block) for one in volumes]
        if not all(held_still) or not all(self.shares(one) for one in volumes):
            return {Code.FAILED_PRECONDITION}
        return {Code.OK, Code.FAILED_PRECONDITION} if any(one.staged_at for one in volumes) else {Code.OK}

    @rule(names=st.lists(NAMES, min_size=1, max_size=2, unique=True), cut=CUT_NAMES, loss=LOSSES)
    def group(self, names: list[str], cut: str, loss: str) -> None:
        held, ids = self.groups.get(cut), [self.id_of(name) for name in names]
        volumes = [self.volumes.get(name) for name in names]
        if held is not None:
            allowed = {Code.OK} if set(held.members) == set(ids) else {Code.ALREADY_EXISTS}
        else:
            allowed = self.codes_of_a_group(volumes)
        answer = self.expect(allowed, "CreateVolumeGroupSnapshot", name=cut, source_volume_ids=ids, loss=loss)
        if answer is None:
            return
        told = answer.group_snapshot
        by_volume = {one.source_volume_id: one.snapshot_id for one in told.snapshots}
        if held is not None:
            assert told.group_snapshot_id == held.group_id
            assert by_volume == {source: one.snapshot_id for source, one in held.members.items()}
        else:
            members = {
                one.volume_id: SnapshotModel(
                    one.kind, one.size_bytes, by_volume[one.volume_id], one.volume_id, one.written
                )
                for one in volumes
            }
            self.groups[cut] = GroupModel(told.group_snapshot_id, members)

    @rule(cut=CUT_NAMES, loss=LOSSES)
    def delete_group(self, cut: str, loss: str) -> None:
        held = self.groups.pop(cut, None)
        group_id = held.group_id if held is not None else "grp-nobody"
        self.expect({Code.OK}, "DeleteVolumeGroupSnapshot", group_snapshot_id=group_id, loss=loss)

    @rule(cut=CUT_NAMES)
    def delete_a_member(self, cut: str) -> None:
        held = self.groups.get(cut)
        if held is not None:
            member = next(iter(held.members.values()))
            self.expect({Code.INVALID_ARGUMENT}, "DeleteSnapshot", snapshot_id=member.snapshot_id)

    @rule(name=NAMES, cut=CUT_NAMES, loss=LOSSES)
    def restore_a_member(self, name: str, cut: str, loss: str) -> None:
        held = self.groups.get(cut)
        if held is not None:
            self.restore_from(name, next(iter(held.members.values())), 0, loss)

    def modelled_snapshots(self) -> list[str]:
        members = [one.snapshot_id for group in self.groups.values() for one in group.members.values()]
        return super().modelled_snapshots() + members

    def drop_snapshots(self) -> None:
        for held in self.groups.values():
            self.expect({Code.OK}, "DeleteVolumeGroupSnapshot", group_snapshot_id=held.group_id)
        self.groups.clear()
        super().drop_snapshots()
