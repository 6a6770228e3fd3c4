"""Parameters of StorageClasses, good and bad: the driver and the admission policy must judge them alike."""

from __future__ import annotations

from typing import Final

FSTYPE: Final = "csi.storage.k8s.io/fstype"

ACCEPTED: Final[tuple[dict[str, str], ...]] = (
    {},
    {"type": "image"},
    {"type": "image", FSTYPE: ""},
    {"type": "image", FSTYPE: "ext4", "provisioning": "thick", "retention": "0s"},
    {FSTYPE: "xfs", "pool": "fast", "provisioning": "thin", "mkfsOptions": "-i size=1024 -m reflink=1"},
    {FSTYPE: "btrfs", "mkfsOptions": "--metadata=dup --csum xxhash -n 16k"},
    {"mkfsOptions": "-I 512 -O ^orphan_file -m 0", "blockSize": "4096"},
    {"mkfsOptions": ""},
    {"mkfsOptions": "'-i' 8192"},
    {"blockSize": "512"},
    {"blockSize": "512", "mkfsOptions": ""},
    {"type": "directory"},
    {"type": "directory", "quota": "none", "pool": "a", "retention": "0"},
    {"type": "directory", "quota": "required", FSTYPE: ""},
    {"pool": "0" + "a" * 61 + "0", "retention": "00.0h"},
    {"csi.storage.k8s.io/pv/name": "anything", "csi.storage.k8s.io/unheard-of": "too"},
)

# With what the policy must name.
REFUSED: Final[tuple[tuple[dict[str, str], str], ...]] = (
    ({"size": "1"}, "parameters.size"),
    ({"Type": "image"}, "parameters.Type"),
    ({"fsType": "ext4"}, "parameters.fsType"),
    ({"fstype": "ext4"}, "parameters.fstype"),
    ({"example.com/type": "image"}, "parameters.example.com/type"),
    ({"csi.storage.k8s.iofstype": "ext4"}, "parameters.csi.storage.k8s.iofstype"),
    ({"type": ""}, "parameters.type"),
    ({"type": "Image"}, "parameters.type"),
    ({"type": "lvm"}, "parameters.type"),
    ({"pool": ""}, "parameters.pool"),
    ({"pool": "../etc"}, "parameters.pool"),
    ({"pool": "Fast"}, "parameters.pool"),
    ({"pool": "a-"}, "parameters.pool"),
    ({"pool": "a\n"}, "parameters.pool"),
    ({"pool": "a" * 64}, "parameters.pool"),
    ({"provisioning": "lazy"}, "parameters.provisioning"),
    ({"type": "directory", "provisioning": "thin"}, "parameters.provisioning"),
    ({"type": "directory", "mkfsOptions": "-m 0"}, "parameters.mkfsOptions"),
    ({"type": "directory", "mkfsOptions": ""}, "parameters.mkfsOptions"),
    ({"type": "directory", "blockSize": "4096"}, "parameters.blockSize"),
    ({"type": "directory", FSTYPE: "ext4"}, FSTYPE),
    ({"type": "directory", "quota": "soft"}, "parameters.quota"),
    ({"quota": "required"}, "parameters.quota"),
    ({"type": "image", "quota": "none"}, "parameters.quota"),
    ({FSTYPE: "zfs"}, FSTYPE),
    ({FSTYPE: "EXT4"}, FSTYPE),
    ({"retention": "1h"}, "parameters.retention"),
    ({"retention": ""}, "parameters.retention"),
    ({"retention": "-0s"}, "parameters.retention"),
    ({"retention": "0s\n"}, "parameters.retention"),
    ({"blockSize": "1024"}, "parameters.blockSize"),
    ({"blockSize": "4k"}, "parameters.blockSize"),
    ({"blockSize": "512", "mkfsOptions": "-m 0"}, "parameters.mkfsOptions"),
    ({"mkfsOptions": "-F"}, "parameters.mkfsOptions"),
    ({"mkfsOptions": "-m 0 -b 1024"}, "parameters.mkfsOptions"),
    ({"mkfsOptions": "-m0"}, "parameters.mkfsOptions"),
    ({"mkfsOptions": "--metadata dup"}, "parameters.mkfsOptions"),
    ({"mkfsOptions": "-L my -U random"}, "parameters.mkfsOptions"),
    ({FSTYPE: "xfs", "mkfsOptions": "-I 512"}, "parameters.mkfsOptions"),
    ({FSTYPE: "btrfs", "mkfsOptions": "--rootdir /etc"}, "parameters.mkfsOptions"),
    ({FSTYPE: "btrfs", "mkfsOptions": "--rootdir=/etc"}, "parameters.mkfsOptions"),
)

# Parameters of VolumeAttributesClasses, likewise.
ATTRIBUTES_ACCEPTED: Final[tuple[dict[str, str], ...]] = (
    {"provisioning": "thick"},
    {"provisioning": "thin"},
    {"quota": "required"},
    {"quota": "none", "csi.storage.k8s.io/unheard-of": "too"},
)
ATTRIBUTES_REFUSED: Final[tuple[tuple[dict[str, str], str], ...]] = (
    ({"iops": "100"}, "parameters.iops"),
    ({"pool": "fast"}, "parameters.pool"),
    ({"type": "directory"}, "parameters.type"),
    ({"mkfsOptions": "-m 0"}, "parameters.mkfsOptions"),
    ({"blockSize": "512"}, "parameters.blockSize"),
    ({"Provisioning": "thick"}, "parameters.Provisioning"),
    ({"provisioning": "fat"}, "parameters.provisioning"),
    ({"provisioning": ""}, "parameters.provisioning"),
    ({"quota": "soft"}, "parameters.quota"),
    ({"provisioning": "thick", "quota": "none"}, "parameters.quota"),
)
