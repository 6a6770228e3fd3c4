"""How each filesystem is asked whether it is sound, in an image that nobody uses."""

CHECKS = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
}
