"""Image volumes of every kind live on the machine's older kernel, too. On XFS and ext4, each mounted with `prjquota`.

Runs inside the machine of `test_driver_quota.py`.
"""

from __future__ import annotations

from pathlib import Path

from tests.harness import MIB, Driver, Workload, run
from tests.uml.directories import kind_of, stats


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
