"""Options for mkfs: only admitted ones pass, each of them makes a filesystem, and the others are refused by name.

The oracles are mkfs itself, blkid and dumpe2fs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from csi_driver.linux import filesystem, filesystem_options
from csi_driver.linux.filesystem import FILESYSTEMS
from tests.image_mounts import formatted_image
from tests.linux.filesystem_images import allocated, output

MIB = 1 << 20
GIB = 1 << 30

ADMITTED_MKFS_OPTIONS = {
    "ext4": [
        "-i 8192",
        "-I 512",
        "-m 5",
        "-N 4096",
        "-L data-1",
        "-T largefile",
        "-J size=8",
        "-O ^resize_inode,sparse_super2",
        "-O large_dir,inline_data,ea_inode",
        "-O encrypt,verity,dir_index",
        "-O quota,project",
        "-O orphan_file",
        "-O fast_commit",
        "-O ^fast_commit,^orphan_file",
        "-E stride=16,stripe_width=64",
        "-E packed_meta_blocks=1",
        "-E root_owner=1000:1000",
        "-O sparse_super2 -E num_backup_sb=1",
    ],
    "xfs": [
        "-i size=1024,maxpct=10",
        "-i sparse=1,nrext64=1",
        "-m reflink=1,rmapbt=1",
        "-m finobt=1,bigtime=1,inobtcount=1",
        "-d agcount=2",
        "-d su=64k,sw=4",
        "-d noalign",
        "-d cowextsize=16",
        "-d extszinherit=16",
        "-l size=64m,su=32k",
        "-l size=67108864",
        "-n size=8192",
        "-L scratch",
    ],
    "btrfs": [
        "-d single -m dup",
        "--data=dup --metadata single",
        "--csum xxhash",
        "--checksum=sha256",
        "-n 16k",
        "--nodesize 32768",
        "-L 'media'",
        "--label media",
        "-O no-holes",
        "--features no-holes",
        "-R free-space-tree,quota",
        "--runtime-features quota",
    ],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, all_ in ADMITTED_MKFS_OPTIONS.items() for text in all_]
)
def test_an_admitted_mkfs_option_makes_a_filesystem(tmp_path: Path, name: str, text: str) -> None:
    extra = filesystem.parse_mkfs_options(FILESYSTEMS[name], text)
    image, identity = formatted_image(tmp_path / "disk.img", name, 2 * GIB, extra)
    assert output("blkid", "-p", "-s", "UUID", "-o", "value", image).strip() == identity


@pytest.mark.parametrize("name", FILESYSTEMS)
def test_every_mkfs_option_on_the_list_is_tried(name: str) -> None:
    tried = " ".join(ADMITTED_MKFS_OPTIONS[name]).replace("--data=", "--data ").replace("--checksum=", "--checksum ")
    for option, rule in FILESYSTEMS[name].mkfs_options.items():
        assert option in tried.split()
        if isinstance(rule, filesystem_options.Suboptions):
            assert all(key in tried for key in rule.rules)


def test_a_class_may_add_features_without_taking_any_of_ours_away(tmp_path: Path) -> None:
    extra = filesystem.parse_mkfs_options(FILESYSTEMS["ext4"], "-O inline_data -E stride=8 -m 3")
    image, _ = formatted_image(tmp_path / "disk.img", "ext4", 64 * MIB, extra)
    listing = output("dumpe2fs", "-h", image)
    assert "has_journal" in listing
    assert "inline_data" in listing
    assert "RAID stride:              8" in listing
    assert "Reserved block count:     491" in listing
    assert allocated(image) < MIB


def test_no_mkfs_options_are_no_words() -> None:
    assert filesystem.parse_mkfs_options(FILESYSTEMS["xfs"], "  ") == ()


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("ext4", "-O ^has_journal", "-O"),
        ("ext4", "-O ^metadata_csum", "-O"),
        ("ext4", "-O ^metadata_csum_seed", "-O"),
        ("ext4", "-O stable_inodes", "-O"),
        ("ext4", "-O quota,,project", "-O"),
        ("ext4", "-O quota,quota", "-O"),
        ("ext4", "-O", "-O"),
        ("ext4", "-J device=/dev/sda", "-J"),
        ("ext4", "-E offset=1048576", "-E"),
        ("ext4", "-E discard", "-E"),
        ("ext4", "-E root_owner", "-E"),
        ("ext4", "-E stride=8,root_owner=0:0:0", "-E"),
        ("ext4", "-d /etc", "-d"),
        ("ext4", "-U clear", "-U"),
        ("ext4", "-b 1024", "-b"),
        ("ext4", "-b1024", "-b1024"),
        ("ext4", "-qi8192", "-qi8192"),
        ("ext4", "-m 51", "-m"),
        ("ext4", "-m 1.5", "-m"),
        ("ext4", "-m -1", "-m"),
        ("ext4", "-m \u0665", "-m"),
        ("ext4", "-m 1 -m 2", "twice"),
        ("ext4", "-m", "-m"),
        ("ext4", "-L --help", "-L"),
        ("ext4", "-L ''", "-L"),
        ("ext4", "-L a/b", "-L"),
        ("ext4", "-L 12345678901234567", "-L"),
        ("ext4", "-L 'a\nb'", "-L"),
        ("ext4", "/dev/sda", "/dev/sda"),
        ("ext4", "--", "--"),
        ("ext4", "-i 8192 99999", "99999"),
        ("ext4", "-L 'unclosed", "split"),
        ("ext4", "-L " + "a" * 2000, "1024 bytes"),
        ("xfs", "-m crc=0", "-m"),
        ("xfs", "-m uuid=00000000-0000-0000-0000-000000000000", "-m"),
        ("xfs", "-d name=/dev/sda", "-d"),
        ("xfs", "-d file=1,name=/etc/passwd", "-d"),
        ("xfs", "-l logdev=/dev/sda", "-l"),
        ("xfs", "-l size=1m", "-l"),
        ("xfs", "-r rtdev=/dev/sda", "-r"),
        ("xfs", "-p /etc/passwd", "-p"),
        ("xfs", "-c options=/etc/passwd", "-c"),
        ("xfs", "-s size=512", "-s"),
        ("xfs", "-b size=1024", "-b"),
        ("xfs", "-N", "-N"),
        ("xfs", "-n size=5000", "-n"),
        ("btrfs", "-r /etc", "-r"),
        ("btrfs", "--rootdir=/etc", "--rootdir"),
        ("btrfs", "-d raid0", "-d"),
        ("btrfs", "-b 1g", "-b"),
        ("btrfs", "-U random", "-U"),
        ("btrfs", "-O zoned", "-O"),
        ("btrfs", "-n 5000", "-n"),
    ],
)
def test_a_mkfs_option_off_the_list_is_refused_by_name(name: str, text: str, named: str) -> None:
    with pytest.raises(ValueError) as refusal:
        filesystem.parse_mkfs_options(FILESYSTEMS[name], text)
    assert named in str(refusal.value)
