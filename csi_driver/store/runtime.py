"""What this boot knows of each staged volume: how it was asked to be mounted; the kernel alone says what is mounted.

One JSON file per volume under the state directory, which is expected on a tmpfs (/run). Written without fsync:
a file of another boot is ignored, and a process killed between two writes leaves the old file or the new one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from csi_driver.faults import crash_point
from csi_driver.model import AccessMode, AccessType, Publication, VolumeCapability
from csi_driver.store import durable

_LIMIT_BYTES = 60000
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """What changes with every boot of the machine, and only then; in a container it is the machine's."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


@dataclass(slots=True)
class RuntimeState:
    """The requests behind the mounts of one volume; it may name mounts that are gone, never miss one of ours."""

    staging_target_path: str = ""
    staging_capability: VolumeCapability | None = None
    publications: dict[str, Publication] = field(default_factory=dict)
    made_staging_path: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.staging_target_path and not self.publications


class RuntimeDirectory:
    """Owner of the directory that holds the runtime state of one pool's volumes."""

    def __init__(self, state_dir: str, pool_uuid: str) -> None:
        path = os.path.join(state_dir, "volumes", pool_uuid)
        os.makedirs(path, mode=0o700, exist_ok=True)
        self._fd = durable.open_directory(path)
        self._boot_id = boot_id()

    def close(self) -> None:
        os.close(self._fd)

    def save(self, volume_id: str, state: RuntimeState) -> None:
        """Remember `state`; an empty one is forgotten. Survives SIGKILL, not a reboot (nor do the mounts)."""
        if state.is_empty:
            durable.unlink_if_there(self._fd, volume_id)
            crash_point("state.forgotten")
            return
        temporary = f"{volume_id}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._fd)
        try:
            durable.write_all(descriptor, json.dumps(self._body(state)).encode())
        finally:
            os.close(descriptor)
        crash_point("state.written")
        os.rename(temporary, volume_id, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def load_all(self) -> dict[str, RuntimeState]:
        """All states of this boot by volume id; files of another boot, or that cannot be read, are removed."""
        states = {}
        for name in os.listdir(self._fd):
            state = self._load(name)
            if state is None:
                durable.unlink_if_there(self._fd, name)
            else:
                states[name] = state
        return states

    def _load(self, name: str) -> RuntimeState | None:
        try:
            body = json.loads(durable.read_small(self._fd, name, limit_bytes=_LIMIT_BYTES))
            if name.endswith(".new") or body["boot_id"] != self._boot_id:
                return None
            return _state_from(body)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _body(self, state: RuntimeState) -> dict[str, Any]:
        return {
            "boot_id": self._boot_id,
            "staging_target_path": state.staging_target_path,
            "staging_capability": _capability_body(state.staging_capability),
            "made_staging_path": state.made_staging_path,
            "publications": [
                [held.target_path, _capability_body(held.capability), held.read_only]
                for held in state.publications.values()
            ],
        }


def _capability_body(capability: VolumeCapability | None) -> list[Any] | None:
    if capability is None:
        return None
    return [capability.access_type, capability.access_mode, capability.fs_type, list(capability.mount_flags)]


def _capability_from(body: list[Any] | None) -> VolumeCapability | None:
    if body is None:
        return None
    access_type, access_mode, fs_type, mount_flags = body
    return VolumeCapability(AccessType(access_type), AccessMode(access_mode), fs_type, tuple(mount_flags))


def _state_from(body: dict[str, Any]) -> RuntimeState:
    state = RuntimeState(body["staging_target_path"], _capability_from(body["staging_capability"]))
    state.made_staging_path = bool(body["made_staging_path"])
    for target_path, capability_body, read_only in body["publications"]:
        capability = _capability_from(capability_body)
        if capability is not None:
            state.publications[target_path] = Publication(target_path, capability, bool(read_only))
    return state
