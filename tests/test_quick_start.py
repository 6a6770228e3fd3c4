"""The README's first commands work as they are printed.

- `scripts/run` serves on its defaults.
- Then every command of the README's "Start" does what the README says of it, and at the end nothing is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
START = (ROOT / "README.md").read_text().split("## Start\n", 1)[1].split("\n## ", 1)[0]
MARK = "<!-- These commands are run, as they stand, by tests/test_quick_start.py. -->\n"
SOCKET = Path("/run/hostvol/csi.sock")


@pytest.fixture
def defaults(tmp_path: Path) -> Iterator[None]:
    """The places of the embedded default, empty, seen by this process and its children alone."""
    held = tmp_path / "lib"
    held.mkdir()
    places = {"/var/lib": ("--bind", str(held)), "/run": ("-t", "tmpfs", "none"), "/mnt": ("-t", "tmpfs", "none")}
    for place, source in places.items():
        harness.run("mount", *source, place)
    yield
    for place in places:
        harness.run("umount", place)


@pytest.fixture
def running(defaults: None, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`scripts/run`, serving."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([ROOT / "scripts/run"], stderr=log, cwd="/")
    until(lambda: SOCKET.exists() or process.poll() is not None, 120, what=(tmp_path / "log").read_text)
    assert process.poll() is None, (tmp_path / "log").read_text()
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (tmp_path / "log").read_text()


def shell(block: str) -> str:
    """Type a block of commands as root in the project's directory, and return what is seen."""
    done = subprocess.run(
        ["sh", "-ec", block], cwd=ROOT, check=False, capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def blocks() -> list[str]:
    return [part.split("```", 1)[0] for part in START.split(f"{MARK}```sh\n")[1:]]


def shape(row: str) -> str:
    """A row of the list with what differs each time left out, its columns one space apart."""
    return re.sub(r"vol-[0-9a-f]{16}-[0-9a-f]{16}", "ID", re.sub(r"\d+ KiB", "SOME", " ".join(row.split())))


def test_the_commands_of_the_readme_work_as_printed(running: subprocess.Popen[bytes]) -> None:
    create, remove = blocks()
    seen = shell(create)
    assert re.search(r"^/dev/loop\d+ .* /mnt/demo$", seen, re.MULTILINE)
    assert Path("/mnt/demo/greeting").read_text() == "hello\n"
    printed = START.split("```text\n", 1)[1].split("```", 1)[0].splitlines()
    assert [shape(line) for line in seen.splitlines()[-2:]] == [shape(line) for line in printed]
    assert harness.run("findmnt", "-no", "FSTYPE", "/mnt/demo") == "ext4\n"
    seen = shell(remove)
    assert "is deleted" in seen
    assert seen.splitlines()[-1].split()[0] == "VOLUME", "the list is empty but for its heading"
    assert os.listdir("/mnt") == []
    assert os.listdir("/var/lib/hostvol/volumes") == []
