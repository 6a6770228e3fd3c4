"""What a volume was imported with counts for nothing once somebody may have written to it, whoever he is.

- Its files changed by hand, deep inside and with their times put back; held open for writing; a record put back from a
  copy after a stage; a record of an earlier build, without a mark: no snapshot takes the name over, alone or in a
  group, shared or copied, and nothing is applied to the volume.
- So it is when he writes between the look and the cut, and when he changes the directory while it is looked at, which
  is no failure.
- Reading it, snapshots, copies and restarts take nothing away.
- A copied snapshot has no name that its volume lost, or may have lost, between the plan and the claim.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from csi_driver.domain import copies, groups, members, snapshots, unwritten
from csi_driver.domain.copies import _Job
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions
from csi_driver.errors import CallFailed
from csi_driver.linux import tree_mark
from csi_driver.model import (
    AccessType,
    GroupSpec,
    PoolName,
    Snapshot,
    SnapshotId,
    SnapshotSpec,
    Volume,
    VolumeId,
    VolumeParameters,
)
from csi_driver.rpc.client import Client
from csi_driver.store import records
from tests.driver.grouping import group_of
from tests.driver.test_exports import image_of, pieces, raw
from tests.harness import DIRECTORY, MIB, Driver, PoolPlace, Workload
from tests.waiting import until

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


class Scene:
    """A driver with two cuts of one volume, and what is between them as a stream."""

    def __init__(self, driver: Driver, kind: str) -> None:
        self.driver = driver
        self.kind = kind
        with self.client() as client:
            source = self._source()
            cuts = [self.cut(client, "cut-0", source)]
            self.write(source)
            cuts.append(self.cut(client, "cut-1", source))
            self.base_id = cuts[0]
            self.base = b"".join(client.export(cuts[0]))
            self.increment = b"".join(client.export(cuts[1], cuts[0]))

    def _source(self) -> str:
        if self.kind == "image":
            return raw(self.driver, written=1)
        volume = Workload(self.driver, "source", parameters=DIRECTORY)
        volume.create()
        below = self.driver.pool / "volumes" / volume.volume_id / "data" / "a" / "b"
        below.mkdir(parents=True)
        (below / "file").write_bytes(os.urandom(8192))
        return volume.volume_id

    def file(self, volume_id: str) -> Path:
        if self.kind == "image":
            return image_of(self.driver, volume_id)
        return self.driver.pool / "volumes" / volume_id / "data" / "a" / "b" / "file"

    def write(self, volume_id: str) -> None:
        """As many bytes as before, and the times put back."""
        path = self.file(volume_id)
        found = path.stat()
        with path.open("r+b") as file:
            file.write(os.urandom(4096))
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    def client(self) -> closing[Client]:
        return closing(Client(self.driver.endpoint))

    def imported(self, name: str) -> Workload:
        with self.client() as client:
            volume_id = client.import_volume(pieces(self.base), {"name": name})["volume_id"]
        parameters = {} if self.kind == "image" else DIRECTORY
        return Workload(self.driver, name, block=self.kind == "image", parameters=parameters, volume_id=volume_id)

    def onto(self, object_id: str) -> None:
        with self.client() as client:
            made = client.import_volume(pieces(self.increment), {"name": f"onto-{object_id}", "onto_id": object_id})
        self.driver.call("DeleteVolume", volume_id=made["volume_id"])

    def refused(self, object_id: str, words: str) -> None:
        before = self.driver.files()
        with pytest.raises(CallFailed, match=f"relative to {self.base_id}, and .*{words}") as refused:
            self.onto(object_id)
        assert refused.value.code == "FAILED_PRECONDITION"
        assert self.driver.files() == before

    @staticmethod
    def cut(client: Client, name: str, volume_id: str) -> str:
        snapshot_id = str(client.create_snapshot(name, volume_id)["snapshot_id"])
        until(lambda: bool(client.snapshot(snapshot_id)["state"] == "ready"))
        return snapshot_id

    def named(self, snapshot_id: str) -> str:
        with self.client() as client:
            return str(client.snapshot(snapshot_id)["content_id"])

    def snapshots(self, volume: Workload) -> list[str]:
        """One by itself, and where that can be one in a group."""
        with self.client() as client:
            made = [self.cut(client, f"of-{volume.name}", volume.volume_id)]
        if self.driver.pools[0].mount_point is not None:
            made.append(group_of(self.driver, volume, name=f"with-{volume.name}").snapshots[0].snapshot_id)
        return made

    def record(self, volume: Workload) -> Path:
        return self.driver.pool / "volumes" / volume.volume_id / "record.json"


@pytest.mark.parametrize(
    ("fs_type", "kind"),
    [("host", "image"), ("host", "directory"), ("xfs", "image"), ("xfs", "directory"), ("btrfs", "directory")],
)
def test_a_content_that_may_have_been_written_has_no_name(
    fs_type: str, kind: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    scene = Scene(make_driver(make_pool(fs_type, 1 << 30)), kind)
    driver = scene.driver
    kept, by_hand, put_back, earlier = (scene.imported(name) for name in ("kept", "by-hand", "put-back", "earlier"))
    scene.write(by_hand.volume_id)
    before = scene.record(put_back).read_bytes()
    put_back.stage()
    scene.write(put_back.volume_id)
    put_back.unstage()
    driver.stop()
    scene.record(put_back).write_bytes(before)
    _without_mark(scene.record(earlier))
    driver.start()
    for volume in (by_hand, put_back, earlier):
        with scene.client() as client:
            # As the record has it.
            assert client.volume(volume.volume_id)["content_id"] == scene.base_id
        scene.refused(volume.volume_id, "nobody knows")
        for snapshot_id in scene.snapshots(volume):
            assert scene.named(snapshot_id) == "", volume.name
            scene.refused(snapshot_id, f"{snapshot_id} holds {snapshot_id};")
    scene.file(kept.volume_id).read_bytes()
    snapshots = scene.snapshots(kept)
    driver.restart()
    for object_id in (kept.volume_id, *snapshots):
        scene.onto(object_id)
    assert {scene.named(snapshot_id) for snapshot_id in snapshots} == {scene.base_id}


def test_a_content_that_somebody_has_open_for_writing_has_no_name(make_pool: MakePool, make_driver: MakeDriver) -> None:
    scene = Scene(make_driver(make_pool("xfs", 1 << 30)), "image")
    volume = scene.imported("held")
    with scene.file(volume.volume_id).open("r+b"):
        scene.refused(volume.volume_id, "nobody knows")
        with scene.client() as client:
            assert scene.named(scene.cut(client, "cut", volume.volume_id)) == ""
    scene.onto(volume.volume_id)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Somebody does something at a step of this process's own node."""

    def at_step(step: str, act: Callable[[], object]) -> None:
        for module in (snapshots, copies, members, groups):
            monkeypatch.setattr(module, "crash_point", lambda name: act() if name == step else None)

    return at_step


