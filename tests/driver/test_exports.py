"""Contents through a pipe: `hostvol export` and `hostvol import` on real drivers.

- What was exported, a volume in use or a snapshot, is in the volume that is imported, byte for byte.
- A stream that is cut off or changed, a sender that is killed and a pool that is full leave nothing.
- A reader that goes away lets the source go.
- A volume in use in a pool that cannot share blocks is refused with the remedy; so is a name that is taken.
- Increments behind a whole stream make what their last snapshot held; a missing link, a wrong order and a size that was
  not asked for are refused.
- Nothing binary goes to a terminal; a broken pipe is an error.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_driver.errors import CallFailed
from csi_driver.linux import holes
from csi_driver.rpc.client import Client
from tests.checks import CHECKS
from tests.harness import DIRECTORY, MIB, Driver, Failure, PoolPlace, Workload, admin_volumes, run
from tests.mounted_trees import digest, filled, looks
from tests.waiting import until

HOSTVOL = (sys.executable, "-m", "csi_driver")
KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"fs_type": "ext4", "size_bytes": 64 * MIB},
    "xfs": {"fs_type": "xfs", "size_bytes": 300 * MIB},
    "btrfs": {"fs_type": "btrfs", "size_bytes": 128 * MIB},
    "thick": {"fs_type": "ext4", "size_bytes": 64 * MIB, "parameters": {"provisioning": "thick"}},
    "directory": {"parameters": DIRECTORY, "size_bytes": 64 * MIB},
}
MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


def hostvol(
    driver: Driver, *arguments: str, stream: bytes = b"", check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    command = (*HOSTVOL, *arguments, "--endpoint", driver.endpoint)
    done = subprocess.run(command, input=stream, capture_output=True, check=False, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def imported(driver: Driver, stream: bytes, *arguments: str) -> str:
    return hostvol(driver, "import", *arguments, stream=stream).stdout.decode().strip()


def pieces(stream: bytes) -> Iterator[bytes]:
    return (stream[start : start + MIB] for start in range(0, len(stream), MIB))


def image_of(driver: Driver, volume_id: str) -> Path:
    return driver.pool / "volumes" / volume_id / "disk.img"


def raw(driver: Driver, name: str = "raw", written: int = 8) -> str:
    """A raw block volume with random bytes behind a hole."""
    volume = Workload(driver, name, block=True, size_bytes=64 * MIB)
    volume.create()
    with image_of(driver, volume.volume_id).open("r+b") as image:
        image.seek(MIB)
        image.write(os.urandom(written * MIB))
    return volume.volume_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_in_use_and_its_snapshot_come_back(kind: str, make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs", 2 << 30))
    source = Workload(driver, "source", **KINDS[kind])
    told = filled(Path(source.up()))
    driver.call("CreateSnapshot", name="cut", source_volume_id=source.volume_id)
    streams = {name: hostvol(driver, "export", name).stdout for name in ("source", "cut")}
    source.unpublish()
    source.unstage()
    for name, stream in streams.items():
        copy = Workload(driver, f"copy-of-{name}", **KINDS[kind])
        copy.volume_id = imported(driver, stream, "--name", copy.name)
        copy.stage()
        copy.publish()
        assert looks(Path(copy.target())) == told
        copy.unpublish()
        copy.unstage()
        if kind in CHECKS:
            run(*CHECKS[kind], str(image_of(driver, copy.volume_id)))
    assert not [path for path in driver.files() if path.startswith(("tmp/", "trash/"))]


def test_a_raw_block_volume_comes_back_with_its_holes(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    source = raw(driver)
    stream = hostvol(driver, "export", source).stdout
    assert len(stream) < 9 * MIB
    copy = imported(driver, stream, "--name", "copy")
    assert digest(image_of(driver, copy)) == digest(image_of(driver, source))
    assert image_of(driver, copy).stat().st_blocks * 512 < 9 * MIB
    taken = hostvol(driver, "import", stream=stream, check=False)
    assert (taken.returncode, b"ALREADY_EXISTS" in taken.stderr) == (1, True)
    wrong = hostvol(driver, "import", "--name", "other", "--pool", "nowhere", stream=stream, check=False)
    assert (wrong.returncode, b"nowhere" in wrong.stderr) == (1, True)


def test_a_damaged_stream_leaves_nothing(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    stream = hostvol(driver, "export", raw(driver)).stdout
    before = driver.files()
    middle = len(stream) // 2
    flipped = stream[:middle] + bytes([stream[middle] ^ 1]) + stream[middle + 1 :]
    for damaged in (b"", stream[:100], stream[:middle], stream[:-1], flipped, stream + b"x"):
        done = hostvol(driver, "import", "--name", "copy", stream=damaged, check=False)
        assert (done.returncode, b"the stream is damaged" in done.stderr) == (1, True), done.stderr
        assert (done.stdout, driver.files()) == (b"", before)
    assert len(admin_volumes(driver)) == 1


def test_a_sender_that_is_killed_leaves_nothing(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    stream = hostvol(driver, "export", raw(driver)).stdout
    before = driver.files()
    command = (*HOSTVOL, "import", "--name", "copy", "--endpoint", driver.endpoint)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as sender:
        assert sender.stdin is not None
        sender.stdin.write(stream[: 4 * MIB])
        sender.stdin.flush()
        until(lambda: driver.files() != before, 60)
        sender.kill()
    until(lambda: driver.files() == before, 60)
    imported(driver, stream, "--name", "copy")


def test_a_reader_that_goes_away_lets_the_source_go(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    source = raw(driver, written=48)
    command = (*HOSTVOL, "export", source, "--endpoint", driver.endpoint)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.read(1)
        with pytest.raises(Failure, match="ABORTED"):
            driver.call("DeleteVolume", volume_id=source)
        reader.stdout.close()
        assert reader.stderr is not None
        assert b"not whole" in reader.stderr.read()
    assert reader.returncode == 1
    until(lambda: driver.code("DeleteVolume", volume_id=source).name == "OK", 60)


def test_a_pool_without_room_refuses_before_it_begins(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs", 320 * MIB))
    large = Workload(driver, "large", block=True, size_bytes=120 * MIB)
    large.create()
    stream = hostvol(driver, "export", "large").stdout
    before = driver.files()
    done = hostvol(driver, "import", "--name", "copy", stream=stream, check=False)
    assert (done.returncode, b"RESOURCE_EXHAUSTED" in done.stderr) == (1, True), done.stderr
    assert driver.files() == before


def test_a_disk_that_fills_up_in_the_middle_keeps_nothing(make_pool: MakePool, make_driver: MakeDriver) -> None:
    place = make_pool("xfs", 512 * MIB)
    driver = make_driver(place)
    client = Client(driver.endpoint)
    stream = b"".join(client.export(raw(driver, written=60)))
    before = driver.files()
    stranger = Path(str(place.mount_point)) / "stranger"

    def filling() -> Iterator[bytes]:
        for number, piece in enumerate(pieces(stream)):
            if number == 4:
                space = os.statvfs(stranger.parent)
                run("fallocate", "-l", str(space.f_bavail * space.f_frsize - 8 * MIB), str(stranger))
            yield piece

    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        client.import_volume(filling(), {"name": "copy"})
    client.close()
    assert driver.files() == before
    assert len(admin_volumes(driver)) == 1


def test_a_volume_in_use_that_cannot_be_cut_is_refused(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool")
    volume = Workload(driver, "data", fs_type="ext4", size_bytes=64 * MIB)
    volume.up()
    done = hostvol(driver, "export", "data", check=False)
    assert (done.returncode, b"stop what uses it" in done.stderr) == (1, True), done.stderr
    volume.unpublish()
    volume.unstage()
    missing = hostvol(driver, "export", "nothing", check=False)
    assert (missing.returncode, b"NOT_FOUND" in missing.stderr) == (1, True)


def test_nothing_binary_goes_to_a_terminal(tmp_path: Path) -> None:
    shown, terminal = pty.openpty()
    try:
        for command in (("export", "data"), ("import",)):
            done = subprocess.run(
                (*HOSTVOL, *command), stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=60
            )
            assert (done.returncode, b"terminal" in done.stderr) == (2, True)
    finally:
        os.close(shown)
        os.close(terminal)


@pytest.mark.parametrize("fs_type", ["host", "xfs", "btrfs"])
def test_increments_follow_a_whole_stream(fs_type: str, make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool(fs_type, 1 << 30))
    source = raw(driver)
    image = image_of(driver, source)
    streams, digests, cuts = [], [], []
    client = Client(driver.endpoint)
    for number in range(4):
        if number == 1:
            driver.call("ControllerExpandVolume", volume_id=source, capacity_range={"required_bytes": 80 * MIB})
        with image.open("r+b") as file:
            for at in ((2 + number) * MIB + 4096, (40 + number) * MIB, 64 * MIB - 8192 + 16 * MIB * bool(number)):
                os.pwrite(file.fileno(), os.urandom(8192), at)
            if number:
                holes.punch(file.fileno(), (3 + number) * MIB, MIB)
            os.fsync(file.fileno())
        cuts.append(client.create_snapshot(f"cut-{number}", source)["snapshot_id"])
        until(lambda cut=cuts[-1]: bool(client.snapshot(cut)["state"] == "ready"), 60)
        streams.append(b"".join(client.export(cuts[-1], cuts[-2] if number else "")))
        digests.append(digest(image))
    assert all(len(stream) < MIB for stream in streams[1:])
    for count in (2, 4):
        copy = client.import_volume(
            pieces(b"".join(streams[:count])), {"name": f"copy-{count}", "size_bytes": 80 * MIB}
        )
        assert digest(image_of(driver, copy["volume_id"])) == digests[count - 1]
    before = driver.files()
    wrong: dict[str, tuple[bytes, int]] = {
        "relative to": (streams[0] + streams[2], 80 * MIB),
        "a whole one": (streams[1], 0),
        "is whole": (streams[0] + streams[0], 0),
        "--size": (streams[0] + streams[1], 0),
        "cut off": (streams[0] + streams[1][:-1], 80 * MIB),
    }
    for told, (stream, size_bytes) in wrong.items():
        with pytest.raises(CallFailed, match=told):
            client.import_volume(pieces(stream), {"name": "wrong", "size_bytes": size_bytes})
    assert driver.files() == before
    client.close()


def test_what_cannot_be_relative_is_refused(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("xfs", 1 << 30))
    directory = Workload(driver, "files", parameters=DIRECTORY, size_bytes=16 * MIB)
    directory.create()
    for name in ("one", "two"):
        driver.call("CreateSnapshot", name=name, source_volume_id=directory.volume_id)
    other = Workload(driver, "others", parameters=DIRECTORY, size_bytes=16 * MIB)
    other.create()
    driver.call("CreateSnapshot", name="other", source_volume_id=other.volume_id)
    done = hostvol(driver, "export", "two", "--base", "other", check=False)
    assert (done.returncode, b"as the target is" in done.stderr) == (1, True), done.stderr
    living = hostvol(driver, "export", "files", "--base", "one", check=False)
    assert (living.returncode, b"a snapshot" in living.stderr) == (1, True), living.stderr
    stream = hostvol(driver, "export", "one").stdout
    twice = hostvol(driver, "import", "--name", "copy", stream=stream + stream, check=False)
    assert (twice.returncode, b"is whole" in twice.stderr) == (1, True), twice.stderr
