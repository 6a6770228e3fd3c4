"""UNIX sockets as files: who may connect, and which socket a path leads to.  unix(7)"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def owner_only() -> Iterator[None]:
    """Sockets made inside have the mode 0600 from the first moment: nobody else may connect between bind and chmod."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def inode(path: str) -> tuple[int, int] | None:
    """Which file is at the path now; None: there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
