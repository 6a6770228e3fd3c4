"""The whole driver where the kernel has project quotas: its server and its clients run inside the machine.

On XFS and ext4, each mounted with `prjquota`:

- A directory volume holds no byte more than its size, and two of them do not disturb each other.
- Everything in it is charged to its project; NodeGetVolumeStats says what du says.
- Its limit outlives a SIGKILL of the driver and a power cut; a deleted volume leaves neither limit nor usage.
- A driver killed at any step of create or delete leaves no limit behind once it was started again, also when it is
  killed again while it clears.
- A limit that is raised holds to the byte at once, survives a power cut, and is finished by the next start when the
  driver is killed in its middle; where no quota is enforced it is not raised.
- A directory without a limit gets one while nobody uses it: all in it is charged, and the limit holds to the byte;
  more than its size is refused; a driver killed in the middle leaves a directory without a limit, in which files can be
  renamed.
- What is granted to the brim can be written by all at once; growth is quota less usage.
- A workload that moves its files to another project takes no limit from anybody.
- Where the quota is not enforced (any more), a required one is refused with its remedy and `none` is accepted, and the
  volumes that are there are served and deleted.
- The XFS of a pool in a backing file enforces the sizes of directories, whatever the file is on.
- Image volumes of every kind live on that kernel, too.

On btrfs: the qgroups that an older kernel keeps are reaped.

Runs inside the machine of `test_driver_quota.py`, with /dev/ubda to /dev/ubdc. Oracles: xfs_quota, lsattr, du, btrfs.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_driver.domain.pools import initialise_backed_pool
from csi_driver.linux import quota
from csi_driver.model import DEFAULT_DRIVER_NAME
from tests.harness import MIB, Code, Driver, Failure, PoolPlace, Workload, create_request, run
from tests.powercut import cut_power
from tests.uml.guest_quota import NOBODY, WRITER, mounted, open_directory, reported, write
from tests.waiting import until

DISKS = {"xfs": "/dev/ubda", "ext4": "/dev/ubdb"}
BTRFS_DISK = "/dev/ubdc"
REQUIRED = {"type": "directory"}
NONE = {"type": "directory", "quota": "none"}
FULL = {errno.EDQUOT, errno.ENOSPC}
# A writer of 64 KiB at a time gives up when the next ones do not fit as a whole; XFS also counts its extent maps.
SLACK = 128 << 10


@pytest.fixture(scope="module", params=DISKS)
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    kind: str = request.param
    with mounted(tmp_path_factory.mktemp(kind), kind, "prjquota", disk=DISKS[kind]) as path:
        yield path


@contextmanager
def running(home: Path, pool: Path) -> Iterator[Driver]:
    """A driver; afterwards nothing of it is mounted, and it met nothing that it did not foresee."""
    driver = Driver(home, [PoolPlace(pool)])
    try:
        driver.start()
        yield driver
    finally:
        driver.stop()
        driver.clean_up()
    assert "unforeseen" not in driver.log(), driver.log()


@pytest.fixture(scope="module")
def one_driver(filesystem: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    with running(tmp_path_factory.mktemp("driver"), filesystem / "pool") as driver:
        yield driver


@pytest.fixture
def driver(one_driver: Driver) -> Iterator[Driver]:
    """A driver without volumes; a test that passed leaves no mount, no loop device and no file."""
    yield one_driver
    assert (one_driver.mounts(), one_driver.loops()) == ([], [])
    until(lambda: one_driver.files() == [], what=one_driver.files)


def kind_of(path: Path) -> str:
    return run("findmnt", "-no", "FSTYPE", "--target", str(path)).strip()


def directory(driver: Driver, name: str, size_bytes: int = 16 * MIB) -> Workload:
    return Workload(driver, name, parameters=REQUIRED, size_bytes=size_bytes)


def up(workload: Workload) -> Path:
    """Publish it, and give it to an unprivileged user, as fsGroup does."""
    target = Path(workload.up())
    os.chown(target, NOBODY, NOBODY)
    return target


def code_of_creating(workload: Workload) -> Code:
    request = create_request(
        workload.name,
        workload.size_bytes,
        parameters=workload.parameters,
        volume_capabilities=[workload.capability],
    )
    return workload.driver.code("CreateVolume", request)


def project_in(object_directory: Path) -> int:
    """The project id in an object's record."""
    return int(json.loads((object_directory / "record.json").read_bytes())["record"]["project_id"])


