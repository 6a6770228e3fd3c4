"""Loop devices by their ioctls; it knows backing files as descriptors and inodes, and nothing of volumes.

Who owns a device is decided by its backing file's (device, inode) and by nothing else: numbers are used
again at once and names are not remembered by the kernel. One descriptor of a device, even a reader's,
delays what happens at its last close (autoclear, a LOOP_CLR_FD of somebody else), so nothing here keeps one
longer than its call, except LoopDevice, which says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

# include/uapi/linux/loop.h
LOOP_CLR_FD: Final = 0x4C01
LOOP_SET_STATUS64: Final = 0x4C04
LOOP_GET_STATUS64: Final = 0x4C05
LOOP_SET_CAPACITY: Final = 0x4C07
LOOP_CONFIGURE: Final = 0x4C0A
LOOP_CTL_GET_FREE: Final = 0x4C82
LO_FLAGS_READ_ONLY: Final = 1
LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_DIRECT_IO: Final = 16

# include/uapi/linux/fs.h: _IO(0x12, 93), _IO(0x12, 94), _IOR(0x12, 114, size_t)
BLKROSET: Final = 0x125D
BLKROGET: Final = 0x125E
BLKGETSIZE64: Final = 0x80081272

LOOP_MAJOR: Final = 7  # include/uapi/linux/major.h

# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt_type, encrypt_key_size,
# flags, file_name, crypt_name, encrypt_key, init
LOOP_INFO64: Final = struct.Struct("=QQQQQIIII64s64s32sQQ")
# struct loop_config: fd, block_size, info, reserved
LOOP_CONFIG: Final = struct.Struct(f"=II{LOOP_INFO64.size}s64x")
_FLAGS_OFFSET: Final = 52
_UINT: Final = struct.Struct("=I")
_INT: Final = struct.Struct("=i")
_UINT64: Final = struct.Struct("=Q")

_ATTACH_ATTEMPTS: Final = 200
_PATIENCE_SECONDS: Final = 0.1

DirectIo = bool | Literal["preferred"]


@dataclass(frozen=True, slots=True)
class LoopInfo:
    """What the kernel says about one attached loop device (LOOP_GET_STATUS64); sizes in bytes.

    `backing_device` compares with st_dev: the kernel encodes it by huge_encode_dev, which for the 12 + 20
    bits that its device numbers have is the same as os.makedev. A `size_limit_bytes` of 0 is none.
    """

    number: int
    backing_device: int
    backing_inode: int
    offset_bytes: int
    size_limit_bytes: int
    flags: int

    @property
    def path(self) -> str:
        """The device's node."""
        return device_path(self.number)

    @property
    def device(self) -> int:
        """The device's own number, as os.makedev makes it."""
        return os.makedev(LOOP_MAJOR, self.number)

    @property
    def read_only(self) -> bool:
        """It was attached read-only."""
        return bool(self.flags & LO_FLAGS_READ_ONLY)

    @property
    def autoclear(self) -> bool:
        """It detaches itself at the last close (also set by a LOOP_CLR_FD that came while it was open)."""
        return bool(self.flags & LO_FLAGS_AUTOCLEAR)

    @property
    def direct_io(self) -> bool:
        """Its I/O bypasses the page cache of the filesystem below."""
        return bool(self.flags & LO_FLAGS_DIRECT_IO)

    def is_backed_by(self, device: int, inode: int) -> bool:
        """Say whether this is the device of that file."""
        return self.backing_inode == inode and self.backing_device == device


