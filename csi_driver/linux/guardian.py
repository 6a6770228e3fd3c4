"""The program of the guardian: thaws the filesystems behind its descriptors when its parent dies or takes too long.

It is run by its path, without this package: small (3.6 MiB of its own), and ready before anything is frozen. The parent
speaks through standard input: BEGIN, and END once it has thawed everything itself. Closed without END, it has died; the
kernel closes it only after the last system call of the parent, so nothing is frozen behind our back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

READY: Final = b"r"
BEGIN: Final = b"b"
END: Final = b"e"
# include/uapi/linux/fs.h: _IOWR('X', 120, int), the same on every architecture that Python calls by asm-generic.
_FITHAW: Final = 0xC0045878
# One freeze that was still going on when the budget ended is thawed as soon as it is complete.
_AGAIN_SECONDS: Final = 0.02
_GIVE_UP_SECONDS: Final = 60.0
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


def main(arguments: Sequence[str]) -> int:
    """`BUDGET_SECONDS DESCRIPTOR …`; the exit code is 3 when something had to be thawed."""
    budget_seconds, descriptors = float(arguments[0]), [int(one) for one in arguments[1:]]
    for number in _IGNORED:
        # A service manager that stops us all at once: the parent may still need us.
        signal.signal(number, signal.SIG_IGN)
    _outlive_shortage()
    os.write(1, READY)
    if _hears(None) != BEGIN:
        # Nothing was frozen yet.
        return 0
    heard = _hears(budget_seconds)
    if heard == END:
        return 0
    return _thaw_until_told(descriptors, is_alone=heard == b"")


def _hears(seconds: float | None) -> bytes | None:
    """The next word of the parent; nothing (b"") when it has died; None when it said nothing for so long."""
    readable, _, _ = select.select([0], [], [], seconds)
    return os.read(0, 1) if readable else None


def _thaw_until_told(descriptors: Sequence[int], *, is_alone: bool) -> int:
    """Thaw; and again while a living parent may still be in the middle of a freeze."""
    thawed = _thaw(descriptors)
    ends = time.monotonic() + _GIVE_UP_SECONDS
    while not is_alone and time.monotonic() < ends:
        heard = _hears(_AGAIN_SECONDS)
        is_alone = heard == b""
        thawed = _thaw(descriptors) or thawed
        if heard == END:
            break
    return 3 if thawed else 0


def _thaw(descriptors: Sequence[int]) -> bool:
    thawed = False
    for descriptor in descriptors:
        try:
            fcntl.ioctl(descriptor, _FITHAW, 0)
            thawed = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                sys.stderr.write(f"hostvol: a frozen filesystem cannot be thawed: {error}\n")
    return thawed


def _outlive_shortage() -> None:
    """Not to be chosen when memory runs out, where we may say so (proc(5): oom_score_adj)."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("-1000")
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