def project_of(workload: Workload) -> int:
    return project_in(workload.driver.pool / "volumes" / workload.volume_id)


def charged_to(path: Path) -> int:
    """The project that lsattr shows."""
    return int(run("lsattr", "-pd", str(path)).split()[0])


def disk_usage(path: Path) -> int:
    run("sync", "-f", str(path))
    return int(run("du", "--summarize", "--block-size=1", str(path)).split()[0])


def is_free(filesystem: Path, project_id: int) -> bool:
    with open_directory(filesystem) as fd:
        return reported(filesystem, project_id) == (0, 0) and quota.is_free(fd, project_id)


def stats(workload: Workload) -> tuple[int, int, int]:
    """(total, used, available) bytes of NodeGetVolumeStats."""
    answer = workload.driver.call("NodeGetVolumeStats", volume_id=workload.volume_id, volume_path=workload.target())
    in_bytes = answer.usage[0]
    assert in_bytes.unit == in_bytes.BYTES
    return in_bytes.total, in_bytes.used, in_bytes.available


def capacity(driver: Driver) -> int:
    return int(driver.call("GetCapacity", parameters=REQUIRED).available_capacity)


def remount(driver: Driver, mount_point: Path, disk: str, options: str) -> None:
    """Start the driver again on the same pool, mounted with other options."""
    driver.stop()
    run("umount", str(mount_point))
    run("mount", "-o", options, disk, str(mount_point))
    driver.start()


def test_a_volume_holds_no_byte_over_its_size_from_create_to_delete(filesystem: Path, driver: Driver) -> None:
    full, neighbour = directory(driver, "full"), directory(driver, "neighbour")
    limit = full.size_bytes
    full_at, neighbour_at = up(full), up(neighbour)
    project_id, others = project_of(full), project_of(neighbour)
    assert project_id != others

    failed_with = write(full_at, NOBODY, "write")
    over = max(0, disk_usage(full_at) - limit)
    print(f"{kind_of(filesystem)}: {errno.errorcode[failed_with]}, du {disk_usage(full_at)} of {limit}, over {over}")
    assert failed_with in FULL
    assert over == 0
    assert disk_usage(full_at) >= limit - SLACK

    (neighbour_at / "below").mkdir()
    (neighbour_at / "below" / "file").write_bytes(b"n" * 8 * MIB)
    for path in (neighbour_at, neighbour_at / "below", neighbour_at / "below" / "file"):
        assert charged_to(path) == others
    for workload, path in ((full, full_at), (neighbour, neighbour_at)):
        used = disk_usage(path)
        assert stats(workload) == (limit, used, limit - used)

    driver.restart()
    assert reported(filesystem, project_id) == (disk_usage(full_at), limit)
    assert write(full_at, NOBODY, "append") in FULL
    assert stats(full)[:2] == (limit, disk_usage(full_at))
    assert disk_usage(full_at) <= limit

    full.down()
    until(lambda: is_free(filesystem, project_id), what=lambda: reported(filesystem, project_id))
    assert reported(filesystem, others) == (disk_usage(neighbour_at), limit)
    neighbour.down()
    until(lambda: is_free(filesystem, others))


