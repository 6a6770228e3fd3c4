"""The rules of volumes for the state machine: create, delete, expand, look, list."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from csi_driver.pb import csi_pb2
from tests.harness import MIB, Code, create_request
from tests.soak.calls import Calls
from tests.soak.volume_model import KINDS, VolumeModel, kinds, losses, modes, names


class ControllerRules(Calls):
    """The calls of the Controller service about volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted_while_staged_at: dict[str, str] = {}
        self.walk: tuple[str, set[str], set[str], set[str]] | None = None

    @rule(name=names, kind=kinds, size=st.sampled_from((0, 0, 0, 1)), mode=modes, loss=losses)
    def create(self, name: str, kind: str, size: int, mode: str, loss: str) -> None:
        asked = KINDS[kind]
        size_bytes = asked.sizes[size]
        request = create_request(
            name,
            size_bytes,
            limit_bytes=size_bytes,
            parameters=dict(asked.parameters),
            volume_capabilities=[asked.capability(mode)],
        )
        held = self.modelled(name)
        if held is not None and (held.kind, held.size_bytes, held.source) != (asked, size_bytes, ""):
            self.expect({Code.ALREADY_EXISTS}, "CreateVolume", request, loss=loss)
            return
        given = self.expect({Code.OK}, "CreateVolume", request, loss=loss).volume
        assert given.capacity_bytes == size_bytes
        if held is None:
            assert given.volume_id not in {volume.volume_id for volume in self.volumes.values()}
            self.volumes[name] = VolumeModel(asked, size_bytes, given.volume_id)
        else:
            assert given.volume_id == held.volume_id

    @rule(name=names, loss=losses)
    def delete(self, name: str, loss: str) -> None:
        volume = self.modelled(name)
        if volume is not None and volume.publications:
            self.expect({Code.FAILED_PRECONDITION}, "DeleteVolume", volume_id=volume.volume_id, loss=loss)
            return
        self.expect({Code.OK}, "DeleteVolume", volume_id=self.id_of(name), loss=loss)
        if volume is not None:
            self.gone.append(self.volumes.pop(name).volume_id)
            self.bury(name, volume)
            self.deleted_while_staged_at[volume.volume_id] = volume.staged_at
            if self.walk is not None:
                self.walk[1].discard(volume.volume_id)

    @rule(name=names, times=st.sampled_from((1, 2, 2, 3)), loss=losses)
    def expand(self, name: str, times: int, loss: str) -> None:
        volume = self.modelled(name)
        wanted = times * (volume.kind.sizes[0] if volume is not None else MIB)
        answer = self.expect(
            {Code.OK} if volume is not None else {Code.NOT_FOUND},
            "ControllerExpandVolume",
            volume_id=self.id_of(name),
            capacity_range=csi_pb2.CapacityRange(required_bytes=wanted),
            loss=loss,
        )
        if volume is not None:
            volume.size_bytes = max(volume.size_bytes, wanted)
            assert answer.capacity_bytes == volume.size_bytes

    @rule(name=names, mode=modes, other=kinds)
    def validate(self, name: str, mode: str, other: str) -> None:
        volume = self.modelled(name)
        asked = KINDS[other].capability(mode)
        expected = {Code.OK} if volume is not None else {Code.NOT_FOUND}
        answer = self.expect(
            expected, "ValidateVolumeCapabilities", volume_id=self.id_of(name), volume_capabilities=[asked]
        )
        if volume is not None:
            is_same = volume.kind.block == asked.HasField("block")
            assert answer.HasField("confirmed") == is_same, answer.message

    @rule(name=names)
    def get(self, name: str) -> None:
        volume = self.modelled(name)
        expected = {Code.OK} if volume is not None else {Code.NOT_FOUND}
        answer = self.expect(expected, "ControllerGetVolume", volume_id=self.id_of(name))
        if volume is not None:
            assert (answer.volume.volume_id, answer.volume.capacity_bytes) == (volume.volume_id, volume.size_bytes)

    @rule(kind=kinds)
    def capacity(self, kind: str) -> None:
        asked = KINDS[kind]
        answer = self.expect(
            {Code.OK},
            "GetCapacity",
            parameters=dict(asked.parameters),
            volume_capabilities=[asked.capability()],
        )
        assert answer.available_capacity > 0
        assert answer.minimum_volume_size.value <= asked.sizes[0] <= answer.maximum_volume_size.value

    @rule(max_entries=st.integers(1, 2))
    def walk_begins(self, max_entries: int) -> None:
        answer = self.expect({Code.OK}, "ListVolumes", max_entries=max_entries)
        seen = [entry.volume.volume_id for entry in answer.entries]
        assert len(seen) <= max_entries
        everything = {volume.volume_id for volume in self.volumes.values()}
        self.walk = (answer.next_token, everything - set(seen), set(seen), everything) if answer.next_token else None
        if not answer.next_token:
            assert set(seen) == everything

    @precondition(lambda self: self.walk is not None)
    @rule(max_entries=st.integers(0, 2))
    def walk_goes_on(self, max_entries: int) -> None:
        assert self.walk is not None
        token, missing, seen, _ = self.walk
        answer = self.expect({Code.OK}, "ListVolumes", max_entries=max_entries, starting_token=token)
        found = [entry.volume.volume_id for entry in answer.entries]
        assert not seen & set(found), "a volume was listed twice in one walk"
        assert set(found) <= {volume.volume_id for volume in self.volumes.values()}
        missing -= set(found)
        seen |= set(found)
        if answer.next_token:
            self.walk = (answer.next_token, missing, seen, set())
        else:
            assert not missing, "a volume that existed all the while was not listed"
            self.walk = None
