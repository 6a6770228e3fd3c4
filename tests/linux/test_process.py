"""Child processes: found without a PATH, started without a shell, ended in time with all they started."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csi_driver.linux import process
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]


def is_running(pid: int) -> bool:
    """Say whether the process exists and is more than a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] != "Z"


def read_when_written(path: Path) -> int:
    """Return the number that a child writes into the file, once it is there."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), what=f"a number in {path}")
    return int(path.read_text())


def test_a_tools_output_comes_back() -> None:
    assert process.run(["echo", "a b", "*"], timeout=10) == "a b *\n"


def test_a_tool_inherits_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKE2FS_CONFIG", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    lines = process.run(["env"], timeout=10).splitlines()
    assert sorted(line.partition("=")[0] for line in lines) == ["LC_ALL", "PATH"]


def test_a_tool_inherits_no_descriptor_and_no_input() -> None:
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(write_end, True)
        listing = process.run(["ls", "-l", "/proc/self/fd"], timeout=10)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert f"pipe:[{os.fstat(0).st_ino}]" not in listing
    assert " 0 -> /dev/null" in listing
    assert f" {write_end} -> pipe" not in listing


def test_a_tool_that_fails_says_why() -> None:
    with pytest.raises(process.ToolError, match=r"ls failed with exit code 2: .*nowhere") as failure:
        process.run(["ls", "--", "/nowhere"], timeout=10)
    assert (failure.value.tool, failure.value.exit_code, failure.value.errno) == ("ls", 2, errno.EIO)
    assert "No such file" in failure.value.stderr


def test_an_exit_code_that_is_accepted_is_no_failure() -> None:
    assert process.run(["false"], timeout=10, accept=(0, 1)) == ""


def test_only_the_end_of_a_long_complaint_is_kept() -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 3"
    with pytest.raises(process.ToolError) as failure:
        process.run(["sh", "-c", script], timeout=10)
    assert failure.value.stderr.endswith("line 1999")
    assert len(failure.value.stderr) <= process.STDERR_KEPT


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TOOL_DIRECTORIES", ("/nowhere",))
    process.tool_path.cache_clear()
    try:
        with pytest.raises(process.ToolMissing, match=r"mkfs\.xfs is not installed .*xfsprogs") as failure:
            process.run(["mkfs.xfs"], timeout=10)
    finally:
        process.tool_path.cache_clear()
    assert (failure.value.debian_package, failure.value.errno) == ("xfsprogs", errno.ENOENT)


def test_a_tool_that_was_missing_is_found_once_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TOOL_DIRECTORIES", (str(tmp_path),))
    with pytest.raises(process.ToolMissing, match=r"is not installed$"):
        process.tool_path("hostvol-test-tool")
    (tmp_path / "hostvol-test-tool").write_text("#!/bin/sh\n")
    (tmp_path / "hostvol-test-tool").chmod(0o755)
    assert process.tool_path("hostvol-test-tool") == f"{tmp_path}/hostvol-test-tool"


def test_a_tool_that_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(process.ToolTimeout) as failure:
        process.run(["sh", "-c", 'sleep 60 & echo $! >"$0"; wait', str(note)], timeout=0.5)
    assert time.monotonic() - started < 10
    assert failure.value.errno == errno.ETIMEDOUT
    pid = read_when_written(note)
    until(lambda: not is_running(pid), 10)


@pytest.mark.parametrize("dies", [True, False])
def test_a_tool_dies_with_its_caller_where_that_was_asked_for(tmp_path: Path, dies: bool) -> None:
    note = tmp_path / "pid"
    program = (
        "import sys; from csi_driver.linux import process;"
        "process.run(['sh', '-c', 'echo $$ >\"$0\"; exec sleep 60', sys.argv[1]], timeout=60,"
        f" die_with_caller={dies})"
    )
    caller = subprocess.Popen([sys.executable, "-c", program, str(note)], cwd=ROOT)
    try:
        pid = read_when_written(note)
    finally:
        caller.kill()
        caller.wait()
    if dies:
        until(lambda: not is_running(pid), 10)
    else:
        time.sleep(0.2)
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