def test_a_full_volume_that_grows_holds_exactly_what_was_added(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "growing", 8 * MIB)
    target = up(workload)
    project_id = project_of(workload)
    assert write(target, NOBODY, "write") in FULL
    answer = driver.call("ControllerExpandVolume", workload.expand_request(24 * MIB))
    assert (answer.capacity_bytes, answer.node_expansion_required) == (24 * MIB, False)
    assert reported(filesystem, project_id)[1] == 24 * MIB
    assert write(target, NOBODY, "append") in FULL
    assert 24 * MIB - SLACK <= disk_usage(target) <= 24 * MIB
    assert stats(workload)[:2] == (24 * MIB, disk_usage(target))
    # Nothing becomes smaller, and a limit that was written full is not lifted by asking again.
    assert workload.expand(8 * MIB) == 24 * MIB
    assert workload.expand_on_node() == 24 * MIB
    assert reported(filesystem, project_id)[1] == 24 * MIB
    workload.down()
    until(lambda: is_free(filesystem, project_id))


@pytest.mark.parametrize("point", ["expand.intended", "directory.limit_raised", "expand.extended", "expand.recorded"])
def test_a_driver_killed_while_a_quota_grows_finishes_it(filesystem: Path, driver: Driver, point: str) -> None:
    workload = directory(driver, "growing", 8 * MIB)
    up(workload)
    driver.restart(HOSTVOL_CRASH_AT=point)
    with pytest.raises(Failure):
        workload.expand(16 * MIB)
    assert driver.wait_dead() == -signal.SIGKILL
    driver.start()
    assert driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes == 16 * MIB
    assert reported(filesystem, project_of(workload))[1] == 16 * MIB
    workload.down()


def test_a_grown_limit_survives_a_power_cut(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "grown", 8 * MIB)
    workload.create()
    workload.expand(16 * MIB)
    kind = kind_of(filesystem)
    cut_power(str(filesystem), flush_log=False)
    driver.kill()
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert driver.call("ControllerGetVolume", volume_id=workload.volume_id).volume.capacity_bytes == 16 * MIB
    assert reported(filesystem, project_of(workload))[1] == 16 * MIB
    workload.delete()


