"""A volume grows from 1 to 8 GiB while a workload writes, and the workload does not notice.

- No write fails, none takes a second, and all that was written is read back.
- The workload can write more than the volume could hold at first.
- The filesystem is sound afterwards.

For XFS, btrfs and raw block; thick where that makes a difference. ext4 grows while it is mounted only where root has
CAP_SYS_RESOURCE, as in tests/uml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.growth.under_load import grow_below_a_writer
from tests.harness import GIB, Driver, PoolPlace, Workload


@dataclass(frozen=True)
class Kind:
    """One kind of volume, and the filesystem of its pool."""

    pool: str
    fs_type: str = ""
    block: bool = False
    parameters: dict[str, str] = field(default_factory=dict)


KINDS = {
    "xfs-thick": Kind("xfs", "xfs", parameters={"provisioning": "thick"}),
    "btrfs": Kind("ext4", "btrfs"),
    "block-thick": Kind("ext4", block=True, parameters={"provisioning": "thick"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_writer_does_not_notice_that_its_volume_grows(
    make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver], name: str
) -> None:
    kind = KINDS[name]
    driver = make_driver(make_pool(kind.pool, 12 * GIB))
    grow_below_a_writer(Workload(driver, name, kind.block, kind.fs_type, GIB, kind.parameters))
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
