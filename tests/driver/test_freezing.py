"""A frozen volume never stays so, whoever is killed.

- The driver killed by SIGKILL in the middle of a freeze, at each of its steps: the guardian thaws, and writes go on
  before anybody starts the driver again; the next start finds nothing half-made.
- The guardian killed: the driver thaws. The driver still at it at the end of the budget: the guardian thaws, and what
  was done is void.
- Both killed: the next start thaws what the intent names, before it serves; an intent of another boot, of a device that
  is not there, or that cannot be read is forgotten, and thaws nothing.
- A volume that somebody else has frozen is refused, and stays as he left it.
- As the first process of a container the driver hands over: a small process passes on signals and the exit code, and
  outlives the driver until the guardian is done.
- In a pool that cannot share blocks a small mounted image is copied while it is frozen, and a large one refused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_driver.domain.freezing import BUDGET_SECONDS, Freezing, Mounted, thaw_all
from csi_driver.errors import FreezeBroken, FreezeExpired, VolumeBusy
from csi_driver.linux import freeze
from csi_driver.pb import csi_pb2
from csi_driver.store.runtime import boot_id
from tests.driver.copying import copied, copy_request, cut, from_snapshot, from_volume, take_down
from tests.driver.grouping import SIZES, MakeDriver, MakePool, delete_group, group_of, last_record, writing
from tests.harness import MIB, Code, Driver, Failure, Workload, run
from tests.waiting import until

SLACK_SECONDS = 20.0  # the machine may be busy


@contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def writes_go_on(place: str, seconds: float) -> bool:
    """Whether a process that writes a file there ends in time; one that hangs is thawed, so that it does not stay."""
    process = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={place}/probe", "bs=4k", "count=1", "conv=fsync", "status=none"]
    )
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        with opened(place) as fd:
            freeze.thaw(fd)
        process.wait(SLACK_SECONDS)
        return False


def is_frozen(place: str) -> bool:
    """Asked by freezing it; what was not frozen is thawed at once."""
    with opened(place) as fd:
        try:
            freeze.freeze(fd)
        except OSError:
            return True
        freeze.thaw(fd)
    return False


def intents(state: Path) -> list[str]:
    return os.listdir(state / "freezes")


def guardians(pid: int) -> list[int]:
    """The children of a process that watch a freeze."""
    children = "".join((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return [int(one) for one in children.split() if b"guardian.py" in Path(f"/proc/{one}/cmdline").read_bytes()]


def mounted(place: str, fd: int, volume_id: str = "vol-1") -> Mounted:
    source = run("findmnt", "-no", "SOURCE", place).strip()
    return Mounted(volume_id, place, source, fd)


_FREEZER = """
import os, sys, time
from csi_driver.domain.freezing import Freezing, Mounted
fd = os.open(sys.argv[2], os.O_RDONLY)
with Freezing(sys.argv[1], 100).frozen([Mounted("vol-1", sys.argv[2], sys.argv[3], fd)]):
    print("+", flush=True)
    time.sleep(120)
