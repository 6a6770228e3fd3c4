"""Filesystems in image files: what is made mounts, is recognised and checked.

The oracles are blkid, dumpe2fs, e2fsck, stat, df and the kernel's own mount.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path

import pytest

from csi_driver.linux import ext4_superblock, filesystem, process, superblocks
from csi_driver.linux.filesystem import FILESYSTEMS
from csi_driver.linux.process import ToolError
from tests.image_mounts import formatted_image, mounted, new_image
from tests.linux.filesystem_images import allocated, output
from tests.powercut import cut_power

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def ext4(tmp_path: Path) -> tuple[str, str]:
    """A small ext4 image and its UUID."""
    return formatted_image(tmp_path / "disk.img", "ext4", 64 * MIB)


# What the kernel's headers say.


def test_the_requests_and_structures_are_those_of_the_headers() -> None:
    assert filesystem.EXT4_IOC_GETFSUUID == 0x8008662C
    assert filesystem.EXT4_IOC_SETFSUUID == 0x4008662C
    assert filesystem.FSUUID.size == 24


# Making.


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_a_made_image_has_the_type_that_was_asked_for_and_the_uuid_that_was_told(tmp_path: Path, name: str) -> None:
    image, identity = formatted_image(tmp_path / "disk.img", name, GIB)
    assert output("blkid", "-p", "-s", "TYPE", "-o", "value", image).strip() == name
    assert output("blkid", "-p", "-s", "UUID", "-o", "value", image).strip() == identity


@pytest.mark.parametrize("name", ["ext4", "xfs"])
def test_the_uuid_is_the_one_that_was_given(tmp_path: Path, name: str) -> None:
    wanted = str(uuid.uuid4())
    image = new_image(tmp_path / "disk.img", GIB)
    assert filesystem.make(FILESYSTEMS[name], image, uuid=wanted.upper(), timeout=60) == wanted


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_no_device_of_the_machine_is_opened_to_make_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    log = tmp_path / "opened"
    real_run = process.run

    def traced(argv: list[str], *, timeout: float) -> str:
        return real_run(["strace", "-f", "-e", "trace=open,openat", "-o", str(log), *argv], timeout=timeout)

    monkeypatch.setattr(process, "run", traced)
    formatted_image(tmp_path / "disk.img", name, GIB)
    assert "disk.img" in log.read_text()
    assert not re.findall(r'"/(?:dev|sys/block)[/"].*', log.read_text())


@pytest.mark.parametrize(("name", "most"), [("ext4", 1 * MIB), ("xfs", 66 * MIB), ("btrfs", 6 * MIB)])
def test_a_thin_image_takes_little_of_the_pool(tmp_path: Path, name: str, most: int) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", name, GIB)
    assert allocated(image) <= most


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_a_thick_image_keeps_its_blocks(tmp_path: Path, name: str) -> None:
    image = new_image(tmp_path / "disk.img", 320 * MIB, thick=True)
    filesystem.make(FILESYSTEMS[name], image, uuid=str(uuid.uuid4()), timeout=60)
    assert allocated(image) >= 320 * MIB


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_the_least_size_can_be_made_mounted_and_written(tmp_path: Path, name: str) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", name, FILESYSTEMS[name].minimum_bytes)
    with mounted(image, name) as directory:
        Path(directory, "file").write_bytes(b"x" * MIB)
        assert Path(directory, "file").stat().st_size == MIB


def test_below_the_least_size_ext4_would_have_no_journal(tmp_path: Path) -> None:
    least = FILESYSTEMS["ext4"].minimum_bytes
    with_journal, _ = formatted_image(tmp_path / "least.img", "ext4", least)
    assert "has_journal" in output("dumpe2fs", "-h", with_journal)
    without = new_image(tmp_path / "less.img", least - 4096)
    output("mkfs.ext4", "-F", "-q", "-b", "4096", without)
    assert "has_journal" not in output("dumpe2fs", "-h", without)


@pytest.mark.parametrize("name", ["xfs", "btrfs"])
def test_below_the_least_size_mkfs_refuses_and_its_reason_is_kept(tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError) as failure:
        formatted_image(tmp_path / "disk.img", name, FILESYSTEMS[name].minimum_bytes - 4096)
    assert failure.value.tool == f"mkfs.{name}"
    assert failure.value.exit_code > 0
    assert failure.value.stderr


def test_ext4_has_its_journal_its_checksums_and_no_table_that_the_kernel_would_zero(
    ext4: tuple[str, str],
) -> None:
    listing = output("dumpe2fs", ext4[0])
    features = next(line for line in listing.splitlines() if line.startswith("Filesystem features:"))
    assert set(filesystem.EXT4_FEATURES[1:]) <= set(features.split())
    groups = [line for line in listing.splitlines() if re.match(r"Group \d", line)]
    assert groups
    assert all("ITABLE_ZEROED" in line for line in groups)
    assert "Block size:               4096" in listing
    assert "Reserved block count:     0" in listing


def test_ext4_has_the_same_features_whatever_the_machine_prefers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ext4: tuple[str, str]
) -> None:
    def features(image: str) -> str:
        lines = output("dumpe2fs", "-h", image).splitlines()
        return next(line for line in lines if line.startswith("Filesystem features:"))

    (tmp_path / "mke2fs.conf").write_text("[defaults]\n\tbase_features = sparse_super,quota,orphan_file\n")
    config = {**process.ENVIRONMENT, "MKE2FS_CONFIG": str(tmp_path / "mke2fs.conf")}
    monkeypatch.setattr(process, "ENVIRONMENT", config)
    image, _ = formatted_image(tmp_path / "other.img", "ext4", 64 * MIB)
    assert features(image) == features(ext4[0])


def test_an_old_mkfs_ext4_is_asked_again_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    real_run = process.run

    def run(argv: list[str], *, timeout: float) -> str:
        asked.append(argv)
        if any("assume_storage_prezeroed" in word for word in argv):
            raise ToolError("mkfs.ext4", 1, "\nBad option(s) specified: assume_storage_prezeroed\n")
        return real_run(argv, timeout=timeout)

    monkeypatch.setattr(process, "run", run)
    image, _ = formatted_image(tmp_path / "disk.img", "ext4", 64 * MIB)
    assert len(asked) == 2
    assert allocated(image) < MIB


def test_a_file_that_does_not_hold_what_mkfs_promised_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: "")
    with pytest.raises(ToolError, match="does not hold"):
        formatted_image(tmp_path / "disk.img", "xfs", GIB)


def test_a_uuid_that_is_none_never_reaches_mkfs(tmp_path: Path) -> None:
    image = new_image(tmp_path / "disk.img", 64 * MIB)
    with pytest.raises(ValueError, match="UUID"):
        filesystem.make(FILESYSTEMS["ext4"], image, uuid="clear", timeout=60)
    assert allocated(image) == 0


def test_a_link_in_place_of_the_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", lambda *_, **__: "")
    (tmp_path / "link.img").symlink_to(new_image(tmp_path / "disk.img", MIB))
    with pytest.raises(OSError, match="symbolic links"):
        filesystem.make(FILESYSTEMS["ext4"], str(tmp_path / "link.img"), uuid=str(uuid.uuid4()), timeout=60)


# Recognising.


def identified(path: str) -> tuple[str, str] | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return filesystem.identify(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["ext2", "ext3", "ext4"])
def test_the_three_ext_filesystems_are_told_apart(tmp_path: Path, name: str) -> None:
    image = new_image(tmp_path / "disk.img", 64 * MIB)
    output(f"mkfs.{name}", "-F", "-q", image)
    assert identified(image) == (name, output("blkid", "-p", "-s", "UUID", "-o", "value", image).strip())


@pytest.mark.parametrize("size", [0, 1, 1100, 65600, MIB])
def test_an_image_without_a_filesystem_holds_none(tmp_path: Path, size: int) -> None:
    assert identified(new_image(tmp_path / "disk.img", size)) is None


def test_a_filesystem_cut_short_is_none(tmp_path: Path) -> None:
    for name in FILESYSTEMS:
        image, _ = formatted_image(tmp_path / name, name, 320 * MIB)
        os.truncate(image, {"ext4": 1024 + 255, "xfs": 47, "btrfs": 65536 + 71}[name])
        assert identified(image) is None


def test_an_image_with_the_signs_of_two_filesystems_holds_none(tmp_path: Path, ext4: tuple[str, str]) -> None:
    with Path(ext4[0]).open("r+b") as image:
        image.write(filesystem.XFS_MAGIC)
    assert identified(ext4[0]) is None


# UUIDs.


def test_a_mounted_ext4_takes_a_new_uuid_and_stays_clean(ext4: tuple[str, str]) -> None:
    image, before = ext4
    after = str(uuid.uuid4())
    with mounted(image, "ext4") as directory:
        fd = os.open(directory, os.O_RDONLY)
        try:
            assert filesystem.get_ext4_uuid(fd) == before
            filesystem.set_ext4_uuid(fd, after)
            assert filesystem.get_ext4_uuid(fd) == after
        finally:
            os.close(fd)
    assert identified(image) == ("ext4", after)
    assert output("blkid", "-p", "-s", "UUID", "-o", "value", image).strip() == after
    output("e2fsck", "-fn", image)


def test_a_new_uuid_that_was_synced_survives_a_power_cut(ext4: tuple[str, str]) -> None:
    image, _ = ext4
    after = str(uuid.uuid4())
    with mounted(image, "ext4") as directory:
        fd = os.open(directory, os.O_RDONLY)
        try:
            filesystem.set_ext4_uuid(fd, after)
            os.fsync(fd)
            cut_power(directory, flush_log=False)
        finally:
            os.close(fd)
    with mounted(image, "ext4"):
        pass
    assert identified(image) == ("ext4", after)
    output("e2fsck", "-fn", image)


def test_a_filesystem_that_is_not_ext4_has_no_such_uuid(tmp_path: Path) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", "xfs", 320 * MIB)
    with mounted(image, "xfs") as directory:
        fd = os.open(directory, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                filesystem.get_ext4_uuid(fd)
        finally:
            os.close(fd)


# Checking.


def bears_an_error(image: str) -> bool:
    fd = os.open(image, os.O_RDONLY)
    try:
        return ext4_superblock.has_errors(os.pread(fd, ext4_superblock.BYTES, ext4_superblock.OFFSET))
    finally:
        os.close(fd)


def test_a_mark_of_an_error_is_seen_and_a_check_takes_it_away(ext4: tuple[str, str]) -> None:
    image, _ = ext4
    assert not bears_an_error(image)
    output("debugfs", "-w", "-R", "set_super_value state 3", image)
    assert bears_an_error(image)
    filesystem.check_ext4(image, timeout=60)
    assert not bears_an_error(image)


def test_a_check_repairs_what_needs_no_question(ext4: tuple[str, str]) -> None:
    image, _ = ext4
    output("debugfs", "-w", "-R", "set_super_value free_blocks_count 7", image)
    output("debugfs", "-w", "-R", "set_super_value state 2", image)
    filesystem.check_ext4(image, timeout=60)
    output("e2fsck", "-fn", image)


def test_a_check_of_what_cannot_be_repaired_fails_with_the_tools_words(ext4: tuple[str, str]) -> None:
    image, _ = ext4
    output("debugfs", "-w", "-R", "clri <2>", image)
    output("debugfs", "-w", "-R", "set_super_value state 2", image)
    with pytest.raises(ToolError) as failure:
        filesystem.check_ext4(image, timeout=60)
    assert failure.value.tool == "e2fsck"
    assert failure.value.exit_code & 4


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_an_image_without_its_filesystem_is_damaged(tmp_path: Path, fs_type: str) -> None:
    other = "xfs" if fs_type != "xfs" else "ext4"
    image, _ = formatted_image(tmp_path / "disk.img", other, 320 * MIB)
    fd = os.open(image, os.O_RDONLY)
    try:
        assert superblocks.look(other, fd) == superblocks.SOUND
        assert superblocks.look(fs_type, fd).damage
    finally:
        os.close(fd)


# Measuring.


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_space_and_name_are_what_the_systems_tools_say(tmp_path: Path, name: str) -> None:
    image, _ = formatted_image(tmp_path / "disk.img", name, 320 * MIB)
    with mounted(image, name) as directory:
        fd = os.open(directory, os.O_RDONLY)
        try:
            found = filesystem.space(fd)
            assert filesystem.filesystem_name(fd) == name
        finally:
            os.close(fd)
        fields = "--output=size,used,avail,itotal,iused,iavail"
        said = output("df", "-B1", fields, directory).splitlines()[1].split()
    assert [
        found.total_bytes,
        found.used_bytes,
        found.available_bytes,
        found.inodes_total,
        found.inodes_used,
        found.inodes_free,
    ] == [0 if word == "-" else int(word) for word in said]


def test_a_filesystem_without_a_name_is_shown_by_its_number() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert filesystem.filesystem_name(fd) == "0x9fa0"
    finally:
        os.close(fd)
