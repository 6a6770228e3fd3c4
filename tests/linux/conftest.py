"""A private mount namespace for these tests, and a count of what each of them leaves behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from csi_driver.linux import mountinfo


def run(*command: str, check: bool = True) -> str:
    """Run one of the system's own tools and return what it prints."""
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path: Path, private_mounts: None) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a mount or a loop device of one of its files."""
    before = open_descriptors(), len(mountinfo.read_mounts())
    yield
    assert (open_descriptors(), len(mountinfo.read_mounts())) == before, "descriptors, mounts"
    assert not loops_stay_below(tmp_path), "loop devices"


def loops_stay_below(directory: Path) -> bool:
    """Say whether a loop device of a file below the directory stays (an observer may delay its end)."""
    for pause in (0.0, 0.001, 0.01, 0.1, 1.0):
        time.sleep(pause)
        if not any(backing_file.startswith(f"{directory}/") for backing_file in backing_files()):
            return False
    return True


def backing_files() -> Iterator[str]:
    """Read the backing files of all loop devices without opening one, which would keep it for others."""
    for device in os.listdir("/sys/block"):
        with suppress(OSError):
            yield Path(f"/sys/block/{device}/loop/backing_file").read_text()


def open_descriptors() -> int:
    """Count the descriptors of this process (the one of the listing is in both counts)."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def opened(path: Path | str, flags: int = os.O_PATH) -> Iterator[int]:
    """Hold a descriptor for a while."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """Expect an OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """A sparse file of 64 MiB, open for reading and writing."""
    with opened(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 64 << 20)
        yield fd


@pytest.fixture
def ext4_image(tmp_path: Path, image: int) -> int:
    """The same with an ext4 filesystem on it."""
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "--", str(tmp_path / "disk.img"))
    return image


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with one file."""
    path = tmp_path / "source"
    path.mkdir()
    (path / "hello").write_text("hello")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory."""
    path = tmp_path / "target"
    path.mkdir()
    return path
