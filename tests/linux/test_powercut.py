"""The power cut that other tests rely on is one: what was synced is there afterwards, the rest is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests import powercut
from tests.image_mounts import formatted_image, mounted
from tests.powercut import cut_power

MIB = 1 << 20


def write(directory: str, name: str, *, sync: bool) -> None:
    """Make a file, durable with its name when so asked."""
    fd = os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(fd, name.encode())
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def test_the_request_is_that_of_the_headers() -> None:
    assert powercut.SHUTDOWN == 0x8004587D


@pytest.mark.parametrize("flush_log", [False, True])
@pytest.mark.parametrize("name", ["ext4", "xfs"])
def test_what_was_synced_survives_and_nothing_can_be_written_after_the_cut(
    tmp_path: Path, name: str, flush_log: bool
) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", name, 320 * MIB)
    with mounted(image, name) as directory:
        write(directory, "synced", sync=True)
        write(directory, "lost", sync=False)
        cut_power(directory, flush_log=flush_log)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write(directory, "late", sync=True)
    with mounted(image, name) as directory:
        assert Path(directory, "synced").read_text() == "synced"
        assert not Path(directory, "late").exists()
        # The name was in the log's memory: it is there exactly when the log was written.
        assert Path(directory, "lost").exists() == flush_log


def test_a_filesystem_that_cannot_be_cut_off_says_so(tmp_path: Path) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", "btrfs", 320 * MIB)
    with mounted(image, "btrfs") as directory, pytest.raises(OSError, match="Inappropriate ioctl"):
        cut_power(directory, flush_log=False)
