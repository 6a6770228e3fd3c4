"""GetCapacity never promises what CreateVolume then refuses."""

from __future__ import annotations

from typing import Any

import pytest

from csi_driver.pb import csi_pb2
from tests.conformance.conftest import NODE_ID
from tests.conformance.probing import created, refused, traces
from tests.harness import DIRECTORY, GIB, MIB, Code, Driver, capability, create_request

TOPOLOGY_KEY = "topology.csi.hostvol.dev/node"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "xfs": {"volume_capabilities": [capability(fs_type="xfs")]},
    "btrfs": {"volume_capabilities": [capability(fs_type="btrfs")]},
    "block": {"volume_capabilities": [capability(block=True)]},
    "thick": {"parameters": {"provisioning": "thick"}},
    "directory": {"parameters": DIRECTORY},
    "second pool": {"parameters": {"pool": "second"}},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_capacity_is_never_more_than_a_create_is_granted(driver: Driver, kind: dict[str, Any]) -> None:
    answer = driver.call("GetCapacity", **kind)
    least, most = answer.minimum_volume_size.value, answer.maximum_volume_size.value
    assert 0 < least <= most <= answer.available_capacity
    with created(driver, create_request("least", 1, least, **kind)) as volume:
        assert volume.capacity_bytes == least
    # Nothing is written: a little less than all, since the disk is not ours alone.
    if "thick" not in str(kind):
        with created(driver, create_request("most", most - 512 * MIB, most, **kind)) as volume:
            assert volume.capacity_bytes <= most
            less = driver.call("GetCapacity", **kind).available_capacity
            assert less < GIB or kind.get("parameters") == DIRECTORY


def test_capacity_elsewhere_is_none(driver: Driver) -> None:
    here = csi_pb2.Topology(segments={TOPOLOGY_KEY: NODE_ID})
    assert driver.call("GetCapacity", accessible_topology=here).available_capacity > 0
    there = csi_pb2.Topology(segments={TOPOLOGY_KEY: "elsewhere"})
    assert driver.call("GetCapacity", accessible_topology=there).available_capacity == 0
    # A class may name a pool that only other nodes have.
    nowhere = driver.call("GetCapacity", parameters={"pool": "third"})
    assert (nowhere.available_capacity, nowhere.maximum_volume_size.value) == (0, 0)


def test_more_than_the_pool_has_is_refused_and_says_what_can_be_granted(driver: Driver) -> None:
    before = traces(driver)
    available = driver.call("GetCapacity").available_capacity
    refused(
        driver,
        "CreateVolume",
        Code.RESOURCE_EXHAUSTED,
        "can be granted",
        "pool default",
        request=create_request("too much", available + GIB),
    )
    assert traces(driver) == before


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ({"size_bytes": 0, "limit_bytes": 1}, {}),
        ({"size_bytes": 4 * MIB, "limit_bytes": 4 * MIB}, {}),
        ({"size_bytes": MIB, "limit_bytes": 299 * MIB}, KINDS["xfs"]),
        ({"size_bytes": MIB, "limit_bytes": 100 * MIB}, KINDS["btrfs"]),
        ({"size_bytes": 4097, "limit_bytes": 4098}, KINDS["block"]),
        ({"size_bytes": (1 << 63) - 1}, {}),
        ({"size_bytes": 1 << 62}, KINDS["block"]),
        ({"size_bytes": 1 << 62}, KINDS["directory"]),
    ],
)
def test_a_size_that_no_such_volume_can_have_is_out_of_range(
    driver: Driver, sizes: dict[str, int], kind: dict[str, Any]
) -> None:
    before = traces(driver)
    asked = create_request("impossible", **sizes, **kind)
    refused(driver, "CreateVolume", Code.OUT_OF_RANGE, "capacity_range", request=asked)
    assert traces(driver) == before
