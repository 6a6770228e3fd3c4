"""`hostvol node` in a process of its own, and what it leaves in its pools and on the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from csi_driver.linux import growth
from tests.harness.calls import Caller, Failure
from tests.harness.places import PoolPlace, backing_files, run
from tests.harness.process import PROGRAM, ended, start_fork
from tests.waiting import until
from tests.zygote import ForkedProcess


@dataclass
class Driver:
    """`hostvol node` as a child process; it is started, killed and started again on the same pools."""

    home: Path
    pools: Sequence[PoolPlace]
    node_id: str = "test-node"
    init_pools: bool = True
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    options: Sequence[str] = ()
    # Where the program itself must be started: its memory is measured, or its interpreter is told something.
    forked: bool = True
    constants: dict[str, float] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | ForkedProcess | None = None
    _caller: Caller | None = None

    @property
    def socket_path(self) -> Path:
        return self.home / "csi.sock"

    @property
    def endpoint(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pool(self) -> Path:
        """The directory of the first pool."""
        return self.pools[0].directory

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        names = self.names or ["default", *(f"pool{number}" for number in range(1, len(self.pools)))]
        options = self.options or [""] * len(self.pools)
        pools = [
            f"--pool={name}={pool.directory}{option}"
            for name, pool, option in zip(names, self.pools, options, strict=True)
        ]
        init = ["--init-pools"] if self.init_pools else []
        state = f"--state-dir={self.home / 'state'}"
        return [
            *(*PROGRAM, "node", f"--endpoint={self.endpoint}", f"--node-id={self.node_id}"),
            *(*pools, *init, state, *self.arguments),
        ]

    def start(self, *, wait: bool = True, **environment: str) -> None:
        """Start; with `wait` until Probe says ready."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "log").open("ab") as log:
            environment = {**os.environ, **self.environment, **environment}
            if self.forked:
                self.process = start_fork(self.command(), log, environment, self.constants)
            else:
                assert not self.constants, "only in a fork"
                self.process = subprocess.Popen(self.command(), stderr=log, env=environment)
        if wait:
            self.wait_ready()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Driver]:
        """It serves; afterwards it has ended, nothing of it is mounted, and it met nothing that it did not foresee."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.clean_up)
            stack.callback(self.stop)
            self.start()
            yield self
        assert "unforeseen" not in self.log(), self.log()

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until the driver serves."""
        until(self._is_ready, seconds, self.log)

    def _is_ready(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the driver did not start: {self.log()}")
        return self.socket_path.exists() and self._probe()

    def _probe(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.socket_path))
            except OSError:
                return False
        try:
            return bool(self.caller.call("Probe", timeout=5).ready.value)
        except Failure:
            self.disconnect()
            return False

    @property
    def caller(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(self.socket_path)
        return self._caller

    def call(self, method: str, request: Any = None, **fields: Any) -> Any:
        return self.caller.call(method, request, **fields)

    def code(self, method: str, request: Any = None, **fields: Any) -> grpc.StatusCode:
        return self.caller.code(method, request, **fields)

    def disconnect(self) -> None:
        if self._caller is not None:
            self._caller.close()
            self._caller = None

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        return self._end(signal.SIGTERM)

    def wait_dead(self, seconds: float = 30.0) -> int:
        """Wait until the process has ended by itself."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.disconnect()
        return code

    def restart(self, **environment: str) -> None:
        """SIGKILL and start again."""
        self.kill()
        self.start(**environment)

    def _end(self, number: int) -> int:
        self.disconnect()
        return ended(self.process, number) if self.process is not None else 0

    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def clean_up(self) -> None:
        """Unmount and detach what a dead driver left behind, by its own names."""
        for target in reversed(self.mounts()):
            run("umount", target, check=False)
        for device in self.loops():
            run("losetup", "-d", device, check=False)

    def mounts(self) -> list[str]:
        """Where volumes of this driver are mounted, as findmnt tells."""
        below = [str(self.home), *(f"{pool.directory}/" for pool in self.pools)]
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        targets = [line.split()[4].replace("\\040", " ") for line in table]
        return [target for target in targets if any(target.startswith(f"{start}/") for start in below[:1])]

    def loops(self) -> list[str]:
        """Loop devices over files of this driver's pools, as sysfs tells."""
        return [device for device, path in backing_files() if any(path.startswith(f"{p.content}/") for p in self.pools)]

    def files(self) -> list[str]:
        """Everything below the pools except identity and templates, relative."""
        found = []
        for pool in self.pools:
            for path in sorted(pool.content.rglob("*")):
                relative = path.relative_to(pool.content)
                if len(relative.parts) > 1 and relative.parts[0] != "templates":
                    found.append(str(relative))
        return found

    # A place for staging and target paths, below the driver's home so that clean_up finds it.

    def staging(self, volume_id: str) -> str:
        path = self.home / "staging" / volume_id
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def target(self, name: str) -> str:
        path = self.home / "targets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)


def only_by_resize2fs(driver: Driver) -> None:
    """Start the driver, from now on, without the capability by which the kernel grows a mounted ext4."""
    command = driver.command
    if growth.may_grow_mounted_ext4():
        driver.forked = False
        driver.command = lambda: ["setpriv", "--bounding-set", "-sys_resource", "--", *command()]  # type: ignore[method-assign]
        driver.restart()
