"""What a volume was imported with, as long as nobody can have written to it; knows no stream and no request.

Staging takes the name of the content away before anything is mounted. This is for whoever does not: an earlier build
that knows of no such name, a record that was put back from a copy, somebody who wrote to the files by hand.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import Final

from csi_driver.domain.contents import Contents
from csi_driver.domain.pools import Pool
from csi_driver.model import Volume

# What a tree that somebody changes answers to a look: an entry is gone, or something else has its name.
_CHANGING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def named(pool: Pool, volume: Volume, content_id: str) -> Volume:
    """The volume, which is being built under `tmp/` and whose content is durable, with the name of its content."""
    contents = pool.contents(volume.volume_type)
    content_fd = contents.open(pool.store.tmp_fd, volume.volume_id)
    try:
        return dataclasses.replace(volume, content_id=content_id, content_mark=contents.mark(content_fd))
    finally:
        os.close(content_fd)


def known(pool: Pool, volume: Volume, content_fd: int) -> Volume:
    """The volume, without the name of its content if that may have been written to; the caller reads its claim.

    To be asked before a cut and again behind it: what was cut has the name only if both answers have it. Somebody who
    changes a directory while it is looked at is what is looked for, not a failure.

    Raises: OSError: EIO.
    """
    if not volume.content_id:
        return volume
    contents = pool.contents(volume.volume_type)
    if contents.is_at_rest(volume, content_fd) and _mark(contents, content_fd) == volume.content_mark:
        return volume
    return dataclasses.replace(volume, content_id="", content_mark="")


def _mark(contents: Contents, content_fd: int) -> str:
    """The mark as of now; of what changes meanwhile, one that nothing else has."""
    try:
        return contents.mark(content_fd)
    except OSError as cause:
        if cause.errno not in _CHANGING:
            raise
        return "changing"
