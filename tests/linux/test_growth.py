"""Filesystems that take the whole of a device that became larger, mounted or not.

- Numbers and structures are those of the kernel's headers.
- XFS and btrfs grow while they are mounted to what xfs_info and btrfs tell; asked again they say that it is so already.
- The size that an ext4 is given is one that resize2fs gives as well, and never one that needs data to be moved.
- A grown copy of an ext4's metadata is as large as it was asked to be, and sound.

The oracles are xfs_info, btrfs, dumpe2fs, resize2fs and e2fsck.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from csi_driver.linux import ext4_superblock, growth, loop
from tests.harness import GIB, MIB, run
from tests.image_mounts import formatted_image

GROUP = 128 * MIB


def test_the_requests_and_structures_are_those_of_the_headers() -> None:
    assert growth.EXT4_IOC_RESIZE_FS == 0x40086610
    assert growth.XFS_IOC_FSGEOMETRY_V1 == 0x80705864
    assert growth.XFS_IOC_FSGROWFSDATA == 0x4010586E
    assert growth.BTRFS_IOC_RESIZE == 0x50009403
    assert (growth.XFS_GEOMETRY.size, growth.XFS_GROWFS.size) == (112, 16)


def xfs_bytes(mount_point: Path) -> int:
    for line in run("xfs_info", str(mount_point)).splitlines():
        if line.startswith("data"):
            fields = dict(word.rstrip(",").split("=") for word in line.split() if "=" in word)
            return int(line.split("bsize=")[1].split()[0]) * int(
                fields.get("blocks") or line.split("blocks=")[1].split(",")[0]
            )
    raise AssertionError("xfs_info tells no data section")


def btrfs_bytes(mount_point: Path) -> int:
    shown = run("btrfs", "filesystem", "show", "--raw", str(mount_point))
    return int(shown.split("size ")[1].split()[0])


ORACLES = {"xfs": xfs_bytes, "btrfs": btrfs_bytes}


@pytest.mark.parametrize("name", ORACLES)
def test_a_mounted_filesystem_takes_its_device_once(tmp_path: Path, name: str) -> None:
    path, _ = formatted_image(tmp_path / "disk.img", name, 512 * MIB)
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    run("mount", "-o", "loop", path, str(mount_point))
    try:
        device = run("findmnt", "-no", "SOURCE", str(mount_point)).strip()
        mounted_fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY)
        device_fd = os.open(device, os.O_RDONLY)
        try:
            # Sizes behind which XFS has a rest that is no allocation group, and btrfs one that is no sector.
            for size in (GIB, GIB + 40 * MIB, 3 * GIB, 3 * GIB + 4096):
                os.truncate(path, size)
                loop.set_capacity(device_fd)
                before = ORACLES[name](mount_point)
                grew = growth.grow_mounted(name, mounted_fd, device_fd, size)
                after = ORACLES[name](mount_point)
                assert grew == (after > before)
                assert size - 64 * 4096 < after <= size
                assert not growth.grow_mounted(name, mounted_fd, device_fd, size)
        finally:
            os.close(device_fd)
            os.close(mounted_fd)
    finally:
        run("umount", str(mount_point))


def size_of(path: str) -> ext4_superblock.Ext4Size:
    fd = os.open(path, os.O_RDONLY)
    try:
        return ext4_superblock.size(fd)
    finally:
        os.close(fd)


def told_blocks(path: str) -> int:
    lines = run("dumpe2fs", "-h", path).splitlines()
    return int(next(line for line in lines if line.startswith("Block count:")).split()[-1])


SIZES = (
    *(8 * MIB, 16 * MIB, GROUP - 4096, GROUP, GROUP + 4096, GROUP + MIB, GROUP + 5 * MIB, GROUP + 60 * MIB),
    *(2 * GROUP, 2 * GROUP + 6 * MIB, 3 * GROUP + 10 * MIB, 9 * GROUP + 2 * MIB, 25 * GROUP + 100 * MIB),
)


@pytest.mark.parametrize("first", [8 * MIB, 100 * MIB, GROUP + 50 * MIB, GIB])
def test_the_size_of_an_ext4_is_one_that_resize2fs_takes(tmp_path: Path, first: int) -> None:
    path, _ = formatted_image(tmp_path / "disk.img", "ext4", first)
    for size in [size for size in SIZES if size > first]:
        os.truncate(path, size)
        held = size_of(path)
        assert held.blocks == told_blocks(path)
        wanted = held.blocks_on(size)
        assert size // 4096 - wanted < 12 * MIB // 4096
        assert wanted == size // 4096 or size % GROUP < 12 * MIB
        run("e2fsck", "-fp", path)
        run("resize2fs", path, str(wanted))
        # Rounded no further, so that it is not tried again for ever.
        assert told_blocks(path) == wanted == size_of(path).blocks_on(size)
    run("e2fsck", "-fn", path)


@pytest.mark.parametrize("first", [8 * MIB, 64 * MIB, GIB])
def test_in_place_is_what_was_reserved(tmp_path: Path, first: int) -> None:
    path, _ = formatted_image(tmp_path / "disk.img", "ext4", first)
    # What mke2fs's own default says: room for 1024 times the first size.
    assert first * 1024 <= size_of(path).most_blocks_in_place * 4096 <= first * 1024 + 64 * GROUP


def test_without_a_reserve_the_descriptors_must_fit_where_they_are(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("xb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "64bit,^resize_inode", str(image))
    assert size_of(str(image)).most_blocks_in_place * 4096 == 64 * GROUP


@pytest.mark.parametrize("size", [GIB, 8 * GIB, 64 * GIB])
def test_a_copy_of_the_metadata_is_grown_and_sound_and_the_image_untouched(tmp_path: Path, size: int) -> None:
    path, _ = formatted_image(tmp_path / "disk.img", "ext4", 64 * MIB)
    content = tmp_path / "content"
    content.write_bytes(os.urandom(5 * MIB))
    run("debugfs", "-w", "-R", f"write {content} content", path)
    run("e2fsck", "-fp", path)
    os.truncate(path, size)
    before = Path(path).stat().st_mtime_ns
    copy = str(tmp_path / "copy")
    growth.copy_grown_ext4(path, copy, size // 4096, timeout=60)
    assert told_blocks(copy) == size // 4096
    assert Path(path).stat().st_mtime_ns == before
    assert told_blocks(path) == 64 * MIB // 4096
    # Sparse, and without the data.
    assert os.stat(copy).st_blocks * 512 < 64 * MIB
    run("e2fsck", "-fn", copy)


def test_an_image_without_ext4_lags_behind_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    fd = os.open(image, os.O_RDONLY)
    try:
        assert not growth.unmounted_ext4_lags(fd, MIB)
        with pytest.raises(OSError, match="no ext4"):
            ext4_superblock.size(fd)
    finally:
        os.close(fd)


def test_the_capability_is_told_as_capsh_would() -> None:
    effective = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    assert growth.may_grow_mounted_ext4() == bool(effective & 1 << growth.CAP_SYS_RESOURCE)
    dropped = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource", "python3", "-c"]
    code = "from csi_driver.linux import growth; print(growth.may_grow_mounted_ext4())"
    done = subprocess.run([*dropped, code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