class LoopDevice:
    """An attached loop device and the owner of a descriptor of it.

    An autoclear device is detached when the descriptor is closed, unless a filesystem was mounted from it:
    then by the last unmount. So a crash between attach and mount leaves nothing. One without autoclear
    outlives the descriptor.
    """

    __slots__ = ("fd", "number")

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.number = number

    @property
    def path(self) -> str:
        """The device's node."""
        return device_path(self.number)

    @property
    def device(self) -> int:
        """The device's own number, as os.makedev makes it."""
        return os.makedev(LOOP_MAJOR, self.number)

    def detach(self) -> None:
        """Give up the backing file and close; others that hold the device open keep it until they close."""
        try:
            _clear(self.fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def device_path(number: int) -> str:
    """Return the path of a loop device's node."""
    return f"/dev/loop{number}"


def is_loop_device(device: int) -> bool:
    """Say whether a device number (os.makedev) is that of a loop device."""
    return os.major(device) == LOOP_MAJOR


def attach(
    image_fd: int,
    *,
    block_size: int,
    read_only: bool = False,
    autoclear: bool,
    direct_io: DirectIo = True,
) -> LoopDevice:
    """Attach the file behind `image_fd` to a free loop device and return the owner of its descriptor.

    `block_size` (bytes, a power of two from 512 to the page size) is the device's logical block size.
    `image_fd` must be open for writing unless `read_only`, stays the caller's and may be closed afterwards.
    With `direct_io` True the device does direct I/O or is not attached at all; "preferred" takes buffered
    I/O where the filesystem below cannot do direct I/O at this block size. The same file can be attached
    twice, by anybody: callers look first (`find`).

    Raises:
        OSError: EINVAL: direct I/O is not possible, or the block size is not; EROFS: `image_fd` is not open
            for writing; EBUSY: other processes took every free device for as long as was tried.
    """
    flags = (
        (LO_FLAGS_READ_ONLY if read_only else 0)
        | (LO_FLAGS_AUTOCLEAR if autoclear else 0)
        | (LO_FLAGS_DIRECT_IO if direct_io else 0)
    )
    info = LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    loop = _configure_a_free_one(LOOP_CONFIG.pack(image_fd, block_size, info))
    try:
        _verify(loop, read_only=read_only, direct_io=direct_io)
    except BaseException:
        # Not left to autoclear: a device without it would stay.
        with contextlib.suppress(OSError):
            _clear(loop.fd)
        loop.close()
        raise
    return loop


def reopen(number: int, *, device: int, inode: int) -> LoopDevice | None:
    """Return the owner of a descriptor of loop device `number`, or None when its file is not (st_dev, st_ino).

    An autoclear device of that file stays attached at least until the descriptor is closed.

    Raises:
        OSError: as `status`.
    """
    try:
        fd = _open_device(number, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):  # it is just going
            return None
        raise
    loop = LoopDevice(fd, number)
    try:
        info = status_of(fd)
    except BaseException:
        loop.close()
        raise
    if info is None or not info.is_backed_by(device, inode):
        loop.close()
        return None
    return loop


def status(number: int) -> LoopInfo | None:
    """Return what device `number` is attached to, or None when it is not attached (or does not exist).

    Opens the device for the moment: see the module's word on descriptors.

    Raises:
        OSError: the device or its backing file's filesystem does not answer.
    """
    try:
        fd = _open_device(number, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENXIO:  # removed from the kernel (LOOP_CTL_REMOVE), the node is still there
            return None
        raise
    try:
        return status_of(fd)
    finally:
        os.close(fd)


def status_of(fd: int) -> LoopInfo | None:
    """Return what the loop device behind the descriptor is attached to, or None.

    Raises:
        OSError: ENOTTY: not a loop device; others as `status`.
    """
    raw = _raw_status(fd)
    if raw is None:
        return None
    device, inode, _, offset, limit, number, _, _, flags, *_ = LOOP_INFO64.unpack(raw)
    return LoopInfo(number, device, inode, offset, limit, flags)


def attached() -> list[LoopInfo]:
    """Return the attached loop devices of the machine; those that come or go meanwhile may be missing.

    So is one whose backing file's filesystem does not answer (EIO after its shutdown): nobody can say whose
    it is, and it must not hide all others. Opens every attached device for a moment, some 10 us each: for
    start-up, not for every call. Who knows a number asks `backing_is`.
    """
    found = []
    for number in _attached_numbers():
        with contextlib.suppress(OSError):
            info = status(number)
            if info is not None:
                found.append(info)
    return found


def backing_paths() -> list[tuple[int, str]]:
    """Return (number, path of the backing file as the kernel shows it) of every attached device.

    Read from sysfs, which opens no device. A path is a hint: a file that was deleted or exchanged keeps it.
    """
    found = []
    for number in _attached_numbers():
        try:
            with open(f"/sys/block/loop{number}/loop/backing_file", "rb") as file:
                found.append((number, os.fsdecode(file.read()).rstrip("\n")))
        except OSError:
            continue
    return found


def shows_path(number: int, path: str) -> bool:
    """Say whether loop device `number` is attached to a file that has, or had until it was deleted, this path.

    Its last three components are compared: seen from another container it begins at that container's mount. Read from
    sysfs, which opens no device.
    """
    try:
        with open(f"/sys/block/loop{number}/loop/backing_file", "rb") as file:
            shown = os.fsdecode(file.read()).rstrip("\n").removesuffix(" (deleted)")
    except OSError:
        return False
    return shown.split("/")[-3:] == path.split("/")[-3:]


def find(device: int, inode: int) -> list[LoopInfo]:
    """Return the loop devices whose backing file is (st_dev, st_ino)."""
    return [info for info in attached() if info.is_backed_by(device, inode)]


def backing_is(number: int, device: int, inode: int) -> bool:
    """Say whether loop device `number` is attached to the file (st_dev, st_ino)."""
    info = status(number)
    return info is not None and info.is_backed_by(device, inode)


def detach(number: int, *, device: int, inode: int, patience_seconds: float = _PATIENCE_SECONDS) -> bool:
    """Detach loop device `number` if its backing file is (st_dev, st_ino); return whether it is off now.

    A device that belongs to another file is left alone (True: ours is gone). False: somebody holds it open
    or a filesystem is mounted from it; the kernel then accepts LOOP_CLR_FD, sets autoclear and detaches at
    the last close. A second call, or `is_gone`, says what became of it.

    Raises:
        OSError: as `status`.
    """
    try:
        fd = _open_device(number, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return True
        raise
    try:
        info = status_of(fd)
        if info is None or not info.is_backed_by(device, inode):
            return True
        # The switch would stay, and refuse the writes of whoever has the device next.
        if is_read_only(fd):
            set_read_only(fd, False)
        _clear(fd)
    finally:
        os.close(fd)  # since Linux 6.11 it is our own close that detaches, so look only afterwards
    return is_gone(number, device=device, inode=inode, patience_seconds=patience_seconds)


def is_gone(number: int, *, device: int, inode: int, patience_seconds: float = _PATIENCE_SECONDS) -> bool:
    """Say whether loop device `number` is off the file (st_dev, st_ino), or comes off within the patience.

    For after a detach, or after the unmount of an autoclear device. udev, blkid, `losetup --all` and our own
    `attached` open devices for a moment, and the detach waits for the last of them to close: what is still
    there right after an unmount is mostly gone a millisecond later.

    Raises:
        OSError: as `status`.
    """
    ends = time.monotonic() + patience_seconds
    pause = 0.0005
    while os.path.exists(f"/sys/block/loop{number}/loop") and backing_is(number, device, inode):
        if time.monotonic() >= ends:
            return False
        time.sleep(pause)
        pause *= 2
    return True


def set_autoclear(fd: int, wanted: bool) -> None:
    """Make the device behind the descriptor detach itself at its last close, or not.

    Raises:
        OSError: ENXIO: not attached.
    """
    raw = _raw_status(fd)
    if raw is None:
        raise OSError(errno.ENXIO, "loop device is not attached")
    (flags,) = _UINT.unpack_from(raw, _FLAGS_OFFSET)
    changed = flags | LO_FLAGS_AUTOCLEAR if wanted else flags & ~LO_FLAGS_AUTOCLEAR
    if changed != flags:
        _UINT.pack_into(raw, _FLAGS_OFFSET, changed)
        fcntl.ioctl(fd, LOOP_SET_STATUS64, raw)


def set_read_only(fd: int, wanted: bool) -> None:
    """Set or clear the block device's read-only switch (BLKROSET), which is apart from how it was attached.

    Raises:
        OSError: the kernel's errno.
    """
    fcntl.ioctl(fd, BLKROSET, _INT.pack(wanted))


def is_read_only(fd: int) -> bool:
    """Say whether the block device refuses writes, by its switch or by how it was attached.

    Raises:
        OSError: the kernel's errno.
    """
    return fcntl.ioctl(fd, BLKROGET, bytes(_INT.size)) != bytes(_INT.size)


def size_bytes(fd: int) -> int:
    """Return the size of the block device in bytes.

    Raises:
        OSError: ENOTTY: not a block device.
    """
    return int(_UINT64.unpack(fcntl.ioctl(fd, BLKGETSIZE64, bytes(_UINT64.size)))[0])


def set_capacity(fd: int) -> None:
    """Let the loop device take over the present size of its backing file.

    Raises:
        OSError: ENXIO: not attached.
    """
    fcntl.ioctl(fd, LOOP_SET_CAPACITY)


def _configure_a_free_one(config: bytes) -> LoopDevice:
    # LOOP_CTL_GET_FREE reserves nothing: all who ask at once are told the same number, and LOOP_CONFIGURE
    # lets one win. The random pause grows, so that many threads of one burst spread out.
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_ATTACH_ATTEMPTS):
            if attempt:
                time.sleep(random.random() * min(attempt, 20) * 0.0002)  # noqa: S311
            loop = _try_to_configure(fcntl.ioctl(control, LOOP_CTL_GET_FREE), config)
            if loop is not None:
                return loop
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no free loop device after {_ATTACH_ATTEMPTS} attempts")


def _try_to_configure(number: int, config: bytes) -> LoopDevice | None:
    """Configure device `number`, or return None when another got hold of it first."""
    try:
        fd = _open_device(number, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.EBUSY):  # removed again, or exclusively opened
            return None
        raise
    try:
        fcntl.ioctl(fd, LOOP_CONFIGURE, config)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        raise
    except BaseException:
        os.close(fd)
        raise
    return LoopDevice(fd, number)


def _verify(loop: LoopDevice, *, read_only: bool, direct_io: DirectIo) -> None:
    info = status_of(loop.fd)
    if info is None or info.number != loop.number:
        raise OSError(errno.ENXIO, f"{loop.path} is not the loop device {loop.number}")
    # LOOP_CONFIGURE does not fail when it cannot do what it was asked, it drops the flag (direct I/O: the
    # filesystem below wants a larger alignment or has none) or sets it (read-only: the descriptor was not
    # open for writing).
    if direct_io is True and not info.direct_io:
        raise OSError(
            errno.EINVAL,
            "direct I/O is not possible to this file at this logical block size (loop device detached)",
        )
    if read_only:
        return
    if info.read_only:
        raise OSError(errno.EROFS, "the image is not open for writing (loop device detached)")
    # BLKROSET belongs to the block device, not to the attachment: it outlives LOOP_CLR_FD and meets the
    # next owner.
    if is_read_only(loop.fd):
        set_read_only(loop.fd, False)


def _open_device(number: int, access: int) -> int:
    path = device_path(number)
    try:
        return os.open(path, access | os.O_CLOEXEC)
    except FileNotFoundError:
        # A container's /dev need not be a devtmpfs: then nobody makes nodes for devices that come later.
        if not os.path.exists(f"/sys/block/loop{number}"):
            raise
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(LOOP_MAJOR, number))
        return os.open(path, access | os.O_CLOEXEC)


def _raw_status(fd: int) -> bytearray | None:
    raw = bytearray(LOOP_INFO64.size)
    try:
        fcntl.ioctl(fd, LOOP_GET_STATUS64, raw)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return raw


def _clear(fd: int) -> None:
    try:
        fcntl.ioctl(fd, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:  # somebody else was faster
            raise


def _attached_numbers() -> Iterator[int]:
    for name in os.listdir("/sys/block"):
        digits = name.removeprefix("loop")
        # The directory `loop` is there while a file is attached: a device without one is not worth an open.
        if name != digits and digits.isdigit() and os.path.exists(f"/sys/block/{name}/loop"):
            yield int(digits)
