"""The first process inside User-Mode Linux: mounts, modules, one command, its outcome, power off.

It runs from the host's files, which are read-only here, and needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import traceback
from pathlib import Path

SYS_FINIT_MODULE = 313  # arch/x86/entry/syscalls/syscall_64.tbl
LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC  # include/uapi/linux/reboot.h
SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
IFF_UP = 1
MODULES = "/usr/lib/uml/modules"

libc = ctypes.CDLL(None, use_errno=True)


def main(job_directory: str) -> None:
    """Do the job that the directory describes, and leave its outcome there."""
    try:
        mount("proc", "/proc")
        mount("tmpfs", "/run")
        # The job's directory is the only place of the host that can be written to.
        job = Path("/run/job")
        job.mkdir()
        mount("hostfs", str(job), job_directory)
        perform(job)
    except BaseException:  # whatever it is, it is told on the console
        traceback.print_exc()
    os.sync()
    libc.reboot(LINUX_REBOOT_CMD_POWER_OFF)


def perform(job: Path) -> None:
    """Make the place ready, run the command and note its exit code."""
    wanted = json.loads((job / "job.json").read_text())
    prepare(wanted)
    with open(job / "stdout", "wb") as stdout, open(job / "stderr", "wb") as stderr:
        done = subprocess.run(
            wanted["argv"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=wanted["directory"],
            env=wanted["environment"],
            check=False,
        )
    (job / "returncode.new").write_text(str(done.returncode))
    (job / "returncode.new").rename(job / "returncode")


def prepare(wanted: dict[str, list[str]]) -> None:
    """Mount what a Linux system has, load modules, bring up loopback."""
    mount("sysfs", "/sys")
    for directory, kind in {"/dev/shm": "tmpfs", "/dev/pts": "devpts", "/run/tmp": "tmpfs"}.items():
        os.makedirs(directory, exist_ok=True)
        mount(kind, directory)
    for directory in wanted["writable"]:
        mount("hostfs", directory, directory)
    for module in wanted["modules"]:
        load(module)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def mount(kind: str, target: str, options: str = "") -> None:
    """Mount a filesystem that needs no device."""
    if libc.mount(b"none", target.encode(), kind.encode(), 0, options.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind}", target)


def load(module: str) -> None:
    """Load a module after those it depends on; there need be no modprobe on the host."""
    root = f"{MODULES}/{os.uname().release}"
    for line in Path(root, "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        if path.endswith(f"/{module}.ko"):
            for one in [*reversed(needs.split()), path]:
                insert(f"{root}/{one}")
            return
    raise FileNotFoundError(f"no module {module} in {root}")


def insert(path: str) -> None:
    """Load one module file, unless it is there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        failed = libc.syscall(SYS_FINIT_MODULE, fd, b"", 0) != 0
        if failed and ctypes.get_errno() != 17:  # EEXIST
            raise OSError(ctypes.get_errno(), "finit_module", path)
    finally:
        os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1])
