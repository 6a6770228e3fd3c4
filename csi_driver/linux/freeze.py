"""Filesystems frozen and thawed, and the guardian that thaws them when we cannot; knows no volume.

Source: include/uapi/linux/fs.h (FIFREEZE, FITHAW), fs/super.c. A frozen filesystem holds its writers, unkillable, until
it is thawed: neither the end of the process that froze it nor a closed descriptor thaws it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from csi_driver.linux import guardian, process
from csi_driver.linux.ioctl import iowr

FIFREEZE: Final = iowr(ord("X"), 119, 4)
FITHAW: Final = iowr(ord("X"), 120, 4)
_START_SECONDS: Final = 10.0
_END_SECONDS: Final = 5.0


def freeze(fd: int) -> None:
    """Nobody writes to the filesystem that `fd` is on, and all that was written is on its disk, until it is thawed.

    Waits for what is being written; CAP_SYS_ADMIN is needed.

    Raises:
        OSError: EBUSY when it is frozen already; EOPNOTSUPP where it cannot be; EPERM.
    """
    # A plain integer, which lets go of the GIL.
    fcntl.ioctl(fd, FIFREEZE, 0)


def thaw(fd: int) -> bool:
    """The filesystem that `fd` is on is not frozen by user space; False when it was not before either.

    Raises:
        OSError: EPERM.
    """
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


class Guardian:
    """A process of its own that thaws filesystems when this one has died, or has taken too long.

    Made for one freeze: it costs 20 ms before anything is frozen, and nothing while nothing is. It has the filesystems
    open already, starts nothing and opens nothing, and so works when memory or descriptors are short.
    """

    def __init__(self, fds: Sequence[int], budget_seconds: float) -> None:
        """Ready when this returns. `fds`: any descriptors on the filesystems, which stay the caller's.

        Raises:
            OSError: it does not start.
        """
        program = [sys.executable, "-I", "-S", guardian.__file__, str(budget_seconds), *map(str, fds)]
        self._process = subprocess.Popen(
            program,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            env=process.ENVIRONMENT,
            cwd="/",
            # What ends a whole group or a terminal's session must not end both of us.
            start_new_session=True,
        )
        try:
            self._await_ready()
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self) -> None:
        """The budget runs from now on.

        Raises:
            OSError: EPIPE when it has died.
        """
        self._tell(guardian.BEGIN)

    def end(self) -> None:
        """Everything is thawed, and nobody has to watch any more. Idempotent."""
        # It may have died before us; whoever froze has thawed.
        with contextlib.suppress(OSError, ValueError):
            self._tell(guardian.END)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _await_ready(self) -> None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        if not readable or os.read(self._process.stdout.fileno(), 1) != guardian.READY:
            raise OSError(errno.ECHILD, "the guardian of a freeze does not start; nothing was frozen")

    def _tell(self, what: bytes) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), what)