@pytest.mark.parametrize(
    "place",
    [("host", "copy.committed"), ("xfs", "snapshot.flushed"), ("xfs", "snapshot.begun"), ("xfs", "group.flushed")],
)
@pytest.mark.parametrize("is_written", [True, False], ids=["written", "read"])
def test_what_is_written_between_the_look_and_the_cut_takes_the_name_away(
    is_written: bool,
    place: tuple[str, str],
    make_pool: MakePool,
    make_driver: MakeDriver,
    at_step: Callable[[str, Callable[[], object]], None],
) -> None:
    fs_type, step = place
    scene = Scene(make_driver(make_pool(fs_type, 1 << 30)), "directory")
    driver, volume_id = scene.driver, scene.imported("imported").volume_id
    driver.stop()
    passed: list[str] = []

    def act() -> None:
        passed.append(step)
        if is_written:
            scene.write(volume_id)
        scene.file(volume_id).read_bytes()

    options = PoolOptions(PoolName("default"), str(driver.pool))
    node = Node(driver.node_id, "csi.hostvol.dev", [options], str(driver.home / "state"))
    node.start()
    try:
        at_step(step, act)
        if step.startswith("group"):
            made = node.groups.create(GroupSpec("group", (volume_id,)), None).snapshot_ids[0]
        else:
            made = node.snapshots.create(SnapshotSpec("cut", volume_id), None).snapshot_id
        until(lambda: node.snapshot_catalogue.get(made).is_ready)
        told = node.snapshot_catalogue.get(made).content_id
    finally:
        node.stop()
    driver.start()
    assert passed
    assert told == scene.named(made) == ("" if is_written else scene.base_id)


def test_a_copy_whose_name_is_lost_has_none_from_before_its_content_is_there(
    make_driver: MakeDriver, make_pool: MakePool
) -> None:
    scene = Scene(make_driver(make_pool("host", 1 << 30)), "directory")
    driver, volume = scene.driver, scene.imported("imported")
    driver.stop()
    driver.start(HOSTVOL_CRASH_AT="copy.committed")
    with scene.client() as client, pytest.raises(CallFailed):
        client.create_snapshot("cut", volume.volume_id)
    driver.wait_dead()
    scene.write(volume.volume_id)
    driver.start(wait=False, HOSTVOL_CRASH_AT="copy.moved")
    driver.wait_dead()
    driver.start()
    with scene.client() as client:
        assert client.snapshot_named("cut")["content_id"] == ""


