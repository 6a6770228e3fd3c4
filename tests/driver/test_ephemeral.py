"""Inline ephemeral volumes, called as kubelet calls them: NodePublishVolume and NodeUnpublishVolume alone.

- Whatever its kind, one is made by its publish, mounted once, limited to its size, and gone with its data after its
  unpublish; each call can be repeated, also after the driver was killed.
- What a pod wrote is there when kubelet publishes again after a reboot.
- The pool's operator decides: without a ceiling there are none, and all together never have more, also when many pods
  ask at once; existing ones go on when the ceiling falls.
- A publish that fails for good leaves nothing; one that fails for a volume that was there keeps its data.
- A pod ends although its volume's record is damaged, or its pool will only be served again later.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.driver.pods import KINDS, MakeDriver, MakePool, fill, refusal, small, with_ceilings
from tests.harness import MIB, Code, Driver, PodVolume, run
from tests.soak.observing import assert_nothing_remains, mount_ids, mount_table, together


@pytest.fixture
def driver(tmp_path: Path, make_pool: MakePool, make_driver: MakeDriver) -> Driver:
    return with_ceilings(tmp_path / "pool", make_pool, make_driver)


@pytest.fixture(params=KINDS)
def inline(request: pytest.FixtureRequest, driver: Driver) -> PodVolume:
    return PodVolume(driver, request.param, **KINDS[request.param])


def test_it_begins_with_its_publish_and_ends_with_its_unpublish(inline: PodVolume) -> None:
    driver = inline.driver
    target = inline.publish()
    assert driver.mounts() == [target]
    table = mount_ids(target)
    inline.publish()
    assert mount_ids(target) == table
    Path(target, "greeting").write_text("hello")
    usage = driver.call("NodeGetVolumeStats", volume_id=inline.handle, volume_path=target).usage
    size = int(inline.attributes["size"].removesuffix("Mi")) * MIB
    assert 0 < usage[0].total <= size
    held = inline.held()
    assert (held.pod, held.capacity_bytes, list(held.target_paths)) == (f"default/{inline.name}", size, [target])
    for _ in range(2):
        inline.unpublish()
        assert_nothing_remains(driver)
    assert driver.code("NodeGetVolumeStats", volume_id=inline.handle, volume_path=target) is Code.NOT_FOUND


def test_its_size_is_a_limit(inline: PodVolume) -> None:
    target = inline.publish()
    assert fill(f"{target}/data", 301) in (errno.ENOSPC, errno.EDQUOT)
    inline.unpublish()


def test_a_driver_that_was_killed_goes_on_with_it(inline: PodVolume) -> None:
    driver = inline.driver
    target = inline.publish()
    Path(target, "greeting").write_text("hello")
    driver.restart()
    assert Path(target, "greeting").read_text() == "hello"
    inline.publish()
    assert driver.mounts() == [target]
    inline.unpublish()
    assert_nothing_remains(driver)


def test_what_was_written_is_there_after_a_reboot(inline: PodVolume) -> None:
    driver = inline.driver
    target = inline.publish()
    Path(target, "greeting").write_text("hello")
    driver.kill()
    run("umount", target)
    run("rm", "-r", str(driver.home / "state"))
    driver.start()
    assert Path(inline.publish(), "greeting").read_text() == "hello"
    driver.kill()
    run("umount", target)
    run("rm", "-r", str(driver.home / "state"))
    driver.start()
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_driver_without_its_memory_finds_it_mounted(inline: PodVolume) -> None:
    driver = inline.driver
    inline.publish()
    driver.kill()
    run("rm", "-r", str(driver.home / "state"))
    driver.start()
    inline.publish()
    assert driver.mounts() == [inline.target()]
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_read_only_one_is_mounted_read_only(inline: PodVolume) -> None:
    target = inline.publish(readonly=True)
    assert (target, True) in mount_table(inline.driver.home)
    with pytest.raises(OSError, match="Read-only"):
        Path(target, "greeting").write_text("hello")
    assert refusal(inline.publish).code is Code.ALREADY_EXISTS
    inline.unpublish()


@pytest.mark.parametrize("mode", ["SINGLE_NODE_WRITER", "SINGLE_NODE_MULTI_WRITER"])
def test_the_mount_takes_no_devices_and_no_setuid_whatever_the_mode(driver: Driver, mode: str) -> None:
    inline = small(driver)
    inline.mode = mode
    target = inline.publish()
    [options] = [line.split()[5] for line in Path("/proc/self/mountinfo").read_text().splitlines() if target in line]
    assert {"nosuid", "nodev"} <= set(options.split(","))
    inline.unpublish()


def test_without_a_size_it_has_a_gibibyte(driver: Driver) -> None:
    inline = PodVolume(driver, "unsized")
    inline.publish()
    assert inline.held().capacity_bytes == 1 << 30
    inline.unpublish()


def test_one_target_path_is_all_it_has(driver: Driver) -> None:
    inline = small(driver)
    inline.publish()
    assert refusal(lambda: inline.publish(1)).code is Code.FAILED_PRECONDITION
    failure = refusal(lambda: inline.unpublish(1))
    assert failure.code is Code.FAILED_PRECONDITION
    assert inline.target() in failure.details
    assert driver.mounts() == [inline.target()]
    inline.unpublish()


def test_a_pod_that_asks_otherwise_the_second_time_is_refused(driver: Driver) -> None:
    inline = small(driver)
    inline.publish()
    other = small(driver, mkfsOptions="-m 0")
    assert refusal(other.publish).code is Code.ALREADY_EXISTS
    inline.unpublish()


# The ceiling.


def test_a_pool_without_a_ceiling_takes_none(tmp_path: Path, make_driver: MakeDriver) -> None:
    inline = small(make_driver(tmp_path / "pool"))
    failure = refusal(inline.publish)
    assert failure.code is Code.FAILED_PRECONDITION
    assert "ephemeral=SIZE" in failure.details
    inline.unpublish()
    assert_nothing_remains(inline.driver)


def test_all_together_never_have_more_than_the_ceiling(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool", options=[",ephemeral=32Mi"])
    pods = [small(driver, f"pod{number}") for number in range(12)]

    def publish(number: int) -> Code:
        return driver.code("NodePublishVolume", pods[number].publish_request())

    codes = together(12, publish)
    assert (codes.count(Code.OK), codes.count(Code.RESOURCE_EXHAUSTED)) == (4, 8)
    pods[0].target()
    assert "32" in refusal(lambda: small(driver, "more").publish()).details
    published = [pod for pod in pods if pod.held() is not None]
    published[0].unpublish()
    small(driver, "more").publish()
    for pod in [*published[1:], small(driver, "more")]:
        pod.unpublish()
    assert_nothing_remains(driver)


def test_existing_ones_go_on_when_the_ceiling_falls(tmp_path: Path, make_driver: MakeDriver) -> None:
    driver = make_driver(tmp_path / "pool", options=[",ephemeral=32Mi"])
    inline = small(driver)
    inline.publish()
    driver.kill()
    driver.options = [""]
    driver.start()
    inline.publish()
    assert refusal(small(driver, "other").publish).code is Code.FAILED_PRECONDITION
    inline.unpublish()
    assert_nothing_remains(driver)


def test_the_ledger_has_to_grant_it_too(make_pool: MakePool, make_driver: MakeDriver) -> None:
    driver = make_driver(make_pool("ext4", 256 * MIB), options=[",ephemeral=100Gi"])
    failure = refusal(PodVolume(driver, "huge", {"size": "1Gi"}).publish)
    assert failure.code is Code.RESOURCE_EXHAUSTED
    assert "can be granted" in failure.details
    assert_nothing_remains(driver)


# Failures.


def test_a_publish_that_fails_for_good_leaves_nothing(driver: Driver) -> None:
    inline = small(driver)
    target = Path(inline.target())
    target.mkdir()
    (target / "content").touch()
    assert refusal(inline.publish).code is Code.FAILED_PRECONDITION
    (target / "content").unlink()
    target.rmdir()
    assert_nothing_remains(driver)
    for path in ("relative", f"{driver.pool}/volumes/x", f"{driver.home}/none/x", "/a/../b"):
        request = inline.publish_request()
        request.target_path = path
        assert driver.code("NodePublishVolume", request) is Code.INVALID_ARGUMENT, path
    assert_nothing_remains(driver)


def test_one_that_was_there_keeps_its_data_when_it_cannot_be_shown(driver: Driver) -> None:
    inline = small(driver)
    target = inline.publish()
    Path(target, "greeting").write_text("hello")
    run("umount", target)
    Path(target, "content").touch()
    failure = refusal(inline.publish)
    assert failure.code is Code.ABORTED
    assert "content" in failure.details
    Path(target, "content").unlink()
    assert Path(inline.publish(), "greeting").read_text() == "hello"
    inline.unpublish()
    assert_nothing_remains(driver)


def test_open_files_keep_it_until_they_are_closed(driver: Driver) -> None:
    inline = small(driver)
    with open(f"{inline.publish()}/file", "w", encoding="ascii"):
        assert refusal(inline.unpublish).code is Code.ABORTED
        assert inline.held() is not None
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_mount_of_what_is_inside_keeps_it(driver: Driver) -> None:
    inline = small(driver)
    target, elsewhere = inline.publish(), driver.target("sub-path")
    os.mkdir(elsewhere)
    run("mount", "--bind", target, elsewhere)
    inline.publish()
    failure = refusal(inline.unpublish)
    assert failure.code is Code.FAILED_PRECONDITION
    assert elsewhere in failure.details
    run("umount", elsewhere)
    os.rmdir(elsewhere)
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_mount_of_somebody_else_at_the_target_is_left_alone(driver: Driver) -> None:
    inline = small(driver)
    target = Path(inline.target())
    target.mkdir()
    run("mount", "-t", "tmpfs", "stranger", str(target))
    for call in (inline.publish, inline.unpublish):
        assert refusal(call).code is Code.FAILED_PRECONDITION
    run("umount", str(target))
    inline.publish()
    run("mount", "-t", "tmpfs", "stranger", str(target))
    assert refusal(inline.unpublish).code is Code.FAILED_PRECONDITION
    assert inline.held() is not None
    run("umount", str(target))
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_pod_ends_although_the_record_is_damaged(inline: PodVolume) -> None:
    driver = inline.driver
    target = inline.publish()
    [record] = [path for pool in driver.pools for path in pool.directory.glob("volumes/*/record.json")]
    driver.kill()
    os.truncate(record, record.stat().st_size - 9)
    driver.start()
    assert driver.code("NodePublishVolume", inline.publish_request()) is Code.FAILED_PRECONDITION
    inline.unpublish()
    inline.unpublish()
    assert (driver.mounts(), os.path.lexists(target), record.exists()) == ([], False, True)


def test_one_in_a_pool_that_is_not_served_is_not_gone(
    tmp_path: Path, make_pool: MakePool, make_driver: MakeDriver
) -> None:
    place = make_pool("ext4", 256 * MIB)
    driver = make_driver(
        tmp_path / "pool", place, names=["default", "disk"], options=["", ",ephemeral=64Mi"], init_pools=True
    )
    inline = small(driver, pool="disk")
    target = inline.publish()
    driver.kill()
    run("umount", target)
    run("umount", str(place.mount_point))
    driver.init_pools = False
    driver.start()
    assert refusal(inline.unpublish).code is Code.UNAVAILABLE
    assert refusal(inline.publish).code is Code.UNAVAILABLE
    driver.kill()
    run("mount", "-o", "loop", str(place.image), str(place.mount_point))
    driver.start()
    inline.unpublish()
    assert_nothing_remains(driver)
