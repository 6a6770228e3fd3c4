"""All RPCs in any order, beside a model that says what each must answer and what the machine must look like.

- Every answer is the code that the specification's tables give for the state that the volume is in; ABORTED ("still
  running") only passes: the third call is answered.
- After every step the list of volumes, the mounts (mountinfo) and the loop devices (sysfs) are those of the model,
  whether the driver was restarted, killed, killed in the middle of a call, or its reply was lost.
- A volume never becomes smaller, and is as large as it was told to be: its answers, its image, its device.
- A walk in pages meets every volume that exists all the while exactly once, whatever happens between its pages.
- What was written to a volume is read from it until it is deleted (by its pod's unpublish, if it is an ephemeral one),
  and from every volume that is made of it or of a snapshot that was taken then.

HOSTVOL_EXAMPLES says how many examples are run, HOSTVOL_STEPS how long each is, HOSTVOL_SEED lets them differ.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from csi_driver.linux import growth
from csi_driver.pb import admin_pb2, csi_pb2
from tests.harness import DIRECTORY, MIB, Code, Driver, Failure, PodVolume, PoolPlace, capability, create_request
from tests.soak.group_rules import GroupRules
from tests.soak.modify_rules import ModifyRules
from tests.soak.observing import assert_nothing_remains, mount_table
from tests.soak.trash_rules import TrashRules

EXAMPLES = int(os.environ.get("HOSTVOL_EXAMPLES", "40"))
STEPS = int(os.environ.get("HOSTVOL_STEPS", "40"))
SEED = int(os.environ.get("HOSTVOL_SEED", "0"))

NAMES = ("red", "green", "blue")
STAGING_PATHS = ("a", "b")
TARGETS = ("one", "two", "three")
MODES = (
    "SINGLE_NODE_WRITER",
    "SINGLE_NODE_READER_ONLY",
    "SINGLE_NODE_SINGLE_WRITER",
    "SINGLE_NODE_MULTI_WRITER",
)
SHARED_MODE = "SINGLE_NODE_MULTI_WRITER"
MAY_GROW_MOUNTED_EXT4 = growth.may_grow_mounted_ext4()
# Inline ephemeral volumes: the pool of each.
PODS = {"pod-here": "default", "pod-by-a-clone": "pool1"}
# Each costs as much time as forty calls.
DISTURBANCES_PER_EXAMPLE = 2


@dataclass(frozen=True)
class Kind:
    """What a volume is made of; `sizes` are bytes."""

    sizes: tuple[int, int]
    block: bool = False
    fs_type: str = ""
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def is_image(self) -> bool:
        return ("type", "directory") not in self.parameters

    def capability(self, mode: str = SHARED_MODE, flags: tuple[str, ...] = ()) -> csi_pb2.VolumeCapability:
        return capability(mode, block=self.block, fs_type=self.fs_type, flags=() if self.block else flags)


KINDS = {
    "ext4": Kind((8 * MIB, 16 * MIB)),
    "ext4 by a clone": Kind((8 * MIB, 16 * MIB), fs_type="ext4", parameters=(("pool", "pool1"),)),
    "block": Kind((4 * MIB, 8 * MIB), block=True),
    "directory": Kind((4 * MIB, 8 * MIB), parameters=tuple(DIRECTORY.items())),
    "kept": Kind((4 * MIB, 8 * MIB), block=True, parameters=(("retention", "1d"),)),
}


@dataclass
class Publication:
    mode: str
    read_only: bool
    flags: tuple[str, ...]


@dataclass
class VolumeModel:
    """What must be true of one volume."""

    kind: Kind
    size_bytes: int
    volume_id: str
    staged_at: str = ""
    staged_as: tuple[str, tuple[str, ...]] = ("", ())
    publications: dict[str, Publication] = field(default_factory=dict)
    written: str = ""
    source: str = ""
    shown_bytes: int = 0

    @property
    def lags(self) -> bool:
        """Whether its mounted filesystem is smaller than the volume, and stays so until it is staged again."""
        is_ext4 = self.kind.is_image and not self.kind.block
        return is_ext4 and self.shown_bytes < self.size_bytes and not MAY_GROW_MOUNTED_EXT4


@dataclass
class PodModel:
    """What must be true of one inline ephemeral volume."""

    inline: PodVolume
    read_only: bool
    written: str = ""


pods = st.sampled_from(sorted(PODS))
names = st.sampled_from((*NAMES, "red", "green", "red"))
kinds = st.sampled_from(sorted(KINDS))
modes = st.sampled_from((*MODES, SHARED_MODE, SHARED_MODE, SHARED_MODE))
flags = st.sampled_from(((), (), ("noatime",)))
losses = st.sampled_from(("", "", "", "", "", "deadline", "cancel", "kill"))


class Machine(GroupRules, ModifyRules, TrashRules):
    """One node with a few names, paths and targets, small enough that rules often meet the same volume."""

    driver: ClassVar[Driver]
    counts: ClassVar[Counter[str]] = Counter()
    make_volume = VolumeModel

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, VolumeModel] = {}
        self.pods: dict[str, PodModel] = {}
        self.gone: list[str] = []
        self.deleted_while_staged_at: dict[str, str] = {}
        self.disturbances = 0
        self.walk: tuple[str, set[str], set[str], set[str]] | None = None
        self.counts["examples"] += 1

    # how calls are made

    def expect(self, allowed: set[Code], method: str, request: Any = None, *, loss: str = "", **fields: Any) -> Any:
        """Make a call, the first time perhaps without hearing the answer; the answer of the last when it was OK."""
        self.counts["steps"] += 1
        if loss:
            self.lose(loss, method, request, fields)
        for attempt in range(40 if loss else 3):
            try:
                answer = self.driver.call(method, request, **fields)
            except Failure as failure:
                if failure.code is Code.ABORTED and Code.ABORTED not in allowed:
                    self.counts["aborted"] += 1
                    time.sleep(0.05 * (attempt + 1) if loss else 0.5)
                    continue
                answer, code, said = None, failure.code, str(failure)
            else:
                code, said = Code.OK, f"{method}: OK"
            assert code in allowed, f"{said}; allowed {sorted(code.name for code in allowed)}"
            self.counts[code.name] += 1
            return answer
        raise AssertionError(f"{method} is still answered ABORTED")

    def lose(self, loss: str, method: str, request: Any, fields: dict[str, Any]) -> None:
        """Make a call and do not hear its answer."""
        if loss == "kill":
            if self.disturbances >= DISTURBANCES_PER_EXAMPLE:
                return
            self.disturbances += 1
        self.counts[f"lost by {loss}"] += 1
        if request is None:
            request = _request(method, fields)
        if loss == "deadline":
            self.driver.code(method, request, timeout=0.002)
            return
        pending = self.driver.caller.stub(method).future(request, timeout=60)
        threading.Event().wait((0.0005, 0.002, 0.006)[self.counts["steps"] % 3])
        if loss == "cancel":
            pending.cancel()
        else:
            self.driver.restart()

    def modelled(self, name: str) -> VolumeModel | None:
        return self.volumes.get(name)

    def id_of(self, name: str) -> str:
        """The volume's id; of one that is gone, or never was, when there is none of that name."""
        volume = self.modelled(name)
        if volume is not None:
            return volume.volume_id
        return self.gone[-1] if self.gone else "vol-nobody"

    def staging(self, path: str) -> str:
        return self.driver.staging(path)

    @initialize(first=kinds, second=kinds)
    def begin(self, first: str, second: str) -> None:
        """Two volumes, one published, one only staged: most rules would otherwise meet nothing."""
        self.create(name="red", kind=first, size=0, mode=SHARED_MODE, loss="")
        self.create(name="green", kind=second, size=0, mode=SHARED_MODE, loss="")
        for name in ("red", "green"):
            self.stage(name=name, path="a", mode=SHARED_MODE, flags=(), loss="")
        self.publish(name="red", path="a", at="one", mode=SHARED_MODE, flags=(), readonly=False, loss="")

    # Controller

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

    # Node

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

    # Node, as kubelet calls it for inline ephemeral volumes

    @rule(pod=pods, readonly=st.sampled_from((False, False, True)), text=st.sampled_from(("", "pears")), loss=losses)
    def pod_begins(self, pod: str, readonly: bool, text: str, loss: str) -> None:
        inline, held = PodVolume(self.driver, pod, {"size": "8Mi", "pool": PODS[pod]}), self.pods.get(pod)
        is_other = held is not None and held.read_only != readonly
        request = inline.publish_request(readonly=readonly)
        self.expect({Code.ALREADY_EXISTS} if is_other else {Code.OK}, "NodePublishVolume", request, loss=loss)
        model = self.pods.setdefault(pod, PodModel(inline, readonly))
        assert read(inline.target(), KINDS["ext4"]) == model.written
        if text and not model.read_only:
            write(inline.target(), KINDS["ext4"], text)
            model.written = text

    @rule(pod=pods, loss=losses)
    def pod_ends(self, pod: str, loss: str) -> None:
        inline = PodVolume(self.driver, pod)
        target = inline.target()
        self.expect({Code.OK}, "NodeUnpublishVolume", volume_id=inline.handle, target_path=target, loss=loss)
        self.pods.pop(pod, None)

    # the workload

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

    # the driver

    @precondition(lambda self: self.disturbances < DISTURBANCES_PER_EXAMPLE)
    @rule(how=st.sampled_from(("stop", "kill")))
    def restart(self, how: str) -> None:
        self.disturbances += 1
        self.counts[how] += 1
        if how == "stop":
            assert self.driver.stop() == 0
            assert not self.driver.socket_path.exists()
        else:
            self.driver.kill()
        self.driver.start()

    # what must hold after every step

    @invariant()
    def the_list_is_the_models(self) -> None:
        listed = [entry.volume.volume_id for entry in self.driver.call("ListVolumes").entries]
        assert sorted(listed) == sorted(volume.volume_id for volume in self.volumes.values())

    @invariant()
    def the_images_are_as_large_as_the_models(self) -> None:
        for volume in self.volumes.values():
            if volume.kind.is_image:
                [image] = [
                    path
                    for pool in self.driver.pools
                    for path in pool.directory.glob(f"volumes/{volume.volume_id}/disk.img")
                ]
                assert image.stat().st_size == volume.size_bytes

    @invariant()
    def the_mounts_are_the_models(self) -> None:
        expected: list[tuple[str, bool]] = []
        for volume in self.volumes.values():
            if volume.staged_at and not volume.kind.block:
                expected.append((volume.staged_at, False))
            expected += [(target, held.read_only) for target, held in volume.publications.items()]
        of_pods = {pod.inline.target(): pod.read_only for pod in self.pods.values()}
        expected += of_pods.items()
        assert sorted(mount_table(self.driver.home)) == sorted(expected)
        published = {target for volume in self.volumes.values() for target in volume.publications}
        left = {str(path) for path in (self.driver.home / "targets").glob("*")} - published - set(of_pods)
        assert not left, "a target was left behind"

    @invariant()
    def the_loop_devices_are_the_models(self) -> None:
        attached = [volume for volume in self.volumes.values() if volume.staged_at and volume.kind.is_image]
        assert len(self.driver.loops()) == len(attached) + len(self.pods)

    def teardown(self) -> None:
        self.drop_snapshots()
        for name in NAMES:
            volume = self.modelled(name)
            if volume is not None:
                self.drain(volume)
        for pod in list(self.pods):
            self.pod_ends(pod=pod, loss="")
        self.purge()
        assert_nothing_remains(self.driver)

    def drain(self, volume: VolumeModel) -> None:
        for target in list(volume.publications):
            self.expect({Code.OK}, "NodeUnpublishVolume", volume_id=volume.volume_id, target_path=target)
        if volume.staged_at:
            self.expect(
                {Code.OK}, "NodeUnstageVolume", volume_id=volume.volume_id, staging_target_path=volume.staged_at
            )
        self.expect({Code.OK}, "DeleteVolume", volume_id=volume.volume_id)


