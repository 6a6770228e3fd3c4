"""The machine itself: commands run in it, their outcome comes out, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import until

from .machine import REPOSITORY, BootError, needs_uml, run_in_uml

pytestmark = [pytest.mark.uml, needs_uml]


def processes_with(text: str) -> list[str]:
    """All processes of the host whose command line contains the text."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_output_exit_code_and_directory_come_out() -> None:
    outcome = run_in_uml(["sh", "-c", "pwd; echo $MARK >&2; exit 7"], timeout=60, environment={"MARK": "here"})
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (7, f"{REPOSITORY}\n", "here\n")
    print(f"boot, command, power off: {outcome.seconds:.1f} s")


def test_the_hosts_files_are_read_only_unless_it_was_asked(tmp_path: Path) -> None:
    closed, opened = tmp_path / "closed", tmp_path / "opened"
    closed.mkdir()
    opened.mkdir()
    script = f"touch {opened}/file $TMPDIR/file && ! touch {closed}/file"
    run_in_uml(["sh", "-c", script], timeout=60, writable=[opened]).check()
    assert (opened / "file").exists()
    assert not (closed / "file").exists()


def test_disks_are_block_devices_and_loop_devices_work(tmp_path: Path) -> None:
    disks = [tmp_path / "first", tmp_path / "second"]
    for number, disk in enumerate(disks):
        with open(disk, "wb") as file:
            file.truncate((8 << 20) << number)
    script = (
        "set -e; blockdev --getsize64 /dev/ubda /dev/ubdb; echo written > /dev/ubdb;"
        "truncate -s 64M $TMPDIR/image; mkfs.ext4 -q $TMPDIR/image; mkdir $TMPDIR/mounted;"
        "mount -o loop $TMPDIR/image $TMPDIR/mounted; findmnt -no FSTYPE $TMPDIR/mounted"
    )
    outcome = run_in_uml(["sh", "-c", script], disks=disks, timeout=60).check()
    assert outcome.stdout.split() == [str(8 << 20), str(16 << 20), "ext4"]
    assert disks[1].read_bytes().startswith(b"written\n")


def test_a_grpc_server_and_its_client_run_inside() -> None:
    script = (
        "import time; start = time.monotonic(); import grpc\n"
        "print(f'import grpc {time.monotonic() - start:.1f} s')\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "server = grpc.server(ThreadPoolExecutor(2))\n"
        "server.add_insecure_port('unix:///run/tmp/socket'); server.start()\n"
        "channel = grpc.insecure_channel('unix:///run/tmp/socket')\n"
        "grpc.channel_ready_future(channel).result(20)\n"
        "channel.close(); server.stop(0).wait(); print('ready')\n"
    )
    outcome = run_in_uml([sys.executable, "-c", script], timeout=120).check()
    assert outcome.stdout.endswith("ready\n")
    print(f"{outcome.stdout}all: {outcome.seconds:.1f} s")


def test_a_machine_that_takes_too_long_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    disk = tmp_path / "disk-of-this-test"
    disk.write_bytes(bytes(1 << 20))
    with pytest.raises(subprocess.TimeoutExpired):
        run_in_uml(["sh", "-c", "sleep 600 & sleep 600 & sleep 600"], disks=[disk], timeout=8)
    until(lambda: not processes_with(str(disk)))


def test_a_machine_dies_with_the_test_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk-of-this-test"
    disk.write_bytes(bytes(1 << 20))
    script = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[2]); from uml.machine import run_in_uml;"
        "run_in_uml(['sleep', '600'], disks=[pathlib.Path(sys.argv[1])], timeout=600)"
    )
    command = [sys.executable, "-c", script, str(disk), str(REPOSITORY / "tests")]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}) as run:
        while len(processes_with(f"ubd0={disk}")) < 3:
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGKILL)
    until(lambda: not processes_with(f"ubd0={disk}"))


def test_a_machine_that_stops_before_its_command_ends_is_told_apart() -> None:
    with pytest.raises(BootError):
        run_in_uml(["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"], timeout=60)


def test_a_command_that_does_not_exist_is_told_on_the_console() -> None:
    with pytest.raises(BootError, match="no-such-command"):
        run_in_uml(["/no-such-command"], timeout=60)
