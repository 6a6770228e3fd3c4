"""One driver on three filesystems that is killed over and over, and what must be true of it in between."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import queue
import signal
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from csi_driver import faults
from tests.checks import CHECKS
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, Failure, PoolPlace, Workload, admin_volumes, run
from tests.waiting import until

T = TypeVar("T")
TRIES = 3  # I8: a retry heals within three calls
_SHOWN = 3000
CONTENT = b"hostvol!" * 512


def code_of(call: Callable[[], object]) -> Code:
    """What the call is answered with."""
    try:
        call()
    except Failure as failure:
        return failure.code
    return Code.OK


def attached() -> list[tuple[str, str]]:
    """Every attached loop device with its backing file, as sysfs tells; quick among hundreds that are not attached."""
    found = []
    for device in os.listdir("/sys/block"):
        with contextlib.suppress(OSError), open(f"/sys/block/{device}/loop/backing_file", "rb") as file:
            found.append((device, os.fsdecode(file.read().rstrip(b"\n"))))
    return found


def numbered(names: Iterable[str]) -> list[str]:
    """`name:N` for the N-th passage of each name."""
    passed: Counter[str] = Counter()
    points = []
    for name in names:
        passed[name] += 1
        points.append(f"{name}:{passed[name]}")
    return points


@dataclass(frozen=True)
class Kind:
    """One kind of volume."""

    fs_type: str = ""
    size_bytes: int = 16 * MIB
    block: bool = False
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        return self.parameters.get("type") != "directory"

    @property
    def pool(self) -> str:
        return self.parameters.get("pool", "default")


class Subject(Workload):
    """The volume that a case is about. Its staging path is the driver's to make and to remove."""

    kind: Kind
    written = False

    @classmethod
    def of(cls, driver: Driver, name: str, kind: Kind) -> Subject:
        made = cls(driver, name, kind.block, kind.fs_type, kind.size_bytes, kind.parameters)
        made.kind = kind
        return made

    @property
    def staging(self) -> str:
        path = self.driver.home / "staging" / self.volume_id
        path.parent.mkdir(exist_ok=True)
        return str(path)

    # The workload is a process of its own: a descriptor of this one would be inherited for a moment by whatever the
    # other lane starts, and would keep the volume busy.

    def write(self) -> None:
        """Put content into the published volume, durably."""
        command = ("dd", "status=none", "conv=notrunc,fsync", f"of={self._place}")
        subprocess.run(command, input=CONTENT, check=True, timeout=60)
        self.written = True

    def content(self) -> bytes:
        """What the published volume holds; empty for a new one."""
        if not os.path.exists(self._place):
            return b""
        command = ("head", "-c", str(len(CONTENT)), self._place)
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.rstrip(b"\0")

    @property
    def grown_bytes(self) -> int:
        """The size that an expansion asks for."""
        return 2 * self.size_bytes

    def grow(self) -> None:
        """Both halves of an expansion; the node's may be left to the next stage."""
        assert self.expand(self.grown_bytes) == self.grown_bytes
        try:
            self.expand_on_node()
        except Failure as failure:
            # An ext4 that is mounted, on a machine whose root lacks CAP_SYS_RESOURCE.
            if failure.code is not Code.FAILED_PRECONDITION or "CAP_SYS_RESOURCE" not in failure.details:
                raise

    def shown_bytes(self) -> int:
        """How large the published volume is to its users: its device, or the filesystem on it."""
        if self.block:
            return int(run("blockdev", "--getsize64", self.target()))
        space = os.statvfs(self.target())
        return space.f_blocks * space.f_frsize

    @property
    def _place(self) -> str:
        return self.target() if self.block else f"{self.target()}/content"

    def with_other_size(self) -> Subject:
        """The same name, asked with another spec."""
        other = Subject.of(
            self.driver, self.name, dataclasses.replace(self.kind, size_bytes=self.size_bytes + 16 * MIB)
        )
        other.parameters = self.parameters
        return other


@dataclass(frozen=True)
class Baseline:
    """Everything that a volume may leave behind."""

    mounts: list[str]
    loops: list[str]
    files: list[str]
    states: list[str]
    paths: list[str]
    new_templates: list[str]
    volume_ids: list[str]


