"""The rules of the Node service for the state machine, and of the workloads in its volumes."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import rule

from tests.harness import Code
from tests.soak.controller_rules import ControllerRules
from tests.soak.volume_model import (
    KINDS,
    SHARED_MODE,
    TARGETS,
    Publication,
    VolumeModel,
    flags,
    losses,
    modes,
    names,
    read,
    refuses_writes,
    write,
)


class NodeRules(ControllerRules):
    """Staging, publishing, growing and measuring, and what is written and read."""

    @rule(name=names, path=st.sampled_from(("a", "a", "a", "b")), mode=modes, flags=flags, loss=losses)
    def stage(self, name: str, path: str, mode: str, flags: tuple[str, ...], loss: str) -> None:
        volume = self.modelled(name)
        where = self.staging(f"{name}-{path}")
        kind = volume.kind if volume is not None else KINDS["ext4"]
        allowed = self.stage_codes(volume, where, mode, () if kind.block else flags)
        self.expect(
            allowed,
            "NodeStageVolume",
            volume_id=self.id_of(name),
            staging_target_path=where,
            volume_capability=kind.capability(mode, flags),
            loss=loss,
        )
        if volume is not None and allowed == {Code.OK}:
            if not volume.staged_at:
                volume.shown_bytes = volume.size_bytes
            volume.staged_at, volume.staged_as = where, (mode, () if kind.block else flags)

    @staticmethod
    def stage_codes(volume: VolumeModel | None, where: str, mode: str, flags: tuple[str, ...]) -> set[Code]:
        if volume is None:
            return {Code.NOT_FOUND}
        if volume.staged_at and volume.staged_at != where:
            return {Code.FAILED_PRECONDITION}
        if volume.staged_at and volume.staged_as != (mode, flags):
            return {Code.ALREADY_EXISTS}
        return {Code.OK}

    @rule(name=names, path=st.sampled_from(("a", "a", "a", "b")), loss=losses)
    def unstage(self, name: str, path: str, loss: str) -> None:
        volume = self.modelled(name)
        where = self.staging(f"{name}-{path}")
        is_staged_here = volume is not None and volume.staged_at == where
        allowed = {Code.OK}
        if volume is None:
            allowed = {Code.NOT_FOUND}
            if self.deleted_while_staged_at.get(self.id_of(name)) == where:
                # Kubelet's own unstage comes after the deletion and is repeated until it is OK; a restart forgets that.
                allowed.add(Code.OK)
        elif is_staged_here and volume.publications:
            allowed = {Code.FAILED_PRECONDITION}
        self.expect(allowed, "NodeUnstageVolume", volume_id=self.id_of(name), staging_target_path=where, loss=loss)
        if volume is not None and is_staged_here and not volume.publications:
            volume.staged_at = ""

    @rule(
        name=names,
        path=st.sampled_from(("a", "a", "a", "a", "b", "")),
        at=st.sampled_from(TARGETS),
        mode=modes,
        flags=flags,
        readonly=st.sampled_from((False, False, True)),
        loss=losses,
    )
    def publish(
        self, *, name: str, path: str, at: str, mode: str, flags: tuple[str, ...], readonly: bool, loss: str
    ) -> None:
        volume = self.modelled(name)
        where = self.staging(f"{name}-{path}") if path else ""
        kind = volume.kind if volume is not None else KINDS["ext4"]
        flags = () if kind.block else flags
        wanted = Publication(mode, readonly or mode == "SINGLE_NODE_READER_ONLY", flags)
        target_path = self.driver.target(at)
        allowed = self.publish_codes(volume, where, target_path, wanted)
        self.expect(
            allowed,
            "NodePublishVolume",
            volume_id=self.id_of(name),
            staging_target_path=where,
            target_path=target_path,
            volume_capability=kind.capability(mode, flags),
            readonly=readonly,
            loss=loss,
        )
        if volume is not None and allowed == {Code.OK}:
            volume.publications[target_path] = wanted

    def publish_codes(self, volume: VolumeModel | None, where: str, target: str, wanted: Publication) -> set[Code]:
        if volume is None:
            return {Code.NOT_FOUND}
        held = volume.publications.get(target)
        if not where or volume.staged_at != where or (held is None and self.holder_of(target) is not None):
            return {Code.FAILED_PRECONDITION}
        if held is not None:
            return {Code.OK} if held == wanted else {Code.ALREADY_EXISTS}
        others = list(volume.publications.values())
        if others and any(mode != SHARED_MODE for mode in (wanted.mode, *(other.mode for other in others))):
            return {Code.FAILED_PRECONDITION}
        if volume.kind.block and any(other.read_only != wanted.read_only for other in others):
            # A device refuses writes for all of its openers or for none: beyond what the volume can do.
            return {Code.FAILED_PRECONDITION}
        return {Code.OK}

    def holder_of(self, target: str) -> VolumeModel | None:
        return next((volume for volume in self.volumes.values() if target in volume.publications), None)

    @rule(name=names, at=st.sampled_from(TARGETS), loss=losses)
    def unpublish(self, name: str, at: str, loss: str) -> None:
        volume = self.modelled(name)
        target_path = self.driver.target(at)
        allowed = {Code.OK}
        if volume is None:
            allowed = {Code.NOT_FOUND}
        elif target_path not in volume.publications and self.holder_of(target_path) is not None:
            # The tables have no word for another volume at the target; what counts is that it stays there.
            allowed = {Code.FAILED_PRECONDITION, Code.OK}
        self.expect(allowed, "NodeUnpublishVolume", volume_id=self.id_of(name), target_path=target_path, loss=loss)
        if volume is not None:
            volume.publications.pop(target_path, None)

    @rule(name=names, at=st.sampled_from(("one", *TARGETS, "staging path", "nowhere")), loss=losses)
    def expand_on_node(self, name: str, at: str, loss: str) -> None:
        volume = self.modelled(name)
        if at == "staging path":
            path = self.staging(f"{name}-a")
            is_there = volume is not None and volume.staged_at == path
        else:
            path = self.driver.target(at)
            is_there = volume is not None and path in volume.publications
        allowed = {Code.NOT_FOUND}
        if is_there and volume is not None:
            allowed = {Code.FAILED_PRECONDITION} if volume.lags else {Code.OK}
        self.expect(allowed, "NodeExpandVolume", volume_id=self.id_of(name), volume_path=path, loss=loss)
        if allowed == {Code.OK} and volume is not None:
            volume.shown_bytes = volume.size_bytes

    @rule(name=names, at=st.sampled_from(("one", *TARGETS, "staging path", "nowhere")))
    def stats(self, name: str, at: str) -> None:
        volume = self.modelled(name)
        if at == "staging path":
            path = self.staging(f"{name}-a")
            is_there = volume is not None and volume.staged_at == path and not volume.kind.block
        else:
            path = self.driver.target(at)
            is_there = volume is not None and path in volume.publications
        expected = {Code.OK} if is_there else {Code.NOT_FOUND}
        answer = self.expect(expected, "NodeGetVolumeStats", volume_id=self.id_of(name), volume_path=path)
        if is_there and volume is not None:
            assert answer.usage
            if volume.kind.block:
                assert answer.usage[0].total == volume.size_bytes

    @rule(name=names, text=st.sampled_from(("apple", "plums")))
    def write(self, name: str, text: str) -> None:
        volume = self.modelled(name)
        for target, publication in volume.publications.items() if volume is not None else ():
            assert volume is not None
            if publication.read_only:
                assert refuses_writes(target, volume.kind)
            else:
                write(target, volume.kind, text)
                volume.written = text

    @rule(name=names)
    def read(self, name: str) -> None:
        volume = self.modelled(name)
        for target in volume.publications if volume is not None else ():
            assert volume is not None
            assert read(target, volume.kind) == volume.written