def test_a_volume_without_its_quota_is_not_extended(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    workload = directory(driver, "unlimited now", 8 * MIB)
    workload.create()
    remount(driver, filesystem, DISKS[kind], "defaults")
    with pytest.raises(Failure) as refused:
        workload.expand(16 * MIB)
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert "-o prjquota" in refused.value.details
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert workload.expand(16 * MIB) == 16 * MIB
    workload.delete()


def test_root_with_all_capabilities_is_held_or_not_as_the_filesystem_does_it(filesystem: Path, driver: Driver) -> None:
    workload = directory(driver, "roots", 4 * MIB)
    target = up(workload)
    # Bounded: ext4 would let it fill the disk.
    script = f"dd if=/dev/zero of={target}/file bs=64k count=256 status=none conv=fsync"
    failed = subprocess.run(["sh", "-c", script], capture_output=True, check=False, timeout=60).returncode != 0
    total, used, available = stats(workload)
    print(f"{kind_of(filesystem)}: root wrote {used} of {total}")
    assert used == disk_usage(target)
    if kind_of(filesystem) == "xfs":
        assert failed
        assert used <= total
    else:
        assert not failed
        assert used >= 16 * MIB
        assert available == 0
        # Everybody else finds the volume full.
        assert write(target, NOBODY, "write", "another") in FULL
    workload.down()


def test_a_driver_killed_at_any_step_leaves_no_limit_once_it_is_back(filesystem: Path, driver: Driver) -> None:
    rooms = [driver.pool / room for room in ("volumes", "tmp", "trash")]
    taken: set[int] = set()

    def remains() -> list[tuple[str, Path, int]]:
        """(room, directory, project id) of every object with a record."""
        found = [path for room in rooms for path in room.iterdir() if (path / "record.json").exists()]
        return [(path.parent.name, path, project_in(path)) for path in found]

    def killed_at(point: str, act: Callable[[], object]) -> list[tuple[str, Path, int]]:
        driver.restart(HOSTVOL_CRASH_AT=point)
        with pytest.raises(Failure):
            act()
        assert driver.wait_dead() == -signal.SIGKILL
        taken.update(project_id for *_, project_id in remains())
        return remains()

    first, second = directory(driver, "first"), directory(driver, "second")
    [(room, path, project_id)] = killed_at("directory.project_set", first.create)
    assert room == "tmp"
    assert charged_to(path / "data") == project_id
    assert reported(filesystem, project_id)[1] == 0

    # This one is killed while what the one before left may be half cleared.
    left = killed_at("directory.limited", second.create)
    assert second.size_bytes in [reported(filesystem, project_id)[1] for _, _, project_id in left]

    def create_write_delete() -> None:
        target = up(second)
        (target / "file").write_bytes(b"d" * MIB)
        run("sync", "-f", str(target))
        second.down()

    left = killed_at("delete.discarded", create_write_delete)
    [project_id] = [project_id for room, _, project_id in left if room == "trash"]
    used, limit = reported(filesystem, project_id)
    assert limit == second.size_bytes
    assert used >= MIB

    # Clearing is killed as well, at one place and then the next.
    for point in ("clear.project_freed", "clear.data_removed"):
        driver.start(wait=False, HOSTVOL_CRASH_AT=point)
        assert driver.wait_dead() == -signal.SIGKILL
        assert 0 in [reported(filesystem, project_id)[1] for _, _, project_id in remains()]

    driver.start()
    assert len(taken) == 3
    until(lambda: all(is_free(filesystem, project_id) for project_id in taken))
    until(lambda: driver.files() == [])
    assert write(up(first), NOBODY, "write") in FULL
    assert disk_usage(Path(first.target())) <= first.size_bytes
    first.down()


def modify(workload: Workload, quota_policy: str) -> None:
    mutable = {"quota": quota_policy}
    workload.driver.call("ControllerModifyVolume", volume_id=workload.volume_id, mutable_parameters=mutable)


def fill(target: Path) -> None:
    """6 MiB of files, with what else a tree has."""
    (target / "deep" / "er").mkdir(parents=True)
    for path in (target / "file", target / "deep/file", target / "deep/er/file"):
        path.write_bytes(b"f" * 2 * MIB)
        os.chown(path, NOBODY, NOBODY)
    os.link(target / "file", target / "deep/link")
    os.symlink("/etc/passwd", target / "symlink")
    os.mkfifo(target / "fifo")
    run("sync", "-f", str(target))


def test_a_directory_gets_its_limit_while_nobody_uses_it(filesystem: Path, driver: Driver) -> None:
    workload = Workload(driver, "free", parameters=NONE, size_bytes=16 * MIB)
    target = up(workload)
    fill(target)
    with pytest.raises(Failure, match="it is mounted; stop what uses it"):
        modify(workload, "required")
    workload.unpublish()
    workload.unstage()
    driver.restart(HOSTVOL_CRASH_AT="directory.charged")
    with pytest.raises(Failure):
        modify(workload, "required")
    assert driver.wait_dead() == -signal.SIGKILL
    driver.start()
    workload.stage()
    workload.publish()
    assert driver.call("GetVolume", volume_id=workload.volume_id).quota == "none"
    (target / "new").mkdir()
    (target / "new/file").write_bytes(b"n")
    for name in ("new/file", "deep/er/file"):
        os.rename(target / name, target / "moved")
        os.rename(target / "moved", target / "deep" / "moved")
        os.rename(target / "deep/moved", target / name)
    assert reported(filesystem, project_of(workload))[1] == 0
    workload.unpublish()
    workload.unstage()
    modify(workload, "required")
    workload.stage()
    workload.publish()
    used, limit = reported(filesystem, project_of(workload))
    assert limit == 16 * MIB
    assert 6 * MIB <= used <= 6 * MIB + SLACK
    assert write(target, NOBODY, "write", "rest") in FULL
    assert disk_usage(target) <= 16 * MIB
    # Lifted at once, also while it is used.
    modify(workload, "none")
    assert reported(filesystem, project_of(workload))[1] == 0
    run("dd", "if=/dev/zero", f"of={target}/more", "bs=1M", "count=12", "conv=fsync")
    project_id = project_of(workload)
    workload.unpublish()
    workload.unstage()
    with pytest.raises(Failure, match="expand it, or delete files"):
        modify(workload, "required")
    workload.expand(64 * MIB)
    modify(workload, "required")
    assert reported(filesystem, project_id)[1] == 64 * MIB
    workload.delete()
    until(lambda: is_free(filesystem, project_id))


def test_a_limit_survives_a_power_cut_and_a_deleted_one_does_not(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    kept, deleted = directory(driver, "kept", 8 * MIB), directory(driver, "deleted", 8 * MIB)
    (up(deleted) / "file").write_bytes(b"x" * MIB)
    gone = project_of(deleted)
    deleted.down()
    kept.create()
    cut_power(str(filesystem), flush_log=False)
    driver.kill()
    remount(driver, filesystem, DISKS[kind], "prjquota")
    assert reported(filesystem, project_of(kept))[1] == 8 * MIB
    assert write(up(kept), NOBODY, "write") in FULL
    assert 8 * MIB - SLACK <= disk_usage(Path(kept.target())) <= 8 * MIB
    until(lambda: is_free(filesystem, gone), what=lambda: reported(filesystem, gone))
    kept.down()


def settled_capacity(driver: Driver) -> int:
    """What is available once nothing of earlier tests is being cleared away any more."""
    before = -1
    while (now := capacity(driver)) != before:
        before = now
        time.sleep(1.5)
    return now


def test_growth_is_quota_less_usage(driver: Driver) -> None:
    everything = settled_capacity(driver)
    half = directory(driver, "half", everything // 2 // 4096 * 4096)
    target = up(half)
    granted = capacity(driver)
    assert abs(granted - everything // 2) <= MIB
    with open(target / "file", "wb") as file:
        for _ in range(half.size_bytes * 3 // 4 // MIB):
            file.write(b"g" * MIB)
    run("sync", "-f", str(target))
    # What was written is not available any more and not promised any more: the rest is what it was before.
    rest = directory(driver, "rest", granted - 8 * MIB)
    until(lambda: code_of_creating(rest) is Code.OK)
    rest.create()
    assert capacity(driver) <= 16 * MIB
    rest.delete()
    half.down()
    until(lambda: abs(capacity(driver) - everything) <= 2 * MIB)


def test_volumes_granted_to_the_brim_are_all_written_full_at_once(filesystem: Path, driver: Driver) -> None:
    share = settled_capacity(driver) // 6 // 4096 * 4096
    workloads = [directory(driver, f"brim-{number}", share) for number in range(5)]
    targets = [up(workload) for workload in workloads]
    # The directories took some blocks themselves.
    workloads.append(directory(driver, "brim-last", capacity(driver)))
    targets.append(up(workloads[-1]))
    granted = sum(workload.size_bytes for workload in workloads)
    assert capacity(driver) <= MIB
    assert code_of_creating(directory(driver, "one-more", MIB)) is Code.RESOURCE_EXHAUSTED

    command = [sys.executable, "-S", "-c", WRITER]
    writers = [
        subprocess.Popen([*command, str(target), str(NOBODY), "append", "file"], stdout=subprocess.PIPE)
        for target in targets
    ]
    errors = {int(writer.communicate(timeout=60)[0]) for writer in writers}
    used = [disk_usage(target) for target in targets]
    short = [workload.size_bytes - one for workload, one in zip(workloads, used, strict=True)]
    left = os.statvfs(filesystem)
    print(
        f"{kind_of(filesystem)}: {granted >> 20} of {left.f_blocks * left.f_frsize >> 20} MiB granted to 6 volumes, "
        f"{[errno.errorcode[one] for one in errors]}, bytes short of their sizes {short}, "
        f"{left.f_bavail * left.f_frsize >> 20} MiB still available"
    )
    assert errors <= FULL
    assert all(0 <= one <= SLACK for one in short)
    assert left.f_bavail > 0
    for workload in workloads:
        workload.down()


def test_the_list_of_pools_shows_the_quota_and_an_unlimited_volume_has_no_project(
    filesystem: Path, driver: Driver
) -> None:
    listed = run(sys.executable, "-m", "csi_driver", "pool", "list", "--endpoint", driver.endpoint).splitlines()
    header = listed[0]
    [row] = [line for line in listed if str(driver.pool) in line]
    assert row[header.index("QUOTA") :].split()[0] == "project"
    workload = Workload(driver, "unlimited", parameters=NONE)
    target = Path(workload.up())
    space = os.statvfs(filesystem)
    assert charged_to(target) == 0
    assert stats(workload)[0] == space.f_blocks * space.f_frsize
    workload.down()


def test_a_workload_that_changes_projects_takes_no_limit_from_anybody(filesystem: Path, driver: Driver) -> None:
    hostile, victim = directory(driver, "hostile"), directory(driver, "victim")
    at, victim_at = up(hostile), up(victim)
    own, others = project_of(hostile), project_of(victim)
    (at / "moved").write_bytes(b"m" * MIB)
    (at / "kept").write_bytes(b"k" * MIB)
    for path in (at / "moved", at):
        run("chattr", "-p", str(others), str(path))
    assert [charged_to(path) for path in (at, at / "moved", at / "kept")] == [others, others, own]
    hostile.down()
    until(lambda: is_free(filesystem, own), what=lambda: reported(filesystem, own))
    assert reported(filesystem, others)[1] == victim.size_bytes
    assert write(victim_at, NOBODY, "write") in FULL
    assert victim.size_bytes - SLACK <= disk_usage(victim_at) <= victim.size_bytes
    victim.down()
    until(lambda: is_free(filesystem, others))


def test_a_pool_mounted_without_its_quota_serves_what_it_has_and_refuses_more(filesystem: Path, driver: Driver) -> None:
    kind = kind_of(filesystem)
    kept, deleted = (directory(driver, name, 4 * MIB) for name in ("kept", "deleted"))
    for workload in (kept, deleted):
        (up(workload) / "file").write_bytes(b"l" * MIB)
        workload.unpublish()
        workload.unstage()
    gone = project_of(deleted)

    remount(driver, filesystem, DISKS[kind], "defaults")
    with pytest.raises(Failure) as refused:
        directory(driver, "refused").create()
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "parameters.quota" in refused.value.details
    assert "-o prjquota" in refused.value.details
    accepted = Workload(driver, "accepted", parameters=NONE)
    (Path(accepted.up()) / "file").write_bytes(b"a" * 4096)
    accepted.down()
    for workload in (kept, deleted):
        workload.stage()
        target = Path(workload.publish())
        assert (target / "file").stat().st_size == MIB
        # It can fill the whole filesystem now, and the statistics say so.
        space = os.statvfs(filesystem)
        assert stats(workload)[0] == space.f_blocks * space.f_frsize
        workload.unpublish()
        workload.unstage()
    deleted.delete()

    remount(driver, filesystem, DISKS[kind], "prjquota")
    # XFS cannot be told without its quota; that limit holds nobody, since an id with a limit is given to nobody.
    print(f"{kind}, quota back: (used, limit) of the volume deleted meanwhile {reported(filesystem, gone)}")
    assert reported(filesystem, gone) == (0, 4 * MIB if kind == "xfs" else 0)
    assert reported(filesystem, project_of(kept))[1] == 4 * MIB
    kept.stage()
    assert write(Path(kept.publish()), NOBODY, "write", "more") in FULL
    assert disk_usage(Path(kept.target())) <= 4 * MIB
    kept.down()


def test_image_volumes_of_every_kind_live_on_this_kernel(driver: Driver) -> None:
    workloads = [
        Workload(driver, "ext4"),
        Workload(driver, "ext4-thick", parameters={"provisioning": "thick"}),
        Workload(driver, "xfs", fs_type="xfs", size_bytes=300 * MIB),
        Workload(driver, "btrfs", fs_type="btrfs", size_bytes=128 * MIB),
        Workload(driver, "block", block=True),
    ]
    # Some at a time: all together are more than the pool can promise.
    for some in (workloads[:2], workloads[2:3], workloads[3:]):
        for workload in some:
            target = Path(workload.up())
            if workload.block:
                with open(target, "r+b", buffering=0) as device:
                    device.write(b"h" * 4096)
            else:
                assert kind_of(target) == (workload.fs_type or "ext4")
                (target / "file").write_bytes(b"h" * 4096)
        mounts = driver.mounts()
        driver.restart()
        for workload in some:
            workload.stage()
            workload.publish()
            target = Path(workload.target())
            with open(target if workload.block else target / "file", "rb") as file:
                assert file.read(4096) == b"h" * 4096
            assert stats(workload)[0] > 0
        assert driver.mounts() == mounts
        for workload in some:
            workload.down()


def test_images_of_one_template_have_uuids_of_their_own(driver: Driver) -> None:
    workloads = [Workload(driver, f"twin-{number}") for number in range(2)]
    found = [run("findmnt", "-no", "UUID", workload.up()).strip() for workload in workloads]
    assert len(set(found)) == 2
    for workload in workloads:
        workload.down()


def test_a_pool_in_a_backing_file_holds_directories_to_their_size(filesystem: Path, tmp_path: Path) -> None:
    backed = filesystem / "backed"
    initialise_backed_pool(str(backed), DEFAULT_DRIVER_NAME, 320 * MIB)
    with running(tmp_path / "driver", backed) as driver:
        assert "prjquota" in run("findmnt", "-no", "OPTIONS", str(backed / "pool"))
        workload = directory(driver, "held")
        target = up(workload)
        assert write(target, NOBODY, "write") in FULL
        assert workload.size_bytes - SLACK <= disk_usage(target) <= workload.size_bytes
        workload.down()
    run("umount", str(backed / "pool"))
    (backed / "hostvol-backing.img").unlink()


def test_qgroups_that_an_older_kernel_keeps_are_reaped(tmp_path: Path) -> None:
    mkfs = ["mkfs.btrfs", "-q", "-f"]
    with (
        mounted(tmp_path / "mnt", "btrfs", "commit=1", disk=BTRFS_DISK, mkfs=mkfs) as mount_point,
        running(tmp_path / "driver", mount_point / "pool") as driver,
    ):

        def qgroups() -> dict[str, int]:
            """Bytes referenced by qgroup."""
            lines = run("btrfs", "qgroup", "show", "-r", "--raw", str(mount_point)).splitlines()
            return {words[0]: int(words[1]) for line in lines if (words := line.split())[0].startswith("0/")}

        workload = directory(driver, "limited")
        target = up(workload)
        assert write(target, NOBODY, "write") in FULL
        print(f"btrfs: du {disk_usage(target)} of {workload.size_bytes}")
        assert disk_usage(target) <= workload.size_bytes
        assert stats(workload)[0] == workload.size_bytes
        assert len(qgroups()) == 2
        workload.down()
        # The kernel lets nobody take the qgroup before the commit after the one that removed the subvolume.
        until(lambda: not any(bytes_ for name, bytes_ in qgroups().items() if name != "0/5"))
        print(f"btrfs of {os.uname().release}: after the deletion {sorted(qgroups())}")
        driver.restart()
        until(lambda: set(qgroups()) == {"0/5"}, what=qgroups)
        again = directory(driver, "again")
        assert write(up(again), NOBODY, "write") in FULL
        again.down()