@dataclass
class Lane:
    """A driver that can be armed while it runs, its pools, and volumes that nobody touches."""

    where: Path
    driver: Driver
    bystanders: list[Subject] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    before: Baseline | None = None

    @classmethod
    def make(cls, where: Path) -> Lane:
        places = [PoolPlace.make(where / name, name, 3 * GIB) for name in ("host", "xfs", "btrfs")]
        environment = {faults.CRASH_AT: f"@{where / 'armed'}", faults.CRASH_LOG: str(where / "passed")}
        names, options = ["default", "xfs", "btrfs"], [",ephemeral=1Gi"] * 3
        driver = Driver(where / "driver", places, names=names, options=options, environment=environment)
        lane = cls(where, driver)
        driver.start()
        lane._add_bystanders()
        lane.before = lane.observe()
        return lane

    def remove(self) -> None:
        """Nothing of this lane is left on the machine."""
        self.driver.kill()
        self.driver.clean_up()
        for place in self.driver.pools:
            place.remove()

    @property
    def bystander_ids(self) -> set[str]:
        return {one.volume_id for one in self.bystanders}

    # crash

    def passing(self, call: Callable[[], object]) -> list[str]:
        """The points (`name:N`) that `call` passes."""
        (self.where / "passed").write_bytes(b"")
        call()
        return numbered(self._passed())

    def arm(self, point: str) -> None:
        """The next passage of the point kills the driver."""
        (self.where / "armed").write_text(point)

    def disarm(self) -> None:
        (self.where / "armed").unlink(missing_ok=True)

    def crash(self, point: str, call: Callable[[], object]) -> None:
        """The driver dies at `point` within `call`, and is not started again."""
        self.arm(point)
        assert code_of(call) is Code.UNAVAILABLE, f"not killed at {point}"
        self._expect_killed()

    def crash_at_start(self, point: str) -> None:
        """The driver dies at `point` while it starts or clears."""
        self.arm(point)
        self.driver.start(wait=False)
        self._expect_killed()

    def _expect_killed(self) -> None:
        assert self.driver.wait_dead() == -signal.SIGKILL
        self.disarm()

    def heal(self, call: Callable[[], T]) -> T:
        """The answer of a call that may be repeated twice."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(Failure):
                return call()
        return call()

    # look

    def listed(self) -> list[str]:
        """The ids on all pages of ListVolumes."""
        found, token = [], ""
        while True:
            page = self.driver.call("ListVolumes", max_entries=2, starting_token=token)
            found += [entry.volume.volume_id for entry in page.entries]
            token = page.next_token
            if not token:
                return sorted(found)

    def named(self, name: str) -> list[str]:
        """The ids of all volumes of that name."""
        return [
            volume_id
            for volume_id in self.listed()
            if volume_id not in self.bystander_ids and self.driver.call("GetVolume", volume_id=volume_id).name == name
        ]

    def observe(self) -> Baseline:
        """What is there now."""
        home, pools = self.driver.home, self.driver.pools
        return Baseline(
            mounts=sorted(self.driver.mounts()),
            loops=sorted(f"{device} {path}" for device, path in attached() if path.startswith(f"{self.where}/")),
            files=self.driver.files(),
            states=sorted(str(path) for path in (home / "state").rglob("*") if path.is_file()),
            paths=sorted(str(path) for room in ("staging", "targets") for path in (home / room).glob("*")),
            new_templates=[str(path) for pool in pools for path in (pool.directory / "templates").glob("*.new")],
            volume_ids=self.listed(),
        )

    def check_baseline(self) -> None:
        """Everything is as it was before; what a start clears in the background is waited for."""
        until(lambda: self.observe() == self.before, what=lambda: _difference(self.before, self.observe()))
        self.check_bystanders()

    def check_bystanders(self) -> None:
        """Nothing acknowledged is lost, and no byte of it is changed (I1, I3)."""
        assert self.bystander_ids <= set(self.listed())
        assert [_digest(_data_of(one)) for one in self.bystanders] == self.digests

    def leftovers(self) -> list[str]:
        """What waits to be cleared below the pools."""
        return [path for path in self.driver.files() if path.startswith(("tmp/", "trash/"))]

    def drop_templates(self) -> None:
        for pool in self.driver.pools:
            for path in (pool.directory / "templates").iterdir():
                path.unlink()

    def drop_quota(self) -> None:
        """The btrfs is as it was made, without quotas."""
        run("btrfs", "quota", "disable", str(self.driver.pools[-1].mount_point), check=False)

    def check_no_qgroup_is_left(self) -> None:
        """No deleted subvolume leaves its qgroup; where the kernel leaves it to us, a start takes it away."""
        mount_point = str(self.driver.pools[-1].mount_point)
        run("btrfs", "filesystem", "sync", mount_point)
        run("btrfs", "subvolume", "sync", mount_point)
        self.driver.restart()
        until(lambda: _qgroups(mount_point) == ["0/5"], what=lambda: _qgroups(mount_point))

    def wait_passed(self, name: str) -> None:
        """Until the driver has passed the point."""
        until(lambda: name in self._passed(), what=self._passed)

    def _passed(self) -> list[str]:
        return (self.where / "passed").read_text().split()

    def pool_of(self, kind: Kind) -> PoolPlace:
        return self.driver.pools[list(self.driver.names).index(kind.pool)]

    def image(self, subject: Subject) -> Path:
        return self.pool_of(subject.kind).directory / "volumes" / subject.volume_id / "disk.img"

    def check_extended(self, subject: Subject) -> None:
        """The volume has its new size in the driver's answer, on the disk, and as a device."""
        told = self.driver.call("ControllerGetVolume", volume_id=subject.volume_id).volume.capacity_bytes
        assert told == subject.grown_bytes
        if subject.kind.is_image:
            assert self.image(subject).stat().st_size == subject.grown_bytes
        for device in self.loops_of(subject):
            assert int(Path(f"/sys/block/{device}/size").read_text()) * 512 == subject.grown_bytes

    def check_detached(self, subject: Subject) -> None:
        """Nothing is mounted or attached, and the filesystem in the image is sound."""
        assert subject.volume_id not in " ".join(self.driver.mounts())
        assert self.loops_of(subject) == []
        if subject.kind.is_image and not subject.block:
            run(*CHECKS[subject.fs_type or "ext4"], str(self.image(subject)))

    def loops_of(self, subject: Subject) -> list[str]:
        """The loop devices over the volume's image."""
        image = str(self.image(subject))
        return [device for device, path in attached() if path == image]

    def check_up(self, subject: Subject) -> None:
        """The volume is mounted once where it should be, by one loop device, with its content."""
        mounts = self.driver.mounts()
        assert mounts.count(subject.staging) == (0 if subject.block else 1), mounts
        assert mounts.count(subject.target()) == 1, mounts
        assert len(self.loops_of(subject)) == (1 if subject.kind.is_image else 0)
        assert subject.content() == (CONTENT if subject.written else b"")

    # repair after a case that failed, so that the next one starts from something known

    def recover(self) -> None:
        self.disarm()
        self.driver.kill()
        self.driver.start()
        assert self.before is not None
        for path in reversed(self.driver.mounts()):
            if path not in self.before.mounts:
                run("umount", path, check=False)
        for volume_id in set(self.listed()) - self.bystander_ids:
            with contextlib.suppress(Failure):
                self.driver.call("DeleteVolume", volume_id=volume_id)
        for one in self.driver.call("ListTrash").entries:
            with contextlib.suppress(Failure):
                self.driver.call("PurgeTrash", entry=one.entry)
        for one in admin_volumes(self.driver):
            if one.pod:
                self.driver.call("DeleteVolume", volume_id=one.volume_id)
        self.before = self.observe()

    def _add_bystanders(self) -> None:
        kinds = {
            "published-image": Kind(),
            "published-directory": Kind(parameters=DIRECTORY),
            "idle-block": Kind(block=True, size_bytes=4 * MIB),
        }
        for name, kind in kinds.items():
            one = Subject.of(self.driver, name, kind)
            one.up()
            one.write()
            if kind.block:
                one.unpublish()
                one.unstage()
            self.bystanders.append(one)
        self.digests = [_digest(_data_of(one)) for one in self.bystanders]


