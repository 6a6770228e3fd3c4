"""Images that a test makes and mounts with the project's own calls, in the mounts it was given."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from csi_driver.linux import filesystem, loop, mount


def new_image(path: Path, size_bytes: int, *, thick: bool = False) -> str:
    """Make an empty image file and return its path."""
    with path.open("xb") as image:
        image.truncate(size_bytes)
        if thick:
            os.posix_fallocate(image.fileno(), 0, size_bytes)
    return str(path)


def formatted_image(path: Path, name: str, size_bytes: int, extra: Sequence[str] = ()) -> tuple[str, str]:
    """Make an image file with a filesystem, and return its path and the filesystem's UUID."""
    image, fs, wanted = new_image(path, size_bytes), filesystem.FILESYSTEMS[name], str(uuid.uuid4())
    return image, filesystem.make(fs, image, uuid=wanted, extra=extra, timeout=60)


@contextlib.contextmanager
def mounted(image: str, name: str, options: Sequence[str] = ()) -> Iterator[str]:
    """Mount the image beside itself until the block is left; yield the mount point."""
    target = f"{image}.mounted"
    os.makedirs(target, exist_ok=True)
    with contextlib.ExitStack() as descriptors:
        image_fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        descriptors.callback(os.close, image_fd)
        device = loop.attach(image_fd, block_size=4096, autoclear=True, direct_io="preferred")
        descriptors.enter_context(device)
        target_fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
        descriptors.callback(os.close, target_fd)
        mount.mount_filesystem(device.path, name, target_fd, options=options)
    try:
        yield target
    finally:
        mount.unmount(target)
