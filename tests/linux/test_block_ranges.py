"""The blocks that hold data, and those that differ: against the bytes themselves, on every filesystem.

- Data is never left out of the list of what is allocated, and preallocation and holes are never in it.
- The list of changes, applied to the base, gives the target byte for byte: after random writes, punches, preallocation,
  growth, a base that is newer or longer, beside balance and defragmentation, and from any offset on.
- Without defragmentation the list names at most twice what was written.
- What is compared by content is exact.
- A place on the disk that is used again between two readings of the maps never makes two blocks the same.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random, SystemRandom

import pytest

from csi_driver.linux import block_ranges, btrfs, extents, lease, reflink
from csi_driver.linux.block_ranges import BLOCK, Range, Told

from .filesystem_images import MIB, mounted, run

SIZE = 8 * MIB
Tell = Callable[[int, int, int, int, int], Told]
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def filesystem(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp(request.param), request.param) as path:
        yield path


@pytest.fixture(scope="module")
def btrfs_filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("moving"), "btrfs", options=["--data", "single", "--metadata", "dup"]) as path:
        yield path


@pytest.fixture
def random() -> Random:
    """Another one each time; a failed test prints the seed."""
    seed = SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return Random(seed)


@pytest.fixture(params=[4096, 7], ids=["one-window", "many-windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_ranges, "_WINDOW_EXTENTS", request.param)


class Image:
    """A file as a volume has it, of which cuts are taken."""

    def __init__(self, directory: Path, random: Random) -> None:
        self.directory = directory
        self.random = random
        self.written = 0
        self._opened: list[int] = []
        self.fd = self._made()
        if btrfs.is_btrfs(self.fd):
            btrfs.set_nocow(self.fd)
        os.ftruncate(self.fd, SIZE)

    def _made(self) -> int:
        fd = os.open(self.directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        self._opened.append(fd)
        return fd

    def cut(self) -> int:
        """A descriptor, read-only as the driver's, of what the file holds now."""
        writable = self._cloned()
        self._opened.append(os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC))
        os.close(writable)
        return self._opened[-1]

    def _cloned(self) -> int:
        directory_fd = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return reflink.clone_unnamed(self.fd, directory_fd)
        finally:
            os.close(directory_fd)

    def change(self, times: int) -> None:
        for _ in range(times):
            self.random.choice([self.write, self.write, self.write, self.punch, self.preallocate])()

    def write(self) -> None:
        offset, count = self._place()
        os.pwrite(self.fd, self.random.randbytes(count), offset)
        self.written += count

    def punch(self) -> None:
        self._allocate(PUNCH_HOLE | KEEP_SIZE)

    def preallocate(self) -> None:
        self._allocate(self.random.choice([0, KEEP_SIZE, ZERO_RANGE | KEEP_SIZE]))

    def _allocate(self, mode: int) -> None:
        offset, count = self._place()
        if _fallocate(self.fd, mode, offset, count):
            raise OSError(ctypes.get_errno(), "fallocate")
        self.written += count

    def _place(self) -> tuple[int, int]:
        blocks = os.fstat(self.fd).st_size // BLOCK
        start = self.random.randrange(blocks)
        return start * BLOCK, min(self.random.choice([1, 1, 1, 2, 5, 40]), blocks - start) * BLOCK

    def grow(self) -> None:
        os.ftruncate(self.fd, os.fstat(self.fd).st_size + self.random.randrange(1, 100) * BLOCK)

    def close(self) -> None:
        for fd in self._opened:
            os.close(fd)


@pytest.fixture
def image(filesystem: Path, random: Random) -> Iterator[Image]:
    made = Image(filesystem, random)
    yield made
    made.close()


