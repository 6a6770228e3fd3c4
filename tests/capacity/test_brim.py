"""Whoever was promised bytes gets them: pools are granted to the brim, and then every volume is written full.

- Volumes of every kind are granted until nothing is left; then all are written full at the same time, and none meets
  an I/O error, nor does the filesystem below run out of space. What was written is read back from the disk.
- What GetCapacity says is granted by the create that asks for exactly that, and a little more is not.
- Templates of images are within what was promised, also when several are made at once.
- A thick volume can be written and written again after a stranger took all the rest.
- Callers at the same time are granted no more than one after the other, and a workload that discards its blocks and
  writes them again does not run out of space.
- A pool with overcommit=2 grants twice what it has; pools on one filesystem share it.
- A deleted volume gives back what it held, a create that failed what it was promised.
- `hostvol pool list` agrees with df.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.capacity.filling import available, fill_device, fill_file, holds, occupy, vacate
from tests.harness import MIB, Code, Driver, Failure, PoolPlace, Workload, capability, run
from tests.waiting import until

FILESYSTEMS = ["ext4", "xfs", "btrfs"]
THICK = {"provisioning": "thick"}
WITH_QUOTA = {"type": "directory"}
MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


@pytest.fixture(params=FILESYSTEMS)
def fs_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@dataclass
class Filled:
    """A volume that was written full."""

    workload: Workload
    target: str = ""
    size_bytes: int = 0

    @property
    def file(self) -> str:
        return self.target if self.workload.block else f"{self.target}/full"

    def up(self) -> None:
        self.workload.stage()
        self.target = self.workload.publish()

    def down(self) -> None:
        self.workload.unpublish()
        self.workload.unstage()

    def fill(self, seed: str = "") -> None:
        fill = fill_device if self.workload.block else fill_file
        self.size_bytes = fill(self.file, self.workload.name + seed)

    def check(self, seed: str = "") -> None:
        assert holds(self.file, self.workload.name + seed, self.size_bytes), f"{self.workload.name} lost what it held"


def grantable(driver: Driver, **parameters: str) -> int:
    """What GetCapacity says for a block volume."""
    asked = [capability(block=True)]
    return int(driver.call("GetCapacity", volume_capabilities=asked, parameters=parameters).available_capacity)


def grantable_for(workload: Workload) -> int:
    """What GetCapacity says for such a volume."""
    asked, parameters = [workload.capability], workload.parameters
    answer = workload.driver.call("GetCapacity", volume_capabilities=asked, parameters=parameters)
    return int(answer.available_capacity)


def grant_to_the_brim(driver: Driver, kinds: Sequence[dict[str, Any]]) -> list[Filled]:
    """Create volumes of these kinds and sizes in turn, then one of exactly what is left."""
    made: list[Filled] = []
    for number in range(1000):
        last = number >= 200
        kind: dict[str, Any] = {"block": True, "size_bytes": 1 << 60} if last else kinds[number % len(kinds)]
        workload = Workload(driver, f"volume-{number}", **kind)
        can = grantable_for(workload)
        if not last and can < workload.size_bytes:
            workload = Workload(driver, f"volume-{number}", block=True)
            workload.size_bytes = can = grantable_for(workload)
        if can == 0:
            workload.size_bytes = 4096
            # A refusal comes after the templates were given up. Their space is for others then, on XFS a moment later.
            if try_to_create(workload) is Code.RESOURCE_EXHAUSTED:
                settle(driver)
                if try_to_create(workload) is Code.RESOURCE_EXHAUSTED:
                    return made
        else:
            workload.size_bytes = min(workload.size_bytes, can)
            workload.create()  # never refused: GetCapacity said so
        made.append(Filled(workload))
    raise AssertionError("the pool is bottomless")


def settle(driver: Driver) -> None:
    """Wait until the filesystem has given back what was deleted: btrfs at a commit, XFS in the background."""
    before = -1
    while (now := available(driver.pool)) != before:
        before = now
        if run("stat", "-f", "-c", "%T", str(driver.pool)).strip() == "btrfs":
            run("btrfs", "filesystem", "sync", str(driver.pool))  # wakes its cleaner too
        else:
            run("sync", "-f", str(driver.pool))
        time.sleep(0.1)


def try_to_create(workload: Workload) -> Code:
    """The code of the answer."""
    try:
        workload.create()
    except Failure as failure:
        return failure.code
    return Code.OK


def create_at_once(workloads: list[Workload], callers: int) -> list[Filled]:
    """Create from many threads what can be created; whoever is refused for lack of space tries once more, alone.

    While a thick volume is built it counts twice, to the safe side, so that a refusal may be too much.
    """
    with ThreadPoolExecutor(callers) as threads:
        codes = list(threads.map(try_to_create, workloads))
    refused = [workload for workload, code in zip(workloads, codes, strict=True) if code is not Code.OK]
    codes += [try_to_create(workload) for workload in refused]
    assert set(codes) <= {Code.OK, Code.RESOURCE_EXHAUSTED}
    return [Filled(workload) for workload in workloads if workload.volume_id]


def write_everything_full(driver: Driver, volumes: list[Filled], mount_point: Path) -> None:
    """All at once; then read all of it back from the disk, after every volume was put down and up again."""
    for volume in volumes:
        volume.up()
    with ThreadPoolExecutor(len(volumes)) as threads:
        list(threads.map(Filled.fill, volumes))
    for volume in volumes:
        volume.down()
    run("sync", "-f", str(mount_point))
    for volume in volumes:
        volume.up()
        volume.check()
        volume.down()
        if (
            volume.workload.capability.mount.fs_type == ""
            and not volume.workload.block
            and not volume.workload.parameters
        ):
            run("e2fsck", "-fn", str(driver.pool / "volumes" / volume.workload.volume_id / "disk.img"))
    still_writable(mount_point)


def still_writable(mount_point: Path) -> None:
    """The filesystem below has room for its own needs, and did not stop over an error."""
    assert "rw" in run("findmnt", "-no", "OPTIONS", str(mount_point)).strip().split(",")
    with open(mount_point / "probe", "xb") as file:
        file.write(b"x" * MIB)
        file.flush()
        os.fsync(file.fileno())
    os.unlink(mount_point / "probe")


KINDS: dict[str, list[dict[str, Any]]] = {
    "thin": [
        {"size_bytes": 48 * MIB},
        {"block": True, "size_bytes": 100 * MIB},
        {"size_bytes": 130 * MIB},
        {"block": True, "size_bytes": 4096},
        {"size_bytes": 8 * MIB},
    ],
    "mixed": [
        {"size_bytes": 64 * MIB, "parameters": THICK},
        {"block": True, "size_bytes": 90 * MIB},
        {"block": True, "size_bytes": 50 * MIB, "parameters": {**THICK, "blockSize": "512"}},
        {"fs_type": "btrfs", "size_bytes": 120 * MIB},
    ],
    "xfs": [{"fs_type": "xfs", "size_bytes": 300 * MIB}, {"fs_type": "xfs", "size_bytes": 304 * MIB}],
}
DIRECTORIES: list[dict[str, Any]] = [
    {"parameters": WITH_QUOTA, "size_bytes": 100 * MIB},
    {"size_bytes": 64 * MIB},
    {"parameters": WITH_QUOTA, "size_bytes": 33 * MIB},
]


# Directories with a quota on ext4 and XFS need a kernel with project quotas: tests/uml.
@pytest.mark.parametrize(("fs_type", "kinds"), [*itertools.product(FILESYSTEMS, KINDS), ("btrfs", "directories")])
def test_every_volume_of_a_pool_granted_to_the_brim_can_be_written_full(
    fs_type: str, kinds: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    driver = make_driver(place)
    room = available(place.mount_point)
    reserve = pool_list(driver)["reserve_bytes"]
    volumes = grant_to_the_brim(driver, KINDS.get(kinds, DIRECTORIES))
    granted = sum(volume.workload.size_bytes for volume in volumes)
    print(f"{fs_type} {kinds}: {len(volumes)} volumes, {granted} of {room} bytes, {100 * granted / room:.1f} %")
    # A small btrfs takes a quarter of a GiB for metadata.
    assert granted > (room - int(str(reserve))) * (0.6 if fs_type == "btrfs" else 0.97), "so little is no use"
    write_everything_full(driver, volumes, place.mount_point)


def test_templates_made_at_once_are_within_what_was_promised(
    fs_type: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type, 1200 * MIB)
    assert place.mount_point is not None
    driver = make_driver(place)
    sizes = [300 * MIB, 304 * MIB] if fs_type == "btrfs" else [300 * MIB, 304 * MIB, 308 * MIB]
    workloads = [Workload(driver, f"xfs-{size}", fs_type="xfs", size_bytes=size) for size in sizes]
    rest = Workload(driver, "rest", block=True, size_bytes=grantable(driver) - sum(sizes) - 8 * MIB)
    rest.create()
    # They are granted before the first template is made, each of which takes 64 MiB.
    with ThreadPoolExecutor(len(workloads)) as threads:
        codes = list(threads.map(try_to_create, workloads))
    settle(driver)
    for workload, code in zip(workloads, codes, strict=True):
        if code is not Code.OK:  # it came after the first template, and before that one was given up and given back
            until(lambda workload=workload: try_to_create(workload) is Code.OK, 120)  # type: ignore[misc]
    until(lambda: usable(driver) >= int(str(pool_list(driver)["promised_bytes"])), 120)
    write_everything_full(driver, [Filled(workload) for workload in (rest, *workloads)], place.mount_point)


def test_templates_give_way_where_a_stranger_took_what_was_promised(
    make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small("xfs", 1200 * MIB)
    assert place.mount_point is not None
    driver = make_driver(place, constants={"domain.startup._TEND_SECONDS": 0.1})
    Workload(driver, "xfs", fs_type="xfs", size_bytes=300 * MIB).create()
    Workload(driver, "rest", block=True, size_bytes=grantable(driver) - 8 * MIB).create()
    templates = driver.pool / "templates"
    time.sleep(0.5)
    assert len(list(templates.iterdir())) == 1
    occupy(place.mount_point / "stranger", leave_bytes=available(place.mount_point) - 32 * MIB)
    until(lambda: not list(templates.iterdir()), what="the template is still there")
    assert usable(driver) >= int(str(pool_list(driver)["promised_bytes"]))


def usable(driver: Driver) -> int:
    """What is there for promises."""
    row = pool_list(driver)
    return int(str(row["available_bytes"])) - int(str(row["reserve_bytes"]))


def test_thick_volumes_can_be_rewritten_when_a_stranger_took_the_rest(
    fs_type: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    driver = make_driver(place)
    volumes = [
        Filled(Workload(driver, "ext4", size_bytes=150 * MIB, parameters=THICK)),
        Filled(Workload(driver, "block", block=True, size_bytes=150 * MIB, parameters=THICK)),
    ]
    for volume in volumes:
        volume.workload.create()
        volume.up()
    occupy(place.mount_point / "stranger", leave_bytes=0)
    assert available(place.mount_point) < 8 * MIB
    for seed in ("first", "second"):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda volume, seed=seed: volume.fill(seed), volumes))
        for volume in volumes:
            volume.down()
            volume.up()
            volume.check(seed)


@pytest.mark.parametrize("parameters", [{}, THICK], ids=["thin", "thick"])
def test_a_volume_that_discards_its_blocks_can_write_them_again(
    fs_type: str, parameters: dict[str, str], make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    driver = make_driver(place)
    left = grantable(driver) - 300 * MIB
    first = Filled(Workload(driver, "first", block=True, size_bytes=300 * MIB, parameters=parameters))
    first.workload.create()
    first.up()
    first.fill()
    assert grantable(driver) <= left + MIB
    run("blkdiscard", first.target)
    assert grantable(driver) <= left + MIB
    settle(driver)
    assert grantable(driver) <= left + MIB
    second = Filled(Workload(driver, "second", block=True, size_bytes=left - 8 * MIB))
    second.workload.create()
    assert grantable(driver) <= 9 * MIB
    second.up()
    for volume in (first, second):
        volume.fill("again")
    for volume in (first, second):
        volume.check("again")
    still_writable(place.mount_point)


def test_sixteen_callers_are_granted_no_more_than_there_is(
    fs_type: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type)
    driver = make_driver(place)
    room = grantable(driver)
    choices = random.Random(fs_type)
    workloads = [
        Workload(
            driver,
            f"volume-{number}",
            block=True,
            size_bytes=choices.randrange(20, 90) * MIB,
            parameters=THICK if number % 3 == 0 else {},
        )
        for number in range(48)
    ]

    volumes = create_at_once(workloads, callers=16)
    least = min(workload.size_bytes for workload in workloads if not workload.volume_id)
    assert grantable(driver) < least
    granted = sum(volume.workload.size_bytes for volume in volumes)
    assert room * 0.8 < granted
    assert place.mount_point is not None
    write_everything_full(driver, volumes, place.mount_point)


def test_an_overcommitted_pool_grants_so_many_times_what_it_has(
    fs_type: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    driver = make_driver(make_small(fs_type), options=[",overcommit=2"])
    thick = grantable(driver, **THICK)
    expected = 2 * thick
    granted = 0
    for number in range(100):
        size = min(grantable(driver), 300 * MIB)
        if not size:
            break
        Workload(driver, f"volume-{number}", block=True, size_bytes=size).create()
        granted += size
    assert expected - 2 * MIB <= granted <= expected + 4096
    assert driver.code("GetCapacity", parameters={}) is Code.OK
    assert grantable(driver, **THICK) == 0
    with pytest.raises(Failure, match="RESOURCE_EXHAUSTED"):
        Workload(driver, "thick", block=True, size_bytes=300 * MIB, parameters=THICK).create()


def test_pools_on_one_filesystem_share_it(fs_type: str, make_small: MakePool, make_driver: MakeDriver) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    parts = [place.mount_point / name for name in ("one", "two")]
    if fs_type == "btrfs":
        for part in parts:
            run("btrfs", "subvolume", "create", str(part))
        assert len({part.stat().st_dev for part in parts}) == 2
    driver = make_driver(*parts, names=["one", "two"])
    room = grantable(driver, pool="one")
    assert grantable(driver, pool="two") == room
    volumes = []
    for number, pool in enumerate(("one", "two", "one", "two")):
        size = (room - MIB) // 4 // 4096 * 4096
        workload = Workload(driver, f"volume-{number}", block=True, size_bytes=size, parameters={"pool": pool})
        workload.create()
        volumes.append(Filled(workload))
    left = grantable(driver, pool="one")
    assert left == grantable(driver, pool="two") < 4 * MIB
    for pool in ("one", "two"):
        with pytest.raises(Failure, match="RESOURCE_EXHAUSTED"):
            Workload(driver, "more", block=True, size_bytes=8 * MIB, parameters={"pool": pool}).create()
    write_everything_full(driver, volumes, place.mount_point)


def test_two_filesystems_share_nothing(make_small: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_small("ext4"), make_small("xfs"), names=["one", "two"])
    before = grantable(driver, pool="two")
    Workload(driver, "all", block=True, size_bytes=grantable(driver, pool="one"), parameters={"pool": "one"}).create()
    assert grantable(driver, pool="one") == 0
    assert grantable(driver, pool="two") == before


def test_a_deleted_volume_gives_back_what_it_held(fs_type: str, make_small: MakePool, make_driver: MakeDriver) -> None:
    place = make_small(fs_type)
    driver = make_driver(place)
    kinds: list[dict[str, Any]] = [{"block": True}, {"block": True, "parameters": THICK}, {}]
    if fs_type == "btrfs":
        kinds.append({"parameters": WITH_QUOTA})
    room = grantable(driver)
    for number, kind in enumerate(kinds):
        volume = Filled(Workload(driver, f"volume-{number}", size_bytes=400 * MIB, **kind))
        volume.workload.create()
        volume.up()
        volume.fill()
        assert grantable(driver) < room - 300 * MIB
        volume.down()
        volume.workload.delete()
        settle(driver)
        # A measurement is believed for two seconds.
        until(lambda: grantable(driver) > room - 24 * MIB, 120)


def test_a_create_that_fails_gives_back_what_it_was_promised(make_small: MakePool, make_driver: MakeDriver) -> None:
    place = make_small("ext4", mkfs="-N 32")
    assert place.mount_point is not None
    driver = make_driver(place)
    before = grantable(driver)
    strangers = 0
    while os.statvfs(place.mount_point).f_favail > 1:
        (place.mount_point / f"stranger-{strangers}").touch()
        strangers += 1
    for thick in ({}, THICK):
        with pytest.raises(Failure, match="RESOURCE_EXHAUSTED"):
            Workload(driver, "none", block=True, size_bytes=400 * MIB, parameters=thick).create()
        assert grantable(driver) > before - MIB
        assert driver.files() == []
    for number in range(strangers):
        (place.mount_point / f"stranger-{number}").unlink()
    Workload(driver, "none", block=True, size_bytes=400 * MIB, parameters=THICK).create()


def test_what_strangers_write_is_told_and_what_they_free_is_granted(
    fs_type: str, make_small: MakePool, make_driver: MakeDriver
) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    driver = make_driver(place)
    occupy(place.mount_point / "stranger", leave_bytes=250 * MIB)
    assert 0 <= grantable(driver) < 250 * MIB
    with pytest.raises(Failure, match="RESOURCE_EXHAUSTED"):
        Workload(driver, "volume", block=True, size_bytes=300 * MIB, parameters=THICK).create()
    vacate(place.mount_point / "stranger")
    settle(driver)
    Workload(driver, "volume", block=True, size_bytes=300 * MIB, parameters=THICK).create()


def test_hostvol_pool_list_agrees_with_df(fs_type: str, make_small: MakePool, make_driver: MakeDriver) -> None:
    place = make_small(fs_type)
    assert place.mount_point is not None
    driver = make_driver(place)
    volumes = [
        Filled(Workload(driver, "thin", block=True, size_bytes=100 * MIB)),
        Filled(Workload(driver, "thick", block=True, size_bytes=50 * MIB, parameters=THICK)),
    ]
    for volume in volumes:
        volume.workload.create()
    row = pool_list(driver)
    size, free = (int(number) for number in run("df", "-B1", "--output=size,avail", str(place.mount_point)).split()[2:])
    assert int(str(row["size_bytes"])) == size
    # Of a btrfs, df does not count what metadata will take; the driver asks, and keeps to the safe side. XFS frees what
    # was unlinked in the background, so two looks differ by some blocks.
    assert free * (0.7 if fs_type == "btrfs" else 1) - MIB <= int(str(row["available_bytes"])) <= free + MIB
    assert int(str(row["promised_bytes"])) == 100 * MIB
    assert abs(int(str(row["grantable_bytes"])) - grantable(driver)) < MIB
    assert int(str(row["volume_count"])) == 2
    usable = int(str(row["available_bytes"])) - int(str(row["reserve_bytes"]))
    assert abs(int(str(row["grantable_bytes"])) - (usable - 100 * MIB)) < MIB


def pool_list(driver: Driver) -> dict[str, object]:
    """The one row of `hostvol pool list`."""
    shown = run(sys.executable, "-m", "csi_driver", "pool", "list", "--endpoint", driver.endpoint, "--output", "json")
    rows = json.loads(shown)
    assert len(rows) == 1
    return dict(rows[0])