def _without_mark(path: Path) -> None:
    body = records.unseal(path.read_bytes(), "volume", "here")
    assert body.pop("content_mark")
    body.pop("schema")
    path.write_bytes(records.seal(body.pop("kind"), body))


PARAMETERS = VolumeParameters(pool=PoolName("default"))
VOLUME = Volume(
    VolumeId("vol-1"), "volume", MIB, AccessType.BLOCK, "", PARAMETERS, 1.0, content_id="snap-a", content_mark="mark"
)


def _replaced(path: Path, kind: str) -> None:
    shutil.rmtree(path)
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to("..")


@pytest.mark.parametrize("kind", ["gone", "file", "link"])
def test_a_directory_that_changes_while_it_is_looked_at_has_no_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    look = tree_mark._look

    def looked(dir_fd: int) -> tuple[list[str], list[int]]:
        found = look(dir_fd)
        _replaced(tmp_path / "below", kind)
        return found

    contents = SimpleNamespace(mark=tree_mark.mark, is_at_rest=lambda *_: True)
    pool: Any = SimpleNamespace(contents=lambda _: contents)
    top_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        volume = dataclasses.replace(VOLUME, content_mark=tree_mark.mark(top_fd))
        assert unwritten.known(pool, volume, top_fd) == volume
        monkeypatch.setattr(tree_mark, "_look", looked)
        assert unwritten.known(pool, volume, top_fd).content_ids == frozenset()
    finally:
        os.close(top_fd)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
def test_only_what_a_change_answers_is_taken_for_one(code: int) -> None:
    def mark(_: int) -> str:
        raise OSError(raised, "")

    pool: Any = SimpleNamespace(contents=lambda _: SimpleNamespace(mark=mark, is_at_rest=lambda *_: True))
    raised = code
    assert unwritten.known(pool, VOLUME, -1) == dataclasses.replace(VOLUME, content_id="", content_mark="")
    raised = errno.EIO
    with pytest.raises(OSError, match="Errno 5"):
        unwritten.known(pool, VOLUME, -1)


@pytest.fixture
def volumes_fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "volumes" / VOLUME.volume_id).mkdir(parents=True)
    with ExitStack() as opened:
        fd = os.open(tmp_path / "volumes", os.O_RDONLY)
        opened.callback(os.close, fd)
        yield fd


@pytest.mark.parametrize(
    ("planned", "held", "finds", "named"),
    [
        pytest.param("snap-a", {}, ("mark", True), "snap-a", id="kept"),
        pytest.param("", {}, ("mark", True), "", id="none"),
        pytest.param("snap-a", {"content_id": "", "content_mark": ""}, ("mark", True), "", id="staged"),
        pytest.param("snap-a", {"content_id": "snap-b"}, ("mark", True), "", id="another"),
        pytest.param("snap-a", {"content_mark": ""}, ("mark", True), "", id="unmarked"),
        pytest.param("snap-a", {}, ("other", True), "", id="written"),
        pytest.param("snap-a", {}, ("mark", False), "", id="open"),
    ],
)
def test_a_copied_snapshot_has_the_name_that_its_volume_has_once_it_is_claimed(
    planned: str, held: dict[str, Any], finds: tuple[str, bool], named: str, volumes_fd: int
) -> None:
    object_fd = os.open(VOLUME.volume_id, os.O_RDONLY, dir_fd=volumes_fd)
    records.write_volume(object_fd, dataclasses.replace(VOLUME, **held))
    os.close(object_fd)
    contents = SimpleNamespace(mark=lambda _: finds[0], is_at_rest=lambda *_: finds[1])
    store = SimpleNamespace(volumes_fd=volumes_fd, directory="here")
    pool = SimpleNamespace(store=store, contents=lambda _: contents)
    snapshot = Snapshot(
        snapshot_id=SnapshotId("snap-1"),
        name="snapshot",
        source_volume_id=VOLUME.volume_id,
        size_bytes=MIB,
        access_type=AccessType.BLOCK,
        fs_type="",
        parameters=PARAMETERS,
        created_at=1.0,
        is_ready=False,
        lineage="",
        content_id=planned,
    )
    unused: Any = None
    job = _Job(cast(Any, pool), VOLUME, snapshot, snapshots=unused, claims=unused, places=unused, is_new=True)
    job._check_name(-1)
    assert job.snapshot == dataclasses.replace(snapshot, content_id=named)