"""


@contextmanager
def freezer(state: Path, place: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has frozen a filesystem, and does not get on."""
    source = mounted(place, 0).source
    command = [sys.executable, "-c", _FREEZER, str(state), place, source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"+"
        yield process
    finally:
        process.kill()
        process.communicate()


def pair(driver: Driver, fs_type: str = "") -> tuple[Workload, Workload]:
    made = [Workload(driver, name, fs_type=fs_type, size_bytes=(300 if fs_type else 32) * MIB) for name in ("a", "b")]
    for volume in made:
        volume.up()
    return made[0], made[1]


@pytest.mark.parametrize(
    "point", ["freeze.intended", "freeze.frozen:1", "freeze.frozen:2", "group.cut", "freeze.thawed"]
)
def test_killed_at_any_step_of_a_freeze_the_driver_leaves_writers_that_go_on(
    point: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("xfs"))
    first, second = pair(driver)
    driver.restart(HOSTVOL_CRASH_AT=point)
    with pytest.raises(Failure):
        group_of(driver, first, second)
    assert driver.wait_dead() == -signal.SIGKILL
    for volume in (first, second):
        assert writes_go_on(volume.target(), BUDGET_SECONDS + SLACK_SECONDS)
    driver.start()
    assert intents(driver.home / "state") == []
    assert driver.call("ListSnapshots").entries == []
    delete_group(driver, group_of(driver, first, second))
    for volume in (first, second):
        take_down(volume)
    until(lambda: driver.files() == [])


def write_while_frozen(state: str, volume: Mounted) -> None:
    with Freezing(state).frozen([volume]):
        assert is_frozen(volume.target)
        assert writes_go_on(volume.target, BUDGET_SECONDS + SLACK_SECONDS)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_the_guardian_thaws_at_the_end_of_the_budget_and_what_was_done_is_void(
    fs_type: str, make_pool: MakePool, tmp_path: Path
) -> None:
    place = str(make_pool(fs_type).mount_point)
    with opened(place) as fd:
        with pytest.raises(FreezeExpired):
            write_while_frozen(str(tmp_path), mounted(place, fd))
        assert not is_frozen(place)
    assert intents(tmp_path) == []


def test_a_freeze_that_somebody_else_ends_is_void_and_one_that_somebody_else_has_begun_stays(
    make_pool: MakePool, tmp_path: Path
) -> None:
    first, second = (str(make_pool("ext4").mount_point) for _ in range(2))
    freezing = Freezing(str(tmp_path))
    with opened(first) as one, opened(second) as two:
        both = [mounted(first, one), mounted(second, two, "vol-2")]
        with pytest.raises(FreezeBroken, match="vol-2"), freezing.frozen(both):
            freeze.thaw(two)
        freeze.freeze(two)
        try:
            with pytest.raises(VolumeBusy, match="vol-2"), freezing.frozen(both):
                raise AssertionError("not frozen")
            assert not is_frozen(first)
            assert is_frozen(second)
        finally:
            freeze.thaw(two)
    assert intents(tmp_path) == []


def test_without_its_guardian_the_driver_thaws_and_without_both_the_next_start_does(
    make_pool: MakePool, tmp_path: Path, make_driver: MakeDriver
) -> None:
    place = str(make_pool("ext4").mount_point)
    with opened(place) as fd, Freezing(str(tmp_path / "alone")).frozen([mounted(place, fd)]):
        [guardian] = guardians(os.getpid())
        os.kill(guardian, signal.SIGKILL)
    assert not is_frozen(place)
    driver = make_driver(make_pool("xfs"))
    volume = Workload(driver, "volume")
    volume.up()
    driver.kill()
    state = driver.home / "state"
    with freezer(state, volume.target()) as process:
        for pid in (*guardians(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)
    assert is_frozen(volume.target())
    assert len(intents(state)) == 1
    driver.start()
    assert writes_go_on(volume.target(), SLACK_SECONDS)
    assert intents(state) == []
    assert "left frozen" in driver.log()
    take_down(volume)


@pytest.mark.parametrize("damage", ["another boot", "another device", "torn"])
def test_an_intent_that_does_not_hold_thaws_nothing(damage: str, make_pool: MakePool, tmp_path: Path) -> None:
    place = str(make_pool("ext4").mount_point)
    with opened(place) as fd:
        row = ["vol-1", place, os.fstat(fd).st_dev + (damage == "another device"), "/dev/loop-none"]
        boot = "0" if damage == "another boot" else boot_id()
        content = json.dumps({"boot_id": boot, "filesystems": [row]})
        (tmp_path / "freezes").mkdir()
        (tmp_path / "freezes/1.json").write_text(content[:-1] if damage == "torn" else content)
        freeze.freeze(fd)
        try:
            thaw_all(str(tmp_path))
            assert is_frozen(place)
        finally:
            freeze.thaw(fd)
    assert intents(tmp_path) == []


def test_the_first_process_of_a_container_passes_signals_and_the_exit_code_on_and_outlives_the_driver(
    make_pool: MakePool, tmp_path: Path
) -> None:
    place, state = str(make_pool("ext4").mount_point), tmp_path / "state"
    source = mounted(place, 0).source
    script = tmp_path / "first.py"
    script.write_text("from csi_driver.linux import init\ninit.hand_over()\n" + _FREEZER)
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(script), str(state), place, source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"+"
        [first] = _children(process.pid)
        assert b"init.py" in Path(f"/proc/{first}/cmdline").read_bytes()
        [driver] = _children(first)
        os.kill(driver, signal.SIGKILL)
        assert process.wait(SLACK_SECONDS) == 128 + signal.SIGKILL
        assert writes_go_on(place, SLACK_SECONDS)
    finally:
        process.kill()
        process.communicate()


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_term_reaches_the_driver_behind_the_first_process(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\nfrom csi_driver.linux import init\ninit.hand_over()\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('+', flush=True)\ntime.sleep(60)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"+"
        [first] = _children(process.pid)
        os.kill(first, signal.SIGTERM)
        assert process.wait(SLACK_SECONDS) == 7
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_small_mounted_image_is_copied_while_it_is_frozen_where_blocks_cannot_be_shared(
    fs_type: str, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=4 << 30))
    volume = Workload(driver, "volume", fs_type=fs_type, size_bytes=SIZES[fs_type])
    volume.up()
    with writing(volume.target()) as writer:
        least = last_record(f"{volume.target()}/records")
        snapshot = cut(driver, volume.volume_id)
        assert snapshot.ready_to_use
        clone = copied(volume, "clone", from_volume(volume.volume_id))
        restored = copied(volume, "restored", from_snapshot(snapshot.snapshot_id))
        assert least <= last_record(f"{restored.target()}/records") <= last_record(f"{clone.target()}/records")
    assert writer.report["longest"] < SLACK_SECONDS
    for one in (volume, clone, restored):
        take_down(one)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


def test_a_mounted_image_whose_copy_takes_too_long_is_refused_with_the_remedy_and_nobody_waited(
    make_pool: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_pool("ext4", size_bytes=3 << 30))
    volume = Workload(driver, "volume", size_bytes=512 * MIB)
    volume.up()
    run("dd", "if=/dev/urandom", f"of={volume.target()}/bulk", "bs=1M", "count=300", "status=none")
    with writing(volume.target()) as writer:
        for method, request in (
            ("CreateSnapshot", csi_pb2.CreateSnapshotRequest(source_volume_id=volume.volume_id, name="cut")),
            ("CreateVolume", copy_request(volume, "clone", from_volume(volume.volume_id))),
        ):
            with pytest.raises(Failure, match="stop what uses it") as refused:
                driver.call(method, request)
            assert refused.value.code is Code.FAILED_PRECONDITION
    assert "frozen for" not in driver.log()
    assert writer.report["longest"] < SLACK_SECONDS
    take_down(volume)
