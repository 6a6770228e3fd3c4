"""ext4 grown inside an image file that nobody has mounted, by its own tools; it knows no volume.

XFS and btrfs grow only while they are mounted.
"""

from __future__ import annotations

from typing import Final

from csi_driver.linux import process

# e2fsck(8): 0 clean, 1 errors corrected: a journal that was replayed, for one.
_SOUND: Final = (0, 1)


def grow_ext4(image_path: str, timeout: float) -> None:
    """Let the ext4 of an image file fill it, after replaying its journal. Idempotent.

    The image must not be attached anywhere. `timeout` is in seconds, for each of the two tools, which die with the
    thread that asked for them.

    Raises:
        OSError: ToolError (errors in the filesystem that want a decision), ToolMissing, ToolTimeout.
    """
    # resize2fs takes only a filesystem that was checked since it was mounted last.
    process.run(["e2fsck", "-f", "-p", "--", image_path], timeout=timeout, accept=_SOUND, die_with_caller=True)
    process.run(["resize2fs", "--", image_path], timeout=timeout, die_with_caller=True)