def told(tell: Callable[[int], Told], size: int, start: int = 0) -> list[Range]:
    """All windows together, each sound in itself."""
    found: list[Range] = []
    while start < size:
        ranges, until = tell(start)
        assert start < until <= size
        for one in ranges:
            assert start <= one.start < one.end <= until
            assert one.start % BLOCK == 0
            assert one.end % BLOCK == 0 or one.end == size
            assert not found or found[-1].end <= one.start
            found.append(one)
        start = until
    return found


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def changes(base: int, target: int, tell: Tell = block_ranges.changed, start: int = 0) -> list[Range]:
    base_end, size = os.fstat(base).st_size, os.fstat(target).st_size
    return told(lambda at: tell(base, target, base_end, at, size), size, start)


def assert_makes(base: int, target: int, found: list[Range], start: int = 0) -> None:
    """The target's bytes in these ranges, over the base's, are the target's."""
    size = os.fstat(target).st_size
    made = bytearray(content(base)[:size].ljust(size, b"\0"))
    wanted = content(target)
    for one in found:
        made[one.start : one.end] = wanted[one.start : one.end]
    assert made[start:] == wanted[start:]


def bytes_of(found: list[Range]) -> int:
    return sum(one.end - one.start for one in found)


def blocks_of(found: list[Range]) -> set[int]:
    return {at for one in found for at in range(one.start, one.end, BLOCK)}


