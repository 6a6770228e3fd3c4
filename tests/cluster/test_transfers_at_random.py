"""Random copies to the other node and deletes of three callers, while the nodes and the router are killed.

- A copy that was acknowledged holds what its source holds, whatever was killed meanwhile; a name has one volume.
- Every answer is one that an orchestrator goes on after, and in the end every create is done.
- After draining, no volume, mount, file or state file is left on either node, and nothing holds a source.

HOSTVOL_KILLS says how many processes are killed, HOSTVOL_SEED lets the calls differ.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_driver.pb import csi_pb2
from tests.cluster.cluster import Cluster
from tests.cluster.transfers import PASSING, asked, image_of, made, written
from tests.harness import GIB, MIB, Caller, Driver, Failure, PoolPlace
from tests.mounted_trees import digest
from tests.soak.observing import assert_nothing_remains
from tests.waiting import until

KILLS = int(os.environ.get("HOSTVOL_KILLS", "6"))
SEED = os.environ.get("HOSTVOL_SEED", "0")
CALLERS = 3
_MOST = 3
_SIZE_BYTES = 16 * MIB
LEASES = {"domain.departures.LEASE_SECONDS": 4.0, "domain.departures._SENT_SECONDS": 4.0}
Code = grpc.StatusCode


@dataclass(frozen=True)
class Source:
    """A volume, or a snapshot of one, that lies on a node."""

    object_id: str
    node: str
    digest: str


@dataclass
class Storm:
    """What the callers share: the sources, and the answers that came."""

    cluster: Cluster
    sources: list[Source]
    over: threading.Event = field(default_factory=threading.Event)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def call(self, method: str, request: Any = None, *, timeout: float = 20, **fields: Any) -> Any:
        """The answer; None when it is one to go on after."""
        with closing(Caller(self.cluster.controller.socket_path)) as caller:
            try:
                answer = caller.call(method, request, timeout=timeout, **fields)
            except Failure as failure:
                self.codes[f"{method} {failure.code.name}"] += 1
                if failure.code not in PASSING:
                    self.wrong.append(str(failure))
                return None
        self.codes[f"{method} OK"] += 1
        return answer

    def insist(self, method: str, request: Any = None, **fields: Any) -> Any:
        """The answer of the call, repeated until it is OK."""
        answers: list[Any] = []

        def is_answered() -> bool:
            answer = self.call(method, request, **fields)
            assert not self.wrong, self.wrong
            answers.extend([answer] if answer is not None else [])
            return bool(answers)

        until(is_answered, 120, f"{method} is done")
        return answers[0]


class Copier(threading.Thread):
    """One caller: makes copies on the node that the source is not on, deletes them, and loses interest in some."""

    def __init__(self, storm: Storm, number: int) -> None:
        super().__init__(daemon=True)
        self._storm = storm
        self._number = number
        self.copies: dict[str, Source] = {}
        self.abandoned: dict[str, Source] = {}  # creates without an answer, by name
        self.leaving: list[str] = []  # deletes without an answer

    def run(self) -> None:
        choices = random.Random(f"{SEED} {self._number}")
        step = 0
        while not self._storm.over.is_set() and not self._storm.wrong:
            step += 1
            name = f"copy-{self._number}-{step}"
            if choices.random() < 0.7 and len(self.copies) < _MOST:
                self._copy(name, choices.choice(self._storm.sources), is_patient=choices.random() < 0.7)
            elif self.copies:
                volume_id = choices.choice(sorted(self.copies))
                del self.copies[volume_id]
                if self._storm.call("DeleteVolume", volume_id=volume_id) is None:
                    self.leaving.append(volume_id)

    def _copy(self, name: str, source: Source, *, is_patient: bool) -> None:
        self.abandoned[name] = source
        self._try(name, timeout=20 if is_patient else 0.03)
        while is_patient and name in self.abandoned and not self._storm.over.is_set() and not self._storm.wrong:
            # Others, too: the source's node keeps a place for what has begun.
            for other_name in list(self.abandoned):
                self._try(other_name)
            self._storm.over.wait(0.2)

    def _try(self, name: str, timeout: float = 20) -> None:
        source = self.abandoned[name]
        answer = self._storm.call("CreateVolume", copy_of(name, source), timeout=timeout)
        if answer is not None:
            self.copies[answer.volume.volume_id] = source
            del self.abandoned[name]

    def finish(self) -> None:
        """Delete what was to be deleted, and go on with what was abandoned, each once."""
        for volume_id in self.leaving:
            self._storm.insist("DeleteVolume", volume_id=volume_id)
        self.leaving.clear()
        for name in list(self.abandoned):
            self._try(name)


def other(node: str) -> str:
    return "node-b" if node == "node-a" else "node-a"


def copy_of(name: str, source: Source) -> csi_pb2.CreateVolumeRequest:
    return asked(name, other(source.node), _SIZE_BYTES, source=source.object_id)


@pytest.fixture
def storm(empty_cluster: Cluster, memory: Path) -> Iterator[Storm]:
    """Two nodes with a volume each, on an ext4 and on an xfs, and a snapshot of it."""
    with ExitStack() as stack:
        places = []
        for fs_type in ("ext4", "xfs"):
            places.append(PoolPlace.make(memory / fs_type, fs_type, 2 * GIB))
            stack.callback(places[-1].remove)
        stack.callback(empty_cluster.close)
        storm = Storm(empty_cluster, sources_on(empty_cluster, places))
        stack.callback(storm.over.set)
        yield storm


def sources_on(cluster: Cluster, places: list[PoolPlace]) -> list[Source]:
    """What is copied from, on nodes that are started for it."""
    controller = cluster.add_controller()
    for name, place in zip(("node-a", "node-b"), places, strict=True):
        # Killed while it is told that a transfer is over, a source holds it for its lease, which is minutes.
        node = cluster.prepare_node(name, constants=LEASES)
        node.pools = [place]
        # A copy takes a third of a second, so that kills meet some.
        node.arguments = [*node.arguments, "--transfer-rate=16Mi"]
        node.start()
    sources = []
    for name, node in cluster.nodes.items():
        cluster.wait_attached(name)
        volume_id = made(controller, f"source-{name}", name, _SIZE_BYTES).volume_id
        told = written(node, volume_id, 6 * MIB)
        cut = controller.call("CreateSnapshot", source_volume_id=volume_id, name=f"cut-{name}").snapshot.snapshot_id
        until(lambda cut=cut: controller.call("GetSnapshot", snapshot_id=cut).snapshot.ready_to_use)
        sources += [Source(volume_id, name, told), Source(cut, name, told)]
    return sources


def kill_by_turns(storm: Storm) -> None:
    choices = random.Random(SEED)
    cluster = storm.cluster
    for number in range(KILLS):
        before = storm.codes["CreateVolume OK"]
        until(lambda before=before: storm.wrong or storm.codes["CreateVolume OK"] > before, 60, "a copy is made")
        storm.over.wait(choices.uniform(0, 0.3))  # the moment is the point, nothing is waited for
        victim = (cluster.nodes["node-a"], cluster.controller, cluster.nodes["node-b"])[number % 3]
        victim.kill()
        victim.start()


def drain(storm: Storm, copies: list[str]) -> None:
    for volume_id in copies:
        storm.insist("DeleteVolume", volume_id=volume_id)
    for source in storm.sources:
        if source.object_id.startswith("snap-"):
            storm.insist("DeleteSnapshot", snapshot_id=source.object_id)
    for source in storm.sources:
        if source.object_id.startswith("vol-"):
            storm.insist("DeleteVolume", volume_id=source.object_id)


def is_finished(callers: list[Copier]) -> bool:
    """Whether nothing is left to do, once each caller has done what it could."""
    for caller in callers:
        caller.finish()
    return not any(caller.abandoned for caller in callers)


def is_empty(node: Driver) -> bool:
    """Whether the node is done with clearing."""
    return not node.files()


@pytest.mark.timeout(280)
def test_random_copies_to_the_other_node_are_whole_and_leave_nothing(storm: Storm) -> None:
    callers = [Copier(storm, number) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        kill_by_turns(storm)
    finally:
        storm.over.set()
        for caller in callers:
            caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    until(lambda: storm.wrong or is_finished(callers), 120, "what was abandoned is made after all")
    assert storm.wrong == []
    copies = {volume_id: source for caller in callers for volume_id, source in caller.copies.items()}
    nodes = storm.cluster.nodes
    of_sources = {source.object_id for source in storm.sources if source.object_id.startswith("vol-")}
    assert sorted(storm.cluster.controller.volumes()) == sorted({*copies, *of_sources})
    for volume_id, source in copies.items():
        assert digest(image_of(nodes[other(source.node)], volume_id)) == source.digest, volume_id
    drain(storm, list(copies))
    print(f"{KILLS} kills: {dict(sorted(storm.codes.items()))}")
    for node in nodes.values():
        until(lambda node=node: is_empty(node), 60, f"nothing is left on {node.node_id}: {node.files()}")
        assert_nothing_remains(node)
