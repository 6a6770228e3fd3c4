"""The power is cut right after each move of the trash: what was acknowledged is there, once and whole.

- A volume that was moved to the trash lies there, and one that came back is in its place.
- Two contents that were exchanged have changed places, both of them and with all that they hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_driver.backends import remains
from csi_driver.domain.pools import initialise_pool
from csi_driver.model import DEFAULT_DRIVER_NAME
from csi_driver.store import durable
from csi_driver.store.pool import REPLACED, PoolDirectory
from tests.durability.disks import Disk

TURNS = 3


@contextmanager
def opened(disk: Disk) -> Iterator[PoolDirectory]:
    directory = str(disk.place.directory)
    initialise_pool(directory, DEFAULT_DRIVER_NAME)
    store = PoolDirectory(directory, DEFAULT_DRIVER_NAME)
    try:
        yield store
    finally:
        store.close()


def make(store: PoolDirectory, volume_id: str, content: str) -> int:
    object_fd = store.begin(volume_id)
    durable.write_new(object_fd, "content", content.encode())
    os.fsync(object_fd)
    return object_fd


def read(directory: Path) -> str:
    return (directory / "content").read_text()


def test_what_was_moved_to_the_trash_or_back_is_there_after_a_power_cut(disk: Disk) -> None:
    pool = disk.place.directory
    for turn in range(TURNS):
        volume_id = f"vol-{turn}"
        with opened(disk) as store:
            object_fd = make(store, volume_id, volume_id)
            store.commit(volume_id, object_fd)
            os.close(object_fd)
            name = store.discard(volume_id, "")
            disk.cut()
        disk.recover()
        assert read(pool / "trash" / name) == volume_id
        assert not (pool / "volumes" / volume_id).exists()
        with opened(disk) as store:
            store.undelete(name, volume_id, store.volumes_fd)
            disk.cut()
        disk.recover()
        assert read(pool / "volumes" / volume_id) == volume_id
        assert not (pool / "trash" / name).exists()


def test_contents_that_were_exchanged_stay_so_after_a_power_cut(disk: Disk) -> None:
    pool = disk.place.directory
    with opened(disk) as store:
        object_fd = make(store, "vol-a", "before")
        store.commit("vol-a", object_fd)
        os.close(object_fd)
    expected = "before"
    for turn in range(TURNS):
        wanted = f"turn {turn}"
        with opened(disk) as store:
            os.close(make(store, f"vol-a.{turn}", wanted))
            name = store.move_to_trash(f"vol-a.{turn}", "vol-a", f".rollback-{turn}")
            remains.exchange(store, "vol-a", name)
            disk.cut()
        disk.recover()
        assert (read(pool / "volumes" / "vol-a"), read(pool / "trash" / name)) == (wanted, expected)
        with opened(disk) as store:
            kept = store.mark_replaced(name)
            remains.exchange(store, "vol-a", kept)
            disk.cut()
        disk.recover()
        assert kept.endswith(REPLACED)
        assert (read(pool / "volumes" / "vol-a"), read(pool / "trash" / kept)) == (expected, wanted)
