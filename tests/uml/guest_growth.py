"""ext4 that grows while it is mounted, which the kernel does only for CAP_SYS_RESOURCE: root has it in this machine.

- From 1 to 8 GiB below a writer: no error, no pause of a second, every byte read back, e2fsck finds nothing.
- In every step of a size at which the last block group is small, or hardly there.
- On a pool of XFS and of ext4; beyond the descriptors that mke2fs reserved; with a feature that only resize2fs grows.

Runs inside the machine of `test_driver_growth.py`, with /dev/ubda (XFS) and /dev/ubdb (ext4) to format.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import growth
from tests.growth.under_load import grow_below_a_writer
from tests.harness import GIB, MIB, Code, Driver, PoolPlace, Workload, run
from tests.uml.quotas import mounted

DISKS = {"xfs": "/dev/ubda", "ext4": "/dev/ubdb"}
GROUP = 128 * MIB


@pytest.fixture(scope="module", params=DISKS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    kind: str = request.param
    with (
        mounted(tmp_path_factory.mktemp(kind), kind, "defaults", disk=DISKS[kind]) as mount_point,
        Driver(tmp_path_factory.mktemp("driver"), [PoolPlace(mount_point / "pool")]).serving() as driver,
    ):
        yield driver


def blocks_of(workload: Workload) -> int:
    """As dumpe2fs counts them on the mounted device."""
    source = run("findmnt", "-no", "SOURCE", workload.target()).strip()
    lines = run("dumpe2fs", "-h", source).splitlines()
    return int(next(line for line in lines if line.startswith("Block count:")).split()[-1])


def check(workload: Workload) -> None:
    image = Path(workload.driver.pool, "volumes", workload.volume_id, "disk.img")
    workload.unpublish()
    workload.unstage()
    run("e2fsck", "-fn", str(image))


def test_root_may_do_it_here() -> None:
    assert growth.may_grow_mounted_ext4()


def test_a_writer_does_not_notice_that_its_ext4_grows(driver: Driver) -> None:
    grow_below_a_writer(Workload(driver, "ext4", size_bytes=GIB))
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


def test_every_size_of_a_last_block_group_is_grown_to(driver: Driver) -> None:
    workload = Workload(driver, "steps", size_bytes=16 * MIB)
    workload.up()
    for size in (
        *(17 * MIB, GROUP - 4096, GROUP, GROUP + 4096, GROUP + MIB, GROUP + 4 * MIB, GROUP + 40 * MIB),
        *(2 * GROUP, 2 * GROUP + 2 * MIB, 3 * GROUP + 9 * MIB, 9 * GROUP + 3 * MIB, 17 * GROUP, 20 * GROUP + 4096),
    ):
        workload.expand(size)
        assert workload.expand_on_node() == size
        lacking = size // 4096 - blocks_of(workload)
        # A group that would hold hardly more than its own tables is left out.
        assert 0 <= lacking < 12 * MIB // 4096, size
        assert lacking == 0 or size % GROUP < 12 * MIB
        Path(workload.target(), f"at-{size}").write_bytes(os.urandom(MIB))
        assert workload.expand_on_node() == size
    check(workload)
    workload.delete()


def test_more_descriptors_than_were_reserved(driver: Driver) -> None:
    workload = Workload(driver, "many groups", size_bytes=8 * MIB)
    workload.up()
    # 1,024 times 8 MiB is what mke2fs leaves room for.
    workload.expand(9 * GIB)
    workload.expand_on_node()
    assert blocks_of(workload) == 9 * GIB // 4096
    check(workload)
    workload.delete()


def test_an_ext4_that_only_resize2fs_grows_does_so_when_it_is_staged(driver: Driver) -> None:
    workload = Workload(driver, "sparse", size_bytes=16 * MIB, parameters={"mkfsOptions": "-O sparse_super2"})
    workload.up()
    Path(workload.target(), "kept").write_bytes(b"k" * MIB)
    workload.expand(300 * MIB)
    request = {"volume_id": workload.volume_id, "volume_path": workload.target()}
    assert driver.code("NodeExpandVolume", **request) is Code.FAILED_PRECONDITION
    workload.unpublish()
    workload.unstage()
    workload.stage()
    workload.publish()
    workload.expand_on_node()
    assert blocks_of(workload) == 300 * MIB // 4096
    assert Path(workload.target(), "kept").read_bytes() == b"k" * MIB
    check(workload)
    workload.delete()
