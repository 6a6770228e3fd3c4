"""Whether a file is open elsewhere.

- A file that only we hold is not open elsewhere, however often it is asked.
- A reader, a writer, another process and a loop device are each seen, and no longer seen once they are gone.
- Of writers alone can be asked too: any number of readers is none.
- Nobody is disturbed: no signal arrives, and a file opened while it is asked stays open.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from csi_driver.linux import lease, loop
from tests.linux.conftest import opened


def test_a_file_of_ours_alone_is_not_open_elsewhere(image: int) -> None:
    assert not any(lease.is_open_elsewhere(image) for _ in range(100))


def test_readers_and_writers_are_seen_until_they_close(tmp_path: Path, image: int) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with opened(tmp_path / "disk.img", flags):
            assert lease.is_open_elsewhere(image)
        assert not lease.is_open_elsewhere(image)


def test_another_process_is_seen(tmp_path: Path, image: int) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"f = open({str(tmp_path / 'disk.img')!r}); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lease.is_open_elsewhere(image)
        holder.communicate(b"\n")
    assert not lease.is_open_elsewhere(image)


def test_a_loop_device_is_seen(tmp_path: Path, image: int) -> None:
    with opened(tmp_path / "disk.img", os.O_RDWR) as other:
        device = loop.attach(other, block_size=4096, autoclear=True, direct_io="preferred")
    with device:
        assert lease.is_open_elsewhere(image)


def test_only_writers_are_seen_when_only_they_count(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_RDONLY):
        assert not lease.is_written_elsewhere(reader)
        for flags in (os.O_RDWR, os.O_WRONLY):
            with opened(path, flags):
                assert lease.is_written_elsewhere(reader)
            assert not lease.is_written_elsewhere(reader)
        with opened(path, os.O_RDWR) as writer:
            device = loop.attach(writer, block_size=4096, autoclear=True, direct_io="preferred")
        with device:
            assert lease.is_written_elsewhere(reader)


def test_whoever_opens_the_file_meanwhile_is_served(tmp_path: Path, image: int) -> None:
    stop = threading.Event()
    opens = 0

    def open_often() -> None:
        nonlocal opens
        while not stop.is_set():
            with opened(tmp_path / "disk.img", os.O_RDWR):
                opens += 1

    thread = threading.Thread(target=open_often)
    thread.start()
    deadline = time.monotonic() + 60
    asked = 0
    try:
        # The two take turns as the scheduler likes: so many of both, not so much time.
        while (asked < 2000 or opens <= 10) and time.monotonic() < deadline:
            lease.is_open_elsewhere(image)
            asked += 1
    finally:
        stop.set()
        thread.join()
    assert opens > 10
