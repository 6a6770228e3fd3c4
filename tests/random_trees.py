"""Directory trees at random, changes to them at random, and how they look: all that a copy has to keep."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import defaultdict
from pathlib import Path
from random import Random

from csi_driver.linux import btrfs, extents, holes
from tests.harness import run

_BLOCK = 4096
# A default ACL that gives another user everything (struct posix_acl_xattr_header and entries).
ACL = bytes.fromhex(
    "0200000001000700ffffffff02000700e8030000040005 00ffffffff10000700ffffffff20000500ffffffff".replace(" ", "")
)


def looks(top: Path) -> dict[str, tuple[object, ...]]:
    """What is at each path: kind, mode, owner, times, size, device, attributes, names, content and holes."""
    found: dict[str, tuple[object, ...]] = {}
    names: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    run("sync", "-f", str(top))
    for directory, below, files in os.walk(top):
        for path in [Path(directory, name) for name in [*files, *below]]:
            state = path.lstat()
            key = str(path.relative_to(top))
            found[key] = _look(path, state)
            if not stat.S_ISDIR(state.st_mode):
                names[state.st_dev, state.st_ino].append(key)
    found["."] = _look(top, top.lstat())
    for group in names.values():
        for key in group:
            found[key] = (*found[key], sorted(group))
    return found


def differences(found: dict[str, tuple[object, ...]], wanted: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """What is not the same in both, so that a failure can be read."""
    return {
        path: (found.get(path), wanted.get(path))
        for path in sorted({*found, *wanted})
        if found.get(path) != wanted.get(path)
    }


def _look(path: Path, state: os.stat_result) -> tuple[object, ...]:
    marks = sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in _attributes(path))
    same = [state.st_mode, state.st_uid, state.st_gid, state.st_mtime_ns, state.st_rdev, marks]
    if stat.S_ISLNK(state.st_mode):
        return (*same, os.readlink(path))
    return (*same, *_content(path)) if stat.S_ISREG(state.st_mode) else tuple(same)


def _attributes(path: Path) -> list[str]:
    # XFS shows its ACLs a second time as it keeps them.
    return [name for name in os.listxattr(path, follow_symlinks=False) if "SGI_ACL" not in name]


def _content(path: Path) -> tuple[object, ...]:
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        state = os.fstat(fd)
        return (
            state.st_size,
            state.st_atime_ns,
            _data(fd, state.st_size),
            hashlib.sha256(os.pread(fd, state.st_size, 0)).hexdigest(),
        )
    finally:
        os.close(fd)


def _data(fd: int, size: int) -> list[list[int]]:
    """Where it has data, by its extent map: SEEK_DATA takes for data what XFS has only preallocated to copy to."""
    found: list[list[int]] = []
    # A btrfs gives a block of zeros to the end of a file that grows, also where it was a hole.
    does_zero = btrfs.is_btrfs(fd)
    written = [one for one in extents.mapped(fd, end=size, sync=True) if not one.is_unwritten]
    for at in [at for one in written for at in range(one.logical, one.end, _BLOCK)]:
        if does_zero and not any(os.pread(fd, _BLOCK, at)):
            continue
        if found and found[-1][1] == at:
            found[-1][1] += _BLOCK
        else:
            found.append([at, at + _BLOCK])
    return found


class Gardener:
    """Makes and changes the tree below `top`, the same way for the same seed."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = Random(seed)
        self._number = 0

    def grow(self, count: int) -> None:
        """So many entries more."""
        for _ in range(count):
            self._make(self._new_name(self.random.choice(self._directories())))

    def change(self, count: int) -> None:
        """So many changes, of any kind."""
        kinds = (
            self._remove,
            self._rename,
            self._replace,
            self._rewrite,
            self._rewrite_unseen,
            self._resize,
            self._punch,
            self._link,
            self._split,
            self._mark,
            self._swap,
            lambda: self.grow(1),
        )
        for _ in range(count):
            self.random.choice(kinds)()

    def _directories(self) -> list[Path]:
        return [self.top, *(Path(where, name) for where, below, _ in os.walk(self.top) for name in sorted(below))]

    def _paths(self) -> list[Path]:
        found = [Path(where, name) for where, below, files in os.walk(self.top) for name in [*below, *files]]
        return sorted(found)

    def _files(self) -> list[Path]:
        return [path for path in self._paths() if path.is_file() and not path.is_symlink()]

    def _new_name(self, directory: Path) -> Path:
        self._number += 1
        odd = self.random.choice(["plain", "with space", "\udcff\udcc3", "line\nfeed"])
        return directory / f"{odd}-{self._number}"

    def _make(self, path: Path) -> None:
        kind = self.random.choices(("file", "directory", "link", "special", "hard link"), (12, 4, 2, 1, 2))[0]
        files = self._files()
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            os.symlink(self.random.choice(["/etc/passwd", "..", "nowhere", "\udcff"]), path)
        elif kind == "special":
            device = os.makedev(1, self.random.randrange(3, 9))
            os.mknod(
                path, self.random.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)) | 0o640, device
            )
        elif kind == "hard link" and files:
            os.link(self.random.choice(files), path)
        else:
            path.write_bytes(b"")
            self._write(path)
        self._mark_at(path)

    def _size(self) -> int:
        return self.random.choice((0, 1, 100, 1500, 4095, 4096, 5000, 16384, 70_000, 300_000))

    def _write(self, path: Path) -> None:
        with path.open("r+b") as file:
            for _ in range(self.random.randrange(3)):
                content = self.random.randbytes(self._size()) if self.random.random() < 0.8 else bytes(self._size())
                os.pwrite(file.fileno(), content, self.random.choice((0, 100, _BLOCK, 5 * _BLOCK, 100 * _BLOCK)))

    def _remove(self) -> None:
        for path in self._some(self._paths()):
            _remove(path)

    def _rename(self) -> None:
        for path in self._some(self._paths()):
            places = [one for one in self._directories() if one != path and path not in one.parents]
            path.rename(self._new_name(self.random.choice(places)))

    def _swap(self) -> None:
        """Two files change their names."""
        files = self._files()
        if len(files) > 1:
            one, other = self.random.sample(files, 2)
            aside = self._new_name(self.top)
            one.rename(aside)
            other.rename(one)
            aside.rename(other)

    def _replace(self) -> None:
        """Something of another kind, under the same name."""
        for path in self._some(self._paths()):
            _remove(path)
            self._make(path)

    def _rewrite(self) -> None:
        for path in self._some(self._files()):
            self._write(path)

    def _rewrite_unseen(self) -> None:
        """Other bytes, with size and times as they were."""
        for path in self._some(self._files()):
            before = path.stat()
            if before.st_size:
                with path.open("r+b") as file:
                    os.pwrite(file.fileno(), self.random.randbytes(1), self.random.randrange(before.st_size))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _resize(self) -> None:
        for path in self._some(self._files()):
            os.truncate(path, self._size())

    def _punch(self) -> None:
        for path in self._some(self._files()):
            with path.open("r+b") as file:
                holes.punch(file.fileno(), self.random.choice((0, 1000, _BLOCK)), self.random.choice((500, 4 * _BLOCK)))

    def _link(self) -> None:
        for path in self._some(self._files()):
            os.link(path, self._new_name(self.random.choice(self._directories())))

    def _split(self) -> None:
        """One of several names becomes a file of its own, nearly the same."""
        for path in self._some([path for path in self._files() if path.stat().st_nlink > 1]):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            self._write(path)

    def _mark(self) -> None:
        for path in self._some([*self._paths(), self.top]):
            self._mark_at(path)

    def _mark_at(self, path: Path) -> None:
        is_link = path.is_symlink()
        for name in _attributes(path):
            os.removexattr(path, name, follow_symlinks=False)
        os.chown(path, *self.random.choices((0, 1000, 5), k=2), follow_symlinks=False)
        if not is_link:
            path.chmod(self.random.choice((0o644, 0o2755, 0o4711, 0o1777, 0o000, 0o600)))
            if self.random.random() < 0.4:
                os.setxattr(path, "trusted.mark", self.random.randbytes(self.random.randrange(1, 100)))
            if path.is_dir() and self.random.random() < 0.3:
                os.setxattr(path, "system.posix_acl_default", ACL)
        times = self.random.randrange(1 << 60), self.random.randrange(1 << 60)
        os.utime(path, ns=times, follow_symlinks=False)

    def _some(self, paths: list[Path]) -> list[Path]:
        return [self.random.choice(paths)] if paths else []


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
