"""A directory tree with what trees have in it, and how it looks wherever it is mounted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.harness import MIB, run


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def filled(top: Path) -> str:
    """A tree with what trees have in it; how it looks."""
    (top / "below/further").mkdir(parents=True)
    (top / "below/file").write_bytes(os.urandom(3 * MIB))
    (top / "below/further/other name").write_text("other")
    os.link(top / "below/file", top / "linked")
    os.symlink("below/file", top / "symbolic")
    os.mkfifo(top / "fifo", 0o640)
    os.chown(top / "below/further", 1000, 1001)
    os.setxattr(top / "below/file", "user.mark", b"kept")
    with (top / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"end")
    os.utime(top / "below", ns=(1, 1_000_000_007))
    run("sync", "-f", str(top))
    return looks(top)


def looks(top: Path) -> str:
    """Names, kinds, owners, modes, times, sizes, links and contents."""
    found = run(
        "find", str(top), "-mindepth", "1", "-not", "-path", "*/lost+found*", "-printf", "%P %y %U %G %m %n %l "
    )
    files = sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
    times = [(str(path.relative_to(top)), path.stat().st_size, path.stat().st_mtime_ns, digest(path)) for path in files]
    marks = os.getxattr(top / "below/file", "user.mark")
    same = (top / "below/file").stat().st_ino == (top / "linked").stat().st_ino
    return f"{sorted(found.split(' '))} {times} {marks!r} {same} {(top / 'below').stat().st_mtime_ns}"
