"""Inline ephemeral volumes of pods, and drivers that have room for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MIB, Driver, Failure, PodVolume, PoolPlace

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"attributes": {"size": "16Mi"}},
    "ext4-tuned": {"attributes": {"size": "16Mi", "type": "image", "mkfsOptions": "-m 0"}},
    "xfs": {"attributes": {"size": "300Mi"}, "fs_type": "xfs"},
    "btrfs": {"attributes": {"size": "128Mi"}, "fs_type": "btrfs"},
    "directory": {"attributes": {"size": "16Mi", "type": "directory", "pool": "btrfs", "quota": "required"}},
}
HANDLES = ["x" * 128, "some-handle", "csi-0", f"csi-{'0' * 63}g"]

MakePool = Callable[..., PoolPlace]
MakeDriver = Callable[..., Driver]


def with_ceilings(pool: Path, make_pool: MakePool, make_driver: MakeDriver) -> Driver:
    """A driver with a pool on the machine's own filesystem and one on btrfs, each with a ceiling."""
    return make_driver(
        pool,
        make_pool("btrfs", 1 << 30),
        names=["default", "btrfs"],
        options=[",ephemeral=1Gi", ",ephemeral=64Mi"],
    )


def small(driver: Driver, name: str = "small", **attributes: str) -> PodVolume:
    return PodVolume(driver, name, {"size": "8Mi", **attributes})


def refusal(call: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        call()
    return caught.value


def fill(path: str, mebibytes: int) -> int:
    """The errno with which so many writes end; 0 when all of them fit."""
    try:
        with open(path, "wb", 0) as file:
            for _ in range(mebibytes):
                file.write(b"x" * MIB)
                os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0
