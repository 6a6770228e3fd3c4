"""Mount flags: only admitted ones pass, the kernel takes each of them, and the others are refused by name.

The oracle is the kernel's own mount.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.linux import filesystem
from csi_driver.linux.filesystem import FILESYSTEMS
from csi_driver.linux.mount import MountFlag
from tests.image_mounts import formatted_image, mounted

MIB = 1 << 20

ADMITTED_MOUNT_OPTIONS = {
    "ext4": [
        *("discard", "nodiscard", "delalloc", "nodelalloc", "auto_da_alloc", "noauto_da_alloc"),
        *("dioread_lock", "dioread_nolock", "noinit_itable", "block_validity", "noblock_validity"),
        *("barrier", "barrier=1", "data=ordered", "data=journal", "commit=1", "commit=300"),
        *("errors=remount-ro", "errors=continue", "init_itable=10", "inode_readahead_blks=64"),
        *(
            "journal_ioprio=7",
            "max_batch_time=1000",
            "min_batch_time=10",
            "max_dir_size_kb=1024",
            "stripe=16",
        ),
    ],
    "xfs": [
        *("inode32", "inode64", "largeio", "nolargeio", "discard", "nodiscard", "noquota", "noalign"),
        *("swalloc", "wsync", "filestreams", "allocsize=64k", "allocsize=1048576", "logbufs=8"),
        *("logbsize=32k", "logbsize=262144"),
    ],
    "btrfs": [
        *(
            "ssd",
            "nossd",
            "ssd_spread",
            "nossd_spread",
            "discard",
            "discard=async",
            "discard=sync",
            "nodiscard",
        ),
        *(
            "autodefrag",
            "noautodefrag",
            "barrier",
            "treelog",
            "notreelog",
            "flushoncommit",
            "noflushoncommit",
        ),
        *(
            "skip_balance",
            "compress",
            "compress=no",
            "compress=zstd:3",
            "compress=lzo",
            "compress-force=zlib",
        ),
        *("compress-force", "commit=300", "max_inline=2048", "space_cache=v2", "thread_pool=4"),
    ],
}
SUPERBLOCK_OPTIONS = ["lazytime", "nolazytime", "sync", "dirsync"]


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_the_kernel_takes_every_admitted_mount_option(tmp_path: Path, name: str) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", name, 320 * MIB)
    refused = []
    for flag in [*ADMITTED_MOUNT_OPTIONS[name], *SUPERBLOCK_OPTIONS]:
        checked = filesystem.check_mount_options(name, [flag])
        assert checked.options == (flag,)
        try:
            with mounted(image, name, checked.options):
                pass
        except OSError as error:
            refused.append(f"{flag}: {error}")
    assert refused == []


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_every_mount_option_on_the_list_is_tried(name: str) -> None:
    tried = {flag.partition("=")[0] for flag in [*ADMITTED_MOUNT_OPTIONS[name], *SUPERBLOCK_OPTIONS]}
    assert tried == set(FILESYSTEMS[name].mount_options)


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("ext4", "data=writeback"),
        ("ext4", "errors=panic"),
        ("ext4", "barrier=0"),
        ("ext4", "nobarrier"),
        ("ext4", "noload"),
        ("ext4", "norecovery"),
        ("ext4", "journal_path=/dev/sda"),
        ("ext4", "journal_dev=8"),
        ("ext4", "journal_async_commit"),
        ("ext4", "commit=0"),
        ("ext4", "commit=301"),
        ("ext4", "commit=005"),
        ("ext4", "commit=5\n"),
        ("ext4", "commit="),
        ("ext4", "commit"),
        ("ext4", "discard=1"),
        ("ext4", "sb=8193"),
        ("ext4", "resuid=0"),
        ("ext4", "usrjquota=aquota.user"),
        ("ext4", "nouid32"),
        ("ext4", "inode64"),
        ("ext4", ""),
        ("ext4", "noatime,,nodev"),
        ("ext4", "RO"),
        ("ext4", "context=system_u:object_r:x:s0"),
        ("xfs", "logdev=/dev/sda"),
        ("xfs", "rtdev=/dev/sda"),
        ("xfs", "norecovery"),
        ("xfs", "nouuid"),
        ("xfs", "allocsize=65537"),
        ("xfs", "logbsize=1m"),
        ("btrfs", "device=/dev/sda"),
        ("btrfs", "subvol=../x"),
        ("btrfs", "subvolid=5"),
        ("btrfs", "degraded"),
        ("btrfs", "rescue=all"),
        ("btrfs", "fatal_errors=bug"),
        ("btrfs", "nobarrier"),
        ("btrfs", "nodatasum"),
        ("btrfs", "compress=zstd:16"),
        ("btrfs", "user_subvol_rm_allowed"),
        (None, "discard"),
        (None, "lazytime"),
        (None, "commit=5"),
        (None, "bind"),
        (None, "remount"),
    ],
)
def test_a_mount_flag_off_the_list_is_refused_by_name(name: str | None, flag: str) -> None:
    with pytest.raises(ValueError, match="mount flag") as refusal:
        filesystem.check_mount_options(name, ["noatime", flag])
    assert repr(flag.partition("=")[0])[1:-1].split(",")[0] in str(refusal.value)


def test_the_value_of_an_unknown_flag_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="'password'") as refusal:
        filesystem.check_mount_options("ext4", ["password=hunter2"])
    assert "hunter2" not in str(refusal.value)


def test_devices_and_set_user_id_files_are_dead_unless_the_flags_say_otherwise() -> None:
    assert filesystem.check_mount_options("ext4", []).attributes == {"nodev", "nosuid"}
    assert filesystem.check_mount_options(None, ["suid"]).attributes == {"nodev"}
    assert filesystem.check_mount_options("xfs", ["dev", "suid"]).attributes == frozenset()


def test_attributes_and_options_are_told_apart() -> None:
    found = filesystem.check_mount_options("ext4", ["ro,noatime", "commit=30", "defaults", "commit=30", "exec"])
    assert found.attributes == {"ro", "noatime", "nodev", "nosuid"}
    assert found.options == ("commit=30",)
    wanted = MountFlag.READ_ONLY | MountFlag.NO_ATIME | MountFlag.NO_DEV | MountFlag.NO_SUID
    assert found.flags == wanted


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("ext4", "ro", "rw"),
        ("ext4", "suid", "nosuid"),
        ("ext4", "dev", "nodev"),
        ("ext4", "exec", "noexec"),
        ("ext4", "noatime", "strictatime"),
        ("ext4", "relatime", "noatime"),
        ("ext4", "diratime", "nodiratime"),
        ("ext4", "discard", "nodiscard"),
        ("ext4", "commit=5", "commit=6"),
        ("ext4", "dioread_lock", "dioread_nolock"),
        ("ext4", "lazytime", "nolazytime"),
        ("ext4", "init_itable=10", "noinit_itable"),
        ("xfs", "inode32", "inode64"),
        ("xfs", "largeio", "nolargeio"),
        ("btrfs", "compress=lzo", "compress-force=zlib"),
        ("btrfs", "discard", "discard=async"),
        ("btrfs", "ssd", "nossd"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_by_name(name: str, first: str, second: str) -> None:
    for flags in ([first, second], [f"{second},{first}"]):
        with pytest.raises(ValueError, match="contradict") as refusal:
            filesystem.check_mount_options(name, flags)
        assert repr(first) in str(refusal.value)
        assert repr(second) in str(refusal.value)


def test_a_flag_of_more_than_128_bytes_is_refused() -> None:
    assert filesystem.check_mount_options("ext4", [",".join(["noatime"] * 16)])
    with pytest.raises(ValueError, match="128 bytes"):
        filesystem.check_mount_options("ext4", [",".join(["noatime"] * 17)])