def _request(method: str, fields: dict[str, Any]) -> Any:
    of = csi_pb2 if hasattr(csi_pb2, f"{method}Request") else admin_pb2
    return getattr(of, f"{method}Request")(**fields)


def write(target: str, kind: Kind, text: str) -> None:
    if kind.block:
        with open(target, "r+b", buffering=0) as device:
            device.write(text.encode().ljust(4096))
            os.fsync(device.fileno())
    else:
        Path(target, "note").write_text(text)


def read(target: str, kind: Kind) -> str:
    if kind.block:
        with open(target, "rb", buffering=0) as device:
            return device.read(4096).decode().strip("\0 ")
    note = Path(target, "note")
    return note.read_text() if note.exists() else ""


def refuses_writes(target: str, kind: Kind) -> bool:
    try:
        write(target, kind, "never")
    except OSError:
        return True
    return False


def test_every_order_of_calls_does_what_the_model_says(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    Machine.driver = make_driver(tmp_path / "pool", make_pool("xfs", 1 << 30), options=[",ephemeral=64Mi"] * 2)
    Machine.counts.clear()
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=not SEED,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if SEED else (Phase.generate,),
    )
    began = time.monotonic()
    try:
        run_state_machine_as_test(with_seed(SEED)(Machine) if SEED else Machine, settings=profile)
    finally:
        told = ", ".join(f"{what} {count}" for what, count in sorted(Machine.counts.items()))
        print(f"{time.monotonic() - began:.0f} s: {told}")
