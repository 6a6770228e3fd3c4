"""Which filesystems are about to be frozen, remembered until they are thawed; knows no kernel.

One JSON file per freeze under the state directory, which is expected on a tmpfs (/run): what another boot froze is not
frozen any more. Written without fsync: a process killed in the middle leaves a whole file or a temporary one, and has
frozen nothing yet in that case.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from csi_driver.store import durable
from csi_driver.store.runtime import boot_id

_LIMIT_BYTES = 60000


@dataclass(frozen=True, slots=True)
class FrozenFilesystem:
    """A mounted filesystem as it can be found again: where it is mounted, its st_dev, and the device it is on."""

    volume_id: str
    target: str
    device: int
    source: str


class FreezeIntents:
    """Owner of the directory that holds the intents of one node."""

    def __init__(self, state_dir: str) -> None:
        path = os.path.join(state_dir, "freezes")
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._fd = durable.open_directory(path)
        self._boot_id = boot_id()

    def close(self) -> None:
        os.close(self._fd)

    def add(self, filesystems: Sequence[FrozenFilesystem]) -> str:
        """These are about to be frozen; returns the intent's name. Survives SIGKILL, not a reboot."""
        name = f"{secrets.token_hex(8)}.json"
        rows = [[one.volume_id, one.target, one.device, one.source] for one in filesystems]
        content = json.dumps({"boot_id": self._boot_id, "filesystems": rows}).encode()
        descriptor = durable.create(self._fd, f"{name}.new")
        try:
            durable.write_all(descriptor, content)
        finally:
            os.close(descriptor)
        os.rename(f"{name}.new", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return name

    def remove(self, name: str) -> None:
        """They are thawed. Idempotent."""
        durable.unlink_if_there(self._fd, name)

    def load_all(self) -> Iterator[tuple[str, list[FrozenFilesystem]]]:
        """Every intent by name; nothing is frozen for one of another boot, or one that cannot be read."""
        for name in sorted(os.listdir(self._fd)):
            yield name, self._load(name)

    def _load(self, name: str) -> list[FrozenFilesystem]:
        try:
            body = json.loads(durable.read_small(self._fd, name, limit_bytes=_LIMIT_BYTES))
            if body["boot_id"] != self._boot_id:
                return []
            return [FrozenFilesystem(str(a), str(b), int(c), str(d)) for a, b, c, d in body["filesystems"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []
