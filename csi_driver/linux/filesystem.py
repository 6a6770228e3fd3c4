"""The filesystems an image can hold: making, recognising, checking and measuring them; it knows no volume.

Everything that can be asked of a file or a mounted filesystem is asked of the kernel or read from the
superblock; child processes make (mkfs) and repair (e2fsck).
"""

from __future__ import annotations

import os
import struct
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import filesystem_options, ioctl, process, statfs
from csi_driver.linux.filesystem_options import MountOptions, Rule, check_mount_options, flag_names, is_known_flag

__all__ = [
    "FILESYSTEMS",
    "FilesystemType",
    "MountOptions",
    "SpaceUsage",
    "check_ext4",
    "check_mount_options",
    "filesystem_name",
    "flag_names",
    "get_ext4_uuid",
    "identify",
    "is_known_flag",
    "make",
    "parse_mkfs_options",
    "set_ext4_uuid",
    "space",
]

MIB: Final = 1 << 20
BLOCK_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class FilesystemType:
    """A filesystem that images can be formatted with, and what a class may ask of it.

    `grown_minimum_bytes`: the least size to which one that was made smaller can grow.
    """

    name: str
    minimum_bytes: int
    grown_minimum_bytes: int
    maximum_bytes: int
    block_size: int
    mkfs: str
    mkfs_options: Mapping[str, Rule]
    mount_options: Mapping[str, Rule]


def _filesystem(name: str, minimum_bytes: int, maximum_bytes: int, grown_minimum_bytes: int = 0) -> FilesystemType:
    return FilesystemType(
        name=name,
        minimum_bytes=minimum_bytes,
        grown_minimum_bytes=grown_minimum_bytes or minimum_bytes,
        maximum_bytes=maximum_bytes,
        block_size=BLOCK_SIZE,
        mkfs=f"mkfs.{name}",
        mkfs_options=filesystem_options.MKFS_OPTIONS[name],
        mount_options=filesystem_options.MOUNT_OPTIONS[name],
    )


# The least sizes: mkfs.ext4 leaves the journal out below 2048 blocks, and says so only on stderr; mkfs.xfs and
# mkfs.btrfs refuse what is smaller; BTRFS_IOC_RESIZE refuses what is below 256 MiB. The greatest: 32-bit block numbers
# for ext4, any disk for the others.
FILESYSTEMS: Final[Mapping[str, FilesystemType]] = {
    "ext4": _filesystem("ext4", 8 * MIB, 1 << 44),
    "xfs": _filesystem("xfs", 300 * MIB, 1 << 60),
    "btrfs": _filesystem("btrfs", 109 * MIB, 1 << 60, 256 * MIB),
}

# In full, since the machine's mke2fs.conf would otherwise decide; `none` clears what it says. All of them are
# older than Linux 4.5. metadata_csum_seed lets a mounted clone get its own UUID.
EXT4_FEATURES: Final = (
    "none",
    "has_journal",
    "ext_attr",
    "resize_inode",
    "dir_index",
    "filetype",
    "extent",
    "64bit",
    "flex_bg",
    "sparse_super",
    "large_file",
    "huge_file",
    "dir_nlink",
    "extra_isize",
    "metadata_csum",
    "metadata_csum_seed",
)
# Marks the tables as zeroed (e2fsprogs 1.47), so that neither mkfs nor the kernel writes zeros over zeros.
EXT4_PREZEROED: Final = "assume_storage_prezeroed"

# fs/ext4/ext4.h, struct ext4_super_block, 1024 bytes into the device
EXT4_SUPERBLOCK: Final = 1024
EXT4_MAGIC: Final = b"\x53\xef"
EXT4_FEATURE_COMPAT_HAS_JOURNAL: Final = 0x0004
EXT4_FEATURE_INCOMPAT_EXTENTS: Final = 0x0040
# fs/btrfs/fs.h and include/uapi/linux/btrfs_tree.h, struct btrfs_super_block, 64 KiB into the device
BTRFS_SUPERBLOCK: Final = 65536
BTRFS_MAGIC: Final = b"_BHRfS_M"
# fs/xfs/libxfs/xfs_format.h, struct xfs_dsb, at the start of the device
XFS_MAGIC: Final = b"XFSB"

# include/uapi/linux/ext4.h: struct fsuuid is two u32 and a flexible array, which the request's number omits.
FSUUID: Final = struct.Struct("=II16s")
FSUUID_HEADER_BYTES: Final = 8
UUID_BYTES: Final = 16
EXT4_IOC_GETFSUUID: Final = ioctl.ior(ord("f"), 44, FSUUID_HEADER_BYTES)
EXT4_IOC_SETFSUUID: Final = ioctl.iow(ord("f"), 44, FSUUID_HEADER_BYTES)

# e2fsck(8): 1 is "errors corrected"; 2 would be "reboot", said of a mounted root filesystem alone.
E2FSCK_OK: Final = (0, 1)

# include/uapi/linux/magic.h
FILESYSTEM_NAMES: Final = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0x6969: "nfs",
    0x65735546: "fuse",
}


@dataclass(frozen=True, slots=True)
class SpaceUsage:
    """What a filesystem says of its space; inode figures are 0 where it does not count inodes (btrfs).

    `available_bytes` is what an unprivileged writer may still take, so used + available may be less than
    the total.
    """

    total_bytes: int
    used_bytes: int
    available_bytes: int
    inodes_total: int
    inodes_used: int
    inodes_free: int


def parse_mkfs_options(fs: FilesystemType, text: str) -> tuple[str, ...]:
    """Split and check a class's mkfs options; they come back as `make` takes them.

    Raises:
        ValueError: naming the option that is refused, and what is allowed.
    """
    return filesystem_options.parse_mkfs_options(fs.name, text)


def make(
    fs: FilesystemType,
    image_path: str,
    *,
    uuid: str,
    extra: Sequence[str] = (),
    sector_size: int = BLOCK_SIZE,
    timeout: float,
) -> str:
    """Make an empty filesystem in an image file that has its size and reads as zeros, and return its UUID.

    ext4 and XFS get the `uuid` that is given, btrfs one that its mkfs makes up. The file must be one that
    nobody uses and that was never written: blocks that have to be zero are not written (ext4 takes 0.7 MiB of
    a thin GiB so, not 33), and nothing is discarded (a thick image keeps its blocks). `extra` comes from
    `parse_mkfs_options`; `sector_size` is that of the device that the image will be attached as; `timeout` is
    in seconds, for each child process. The content is not durable before the caller's fsync.

    Raises:
        ValueError: not a UUID.
        OSError: ToolMissing, ToolError or ToolTimeout from mkfs; ToolError as well when the file does not
            hold afterwards what was asked for.
    """
    wanted = str(uuids.UUID(uuid))
    if fs.name == "ext4":
        _make_ext4(image_path, wanted, extra, timeout)
    else:
        # mkfs.btrfs -U opens every block device of the machine to see that no other bears the UUID: slow, and
        # a loop device that somebody has open is not let go of when its own volume is unmounted meanwhile.
        own = ["-s", str(BLOCK_SIZE)]
        if fs.name == "xfs":
            own = ["-s", f"size={sector_size}", "-m", f"uuid={wanted}"]
        process.run([fs.mkfs, "-q", "-f", "-K", *own, *extra, "--", image_path], timeout=timeout)
    name, made = _identify_path(image_path) or ("", "")
    if name != fs.name or (made != wanted and fs.name != "btrfs"):
        raise process.ToolError(fs.mkfs, 0, f"the image does not hold {fs.name} with UUID {wanted}")
    return made


def _make_ext4(image_path: str, uuid: str, extra: Sequence[str], timeout: float) -> None:
    def mkfs(extended: str) -> None:
        arguments = _ext4_arguments(uuid, extended, extra)
        process.run(["mkfs.ext4", "-F", "-q", *arguments, "--", image_path], timeout=timeout)

    try:
        mkfs(f"nodiscard,{EXT4_PREZEROED}=1")
    except process.ToolError as error:
        if EXT4_PREZEROED not in error.stderr:
            raise
        # Before e2fsprogs 1.47. The kernel then writes zeros over the inode tables some time after the first
        # mount (16 MiB of each GiB, allocated in a thin image) unless it is mounted with noinit_itable.
        mkfs("nodiscard,lazy_itable_init=1,lazy_journal_init=1")


def _ext4_arguments(uuid: str, extended: str, extra: Sequence[str]) -> list[str]:
    """Return our options and the class's as one: of a repeated option mkfs.ext4 takes the last one alone."""
    ours = {"-b": str(BLOCK_SIZE), "-m": "0", "-U": uuid, "-O": ",".join(EXT4_FEATURES), "-E": extended}
    given = dict(zip(extra[::2], extra[1::2], strict=True))
    lists = {name: f"{ours[name]},{given[name]}" for name in ("-O", "-E") if name in given}
    return [word for pair in (ours | given | lists).items() for word in pair]


def identify(image_fd: int) -> tuple[str, str] | None:
    """Return the name and the UUID of the filesystem that an image file or block device holds.

    None when it holds none that we make, or the signs of more than one. It trusts the magic numbers alone and
    so says what a mount would try, not that it would succeed. ext2 and ext3 are named as such.

    Raises:
        OSError: the image cannot be read.
    """
    found = [f for f in (_identify_ext(image_fd), _identify_xfs(image_fd), _identify_btrfs(image_fd)) if f]
    return found[0] if len(found) == 1 else None


def _identify_path(path: str) -> tuple[str, str] | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return identify(fd)
    finally:
        os.close(fd)


def _identify_ext(fd: int) -> tuple[str, str] | None:
    block = os.pread(fd, 256, EXT4_SUPERBLOCK)
    if block[0x38:0x3A] != EXT4_MAGIC or len(block) < 256:
        return None
    compat, incompat = struct.unpack_from("<II", block, 0x5C)
    name = "ext3" if compat & EXT4_FEATURE_COMPAT_HAS_JOURNAL else "ext2"
    if incompat & EXT4_FEATURE_INCOMPAT_EXTENTS:
        name = "ext4"
    return name, _uuid(block[0x68:0x78])


def _identify_xfs(fd: int) -> tuple[str, str] | None:
    block = os.pread(fd, 48, 0)
    return ("xfs", _uuid(block[32:48])) if block.startswith(XFS_MAGIC) and len(block) == 48 else None


def _identify_btrfs(fd: int) -> tuple[str, str] | None:
    block = os.pread(fd, 72, BTRFS_SUPERBLOCK)
    return ("btrfs", _uuid(block[32:48])) if block[64:72] == BTRFS_MAGIC else None


def _uuid(raw: bytes) -> str:
    return str(uuids.UUID(bytes=raw))


def check_ext4(image_path: str, timeout: float, *, thoroughly: bool = False) -> None:
    """Replay the journal of an unmounted ext4 image and repair what can be repaired without a question.

    Quick when the image is not marked with an error, unless it is to be checked `thoroughly`. It must not be
    attached anywhere; the check dies with the thread that asked for it, so that none is left writing beside
    our successor's mount. `timeout` is in seconds.

    Raises:
        OSError: ToolError when errors remain (its text says which); ToolMissing; ToolTimeout.
    """
    how = "-fp" if thoroughly else "-p"
    process.run(["e2fsck", how, "--", image_path], timeout=timeout, accept=E2FSCK_OK, die_with_caller=True)


def get_ext4_uuid(fd: int) -> str:
    """Return the UUID of the mounted ext4 that `fd` is on (EXT4_IOC_GETFSUUID, Linux 6.0).

    Raises:
        OSError: ENOTTY: not ext4, or an older kernel.
    """
    request = bytearray(FSUUID.pack(UUID_BYTES, 0, bytes(UUID_BYTES)))
    ioctl.exchange(fd, EXT4_IOC_GETFSUUID, request)
    return _uuid(FSUUID.unpack(request)[2])


def set_ext4_uuid(mount_fd: int, uuid: str) -> None:
    """Give the mounted ext4 that `mount_fd` is on another UUID (EXT4_IOC_SETFSUUID, Linux 6.0).

    `mount_fd` is any file or directory of it, open for reading. All superblock copies change in one
    transaction, which a crash may lose until fsync(mount_fd) or an unmount. The filesystem must have
    metadata_csum_seed; those of `make` do.

    Raises:
        ValueError: not a UUID.
        OSError: EOPNOTSUPP: without metadata_csum_seed; EPERM: without CAP_SYS_ADMIN; EROFS: mounted read
            only; ENOTTY: not ext4, or an older kernel.
    """
    request = bytearray(FSUUID.pack(UUID_BYTES, 0, uuids.UUID(uuid).bytes))
    ioctl.exchange(mount_fd, EXT4_IOC_SETFSUUID, request)


def space(fd: int) -> SpaceUsage:
    """Return the space and the inodes of the filesystem that `fd` is on, as statfs(2) has them.

    Waits for as long as the filesystem does; btrfs guesses what is available. A filesystem that the kernel
    has shut down still answers: this is no health check.

    Raises:
        OSError: from fstatvfs(3).
    """
    found = os.fstatvfs(fd)
    return SpaceUsage(
        total_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        available_bytes=found.f_bavail * found.f_frsize,
        inodes_total=found.f_files,
        inodes_used=found.f_files - found.f_ffree,
        inodes_free=found.f_ffree,
    )


def filesystem_name(fd: int) -> str:
    """Return the kind of the filesystem that `fd` is on (`ext4`, `xfs`, `btrfs`, …), by its magic number.

    ext2 and ext3 share ext4's number and its driver. A number that we have no name for comes back as hex.

    Raises:
        OSError: from fstatfs(2).
    """
    magic = statfs.magic(fd)
    return FILESYSTEM_NAMES.get(magic, hex(magic))
