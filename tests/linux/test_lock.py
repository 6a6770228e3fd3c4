"""The lock on a file.

- Only one holds it at a time, within a process and between processes.
- It is free as soon as the holder's process is gone, however it went.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from csi_driver.linux import lock
from tests.linux.conftest import opened

HOLD = """
import os, sys
from csi_driver.linux import lock
print(lock.try_lock(os.open(sys.argv[1], os.O_RDONLY)), flush=True)
input()
"""


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with opened(tmp_path, os.O_RDONLY) as second:
        with opened(tmp_path, os.O_RDONLY) as first:
            assert lock.try_lock(first)
            assert lock.try_lock(first)
            assert not lock.try_lock(second)
        assert lock.try_lock(second)


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder, opened(tmp_path, os.O_RDONLY) as ours:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert not lock.try_lock(ours)
        holder.kill()
        holder.wait()
        assert lock.try_lock(ours)
