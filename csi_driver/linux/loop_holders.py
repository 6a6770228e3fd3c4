"""Who keeps a loop device busy, for a message; it changes nothing."""

from __future__ import annotations

import os
import time
from typing import Final

from csi_driver.linux import mountinfo
from csi_driver.linux.loop import LOOP_MAJOR, device_path

_SCAN_SECONDS: Final = 0.3


def holders(number: int) -> list[str]:
    """Name what keeps the loop device busy, for a message: block devices on it, mounts, processes.

    A best effort within a fraction of a second: /proc is scanned, other mount namespaces too (a copy of a
    mount there keeps the filesystem in use). Never raises OSError.
    """
    return [*_stacked_devices(number), *_mounts_of(number), *_processes_with(number)]


def _stacked_devices(number: int) -> list[str]:
    try:
        return [f"block device {name}" for name in os.listdir(f"/sys/block/loop{number}/holders")]
    except OSError:
        return []


def _mounts_of(number: int) -> list[str]:
    device = os.makedev(LOOP_MAJOR, number)
    try:
        entries = mountinfo.read_mounts(mountinfo.device_needle(device), mountinfo.source_needle(device_path(number)))
    except OSError:
        return []
    # A btrfs shows an anonymous device number, so there only the source tells.
    return [
        f"mount at {entry.target}" for entry in entries if entry.device == device or entry.source == device_path(number)
    ]


def _processes_with(number: int) -> list[str]:
    path = device_path(number)
    needles = (mountinfo.device_needle(os.makedev(LOOP_MAJOR, number)), mountinfo.source_needle(path))
    ends = time.monotonic() + _SCAN_SECONDS
    namespaces = {_link("/proc/self/ns/mnt")}
    found = []
    for pid in _pids():
        if time.monotonic() > ends:
            break
        if _has_open(pid, path):
            found.append(f"process {_describe(pid)} has it open")
        namespace = _link(f"/proc/{pid}/ns/mnt")
        if namespace and namespace not in namespaces:
            namespaces.add(namespace)
            if _table_has(pid, needles):
                found.append(f"mounted in the mount namespace of process {_describe(pid)}")
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _has_open(pid: int, path: str) -> bool:
    # readlink and not stat: stat would ask the filesystem of every open file, and one that hangs would hang
    # us.
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_link(f"/proc/{pid}/fd/{name}") == path for name in names)


def _table_has(pid: int, needles: tuple[bytes, ...]) -> bool:
    try:
        table = mountinfo.read_table(pid)
    except OSError:
        return False
    return any(needle in table for needle in needles)


def _describe(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return f"{pid} ({os.fsdecode(file.read()).strip()})"
    except OSError:
        return str(pid)


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