class Lanes:
    """Lanes that take cases in parallel."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.all = lanes
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def run(self, cases: Mapping[str, Callable[[Lane], object]]) -> dict[str, str]:
        """Run every case on whichever lane is free; the tracebacks of those that failed, by name."""

        def one(case: Callable[[Lane], object]) -> str:
            lane = self._free.get()
            try:
                case(lane)
            except Exception:
                failure = traceback.format_exc(limit=-4)[-_SHOWN:]
                lane.recover()
                return failure
            finally:
                self._free.put(lane)
            return ""

        with ThreadPoolExecutor(len(self.all)) as workers:
            outcomes = dict(zip(cases, workers.map(one, cases.values()), strict=True))
        return {name: failure for name, failure in outcomes.items() if failure}


def _data_of(one: Subject) -> Path:
    if one.block:
        return one.driver.pool / "volumes" / one.volume_id / "disk.img"
    return Path(one.target(), "content")


def _qgroups(mount_point: str) -> list[str]:
    rows = run("btrfs", "qgroup", "show", "--raw", mount_point).splitlines()
    return [row.split()[0] for row in rows if row.startswith("0/")]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _difference(before: Any, now: Any) -> dict[str, tuple[list[str], list[str]]]:
    """What is gone, and what is too much, by field."""
    found = {}
    for one in dataclasses.fields(before):
        held, is_now = Counter(getattr(before, one.name)), Counter(getattr(now, one.name))
        if held != is_now:
            found[one.name] = (list((held - is_now).elements()), list((is_now - held).elements()))
    return found
