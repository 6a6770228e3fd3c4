"""The rules of snapshots and copies for the state machine, beside its model of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import invariant, rule

from csi_driver.pb import admin_pb2, csi_pb2
from tests.harness import Code, create_request
from tests.soak.calls import Calls
from tests.soak.volume_model import VolumeModel

CUTS = ("dawn", "dusk")
NAMES = st.sampled_from(("red", "green", "blue", "red", "green"))
CUT_NAMES = st.sampled_from(CUTS)
LOSSES = st.sampled_from(("", "", "", "", "", "deadline", "cancel", "kill"))


@dataclass
class SnapshotModel:
    """What must be true of one snapshot."""

    kind: Any
    size_bytes: int
    snapshot_id: str
    source_id: str
    written: str


class SnapshotRules(Calls):
    """CreateSnapshot, DeleteSnapshot, and CreateVolume from both kinds of sources."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts: dict[str, SnapshotModel] = {}
        pools = self.driver.caller.admin_stub("ListPools")(admin_pb2.ListPoolsRequest(), timeout=60).pools
        self.sharing = {pool.name for pool in pools if pool.reflink}

    def shares(self, volume: Any) -> bool:
        return dict(volume.kind.parameters).get("pool", "default") in self.sharing

    def codes_of_a_copy(self, volume: Any) -> set[Code]:
        """Without shared blocks a volume is idle, or frozen for a moment, which may be too short on a busy machine."""
        if self.shares(volume) or not volume.staged_at:
            return {Code.OK}
        may_be_frozen = volume.kind.is_image and not volume.kind.block
        return {Code.OK, Code.FAILED_PRECONDITION} if may_be_frozen else {Code.FAILED_PRECONDITION}

    @rule(name=NAMES, cut=CUT_NAMES, loss=LOSSES)
    def snapshot(self, name: str, cut: str, loss: str) -> None:
        volume, held = self.volumes.get(name), self.cuts.get(cut)
        source_id = self.id_of(name)
        if held is not None:
            allowed = {Code.OK} if held.source_id == source_id else {Code.ALREADY_EXISTS}
        elif volume is None:
            allowed = {Code.NOT_FOUND}
        else:
            allowed = self.codes_of_a_copy(volume)
        answer = self.expect(allowed, "CreateSnapshot", name=cut, source_volume_id=source_id, loss=loss)
        if answer is None:
            return
        told = answer.snapshot
        if held is not None:
            assert told.snapshot_id == held.snapshot_id
        else:
            assert told.source_volume_id == source_id
            # Of the least size of its kind nothing is told: any size that is asked for is enough.
            is_small = volume.size_bytes == volume.kind.sizes[0]
            assert told.size_bytes == volume.size_bytes or (is_small and not told.size_bytes)
            self.cuts[cut] = SnapshotModel(volume.kind, volume.size_bytes, told.snapshot_id, source_id, volume.written)

    @rule(cut=CUT_NAMES, loss=LOSSES)
    def delete_snapshot(self, cut: str, loss: str) -> None:
        held = self.cuts.get(cut)
        snapshot_id = held.snapshot_id if held is not None else "snap-nobody"
        self.expect({Code.OK}, "DeleteSnapshot", snapshot_id=snapshot_id, loss=loss)
        self.cuts.pop(cut, None)

    @rule(cut=CUT_NAMES)
    def get_snapshot(self, cut: str) -> None:
        held = self.cuts.get(cut)
        snapshot_id = held.snapshot_id if held is not None else "snap-nobody"
        expected = {Code.OK} if held is not None else {Code.NOT_FOUND}
        answer = self.expect(expected, "GetSnapshot", snapshot_id=snapshot_id)
        if held is not None:
            assert answer.snapshot.source_volume_id == held.source_id

    @rule(cut=CUT_NAMES)
    def list_blocks(self, cut: str) -> None:
        held = self.cuts.get(cut)
        snapshot_id = held.snapshot_id if held is not None else "snap-nobody"
        parameters = dict(held.kind.parameters) if held is not None else {}
        allowed = {Code.NOT_FOUND} if held is None else {Code.OK}
        if parameters.get("type") == "directory":
            allowed = {Code.FAILED_PRECONDITION}
        elif held is not None and parameters.get("pool", "default") not in self.sharing:
            # It may still be copied.
            allowed |= {Code.FAILED_PRECONDITION}
        answer = self.expect(allowed, "GetMetadataAllocated", snapshot_id=snapshot_id)
        if answer is not None and held is not None:
            assert {message.volume_capacity_bytes for message in answer} == {held.size_bytes}

    @rule(name=NAMES, cut=CUT_NAMES, size=st.sampled_from((0, 0, 1)), loss=LOSSES)
    def restore(self, name: str, cut: str, size: int, loss: str) -> None:
        held = self.cuts.get(cut)
        if held is None:
            self.refuse_missing(name, snapshot_id="snap-nobody")
        else:
            self.restore_from(name, held, size, loss)

    def restore_from(self, name: str, held: SnapshotModel, size: int, loss: str) -> None:
        content = csi_pb2.VolumeContentSource()
        content.snapshot.snapshot_id = held.snapshot_id
        self.copy(name, held, content, source_id=held.snapshot_id, size=size, allowed={Code.OK}, loss=loss)

    @rule(name=NAMES, source=NAMES, size=st.sampled_from((0, 0, 1)), loss=LOSSES)
    def clone(self, name: str, source: str, size: int, loss: str) -> None:
        held = self.volumes.get(source)
        if held is None:
            self.refuse_missing(name, volume_id="vol-nobody")
            return
        content = csi_pb2.VolumeContentSource()
        content.volume.volume_id = held.volume_id
        allowed = self.codes_of_a_copy(held)
        self.copy(name, held, content, source_id=held.volume_id, size=size, allowed=allowed, loss=loss)

    def refuse_missing(self, name: str, **source: str) -> None:
        if name in self.volumes:
            return
        content = csi_pb2.VolumeContentSource()
        if "snapshot_id" in source:
            content.snapshot.snapshot_id = source["snapshot_id"]
        else:
            content.volume.volume_id = source["volume_id"]
        request = create_request(name, volume_content_source=content)
        self.expect({Code.NOT_FOUND}, "CreateVolume", request)

    def copy(
        self, name: str, held: Any, content: Any, *, source_id: str, size: int, allowed: set[Code], loss: str
    ) -> None:
        size_bytes = held.kind.sizes[size]
        request = create_request(
            name,
            size_bytes,
            limit_bytes=size_bytes,
            parameters=dict(held.kind.parameters),
            volume_capabilities=[held.kind.capability()],
            volume_content_source=content,
        )
        existing = self.volumes.get(name)
        if existing is not None:
            asked = (held.kind, size_bytes, source_id)
            is_same = (existing.kind, existing.size_bytes, existing.source) == asked
            allowed = {Code.OK} if is_same else {Code.ALREADY_EXISTS}
        elif size_bytes < held.size_bytes:
            allowed = {Code.OUT_OF_RANGE}
        answer = self.expect(allowed, "CreateVolume", request, loss=loss)
        if answer is None:
            return
        assert (answer.volume.capacity_bytes, answer.volume.content_source) == (size_bytes, content)
        if existing is None:
            made = VolumeModel(held.kind, size_bytes, answer.volume.volume_id)
            made.written, made.source = held.written, source_id
            self.volumes[name] = made
        else:
            assert answer.volume.volume_id == existing.volume_id

    @invariant()
    def the_snapshots_are_the_models(self) -> None:
        listed = [entry.snapshot.snapshot_id for entry in self.driver.call("ListSnapshots").entries]
        assert sorted(listed) == sorted(self.modelled_snapshots())

    def modelled_snapshots(self) -> list[str]:
        """The ids of all that must be in the list."""
        return [held.snapshot_id for held in self.cuts.values()]

    def drop_snapshots(self) -> None:
        """Before the end, when nothing may be left."""
        for held in self.cuts.values():
            self.expect({Code.OK}, "DeleteSnapshot", snapshot_id=held.snapshot_id)
        self.cuts.clear()
