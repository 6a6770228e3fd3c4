"""A container without a container runtime: the image's files, read-only, and what a pod would mount over them.

In the mount namespace of the tests. Everything is mounted below the root, and gone after `remove`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import Caller, Failure, run

# As the securityContext of the controller's pod has it.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--clear-groups")


@dataclass
class Container:
    """One of the image's programs as a child process; `volumes` are directories by their place inside."""

    root: Path
    settings: Mapping[str, Any]
    arguments: Sequence[str]
    volumes: Mapping[str, Path] = field(default_factory=dict)
    privileged: bool = False
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mount and start."""
        run("mount", "--bind", str(self.root), str(self.root))
        places = {"/proc": "proc", "/sys": "/sys", "/dev": "/dev"} | {k: str(v) for k, v in self.volumes.items()}
        for place in self.volumes:
            self.path(place).mkdir(parents=True, exist_ok=True)
        for place, source in places.items():
            how = ["-t", source, source] if place == "/proc" else ["--rbind", source]
            run("mount", *how, str(self.path(place)))
        run("mount", "-o", "remount,bind,ro", str(self.root))
        with self.log_path.open("wb") as log:
            command = self._command([*self.settings["Entrypoint"], *self.arguments])
            self.process = subprocess.Popen(command, env=self._environment(), stderr=log, stdin=subprocess.DEVNULL)

    def execute(self, *command: str) -> str:
        """Run another program in the container, as `kubectl exec` would, and return what it prints."""
        done = subprocess.run(
            self._command(command), check=False, env=self._environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: exit {done.returncode}: {done.stderr}{self.log()}"
        return done.stdout

    def wait_answers(self, socket: str, method: str, seconds: float = 20.0) -> Any:
        """The first answer to an RPC on the socket at this place inside."""
        caller = Caller(self.path(socket))
        ends = time.monotonic() + seconds
        try:
            while True:
                assert self.is_running, self.log()
                try:
                    return caller.call(method, timeout=5)
                except Failure as failure:
                    assert time.monotonic() < ends, f"{failure}: {self.log()}"
                time.sleep(0.05)
        finally:
            caller.close()

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def remove(self) -> None:
        """Stop and unmount."""
        if self.process is not None and self.is_running:
            self.process.kill()
            self.process.wait(30)
        run("umount", "--recursive", str(self.root))
        for place in self.volumes:
            self.path(place).rmdir()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def path(self, place: str) -> Path:
        """Where something inside is outside."""
        return self.root / place.lstrip("/")

    @property
    def log_path(self) -> Path:
        return self.root.with_suffix(".log")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _command(self, command: Sequence[str]) -> list[str]:
        user, group = self.settings["User"].split(":")
        chroot = [shutil.which("chroot") or "chroot", str(self.root)]
        if self.privileged:
            return [*chroot, *command]
        return [*chroot, *UNPRIVILEGED, f"--reuid={user}", f"--regid={group}", "--", *command]

    def _environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.settings["Env"])