@pytest.mark.usefixtures("windows")
def test_what_is_allocated_is_what_is_no_hole(image: Image) -> None:
    for _ in range(10):
        image.change(20)
        fd = image.cut()
        size = os.fstat(fd).st_size
        found = told(lambda at, fd=fd, size=size: block_ranges.allocated(fd, at, size), size)
        whole = content(fd)
        blocks = blocks_of(found)
        for at in range(0, size, BLOCK):
            assert at in blocks or not any(whole[at : at + BLOCK]), at
        assert bytes_of(found) <= image.written
        start = image.random.randrange(size // BLOCK) * BLOCK
        rest = told(lambda at, fd=fd, size=size: block_ranges.allocated(fd, at, size), size, start)
        assert blocks_of(rest) == {at for at in blocks if at >= start}


@pytest.mark.usefixtures("windows")
def test_changes_make_the_target_of_the_base_and_are_few(image: Image) -> None:
    image.change(60)
    cuts = [image.cut()]
    for number in range(12):
        image.written = 0
        if number % 4 == 3:
            image.grow()
        image.change(15)
        cuts.append(image.cut())
        base, target = cuts[-2:]
        found = changes(base, target)
        assert_makes(base, target, found)
        assert bytes_of(found) <= 2 * image.written
        start = image.random.randrange(os.fstat(target).st_size // BLOCK) * BLOCK
        assert blocks_of(changes(base, target, start=start)) == {at for at in blocks_of(found) if at >= start}
    for _ in range(12):
        # Any two, also one with itself, with a later, and with a longer one.
        base, target = image.random.choice(cuts), image.random.choice(cuts)
        found = changes(base, target)
        assert_makes(base, target, found)
        assert base != target or not found


@pytest.mark.usefixtures("windows")
def test_what_is_compared_is_exact(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_ranges, "_WINDOW_BYTES", MIB)
    image.change(60)
    base = image.cut()
    image.grow()
    image.change(15)
    target = image.cut()
    for old, new in ((base, target), (target, base), (base, base)):
        found = changes(old, new, block_ranges.compared)
        assert_makes(old, new, found)
        before, after = content(old).ljust(len(content(new)), b"\0"), content(new)
        assert blocks_of(found) == {
            at for at in range(0, len(after), BLOCK) if before[at : at + BLOCK] != after[at : at + BLOCK]
        }


def test_files_on_two_filesystems_or_a_strange_one_are_not_told_by_maps(filesystem: Path, tmp_path: Path) -> None:
    files = [os.open(where, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC) for where in (filesystem, filesystem, tmp_path)]
    try:
        assert block_ranges.can_be_told_apart(files[0], files[1])
        assert not block_ranges.can_be_told_apart(files[0], files[2])
        assert block_ranges.can_be_told_apart(files[2], files[2]) == (
            run("stat", "-fc%T", tmp_path) in ("xfs", "btrfs")
        )
    finally:
        for fd in files:
            os.close(fd)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[list[int]]:
    """Do it again and again; gives how often it was done."""
    stop, done = threading.Event(), [0]

    def repeated() -> None:
        while not stop.is_set():
            work()
            done[0] += 1

    thread = threading.Thread(target=repeated)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def balance(path: Path) -> None:
    run("btrfs", "balance", "start", "-d", "--", path)


def defragment(*fds: int) -> None:
    # No check: what is being moved is busy.
    for fd in fds:
        subprocess.run(
            ["btrfs", "filesystem", "defragment", "-f", "-t", "1M", "--", f"/proc/{os.getpid()}/fd/{fd}"],
            check=False,
            capture_output=True,
            timeout=60,
        )


@pytest.mark.parametrize("mover", ["balance", "defragment", "both"])
def test_extents_that_move_meanwhile_only_make_the_list_longer(
    btrfs_filesystem: Path, random: Random, mover: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_ranges, "_WINDOW_EXTENTS", 64)
    image = Image(btrfs_filesystem, random)
    try:
        image.change(150)
        base = image.cut()
        image.change(150)
        target = image.cut()
        whole, size = content(target), os.fstat(target).st_size

        def move() -> None:
            if mover != "defragment":
                balance(btrfs_filesystem)
            if mover != "balance":
                defragment(base, target)

        with meanwhile(move) as done:
            rounds = 0
            while done[0] < 3 and rounds < 20000:
                rounds += 1
                assert_makes(base, target, changes(base, target))
                found = told(lambda at: block_ranges.allocated(target, at, size), size)
                blocks = blocks_of(found)
                assert not [at for at in range(0, size, BLOCK) if at not in blocks and any(whole[at : at + BLOCK])]
        print(f"{rounds} lists while {mover} ran {done[0]} times")
        assert content(target) == whole
    finally:
        image.close()


def test_a_reorganizer_of_xfs_only_makes_the_list_longer(tmp_path: Path, random: Random) -> None:
    with mounted(tmp_path, "xfs") as path:
        image = Image(path, random)
        try:
            image.change(300)
            base = image.cut()
            image.change(100)
            target = image.cut()
            names = [path / "base", path / "target"]
            for fd, name in zip((base, target), names, strict=True):
                # Below a name a writer can open it, as any file of the pool.
                with open(name, "xb") as file:
                    reflink.clone_file(fd, file.fileno())
            fds = [os.open(name, os.O_RDONLY | os.O_CLOEXEC) for name in names]
            before = places(fds[1])
            with meanwhile(lambda: run("xfs_fsr", *names)) as done:
                rounds = 0
                while (done[0] < 2 or places(fds[1]) == before) and rounds < 5000:
                    rounds += 1
                    assert_makes(*fds, changes(*fds))
            assert places(fds[1]) != before, "xfs_fsr has moved nothing"
            for fd in fds:
                os.close(fd)
        finally:
            image.close()


def places(fd: int) -> list[tuple[int, int]]:
    return [(one.logical, one.physical) for one in extents.mapped(fd, sync=True)]


def test_defragmentation_unshares_what_the_list_names_then(btrfs_filesystem: Path, random: Random) -> None:
    image = Image(btrfs_filesystem, random)
    try:
        image.change(150)
        base, target = image.cut(), image.cut()
        assert changes(base, target) == []
        defragment(target)
        found = changes(base, target)
        assert found, "the defragmentation of the tests moves nothing"
        assert_makes(base, target, found)
    finally:
        image.close()


def test_blocks_moved_by_a_balance_are_still_shared(btrfs_filesystem: Path, random: Random) -> None:
    image = Image(btrfs_filesystem, random)
    try:
        image.change(50)
        base = image.cut()
        image.written = 0
        image.change(10)
        target = image.cut()
        balance(btrfs_filesystem)
        found = changes(base, target)
        assert_makes(base, target, found)
        assert bytes_of(found) <= 2 * image.written
    finally:
        image.close()


# What no test can wait for: a place on the disk that is used again just between two readings.


def fake_maps(monkeypatch: pytest.MonkeyPatch, *maps: list[tuple[int, int, int, int]]) -> list[int]:
    """The kernel's answers, one after the other, the last for ever; gives who was asked."""
    asked: list[int] = []

    def mapped(fd: int, **_: object) -> Iterator[extents.Extent]:
        answer = maps[min(len(asked), len(maps) - 1)]
        asked.append(fd)
        return (extents.Extent(*one) for one in answer)

    monkeypatch.setattr(extents, "mapped", mapped)
    return asked


def still(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
    left = list(answers)

    @contextmanager
    def watched(base_fd: int, target_fd: int) -> Iterator[Callable[[], bool]]:
        yield lambda: left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(block_ranges, "_moves_watched", watched)


HERE, THERE = [(0, MIB, BLOCK, 0)], [(0, 2 * MIB, BLOCK, 0)]


def test_a_base_that_moves_between_the_readings_makes_nothing_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch, True)
    # The target is where the base was; the base is elsewhere by then, as it turns out.
    asked = fake_maps(monkeypatch, HERE, HERE, THERE, THERE, HERE, THERE)
    assert block_ranges.changed(1, 2, SIZE, 0, SIZE) == Told([Range(0, BLOCK)], SIZE)
    assert asked == [1, 2, 1, 1, 2, 1]


def test_moves_that_the_filesystem_tells_of_make_the_window_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch, False, True)
    asked = fake_maps(monkeypatch, HERE)
    assert block_ranges.changed(1, 2, SIZE, 0, SIZE) == Told([], SIZE)
    assert asked == [1, 2, 1] * 2


def test_what_never_stands_still_is_told_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    still(monkeypatch, False)
    fake_maps(monkeypatch, HERE)
    assert block_ranges.changed(1, 2, SIZE, 0, SIZE) == Told([Range(0, BLOCK)], SIZE)


@pytest.mark.parametrize(
    "flag",
    [
        extents.FIEMAP_EXTENT_ENCODED,
        extents.FIEMAP_EXTENT_DATA_INLINE,
        extents.FIEMAP_EXTENT_UNKNOWN,
        extents.FIEMAP_EXTENT_DELALLOC,
    ],
)
def test_what_has_no_place_is_never_the_same(monkeypatch: pytest.MonkeyPatch, flag: int) -> None:
    still(monkeypatch, True)
    fake_maps(monkeypatch, [(0, MIB, BLOCK, flag)])
    assert block_ranges.changed(1, 2, SIZE, 0, SIZE) == Told([Range(0, BLOCK)], SIZE)


def test_a_transaction_between_the_readings_is_noticed(btrfs_filesystem: Path, random: Random) -> None:
    image = Image(btrfs_filesystem, random)
    try:
        base, target = image.cut(), image.cut()
        with block_ranges._moves_watched(base, target) as are_still:
            assert are_still()
            image.write()
            btrfs.commit(image.fd)
            image.write()
            os.fsync(image.fd)
            assert not are_still()
    finally:
        image.close()


def test_a_writer_is_noticed_and_kept_waiting(tmp_path: Path) -> None:
    with mounted(tmp_path, "xfs") as path:
        (path / "file").write_bytes(b"x" * BLOCK)
        reader = os.open(path / "file", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with lease.writers_kept_away(reader) as is_kept:
                assert is_kept()
                with pytest.raises(BlockingIOError):
                    os.open(path / "file", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                # That somebody waits is reason enough to look again.
                assert not is_kept()
            writer = os.open(path / "file", os.O_RDWR | os.O_CLOEXEC)
            with lease.writers_kept_away(reader) as is_kept:
                assert not is_kept()
            with block_ranges._moves_watched(reader, reader) as are_still:
                assert not are_still()
            os.close(writer)
            with block_ranges._moves_watched(reader, reader) as are_still:
                assert are_still()
        finally:
            os.close(reader)
