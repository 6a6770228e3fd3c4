"""Child processes, for what has no system call; knows nothing of what the tools are for."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import subprocess
from collections.abc import Collection, Sequence

# The tools of an administrator, wherever the service manager's PATH points.
TOOL_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
ENVIRONMENT = {"LC_ALL": "C", "PATH": ":".join(TOOL_DIRECTORIES)}
DEBIAN_PACKAGES = {
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "e2image": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "tune2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "btrfstune": "btrfs-progs",
    "btrfs": "btrfs-progs",
    "cryptsetup": "cryptsetup-bin",
    "setpriv": "util-linux",
}
STDERR_KEPT = 4096
# A process in an uninterruptible sleep outlives SIGKILL: nobody waits for it longer than this.
KILL_GRACE_SECONDS = 2.0


class ToolMissing(OSError):
    """A tool that is not installed; `debian_package` is empty where we do not know who ships it."""

    def __init__(self, tool: str, debian_package: str) -> None:
        remedy = f" (Debian package {debian_package})" if debian_package else ""
        super().__init__(errno.ENOENT, f"{tool} is not installed{remedy}")
        self.tool = tool
        self.debian_package = debian_package


class ToolError(OSError):
    """A tool that failed; a negative `exit_code` is the signal that ended it."""

    def __init__(self, tool: str, exit_code: int, stderr: str) -> None:
        reason = stderr or "it did not say why"
        super().__init__(errno.EIO, f"{tool} failed with exit code {exit_code}: {reason}")
        self.tool = tool
        self.exit_code = exit_code
        self.stderr = stderr


class ToolTimeout(OSError):
    """A tool that did not end in time, and was killed; errno is ETIMEDOUT."""

    def __init__(self, tool: str, timeout: float) -> None:
        super().__init__(errno.ETIMEDOUT, f"{tool} did not end within {timeout:.0f} s and was killed")
        self.tool = tool
        self.timeout = timeout


@functools.cache
def tool_path(tool: str) -> str:
    """Return the absolute path of a tool; found once, looked for again while it is missing.

    Raises: ToolMissing.
    """
    for directory in TOOL_DIRECTORIES:
        path = f"{directory}/{tool}"
        if os.access(path, os.X_OK):
            return path
    raise ToolMissing(tool, DEBIAN_PACKAGES.get(tool, ""))


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    accept: Collection[int] = (0,),
    die_with_caller: bool = False,
) -> str:
    """Run a tool to its end and return what it wrote to its standard output.

    `argv[0]` is the tool's bare name, `timeout` is in seconds, `accept` are the exit codes that are no
    failure. The tool inherits no descriptor and no variable. With `die_with_caller` the kernel kills it when
    the calling thread ends, however that ends: for tools that write to what our successor would use.

    Raises: ToolMissing; ToolError; ToolTimeout, when the tool and all it started have been killed.
    """
    command = [tool_path(argv[0]), *argv[1:]]
    if die_with_caller:
        # PR_SET_PDEATHSIG must be set in the child: a preexec_fn there would be unsafe beside our threads.
        command = [tool_path("setpriv"), "--pdeathsig", "KILL", "--", *command]
    # Not under `with`: leaving it would wait without end for a process that cannot be killed.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        cwd="/",
        process_group=0,
    )
    stdout, stderr = _outcome(process, argv[0], timeout)
    if process.returncode not in accept:
        raise ToolError(argv[0], process.returncode, _text(stderr[-STDERR_KEPT:]).strip())
    return _text(stdout)


def _outcome(process: subprocess.Popen[bytes], tool: str, timeout: float) -> tuple[bytes, bytes]:
    """Return what the process wrote once it has ended; kill its group when that takes too long."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise ToolTimeout(tool, timeout) from None
    except BaseException:
        _kill(process)
        raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group, and let go of its pipes."""
    # Not reaped yet, so the number still is this group's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_GRACE_SECONDS)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
