"""Streams of directories relative to an earlier one, by themselves.

- Whatever was changed, the increment makes of the base exactly the target: contents, holes, names, kinds, modes, owners,
  times, attributes, links; behind the whole stream and on a base that is kept, which stays as it is.
- It has data only where something differs, told by content, or by where the data lie.
- Whatever is damaged, hostile or does not fit its base is refused, and leads nowhere.
"""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_driver.errors import StreamDamaged
from csi_driver.linux import reflink, tree_copy
from csi_driver.streams import bases, tree_building, trees
from csi_driver.streams.frames import Data, Reader, Writer
from tests.harness import PoolPlace
from tests.random_trees import Gardener, differences, looks
from tests.streams.test_streams import NUMBERS, TOP, header

MIB = 1 << 20
MakePool = Callable[..., PoolPlace]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def relative(content_id: str, base_id: str = "") -> Any:
    import dataclasses  # noqa: PLC0415

    return dataclasses.replace(header("directory"), content_id=content_id, base_id=base_id)


def cut(top: Path, to: Path, *, share: bool) -> Path:
    """The tree as it is now."""
    to.mkdir()

    def copied(source_fd: int, target_fd: int, _: object) -> int:
        if share:
            reflink.clone_file(source_fd, target_fd)
            return 0
        return reflink.copy_sparse(source_fd, target_fd)

    with opened(top) as source_fd, opened(to) as target_fd:
        tree_copy.copy_tree(source_fd, target_fd, copied)
    return to


def whole(top: Path, content_id: str) -> bytes:
    with opened(top) as fd:
        return b"".join(trees.stream(relative(content_id), fd))


def increment(base: Path, target: Path, content_id: str, base_id: str, *, shares: bool) -> bytes:
    with opened(base) as base_fd, opened(target) as target_fd:
        pieces = list(trees.changes(relative(content_id, base_id), target_fd, base_fd, shares=shares))
    assert all(len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


def chained(stream: bytes, to: Path) -> Path:
    """The streams one behind the other, as an import takes them."""
    to.mkdir()
    with opened(to) as fd:
        reader: Reader | None = Reader([stream])
        assert reader is not None
        reader.may_be_followed = True
        tree_building.receive(reader, fd, progress=_nothing)
        while (reader := reader.following()) is not None:
            with closing(bases.Consumed(fd)) as consumed:
                tree_building.receive(reader, fd, progress=_nothing, base=consumed)
    return to


def applied(stream: bytes, base: Path, to: Path, *, share: bool = False) -> Path:
    """The stream on a base that stays as it is."""
    to.mkdir()
    with opened(to) as fd, opened(base) as base_fd, closing(bases.Kept(base_fd, share=share)) as kept:
        tree_building.receive(Reader([stream]), fd, progress=_nothing, base=kept)
    return to


def _nothing(_: int) -> None:
    pass


@pytest.mark.parametrize("fs_type", ["host", "xfs", "btrfs"])
def test_increments_make_of_the_base_exactly_the_target(fs_type: str, make_pool: MakePool) -> None:
    place = make_pool(fs_type, 1 << 30)
    where = place.mount_point or place.directory
    where.mkdir(exist_ok=True)
    share = fs_type != "host"
    for seed in range(int(os.environ.get("SEEDS_FROM", "0")), int(os.environ.get("SEEDS_TO", "2"))):
        room = where / f"seed-{seed}"
        room.mkdir()
        gardener = Gardener(room / "top", seed)
        gardener.top.mkdir()
        gardener.grow(60)
        cuts = [cut(gardener.top, room / "cut-0", share=share)]
        streams = [whole(cuts[0], "0")]
        for number in (1, 2, 3):
            gardener.change(40)
            cuts.append(cut(gardener.top, room / f"cut-{number}", share=share))
            streams.append(increment(cuts[-2], cuts[-1], str(number), str(number - 1), shares=share))
        told = [looks(one) for one in cuts]
        for number in (1, 2, 3):
            on = applied(streams[number], cuts[number - 1], room / f"on-{number}", share=share)
            assert differences(looks(on), told[number]) == {}, (seed, number)
        assert differences(looks(chained(b"".join(streams), room / "chained")), told[3]) == {}, seed
        assert [looks(one) for one in cuts] == told
        shutil.rmtree(room)
