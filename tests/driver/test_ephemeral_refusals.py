"""What nobody gets of an inline ephemeral volume.

- Unknown attributes, sizes, raw block, quota none and foreign handles are refused by name.
- To everybody but kubelet and the operator there is no such volume: not in lists, not by its id, not by its handle.
- An operator can delete one that is left over, and none that is mounted; what is left over is told.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from csi_driver.domain import ephemeral as domain
from csi_driver.domain.alarms import alarms
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions
from csi_driver.model import PoolName
from tests.driver.pods import HANDLES, MakeDriver, MakePool, refusal, small, with_ceilings
from tests.harness import MIB, Code, Driver, Workload, capability, create_request, run
from tests.soak.observing import assert_nothing_remains


@pytest.fixture
def driver(tmp_path: Path, make_pool: MakePool, make_driver: MakeDriver) -> Driver:
    return with_ceilings(tmp_path / "pool", make_pool, make_driver)


# Bad input.


@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ({"sise": "8Mi"}, "volume_context.sise"),
        ({"provisioning": "thick"}, "volume_context.provisioning"),
        ({"retention": "1h"}, "volume_context.retention"),
        ({"size": "8MiB"}, "volume_context.size"),
        ({"size": "-1"}, "volume_context.size"),
        ({"size": "0"}, "volume_context.size"),
        ({"size": "9Ei"}, "volume_context.size"),
        ({"type": "tape"}, "volume_context.type"),
        ({"type": "directory", "quota": "none"}, "volume_context.quota"),
        ({"type": "directory"}, "volume_context.quota"),
        ({"quota": "required"}, "volume_context.quota"),
        ({"pool": "../etc"}, "volume_context.pool"),
        ({"pool": "nowhere"}, "volume_context.pool"),
        ({"mkfsOptions": "-d /etc"}, "volume_context.mkfsOptions"),
    ],
    ids=str,
)
def test_a_wrong_attribute_is_refused_by_name(driver: Driver, attributes: dict[str, str], field: str) -> None:
    failure = refusal(small(driver, **attributes).publish)
    assert failure.code is Code.INVALID_ARGUMENT
    assert failure.details.startswith(f"{field}:"), failure.details
    assert_nothing_remains(driver)


def test_keys_of_kubelet_are_ignored(driver: Driver) -> None:
    inline = small(driver)
    request = inline.publish_request()
    request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"] = "{}"
    request.volume_context["csi.storage.k8s.io/pod.name"] = "no\nname"
    driver.call("NodePublishVolume", request)
    assert inline.held().pod == "unknown"
    inline.unpublish()


@pytest.mark.parametrize(("kind", "field"), [("block", "volume_capability"), ("fat", "fs_type"), ("other", "fs_type")])
def test_only_filesystems_that_it_can_have(driver: Driver, kind: str, field: str) -> None:
    inline = small(driver, **({"type": "directory", "pool": "btrfs"} if kind == "other" else {}))
    request = inline.publish_request()
    request.volume_capability.CopyFrom(capability(block=kind == "block", fs_type="" if kind == "block" else kind))
    assert field in refusal(lambda: driver.call("NodePublishVolume", request)).details
    assert_nothing_remains(driver)


@pytest.mark.parametrize("handle", HANDLES, ids=lambda handle: handle[:12])
def test_any_handle_that_is_an_id_will_do(driver: Driver, handle: str) -> None:
    inline = small(driver)
    request = inline.publish_request()
    request.volume_id = handle
    driver.call("NodePublishVolume", request)
    driver.call("NodePublishVolume", request)
    driver.call("NodeGetVolumeStats", volume_id=handle, volume_path=inline.target())
    for _ in range(2):
        driver.call("NodeUnpublishVolume", volume_id=handle, target_path=inline.target())
    assert_nothing_remains(driver)


@pytest.mark.parametrize(
    "handle",
    ["", "x" * 129, "../../etc", "/etc/passwd", ".", "..", "csi-\n", "csi/x", "vol-0123456789abcdef-0123456789abcdef"],
    ids=lambda handle: repr(handle[:12]),
)
def test_a_hostile_handle_is_refused(driver: Driver, handle: str) -> None:
    request = small(driver).publish_request()
    request.volume_id = handle
    assert driver.code("NodePublishVolume", request) is Code.INVALID_ARGUMENT
    assert_nothing_remains(driver)


def test_a_publish_without_the_word_of_kubelet_makes_nothing(driver: Driver) -> None:
    for said in ("false", "", "True"):
        request = small(driver).publish_request()
        request.volume_context["csi.storage.k8s.io/ephemeral"] = said
        assert driver.code("NodePublishVolume", request) is Code.NOT_FOUND
    assert_nothing_remains(driver)


def test_a_persistent_volume_cannot_be_had_by_saying_that_it_is_ephemeral(driver: Driver) -> None:
    volume = Workload(driver, "data")
    volume.up()
    request = volume.publish_request(1)
    request.volume_context["csi.storage.k8s.io/ephemeral"] = "true"
    assert driver.code("NodePublishVolume", request) is Code.INVALID_ARGUMENT
    named = small(driver).publish_request()
    named.volume_id = "data"
    assert driver.code("NodePublishVolume", named) is Code.ALREADY_EXISTS
    assert driver.code("NodeUnpublishVolume", volume_id="data", target_path=volume.target()) is Code.NOT_FOUND
    volume.down()


# Everybody else.


def test_it_is_no_volume_of_the_cluster(driver: Driver) -> None:
    volume, inline = Workload(driver, "data", size_bytes=8 * MIB), small(driver)
    volume.create()
    inline.publish()
    others = [small(driver, f"other{number}") for number in range(3)]
    for other in others:
        other.publish()
    listed = driver.call("ListVolumes", max_entries=1)
    assert [entry.volume.volume_id for entry in listed.entries] == [volume.volume_id]
    assert not listed.next_token
    volume_id = inline.held().volume_id
    asked = {"volume_id": volume_id, "volume_capability": capability()}
    assert driver.code("ControllerGetVolume", volume_id=volume_id) is Code.NOT_FOUND
    assert driver.code("NodeStageVolume", staging_target_path=driver.staging("x"), **asked) is Code.NOT_FOUND
    assert driver.code("NodePublishVolume", target_path=driver.target("x"), **asked) is Code.NOT_FOUND
    for method, field in (("NodeUnstageVolume", "staging_target_path"), ("NodeUnpublishVolume", "target_path")):
        assert driver.code(method, volume_id=volume_id, **{field: inline.target()}) is Code.NOT_FOUND
    assert driver.code("NodeStageVolume", **{**asked, "volume_id": inline.handle, "staging_target_path": "/x"}) is (
        Code.NOT_FOUND
    )
    assert driver.code("CreateVolume", create_request(inline.handle, 8 * MIB)) is Code.ALREADY_EXISTS
    assert sorted(driver.mounts()) == sorted(one.target() for one in (inline, *others))
    for one in (inline, *others):
        one.unpublish()
    volume.delete()
    assert_nothing_remains(driver)


def test_it_is_no_source_and_does_not_grow(driver: Driver) -> None:
    inline = small(driver)
    target = inline.publish()
    more = {"required_bytes": 64 * MIB}
    for asked in (inline.held().volume_id, inline.handle):
        copy = create_request("copy")
        copy.volume_content_source.volume.volume_id = asked
        assert driver.code("CreateVolume", copy) is Code.NOT_FOUND
        assert driver.code("CreateSnapshot", name="cut", source_volume_id=asked) is Code.NOT_FOUND
        assert driver.code("ControllerExpandVolume", volume_id=asked, capacity_range=more) is Code.NOT_FOUND
        assert driver.code("NodeExpandVolume", volume_id=asked, volume_path=target) is Code.NOT_FOUND
    assert inline.held().capacity_bytes == 8 * MIB
    inline.unpublish()
    assert_nothing_remains(driver)


def test_a_mounted_one_cannot_be_deleted_and_one_that_is_left_can(driver: Driver) -> None:
    inline = small(driver)
    target = inline.publish()
    volume_id = inline.held().volume_id
    assert driver.code("DeleteVolume", volume_id=volume_id) is Code.FAILED_PRECONDITION
    driver.call("DeleteVolume", volume_id=inline.handle)
    assert driver.mounts() == [target]
    run("umount", target)
    os.rmdir(target)
    driver.call("DeleteVolume", volume_id=volume_id)
    assert_nothing_remains(driver)
    inline.unpublish()


def test_what_is_left_over_is_told_and_kept(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, left = small(driver, "mounted"), small(driver, "left")
    mounted.publish()
    left.publish()
    volume_id = left.held().volume_id
    driver.kill()
    run("umount", left.target())
    os.rmdir(left.target())
    monkeypatch.setattr(domain, "_LEFT_SECONDS", 0.0)
    options = PoolOptions(PoolName("default"), str(driver.pool))
    node = Node(driver.node_id, "csi.hostvol.dev", [options], str(driver.home / "state"))
    node.start()
    try:
        time.sleep(0.01)
        told = [alarm.message for alarm in alarms(node) if alarm.reason == "EphemeralVolumeLeft"]
    finally:
        node.stop()
    assert len(told) == 1
    assert f"hostvol volume delete {volume_id}" in told[0]
    assert "default/left" in told[0]
    driver.start()
    assert left.held() is not None
    for one in (mounted, left):
        one.unpublish()
    assert_nothing_remains(driver)
