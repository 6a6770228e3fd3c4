"""Relative streams on real drivers: of directories, and onto what they are relative to.

- A chain of increments, behind the whole stream or onto a snapshot of what was imported before, makes on another node
  exactly what each snapshot held, for directories and images in every kind of pool.
- A volume is known for what it was imported with until it is staged, also across a restart; a snapshot of it for ever,
  also one that is a member of a group.
- Onto anything else an increment is refused, with both ids; so is a whole stream. What is refused leaves nothing, and
  the base as it was.
- A pool without room refuses; what is applied to is held meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.errors import CallFailed
from csi_driver.linux import holes
from csi_driver.rpc.client import Client
from tests.checks import CHECKS
from tests.driver.grouping import group_of
from tests.driver.test_exports import hostvol, image_of, pieces, raw
from tests.harness import DIRECTORY, MIB, Driver, PoolPlace, Workload, run
from tests.mounted_trees import digest, filled
from tests.mounted_trees import looks as looks_mounted
from tests.random_trees import Gardener, differences, looks
from tests.waiting import until

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


@pytest.fixture
def connected() -> Iterator[Callable[[Driver], Client]]:
    clients: list[Client] = []

    def connect(driver: Driver) -> Client:
        clients.append(Client(driver.endpoint))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


Connected = Callable[[Driver], Client]


def cut(client: Client, name: str, volume_id: str) -> str:
    """A snapshot that is ready."""
    snapshot_id = str(client.create_snapshot(name, volume_id)["snapshot_id"])
    until(lambda: bool(client.snapshot(snapshot_id)["state"] == "ready"), 60)
    return snapshot_id


def exported(client: Client, snapshot_id: str, base_id: str = "") -> bytes:
    return b"".join(client.export(snapshot_id, base_id))


def imported(client: Client, stream: bytes, name: str, **options: Any) -> str:
    return str(client.import_volume(pieces(stream), {"name": name, **options})["volume_id"])


def data_of(driver: Driver, object_id: str) -> Path:
    kind = "snapshots" if object_id.startswith("snap-") else "volumes"
    return driver.pool / kind / object_id / "data"


@pytest.mark.parametrize("fs_type", ["host", "xfs", "btrfs"])
def test_a_chain_of_a_directory(
    fs_type: str, make_pool: MakePool, make_driver: MakeDriver, connected: Connected
) -> None:
    drivers = [make_driver(make_pool(fs_type, 1 << 30)) for _ in range(2)]
    here, there = map(connected, drivers)
    parameters = {"type": "directory"} if fs_type == "btrfs" else DIRECTORY
    volume = Workload(drivers[0], "files", parameters=parameters, size_bytes=64 * MIB)
    volume.create()
    gardener = Gardener(data_of(drivers[0], volume.volume_id), 1)
    gardener.grow(60)
    cuts, streams = [cut(here, "cut-0", volume.volume_id)], []
    streams.append(exported(here, cuts[0]))
    for number in (1, 2, 3):
        gardener.change(25)
        cuts.append(cut(here, f"cut-{number}", volume.volume_id))
        streams.append(exported(here, cuts[-1], cuts[-2]))
    told = [looks(data_of(drivers[0], one)) for one in cuts]
    chained = imported(there, b"".join(streams), "chained")
    assert differences(looks(data_of(drivers[1], chained)), told[3]) == {}
    base = imported(there, streams[0], "on-0")
    for number in (1, 2):
        kept = cut(there, f"kept-{number}", base)
        base = imported(there, streams[number], f"on-{number}", onto_id=kept)
        assert differences(looks(data_of(drivers[1], base)), told[number]) == {}
        assert differences(looks(data_of(drivers[1], kept)), told[number - 1]) == {}
    # Two at once, onto the snapshot itself on its own node, and onto a volume that nobody has used.
    both = imported(here, streams[2] + streams[3], "both", onto_id=cuts[1])
    assert differences(looks(data_of(drivers[0], both)), told[3]) == {}
    last = imported(there, streams[3], "on-3", onto_id=base)
    assert differences(looks(data_of(drivers[1], last)), told[3]) == {}
    assert not [path for driver in drivers for path in driver.files() if path.startswith(("tmp/", "trash/"))]


@pytest.mark.parametrize("fs_type", ["host", "xfs"])
def test_a_chain_of_a_raw_block_volume(
    fs_type: str, make_pool: MakePool, make_driver: MakeDriver, connected: Connected
) -> None:
    driver = make_driver(make_pool(fs_type, 1 << 30), make_pool(fs_type, 1 << 30))
    client = connected(driver)
    source = raw(driver, written=1)
    cuts, streams, told = [cut(client, "cut-0", source)], [], [digest(image_of(driver, source))]
    for number in (1, 2):
        if number == 2:
            driver.call("ControllerExpandVolume", volume_id=source, capacity_range={"required_bytes": 80 * MIB})
        with image_of(driver, source).open("r+b") as file:
            os.pwrite(file.fileno(), os.urandom(8192), (60 + 10 * (number - 1)) * MIB)
            holes.punch(file.fileno(), MIB + number * 65536, 4096)
            os.fsync(file.fileno())
        cuts.append(cut(client, f"cut-{number}", source))
        streams.append(exported(client, cuts[-1], cuts[-2]))
        told.append(digest(image_of(driver, source)))
    base = cuts[0]
    # In the pool of what they are applied to; the last in another, where blocks are copied.
    for number, (stream, pool) in enumerate(zip(streams, ("", "pool1"), strict=True), 1):
        made = imported(client, stream, f"on-{number}", onto_id=base, pool=pool)
        image = driver.pools[number - 1].directory / "volumes" / made / "disk.img"
        assert digest(image) == told[number]
        base = cut(client, f"kept-{number}", made)
    assert digest(image_of(driver, source)) == told[2]


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_filesystem_after_its_increment_is_sound(
    fs_type: str, make_pool: MakePool, make_driver: MakeDriver, connected: Connected
) -> None:
    driver = make_driver(make_pool("xfs", 2 << 30))
    client = connected(driver)
    size_bytes = {"ext4": 64, "xfs": 300, "btrfs": 128}[fs_type] * MIB
    source = Workload(driver, "source", fs_type=fs_type, size_bytes=size_bytes)
    top = Path(source.up())
    cuts = [cut(client, "cut-0", source.volume_id)]
    base = imported(client, exported(client, cuts[0]), "base")
    told = filled(top)
    cuts.append(cut(client, "cut-1", source.volume_id))
    stream = exported(client, cuts[1], cuts[0])
    source.unpublish()
    source.unstage()
    kept = cut(client, "kept", base)
    copy = Workload(driver, "copy", fs_type=fs_type, size_bytes=size_bytes)
    copy.volume_id = imported(client, stream, "copy", onto_id=kept)
    copy.stage()
    copy.publish()
    assert looks_mounted(Path(copy.target())) == told
    copy.unpublish()
    copy.unstage()
    run(*CHECKS[fs_type], str(image_of(driver, copy.volume_id)))


def test_a_volume_is_known_until_it_is_staged(
    make_pool: MakePool, make_driver: MakeDriver, connected: Connected
) -> None:
    driver = make_driver(make_pool("xfs", 1 << 30))
    client = connected(driver)
    source = Workload(driver, "source", parameters=DIRECTORY)
    source.create()
    cuts = [cut(client, "cut-0", source.volume_id)]
    (data_of(driver, source.volume_id) / "file").write_bytes(os.urandom(10_000))
    cuts.append(cut(client, "cut-1", source.volume_id))
    base, stream = exported(client, cuts[0]), exported(client, cuts[1], cuts[0])
    copy = Workload(driver, "copy", parameters=DIRECTORY)
    copy.volume_id = imported(client, base, "copy")
    kept = cut(client, "kept", copy.volume_id)
    assert client.volume(copy.volume_id)["content_id"] == client.snapshot(kept)["content_id"] == cuts[0]
    driver.restart()
    client = connected(driver)
    for number, onto in enumerate((copy.volume_id, kept)):
        imported(client, stream, f"known-{number}", onto_id=onto)
    copy.stage()
    used = cut(client, "used", copy.volume_id)
    copy.unstage()
    driver.restart()
    client = connected(driver)
    before = driver.files()
    for onto, held in ((copy.volume_id, "nobody knows"), (used, used), (cuts[1], cuts[1])):
        with pytest.raises(CallFailed, match=f"relative to {cuts[0]}, and .*{held}") as refused:
            imported(client, stream, "refused", onto_id=onto)
        assert refused.value.code == "FAILED_PRECONDITION"
    assert driver.files() == before
    imported(client, stream, "still known", onto_id=kept)
    # What a rollback puts there is not what was imported.
    rolled = imported(client, base, "rolled")
    (data_of(driver, rolled) / "other").touch()
    other = cut(client, "other", rolled)
    driver.call("DeleteSnapshot", snapshot_id=other)
    back = cut(client, "back", rolled)
    client.rollback_volume(rolled, back)
    with pytest.raises(CallFailed, match="nobody knows"):
        imported(client, stream, "refused", onto_id=rolled)


def test_a_member_of_a_group_is_a_base(make_pool: MakePool, make_driver: MakeDriver, connected: Connected) -> None:
    driver = make_driver(make_pool("xfs", 1 << 30))
    client = connected(driver)
    source = Workload(driver, "source", block=True, volume_id=raw(driver, written=1))
    beside = Workload(driver, "beside", parameters=DIRECTORY)
    beside.create()
    cuts = [group_of(driver, source, beside, name="cut-0").snapshots[0].snapshot_id]
    with image_of(driver, source.volume_id).open("r+b") as file:
        os.pwrite(file.fileno(), os.urandom(8192), 8 * MIB)
    cuts.append(group_of(driver, beside, source, name="cut-1").snapshots[1].snapshot_id)
    stream = exported(client, cuts[1], cuts[0])
    copy = Workload(driver, "copy", block=True, volume_id=imported(client, exported(client, cuts[0]), "copy"))
    kept = group_of(driver, copy, beside, name="kept").snapshots[0].snapshot_id
    assert client.snapshot(kept)["content_id"] == cuts[0]
    driver.restart()
    client = connected(driver)
    for number, onto in enumerate((kept, cuts[0])):
        made = imported(client, stream, f"made-{number}", onto_id=onto)
        assert digest(image_of(driver, made)) == digest(image_of(driver, source.volume_id))
    copy.stage()
    copy.unstage()
    used = group_of(driver, copy, name="used").snapshots[0].snapshot_id
    with pytest.raises(CallFailed, match=f"relative to {cuts[0]}, and {used} holds {used};"):
        imported(client, stream, "refused", onto_id=used)


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    make_pool: MakePool, make_driver: MakeDriver, connected: Connected
) -> None:
    driver = make_driver(make_pool("xfs", 1 << 30))
    client = connected(driver)
    source = Workload(driver, "source", parameters=DIRECTORY)
    source.create()
    top = data_of(driver, source.volume_id)
    cuts, streams = [], []
    for number in range(3):
        (top / "file").write_bytes(os.urandom(2 * MIB))
        (top / f"file-{number}").write_bytes(os.urandom(70_000))
        cuts.append(cut(client, f"cut-{number}", source.volume_id))
        streams.append(exported(client, cuts[-1], cuts[-2] if number else ""))
    image = raw(driver)
    other = cut(client, "other", image)
    before = driver.files()
    told = looks(data_of(driver, cuts[0]))
    middle = len(streams[1]) // 2
    flipped = streams[1][:middle] + bytes([streams[1][middle] ^ 1]) + streams[1][middle + 1 :]
    wrong: list[tuple[str, str, bytes]] = [
        ("relative to", cuts[1], streams[1]),
        ("relative to", other, streams[1]),
        ("a whole one", cuts[0], streams[0]),
        ("NOT_FOUND", cuts[0][:-1], streams[1]),
        ("of this node", "snap-0000000000000000-0", streams[1]),
        ("onto_id", "../snapshots", streams[1]),
        ("INVALID_ARGUMENT", "", streams[1]),
        ("relative to", cuts[0], streams[2]),
        ("relative to", cuts[0], streams[1] + streams[1]),
        ("is whole", cuts[0], streams[1] + streams[0]),
        ("relative to", "", streams[0] + streams[2] + streams[1]),
        ("damaged", cuts[0], streams[1][:-1]),
        ("damaged", cuts[0], streams[1][:middle]),
        ("damaged", cuts[0], flipped),
        ("damaged", "", streams[0] + flipped),
        ("damaged", cuts[0], streams[1] + b"x"),
    ]
    for told_of, onto, stream in wrong:
        with pytest.raises(CallFailed, match=told_of):
            imported(client, stream, "wrong", onto_id=onto)
        assert driver.files() == before, told_of
    assert looks(data_of(driver, cuts[0])) == told
    done = hostvol(driver, "import", "--name", "by hand", "--onto", "cut-0", stream=streams[1] + streams[2])
    made = data_of(driver, done.stdout.decode().strip())
    assert differences(looks(made), looks(data_of(driver, cuts[2]))) == {}


def test_what_is_applied_to_is_held(make_pool: MakePool, make_driver: MakeDriver, connected: Connected) -> None:
    driver = make_driver(make_pool("xfs", 1 << 30))
    client = connected(driver)
    source = raw(driver)
    cuts = [cut(client, "cut-0", source)]
    with image_of(driver, source).open("r+b") as file:
        file.write(os.urandom(4 * MIB))
    cuts.append(cut(client, "cut-1", source))
    stream = exported(client, cuts[1], cuts[0])

    def slowly() -> Iterator[bytes]:
        yield stream[:MIB]
        until(lambda: any(path.startswith("tmp/") for path in driver.files()), 60)
        assert driver.code("DeleteSnapshot", snapshot_id=cuts[0]).name == "ABORTED"
        yield stream[MIB:]

    made = client.import_volume(slowly(), {"name": "made", "onto_id": cuts[0]})
    assert digest(image_of(driver, made["volume_id"])) == digest(image_of(driver, source))
    driver.call("DeleteSnapshot", snapshot_id=cuts[0])


def test_a_disk_that_fills_up_keeps_nothing(make_pool: MakePool, make_driver: MakeDriver, connected: Connected) -> None:
    place = make_pool("xfs", 512 * MIB)
    driver = make_driver(place)
    client = connected(driver)
    source = Workload(driver, "source", parameters=DIRECTORY)
    source.create()
    cuts = [cut(client, "cut-0", source.volume_id)]
    (data_of(driver, source.volume_id) / "large").write_bytes(os.urandom(40 * MIB))
    cuts.append(cut(client, "cut-1", source.volume_id))
    stream = exported(client, cuts[1], cuts[0])
    before = driver.files()
    stranger = Path(str(place.mount_point)) / "stranger"

    def filling() -> Iterator[bytes]:
        for number, piece in enumerate(pieces(stream)):
            if number == 4:
                space = os.statvfs(stranger.parent)
                run("fallocate", "-l", str(space.f_bavail * space.f_frsize - 8 * MIB), str(stranger))
            yield piece

    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        client.import_volume(filling(), {"name": "refused", "onto_id": cuts[0]})
    assert driver.files() == before
    stranger.unlink()
    imported(client, stream, "granted", onto_id=cuts[0])
