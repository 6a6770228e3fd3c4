"""Hard links in a tree that is being made: the first name of each file lies aside, for the others to be linked to."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Final

_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LinkDirectory:
    """A directory of a name that nothing in the tree bears, made in its top when it is needed first.

    Inside the tree, so that it is of the same project: a link between two is refused.
    """

    def __init__(self, top_fd: int, token: str = "") -> None:
        """`top_fd` stays the caller's. `token` names one that an earlier process may have made."""
        self._name = f".links-{token or secrets.token_hex(8)}"
        self._top = top_fd
        self._fd = -1

    def __bool__(self) -> bool:
        """Whether anything lies there."""
        return self._fd >= 0

    def opened(self) -> int:
        """A descriptor of it, which stays the directory's own."""
        if self._fd < 0:
            with suppress(FileExistsError):
                os.mkdir(self._name, 0o700, dir_fd=self._top)
            self._fd = os.open(self._name, _LIST, dir_fd=self._top)
        return self._fd

    def remove(self) -> None:
        """Nothing of it is left in the tree."""
        if self._fd < 0:
            return
        # Opened again: on btrfs a descriptor lists only what there was when it was opened.
        links_fd = os.open(self._name, _LIST, dir_fd=self._top)
        try:
            for name in os.listdir(links_fd):
                os.unlink(name, dir_fd=links_fd)
        finally:
            os.close(links_fd)
        os.rmdir(self._name, dir_fd=self._top)

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
