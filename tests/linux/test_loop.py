"""Claims: a file gets a device of its own with the block size and direct I/O that were asked, or none.

A device is detached only by who knows its file, and a crash between attach and mount leaves nothing.

Oracles: losetup, blockdev, stat.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_driver.linux import loop, loop_holders, mount

from .conftest import fails_with, opened, run

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81  # include/uapi/linux/loop.h


def losetup(number: int) -> dict[str, object]:
    """What losetup knows of one device; empty when it is not attached."""
    columns = "NAME,AUTOCLEAR,RO,BACK-FILE,BACK-INO,BACK-MAJ:MIN,MAJ:MIN,LOG-SEC,DIO"
    listed = json.loads(run("losetup", "--list", "--json", "--output", columns) or '{"loopdevices": []}')
    for device in listed["loopdevices"]:
        if device["name"] == f"/dev/loop{number}":
            return dict(device)
    return {}


def identity(fd: int) -> dict[str, int]:
    found = os.fstat(fd)
    return {"device": found.st_dev, "inode": found.st_ino}


def comes_off(fd: int) -> bool:
    """Say whether no loop device has the file, or none stays (an observer may delay a detach)."""
    return all(loop.is_gone(info.number, **identity(fd), patience_seconds=5) for info in loop.find(**identity(fd)))


@pytest.fixture
def spare_number() -> Iterator[int]:
    """A loop device that the kernel hands to nobody while lower numbers are free."""
    number = 500_000 + os.getpid()
    with opened("/dev/loop-control", os.O_RDWR) as control:
        fcntl.ioctl(control, LOOP_CTL_ADD, number)
        yield number
        fcntl.ioctl(control, LOOP_CTL_REMOVE, number)


def attach_and_forget(image: int) -> int:
    """Attach without autoclear and return the number; `loop.detach` ends it."""
    with loop.attach(image, block_size=4096, autoclear=False) as device:
        return device.number


def test_structures_and_ioctl_numbers_are_those_of_the_kernel_headers() -> None:
    assert (loop.LOOP_INFO64.size, loop.LOOP_CONFIG.size) == (232, 304)
    assert (loop.LOOP_CLR_FD, loop.LOOP_SET_STATUS64, loop.LOOP_GET_STATUS64) == (0x4C01, 0x4C04, 0x4C05)
    assert (loop.LOOP_SET_CAPACITY, loop.LOOP_CONFIGURE, loop.LOOP_CTL_GET_FREE) == (0x4C07, 0x4C0A, 0x4C82)
    assert (loop.BLKROSET, loop.BLKROGET, loop.BLKGETSIZE64) == (0x125D, 0x125E, 0x80081272)


@pytest.mark.parametrize("autoclear", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_is_attached_as_asked(image: int, tmp_path: Path, autoclear: bool, read_only: bool) -> None:
    with loop.attach(image, block_size=4096, autoclear=autoclear, read_only=read_only) as device:
        seen = losetup(device.number)
        info = loop.status_of(device.fd)
        assert info == loop.status(device.number)
        assert loop.is_read_only(device.fd) is read_only
        device.detach()
    assert seen["back-file"] == str(tmp_path / "disk.img")
    assert (seen["dio"], seen["autoclear"], seen["ro"], seen["log-sec"]) == (True, autoclear, read_only, 4096)
    assert info is not None
    assert (info.direct_io, info.autoclear, info.read_only) == (True, autoclear, read_only)
    assert (info.path, info.device) == (device.path, device.device)


def test_the_backing_files_device_compares_with_stat(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        info = loop.status(device.number)
        seen = losetup(device.number)
    found = os.fstat(image)
    assert info is not None
    assert (info.backing_device, info.backing_inode) == (found.st_dev, found.st_ino)
    assert info.is_backed_by(found.st_dev, found.st_ino)
    assert not info.is_backed_by(found.st_dev, found.st_ino + 1)
    assert str(seen["back-maj:min"]).strip() == f"{os.major(info.backing_device)}:{os.minor(info.backing_device)}"


def test_the_device_node_has_the_number_of_the_device(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        found = os.stat(device.path)
    assert stat.S_ISBLK(found.st_mode)
    assert found.st_rdev == device.device


def test_an_autoclear_device_goes_with_its_descriptor(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        assert loop.backing_is(device.number, **identity(image))
    assert loop.is_gone(device.number, **identity(image), patience_seconds=5)


def test_an_autoclear_device_goes_with_a_process_that_is_killed(image: int, tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from csi_driver.linux import loop\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "print(loop.attach(fd, block_size=4096, autoclear=True).number, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "disk.img")]
    root = Path(loop.__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        assert child.stdout is not None
        number = int(child.stdout.readline())
        assert loop.backing_is(number, **identity(image))
        child.send_signal(signal.SIGKILL)
    assert loop.is_gone(number, **identity(image), patience_seconds=5)


def test_a_mounted_autoclear_device_goes_with_the_unmount(ext4_image: int, target: Path) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd)
    assert loop.backing_is(device.number, **identity(ext4_image))
    mount.unmount(str(target))
    assert loop.is_gone(device.number, **identity(ext4_image), patience_seconds=5)


def test_another_opener_delays_the_autoclear_until_it_closes(ext4_image: int, target: Path) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd)
    with opened(device.path, os.O_RDONLY):
        mount.unmount(str(target))
        assert loop.backing_is(device.number, **identity(ext4_image))
    assert loop.is_gone(device.number, **identity(ext4_image), patience_seconds=5)


def test_a_reopened_device_stays_until_both_have_closed(image: int) -> None:
    file = os.fstat(image)
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        other = loop.reopen(device.number, device=file.st_dev, inode=file.st_ino)
        assert other is not None
        assert loop.reopen(device.number, device=file.st_dev, inode=file.st_ino + 1) is None
    with other:
        assert loop.backing_is(other.number, file.st_dev, file.st_ino)
    assert comes_off(image)
    assert loop.reopen(other.number, device=file.st_dev, inode=file.st_ino) is None


def test_a_device_without_autoclear_stays_until_it_is_detached(image: int) -> None:
    number = attach_and_forget(image)
    assert [info.number for info in loop.find(**identity(image))] == [number]
    assert loop.detach(number, **identity(image)) is True
    assert loop.detach(number, **identity(image)) is True
    assert comes_off(image)


def test_a_device_of_another_file_is_not_detached(image: int) -> None:
    number = attach_and_forget(image)
    found = os.fstat(image)
    assert loop.detach(number, device=found.st_dev, inode=found.st_ino + 1) is True
    assert loop.detach(number, device=found.st_dev + 1, inode=found.st_ino) is True
    assert loop.backing_is(number, **identity(image))
    loop.detach(number, **identity(image))


def test_detaching_a_device_that_is_open_says_so_and_happens_at_the_close(image: int) -> None:
    number = attach_and_forget(image)
    with opened(loop.device_path(number), os.O_RDONLY):
        assert loop.detach(number, **identity(image)) is False
        info = loop.status(number)
        assert info is not None
        assert info.autoclear
    assert loop.is_gone(number, **identity(image), patience_seconds=5)


def test_detaching_a_mounted_device_happens_at_the_unmount(ext4_image: int, target: Path) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=False) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd)
    assert loop.detach(device.number, **identity(ext4_image)) is False
    mount.unmount(str(target))
    assert loop.is_gone(device.number, **identity(ext4_image), patience_seconds=5)


@pytest.mark.parametrize("number", [0xFFFFF, 999_999])
def test_a_device_that_does_not_exist_is_not_attached(number: int) -> None:
    assert loop.status(number) is None
    assert loop.detach(number, device=1, inode=1) is True


def test_the_attached_devices_are_those_of_losetup(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        numbers = {info.number for info in loop.attached()}
        assert device.number in numbers
        assert [info.number for info in loop.find(**identity(image))] == [device.number]


def test_autoclear_is_switched_on_and_off_and_nothing_else_changes(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=False) as device:
        before = loop.status_of(device.fd)
        loop.set_autoclear(device.fd, True)
        changed = loop.status_of(device.fd)
        assert losetup(device.number)["autoclear"] is True
        loop.set_autoclear(device.fd, False)
        assert loop.status_of(device.fd) == before
        loop.set_autoclear(device.fd, True)
        assert losetup(device.number)["dio"] is True
    assert before is not None
    assert changed is not None
    assert changed.flags == before.flags | loop.LO_FLAGS_AUTOCLEAR
    assert loop.is_gone(device.number, **identity(image), patience_seconds=5)


def test_autoclear_of_a_device_that_is_not_attached_is_enxio(spare_number: int) -> None:
    with opened(loop.device_path(spare_number), os.O_RDONLY) as fd, fails_with(errno.ENXIO):
        loop.set_autoclear(fd, True)


def test_the_size_follows_the_file_when_told(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        assert loop.size_bytes(device.fd) == 64 << 20
        os.ftruncate(image, 96 << 20)
        assert loop.size_bytes(device.fd) == 64 << 20
        loop.set_capacity(device.fd)
        assert loop.size_bytes(device.fd) == 96 << 20
        assert int(run("blockdev", "--getsize64", device.path)) == 96 << 20


def test_a_read_only_switch_of_an_earlier_owner_is_not_inherited(
    image: int, spare_number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_configure_a_free_one", lambda config: loop._try_to_configure(spare_number, config))
    with loop.attach(image, block_size=4096, autoclear=True) as device:
        loop.set_read_only(device.fd, True)
        assert run("blockdev", "--getro", device.path).strip() == "1"
    assert comes_off(image)
    assert run("blockdev", "--getro", device.path).strip() == "1"
    with loop.attach(image, block_size=4096, autoclear=True) as again:
        assert again.path == device.path
        assert not loop.is_read_only(again.fd)
        os.pwrite(again.fd, bytes(4096), 0)
        os.fsync(again.fd)
    assert comes_off(image)


def test_a_read_only_switch_is_not_left_to_the_next_owner(image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=False) as device:
        loop.set_read_only(device.fd, True)
    of_image = os.fstat(image)
    assert loop.detach(device.number, device=of_image.st_dev, inode=of_image.st_ino)
    assert run("blockdev", "--getro", device.path).strip() == "0"


def test_a_file_that_is_not_open_for_writing_is_attached_only_read_only(image: int, tmp_path: Path) -> None:
    with opened(tmp_path / "disk.img", os.O_RDONLY) as fd:
        with pytest.raises(OSError, match="not open for writing") as caught:
            loop.attach(fd, block_size=4096, autoclear=False)
        assert caught.value.errno == errno.EROFS
        loop.attach(fd, block_size=4096, autoclear=True, read_only=True).close()
    assert comes_off(image)


def test_a_block_size_that_is_no_power_of_two_is_einval(image: int) -> None:
    with fails_with(errno.EINVAL):
        loop.attach(image, block_size=777, autoclear=True)


def test_without_direct_io_the_device_is_detached_again_unless_it_was_only_preferred(tmp_path: Path) -> None:
    # A filesystem with 4096-byte sectors below allows no direct I/O at 512.
    (tmp_path / "pool").mkdir()
    with opened(tmp_path / "pool.img", os.O_RDWR | os.O_CREAT) as outer, opened(tmp_path / "pool") as pool:
        os.ftruncate(outer, 64 << 20)
        run("mkfs.ext4", "-q", "-F", "-b", "4096", "--", str(tmp_path / "pool.img"))
        with loop.attach(outer, block_size=4096, autoclear=True) as device:
            mount.mount_filesystem(device.path, "ext4", pool)
    with opened(tmp_path / "pool" / "disk.img", os.O_RDWR | os.O_CREAT) as inner:
        os.ftruncate(inner, 16 << 20)
        with pytest.raises(OSError, match="direct I/O is not possible") as caught:
            loop.attach(inner, block_size=512, autoclear=False)
        assert caught.value.errno == errno.EINVAL
        assert comes_off(inner)
        with loop.attach(inner, block_size=512, autoclear=True, direct_io="preferred") as device:
            assert losetup(device.number)["dio"] is False
            assert losetup(device.number)["log-sec"] == 512
        with loop.attach(inner, block_size=4096, autoclear=True, direct_io="preferred") as device:
            assert losetup(device.number)["dio"] is True
        with loop.attach(inner, block_size=4096, autoclear=True, direct_io=False) as device:
            assert losetup(device.number)["dio"] is False
        assert comes_off(inner)
    mount.unmount(str(tmp_path / "pool"))


def test_many_threads_at_once_get_a_device_each(tmp_path: Path) -> None:
    numbers: list[int] = []

    def work(index: int) -> None:
        with opened(tmp_path / f"{index}.img", os.O_RDWR | os.O_CREAT) as fd:
            os.ftruncate(fd, 1 << 20)
            for _ in range(5):
                with loop.attach(fd, block_size=4096, autoclear=True) as device:
                    assert loop.backing_is(device.number, **identity(fd))
                    numbers.append(device.number)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers) == 80


def test_a_device_that_another_took_is_tried_again(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop.attach(image, block_size=4096, autoclear=True) as taken:
        real, answers = fcntl.ioctl, [taken.number, 0xFFFFF]

        def ioctl(fd: int, request: int, argument: bytes = b"") -> object:
            if request == loop.LOOP_CTL_GET_FREE:
                return answers.pop(0) if answers else real(fd, request)
            return real(fd, request, argument)

        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        with loop.attach(image, block_size=4096, autoclear=True) as device:
            assert device.number != taken.number
    assert answers == []


def test_attaching_gives_up_when_others_always_win(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_try_to_configure", lambda number, config: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match="no free loop device") as caught:
        loop.attach(image, block_size=4096, autoclear=True)
    assert caught.value.errno == errno.EBUSY


def test_a_node_that_dev_lacks_is_made(image: int, target: Path) -> None:
    with opened(target) as target_fd:
        mount.mount_filesystem("none", "tmpfs", target_fd)
    os.mknod(target / "loop-control", stat.S_IFCHR | 0o600, os.makedev(10, 237))
    with opened("/dev") as dev_fd, opened(target) as source_fd:
        mount.bind(source_fd, dev_fd)
    try:
        with loop.attach(image, block_size=4096, autoclear=True) as device:
            node = os.stat(device.path)
        assert loop.status(0xFFFFF) is None
        assert not os.path.exists("/dev/loop1048575")
    finally:
        mount.unmount("/dev")
        mount.unmount(str(target))
    assert stat.S_ISBLK(node.st_mode)
    assert node.st_rdev == device.device


def test_the_holders_of_a_device_are_named(ext4_image: int, target: Path) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        assert any(f"process {os.getpid()} " in holder for holder in loop_holders.holders(device.number))
        mount.mount_filesystem(device.path, "ext4", target_fd)
    assert f"mount at {target}" in loop_holders.holders(device.number)
    mount.unmount(str(target))
    assert f"mount at {target}" not in loop_holders.holders(device.number)


def test_a_copy_of_the_mount_in_another_namespace_is_named(ext4_image: int, target: Path) -> None:
    with opened(target) as target_fd, loop.attach(ext4_image, block_size=4096, autoclear=True) as device:
        mount.mount_filesystem(device.path, "ext4", target_fd)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read -r line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        mount.unmount(str(target))
        holders = loop_holders.holders(device.number)
        assert loop.backing_is(device.number, **identity(ext4_image))
        child.communicate(b"\n")
    assert f"mounted in the mount namespace of process {child.pid} (sh)" in holders
    assert loop.is_gone(device.number, **identity(ext4_image), patience_seconds=5)


def test_the_paths_of_backing_files_are_those_that_losetup_shows(tmp_path: Path, image: int) -> None:
    with loop.attach(image, block_size=4096, autoclear=True, direct_io="preferred") as device:
        paths = dict(loop.backing_paths())
        assert paths[device.number] == str(tmp_path / "disk.img")
        assert run("losetup", "-n", "-O", "BACK-FILE", device.path).strip() == paths[device.number]
    assert device.number not in dict(loop.backing_paths())
