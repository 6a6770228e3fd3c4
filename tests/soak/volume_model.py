"""What must be true of the volumes of the state machine; knows no call.

What a workload writes and reads in them, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st

from csi_driver.linux import growth
from csi_driver.pb import csi_pb2
from tests.harness import DIRECTORY, MIB, PodVolume, capability

NAMES = ("red", "green", "blue")
STAGING_PATHS = ("a", "b")
TARGETS = ("one", "two", "three")
MODES = (
    "SINGLE_NODE_WRITER",
    "SINGLE_NODE_READER_ONLY",
    "SINGLE_NODE_SINGLE_WRITER",
    "SINGLE_NODE_MULTI_WRITER",
)
SHARED_MODE = "SINGLE_NODE_MULTI_WRITER"
MAY_GROW_MOUNTED_EXT4 = growth.may_grow_mounted_ext4()
# Inline ephemeral volumes: the pool of each.
PODS = {"pod-here": "default", "pod-by-a-clone": "pool1"}


@dataclass(frozen=True)
class Kind:
    """What a volume is made of; `sizes` are bytes."""

    sizes: tuple[int, int]
    block: bool = False
    fs_type: str = ""
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def is_image(self) -> bool:
        return ("type", "directory") not in self.parameters

    def capability(self, mode: str = SHARED_MODE, flags: tuple[str, ...] = ()) -> csi_pb2.VolumeCapability:
        return capability(mode, block=self.block, fs_type=self.fs_type, flags=() if self.block else flags)


KINDS = {
    "ext4": Kind((8 * MIB, 16 * MIB)),
    "ext4 by a clone": Kind((8 * MIB, 16 * MIB), fs_type="ext4", parameters=(("pool", "pool1"),)),
    "block": Kind((4 * MIB, 8 * MIB), block=True),
    "directory": Kind((4 * MIB, 8 * MIB), parameters=tuple(DIRECTORY.items())),
    "kept": Kind((4 * MIB, 8 * MIB), block=True, parameters=(("retention", "1d"),)),
}


@dataclass
class Publication:
    mode: str
    read_only: bool
    flags: tuple[str, ...]


@dataclass
class VolumeModel:
    """What must be true of one volume."""

    kind: Kind
    size_bytes: int
    volume_id: str
    staged_at: str = ""
    staged_as: tuple[str, tuple[str, ...]] = ("", ())
    publications: dict[str, Publication] = field(default_factory=dict)
    written: str = ""
    source: str = ""
    shown_bytes: int = 0

    @property
    def lags(self) -> bool:
        """Whether its mounted filesystem is smaller than the volume, and stays so until it is staged again."""
        is_ext4 = self.kind.is_image and not self.kind.block
        return is_ext4 and self.shown_bytes < self.size_bytes and not MAY_GROW_MOUNTED_EXT4


@dataclass
class PodModel:
    """What must be true of one inline ephemeral volume."""

    inline: PodVolume
    read_only: bool
    written: str = ""


pods = st.sampled_from(sorted(PODS))
names = st.sampled_from((*NAMES, "red", "green", "red"))
kinds = st.sampled_from(sorted(KINDS))
modes = st.sampled_from((*MODES, SHARED_MODE, SHARED_MODE, SHARED_MODE))
flags = st.sampled_from(((), (), ("noatime",)))
losses = st.sampled_from(("", "", "", "", "", "deadline", "cancel", "kill"))


def write(target: str, kind: Kind, text: str) -> None:
    if kind.block:
        with open(target, "r+b", buffering=0) as device:
            device.write(text.encode().ljust(4096))
            os.fsync(device.fileno())
    else:
        Path(target, "note").write_text(text)


def read(target: str, kind: Kind) -> str:
    if kind.block:
        with open(target, "rb", buffering=0) as device:
            return device.read(4096).decode().strip("\0 ")
    note = Path(target, "note")
    return note.read_text() if note.exists() else ""


def refuses_writes(target: str, kind: Kind) -> bool:
    try:
        write(target, kind, "never")
    except OSError:
        return True
    return False
