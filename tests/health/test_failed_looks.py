"""A look at one volume that fails in a way that nobody foresaw says so of that volume, and sees all the others.

- It is logged once with its volume and its cause, and again only for another cause; it is told until it is over.
- What a superblock holds may be anything: the time of an error after the year 9999 is left out.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

import pytest

from csi_driver.domain import health
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions
from csi_driver.linux import ext4_superblock, superblocks
from csi_driver.linux.superblocks import Finding
from csi_driver.model import PoolName
from tests.harness import MIB, Driver, Workload
from tests.health.asking import WORSE, image, published, troubles
from tests.health.test_filesystems import message, patch, put_away
from tests.waiting import until

AFTER_ALL_TIME = b"\xff\xff\xff\xff", b"\xff"


def write_error(path: Path) -> None:
    """The superblock says that the kernel met an error at the end of what 40 bits can say."""
    block = bytearray(patch(path, ext4_superblock.OFFSET, bytes(ext4_superblock.BYTES)))
    struct.pack_into("<I", block, 0x194, 1)
    block[0x198:0x19C], block[0x278:0x279] = AFTER_ALL_TIME
    block[0x1A8:0x1C8] = b"ext4_find_entry".ljust(32, b"\0")
    struct.pack_into("<I", block, 0x3FC, ext4_superblock.checksum(block))
    patch(path, ext4_superblock.OFFSET, bytes(block))


def test_an_error_after_all_time_is_told_without_its_time(driver: Driver) -> None:
    workload = published(driver)
    put_away(workload)
    write_error(image(workload))
    assert troubles(driver, workload.volume_id) == {"FilesystemErrors": WORSE}
    told = message(driver, workload.volume_id)
    assert "(the first in ext4_find_entry)" in told
    workload.stage()
    assert message(driver, workload.volume_id) == told, "as the kernel tells it"


@pytest.mark.parametrize(
    ("function", "at_seconds", "words"),
    [
        ("ext4_lookup", 0, "in ext4_lookup at 1970-01-01T00:00:00Z"),
        ("ext4_lookup", 253_402_300_799, "in ext4_lookup at 9999-12-31T23:59:59Z"),
        ("ext4_lookup", 253_402_300_800, "in ext4_lookup"),
        ("ext4_lookup", (1 << 40) - 1, "in ext4_lookup"),
        ("ext4\x1b[2J", 1, ""),
        ("", 1, ""),
    ],
)
def test_whatever_a_superblock_holds_can_be_told(function: str, at_seconds: int, words: str) -> None:
    assert ext4_superblock.told_error(function, at_seconds) == words


def test_a_look_that_fails_ends_no_other(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    strange, sick = Workload(driver, "a"), Workload(driver, "b", fs_type="xfs", size_bytes=300 * MIB)
    for one in (strange, sick):
        one.create()
    driver.stop()
    cause: list[Exception | None] = [ValueError("a year of 36812")]

    def look(fs_type: str, image_fd: int) -> Finding:
        if fs_type == "ext4" and cause[0] is not None:
            raise cause[0]
        return superblocks.SOUND if fs_type == "ext4" else Finding(damage="gone bad")

    monkeypatch.setattr(superblocks, "look", look)
    monkeypatch.setattr(health, "_FRESH_SECONDS", -1.0)
    monkeypatch.setattr(health, "_PATIENCE_SECONDS", 60.0)
    node = Node(
        driver.node_id, "csi.hostvol.dev", [PoolOptions(PoolName("default"), str(driver.pool))], str(driver.home)
    )
    node.start()

    def told() -> dict[str, list[str]]:
        node.health.refresh()
        return {volume_id: [one.reason for one in its] for volume_id, its in node.health.unhealthy().items()}

    damaged = {sick.volume_id: ["FilesystemDamaged"]}
    try:
        for _ in range(3):
            assert told() == {strange.volume_id: ["LookFailed"], **damaged}
        [record] = logged(caplog)
        assert strange.volume_id in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is cause[0]
        assert [one.reason for one in node.health.of(strange.volume_id)] == ["LookFailed"]
        cause[0] = KeyError("what")
        until(lambda: told() and len(logged(caplog)) == 2)
        cause[0] = None
        until(lambda: told() == damaged)
        cause[0] = KeyError("what")
        os.utime(image(strange))
        until(lambda: told() == {strange.volume_id: ["LookFailed"], **damaged})
        assert len(logged(caplog)) == 3, "it was over"
    finally:
        node.stop()
    driver.start()


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.name == "hostvol.health" and one.levelno >= logging.ERROR]
