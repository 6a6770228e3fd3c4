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

HOLD = "import sys; from csi_driver.linux import lock; held = lock.lock_file(sys.argv[1]); print(held, flush=True); input()"


def test_a_second_holder_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    first = lock.lock_file(str(path))
    assert first is not None
    assert lock.lock_file(str(path)) is None
    os.close(first)
    again = lock.lock_file(str(path))
    assert again is not None
    os.close(again)


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip().isdigit()
        assert lock.lock_file(str(path)) is None
        holder.kill()
        holder.wait()
    held = lock.lock_file(str(path))
    assert held is not None
    os.close(held)
