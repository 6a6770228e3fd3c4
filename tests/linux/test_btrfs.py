"""btrfs: subvolumes, what becomes of their qgroups, and a figure for free space that is never too great."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import attributes, btrfs, btrfs_items, btrfs_quota, btrfs_space
from csi_driver.linux.btrfs_space import Device, SpaceInfo
from csi_driver.linux.ioctl import exchange
from tests.waiting import until

from .filesystem_images import MIB, mounted, opened, run

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
GIB = 1024 * MIB
NOBODY = 65534


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("btrfs"), "btrfs", size=GIB) as path:
        yield path


@pytest.fixture
def quota_pool(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, "btrfs", size=GIB) as path, opened(path) as fd:
        run("mount", "--options", "remount,commit=1", path)  # the cleaner wakes with each commit
        btrfs_quota.enable_quota(fd)
        yield path


def sync(path: Path) -> None:
    run("btrfs", "filesystem", "sync", path)


def shown_qgroups(path: Path) -> dict[str, list[str]]:
    """What `btrfs qgroup show` lists, by id."""
    lines = run("btrfs", "qgroup", "show", "--raw", "-r", "-e", "--sync", path).splitlines()[2:]
    return {line.split()[0]: line.split()[1:5] for line in lines}


def test_structures_and_numbers_are_those_of_the_headers() -> None:
    names = {
        "BTRFS_IOC_SUBVOL_CREATE": 0x5000940E,
        "BTRFS_IOC_SNAP_DESTROY": 0x5000940F,
        "BTRFS_IOC_SUBVOL_GETFLAGS": 0x80089419,
        "BTRFS_IOC_SUBVOL_SETFLAGS": 0x4008941A,
        "BTRFS_IOC_INO_LOOKUP": 0xD0009412,
        "BTRFS_IOC_QUOTA_CTL": 0xC0109428,
        "BTRFS_IOC_QUOTA_RESCAN": 0x4040942C,
        "BTRFS_IOC_QUOTA_RESCAN_WAIT": 0x942E,
        "BTRFS_IOC_QGROUP_CREATE": 0x4010942A,
        "BTRFS_IOC_QGROUP_LIMIT": 0x8030942B,
        "BTRFS_IOC_TREE_SEARCH_V2": 0xC0709411,
        "BTRFS_IOC_SPACE_INFO": 0xC0109414,
        "BTRFS_IOC_FS_INFO": 0x8400941F,
        "BTRFS_IOC_DEV_INFO": 0xD000941E,
    }
    stated = {**vars(btrfs), **vars(btrfs_items), **vars(btrfs_quota), **vars(btrfs_space)}
    assert {name: stated[name] for name in names} == names
    sizes = {
        "VOL_ARGS": 4096,
        "INO_LOOKUP": 4096,
        "QUOTA_CTL": 16,
        "QGROUP_CREATE": 16,
        "QGROUP_LIMIT": 48,
        "SEARCH_KEY": 104,
        "SEARCH_ARGS": 112,
        "SEARCH_HEADER": 32,
        "QGROUP_STATUS": 32,
        "QGROUP_INFO": 40,
        "QGROUP_LIMIT_ITEM": 40,
        "SPACE_ARGS": 16,
        "SPACE_INFO": 24,
        "FS_INFO": 1024,
        "DEV_INFO": 4096,
    }
    found: dict[str, struct.Struct] = {name: stated[name] for name in sizes}
    assert {name: structure.size for name, structure in found.items()} == sizes
    assert attributes.FS_IOC_GETFLAGS == 0x80086601
    assert attributes.FS_IOC_SETFLAGS == 0x40086602


def test_btrfs_is_told_from_others(pool: Path, tmp_path: Path) -> None:
    with opened(pool) as fd, opened(tmp_path) as other, opened("/dev/shm") as memory:
        assert btrfs.is_btrfs(fd)
        assert not btrfs.is_btrfs(other)
        assert not btrfs.is_btrfs(memory)


def test_a_subvolume_is_made_known_and_deleted(pool: Path) -> None:
    with opened(pool) as parent:
        btrfs.create_subvolume(parent, "sub")
        with opened(pool / "sub") as fd:
            assert btrfs.is_subvolume(fd)
            assert f"ID {btrfs.subvolume_id(fd)} " in run("btrfs", "subvolume", "list", pool)
        (pool / "sub" / "directory").mkdir()
        (pool / "sub" / "file").write_bytes(b"data")
        with opened(pool / "sub" / "directory") as fd:
            assert not btrfs.is_subvolume(fd)
        with pytest.raises(FileExistsError):
            btrfs.create_subvolume(parent, "sub")
        btrfs.delete_subvolume(parent, "sub")
        with pytest.raises(FileNotFoundError):
            btrfs.delete_subvolume(parent, "sub")
    assert not (pool / "sub").exists()


def test_what_is_no_subvolume_is_not_deleted(pool: Path) -> None:
    (pool / "plain").mkdir()
    with opened(pool) as parent, pytest.raises(OSError, match="Invalid argument"):
        btrfs.delete_subvolume(parent, "plain")
    assert (pool / "plain").is_dir()
    (pool / "plain").rmdir()


def test_a_subvolume_that_holds_another_is_not_deleted(pool: Path) -> None:
    with opened(pool) as parent:
        btrfs.create_subvolume(parent, "outer")
        with opened(pool / "outer") as outer:
            btrfs.create_subvolume(outer, "inner")
            with pytest.raises(OSError, match="not empty"):
                btrfs.delete_subvolume(parent, "outer")
            btrfs.delete_subvolume(outer, "inner")
        btrfs.delete_subvolume(parent, "outer")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "n" * 256])
def test_names_that_are_no_names_are_refused(pool: Path, name: str) -> None:
    with opened(pool) as parent, pytest.raises(OSError, match="no name"):
        btrfs.create_subvolume(parent, name)


def test_nocow_needs_an_empty_file(pool: Path) -> None:
    with opened(pool / "image", NEW) as fd:
        btrfs.set_nocow(fd)
        assert "C" in run("lsattr", pool / "image").split()[0]
    with opened(pool / "full", NEW) as fd:
        os.pwrite(fd, b"data", 0)
        with pytest.raises(OSError, match="empty"):
            btrfs.set_nocow(fd)


def test_quota_is_off_until_it_is_enabled_and_simple_quota_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs") as path, opened(path) as fd:
        assert not btrfs_quota.quota_enabled(fd)
        assert not btrfs_quota.quota_consistent(fd)
        assert btrfs_quota.stale_qgroups(fd) == []
        with pytest.raises(OSError, match="not connected"):
            btrfs_quota.set_qgroup_limit(fd, 5, MIB)
        with pytest.raises(FileNotFoundError):
            btrfs_quota.qgroup_usage(fd, 5)
        (path / "old").write_bytes(os.urandom(4 * MIB))
        sync(path)
        btrfs_quota.enable_quota(fd)
        assert btrfs_quota.quota_enabled(fd)
        assert btrfs_quota.qgroup_usage(fd, 5).referenced >= 4 * MIB, "what was there before is counted"
        btrfs_quota.enable_quota(fd)
        run("btrfs", "quota", "disable", path)
        assert not btrfs_quota.quota_enabled(fd)
        simple = bytearray(btrfs_quota.QUOTA_CTL.pack(4, 0))  # BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA
        try:
            exchange(fd, btrfs_quota.BTRFS_IOC_QUOTA_CTL, simple)
        except OSError:
            return  # before Linux 6.7 there are none
        assert not btrfs_quota.quota_enabled(fd)
        with pytest.raises(OSError, match="simple quotas"):
            btrfs_quota.enable_quota(fd)


def test_a_count_that_the_kernel_gave_up_is_seen_and_made_again(quota_pool: Path) -> None:
    with opened(quota_pool) as parent:
        assert btrfs_quota.quota_consistent(parent)
        for name in ("sub", "other"):
            btrfs.create_subvolume(parent, name)
            (quota_pool / name / "file").write_bytes(os.urandom(MIB))
        # Two names for the same extents: assigning one of them cannot be counted on the fly.
        run("cp", "--reflink=always", quota_pool / "sub" / "file", quota_pool / "other" / "shared")
        sync(quota_pool)
        with opened(quota_pool / "sub") as fd:
            identity = btrfs.subvolume_id(fd)
        run("btrfs", "qgroup", "create", "1/100", quota_pool)
        subprocess.run(
            ["btrfs", "qgroup", "assign", "--no-rescan", f"0/{identity}", "1/100", str(quota_pool)],
            check=False,
            capture_output=True,
        )
        sync(quota_pool)
        assert not btrfs_quota.quota_consistent(parent)
        assert btrfs_quota.quota_enabled(parent)
        btrfs_quota.rescan_quota(parent)
        sync(quota_pool)
        assert btrfs_quota.quota_consistent(parent)


def test_usage_and_limit_are_those_that_btrfs_shows(quota_pool: Path) -> None:
    with opened(quota_pool) as parent:
        btrfs.create_subvolume(parent, "sub")
        with opened(quota_pool / "sub") as fd:
            identity = btrfs.subvolume_id(fd)
        btrfs_quota.set_qgroup_limit(parent, identity, 40 * MIB)
        (quota_pool / "sub" / "file").write_bytes(os.urandom(10 * MIB))
        sync(quota_pool)
        found = btrfs_quota.qgroup_usage(parent, identity)
        assert found.limit == 40 * MIB
        assert 10 * MIB < found.referenced == found.exclusive < 11 * MIB
        shown = shown_qgroups(quota_pool)[f"0/{identity}"]
        assert [int(figure) for figure in shown[:3]] == [found.referenced, found.exclusive, found.limit]
        btrfs_quota.set_qgroup_limit(parent, identity, 0)
        assert btrfs_quota.qgroup_usage(parent, identity).limit == 0
        assert shown_qgroups(quota_pool)[f"0/{identity}"][2] == "none"


@pytest.mark.parametrize("user", [0, NOBODY])
def test_nobody_not_even_root_writes_beyond_the_limit(quota_pool: Path, user: int) -> None:
    limit = 32 * MIB
    with opened(quota_pool) as parent:
        btrfs.create_subvolume(parent, "sub")
        os.chown(quota_pool / "sub", user, user)
        with opened(quota_pool / "sub") as fd:
            identity = btrfs.subvolume_id(fd)
        btrfs_quota.set_qgroup_limit(parent, identity, limit)
        enter = ["env", f"--chdir={quota_pool}/sub", "setpriv", f"--reuid={user}", "--clear-groups", "--"]
        with pytest.raises(subprocess.CalledProcessError) as caught:
            run(*enter, "dd", "if=/dev/urandom", "of=file", "bs=64k", "conv=fsync")
        assert "quota exceeded" in caught.value.stderr
        sync(quota_pool)
        referenced = btrfs_quota.qgroup_usage(parent, identity).referenced
        assert limit * 9 // 10 < referenced <= limit
        print(f"{referenced} of {limit} bytes")


def test_a_qgroup_goes_with_its_subvolume(quota_pool: Path) -> None:
    with opened(quota_pool) as parent:
        btrfs.create_subvolume(parent, "sub")
        with opened(quota_pool / "sub") as fd:
            identity = btrfs.subvolume_id(fd)
        btrfs_quota.set_qgroup_limit(parent, identity, GIB)
        assert not btrfs_quota.destroy_qgroup(parent, identity), "a living subvolume keeps its qgroup"
        (quota_pool / "sub" / "file").write_bytes(os.urandom(8 * MIB))
        btrfs.delete_subvolume(parent, "sub")
        assert not btrfs_quota.destroy_qgroup(parent, identity), "neither does one that is not cleaned up"
        assert btrfs_quota.stale_qgroups(parent) == []
        run("btrfs", "subvolume", "sync", quota_pool, str(identity))
        until(lambda: btrfs_quota.destroy_qgroup(parent, identity))
        assert btrfs_quota.destroy_qgroup(parent, identity), "gone already is fine"
        assert f"0/{identity}" not in shown_qgroups(quota_pool)


def test_a_qgroup_without_a_subvolume_is_stale_and_can_be_destroyed(quota_pool: Path) -> None:
    with opened(quota_pool) as parent:
        run("btrfs", "qgroup", "create", "1/100", quota_pool)
        btrfs.create_subvolume(parent, "living")
        assert btrfs_quota.stale_qgroups(parent) == []
        create = ["btrfs", "qgroup", "create", "0/4711", str(quota_pool)]
        if subprocess.run(create, check=False, capture_output=True).returncode:
            return  # a kernel that makes none without a subvolume (6.18) also leaves none
        assert btrfs_quota.stale_qgroups(parent) == [4711]
        assert btrfs_quota.destroy_qgroup(parent, 4711)
        assert btrfs_quota.stale_qgroups(parent) == []
        assert "1/100" in shown_qgroups(quota_pool)


def test_hundreds_of_qgroups_are_all_found(quota_pool: Path) -> None:
    """More than one answer of the search holds."""
    with opened(quota_pool) as parent:
        for number in range(300):
            btrfs.create_subvolume(parent, f"sub{number}")
        listed = run("btrfs", "subvolume", "list", quota_pool)
        expected = {int(found) for found in re.findall(r"^ID (\d+)", listed, re.MULTILINE)}
        found = {identity for identity, _ in btrfs_quota._quota_items(parent, btrfs_quota._QGROUP_INFO_KEY)}
        assert found == expected | {5}
        assert btrfs_quota.stale_qgroups(parent) == []


def test_space_and_devices_are_those_that_btrfs_shows(pool: Path) -> None:
    with opened(pool) as fd:
        shown = re.findall(r"total=(\d+), used=(\d+)", run("btrfs", "filesystem", "df", "--raw", pool))
        found = [(str(space.total), str(space.used)) for space in btrfs_space.space_infos(fd)]
        assert found[:3] == shown[:3]
        assert [device.size for device in btrfs_space.devices(fd)] == [GIB]
        usage = run("btrfs", "filesystem", "usage", "--raw", pool)
        allocated = re.search(r"Device allocated:\s+(\d+)", usage)
        assert allocated is not None
        assert btrfs_space.devices(fd)[0].allocated == int(allocated[1])


CASES = {
    "single": (GIB, 1, ["--data", "single", "--metadata", "dup"]),
    "metadata single": (GIB, 1, ["--data", "single", "--metadata", "single"]),
    "dup": (GIB, 1, ["--data", "dup", "--metadata", "dup"]),
    "mixed": (256 * MIB, 1, ["--mixed"]),
    "small": (300 * MIB, 1, []),
    "raid1": (GIB, 2, ["--data", "raid1", "--metadata", "raid1"]),
    "raid0": (512 * MIB, 2, ["--data", "raid0", "--metadata", "raid1"]),
    "raid1c3": (512 * MIB, 4, ["--data", "raid1c3", "--metadata", "raid1c3"]),
    "raid10": (512 * MIB, 4, ["--data", "raid10", "--metadata", "raid10"]),
    "raid5": (512 * MIB, 3, ["--data", "raid5", "--metadata", "raid1"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("piece", [1 * MIB, 37 * MIB + 4096, 0])
def test_as_much_as_is_said_to_be_available_can_be_allocated_and_written(memory: Path, case: str, piece: int) -> None:
    """Thick files of one size, written afterwards in full, use up all that was promised (0: one file)."""
    size, devices, options = CASES[case]
    with mounted(memory, "btrfs", size=size, options=options, devices=devices) as path, opened(path) as fd:
        promised = left = btrfs_space.available_data_bytes(fd)
        number = 0
        while left >= 4096:
            length = min(piece or left, left) // 4096 * 4096
            with opened(path / f"image{number}", NEW) as image:
                btrfs.set_nocow(image)
                os.posix_fallocate(image, 0, length)
            left -= length
            number += 1
        for index in range(number):
            rewrite(path / f"image{index}")
        sync(path)
        remains = btrfs_space.available_data_bytes(fd)
        statvfs = os.statvfs(path)
        print(
            f"{case}: {size * devices // MIB} MiB raw, promised {promised // MIB} MiB in {number} files, "
            f"afterwards {remains // MIB} MiB, statvfs {statvfs.f_bavail * statvfs.f_bsize // MIB} MiB"
        )
    # RAID5 has no figure of its own: it is taken for four copies, and with three devices that is nothing new.
    assert promised > (0 if case == "raid5" else size * devices // 10)


def rewrite(path: Path) -> None:
    with opened(path, os.O_RDWR) as image:
        size = os.fstat(image).st_size
        for offset in range(0, size, MIB):
            os.pwrite(image, b"x" * min(MIB, size - offset), offset)
        os.fsync(image)


def test_thin_files_can_take_in_single_blocks_what_was_said_to_be_available(memory: Path) -> None:
    """The worst that data can make of metadata: an extent for every block."""
    with mounted(memory, "btrfs", size=512 * MIB) as path, opened(path) as fd:
        promised = btrfs_space.available_data_bytes(fd)
        with opened(path / "image", NEW) as image:
            btrfs.set_nocow(image)
            blocks = promised // 4096
            os.ftruncate(image, blocks * 4096)
            stride = next(step for step in range(40_503, 50_000) if math.gcd(blocks, step) == 1)
            for number in range(blocks):
                os.pwrite(image, b"x" * 4096, number * stride % blocks * 4096)
                if number % 128 == 0:
                    os.fdatasync(image)
            os.fsync(image)
        sync(path)
        metadata = btrfs_space.space_infos(fd)[2]
        print(f"promised {promised // MIB} MiB, metadata {metadata.used / promised:.4f} of it, {metadata}")


def test_what_is_freed_is_available_again(tmp_path: Path) -> None:
    with mounted(tmp_path, "btrfs", size=GIB) as path, opened(path) as fd:
        before = btrfs_space.available_data_bytes(fd)
        with opened(path / "image", NEW) as image:
            os.posix_fallocate(image, 0, before // 2)
            sync(path)
            during = btrfs_space.available_data_bytes(fd)
            assert during <= before - before // 2 + MIB
        (path / "image").unlink()
        sync(path)
        until(lambda: btrfs_space.available_data_bytes(fd) >= before - 32 * MIB)


DATA, METADATA, DUP, RAID1, RAID0, RAID1C3, RAID5, RAID6 = 1, 4, 32, 16, 8, 512, 128, 256


def estimate(profile: int, *rooms: int, metadata_profile: int = DUP) -> int:
    spaces = [SpaceInfo(DATA | profile, 0, 0), SpaceInfo(METADATA | metadata_profile, 100 * GIB, 0)]
    devices = [Device(number, 100 * GIB, 100 * GIB - room) for number, room in enumerate(rooms, 1)]
    return btrfs_space.estimate_data_bytes(spaces, devices)


def test_the_estimate_divides_by_the_copies_of_the_profile() -> None:
    chunk = 2 * GIB + 2 * MIB  # one metadata chunk, twice on one device, and what a device wastes
    assert estimate(0, 40 * GIB) == 40 * GIB - chunk
    assert estimate(DUP, 40 * GIB) == (40 * GIB - chunk) // 2
    assert estimate(RAID1, 40 * GIB) == 0
    pair = 1 * GIB + 2 * MIB
    assert estimate(RAID1, 40 * GIB, 10 * GIB, metadata_profile=RAID1) == 10 * GIB - pair
    assert estimate(RAID1, 10 * GIB, 10 * GIB, 10 * GIB, metadata_profile=RAID1) == 14 * GIB - 3 * MIB
    assert estimate(RAID0, 40 * GIB, 10 * GIB, metadata_profile=RAID1) == 20 * GIB - 2 * pair
    assert estimate(RAID1C3, 9 * GIB, 9 * GIB, metadata_profile=RAID1) == 0
    assert estimate(RAID5, 9 * GIB, 9 * GIB, 9 * GIB) == estimate(RAID6, 9 * GIB, 9 * GIB, 9 * GIB) == 0
    assert estimate(1 << 40, 9 * GIB) == 9 * GIB - chunk, "only profile bits count"


def test_during_a_conversion_the_stricter_profile_counts() -> None:
    devices = [Device(1, 100 * GIB, 60 * GIB)]
    spaces = [SpaceInfo(DATA, GIB, 0), SpaceInfo(DATA | DUP, GIB, GIB), SpaceInfo(METADATA, 100 * GIB, 0)]
    assert btrfs_space.estimate_data_bytes(spaces, devices) == GIB + (39 * GIB - 2 * MIB) // 2


def test_the_estimate_is_never_negative() -> None:
    spaces = [SpaceInfo(DATA, GIB, GIB), SpaceInfo(METADATA, GIB, GIB)]
    assert btrfs_space.estimate_data_bytes(spaces, [Device(1, 10 * GIB, 10 * GIB)], 5 * MIB) == 0
    assert btrfs_space.estimate_data_bytes([], []) == 0
