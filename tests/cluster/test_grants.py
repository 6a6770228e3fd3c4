"""Which node may fetch which object, as a router remembers it.

- Only the node that was asked for a volume with this content may, and only for a while after it was asked last.
- A fetch that took longer than that may be taken up again, whoever asked in between.
- As many are remembered as there may be; the oldest go first.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from csi_driver.cluster import crossings
from csi_driver.cluster.crossings import Grants
from csi_driver.errors import NodeRefused


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(crossings, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_grant_is_for_one_node_and_one_object_and_ends(clock: list[float]) -> None:
    grants = Grants()
    grants.allow("node", "source")
    grants.require("node", "source")
    for key, source_id in (("other", "source"), ("node", "another")):
        with pytest.raises(NodeRefused):
            grants.require(key, source_id)
    clock[0] += 901
    with pytest.raises(NodeRefused):
        grants.require("node", "source")


def test_a_fetch_that_took_longer_than_its_grant_may_be_taken_up_again(clock: list[float]) -> None:
    grants = Grants()
    grants.allow("node", "source")
    grants.require("node", "source")
    clock[0] += 3600
    with pytest.raises(NodeRefused):
        # The target has noticed the break before the router has.
        grants.require("node", "source")
    grants.last("node", "source")
    grants.require("node", "source")


def test_the_oldest_grants_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossings, "_MOST_GRANTED", 2)
    grants = Grants()
    for number in range(3):
        grants.allow("node", f"source-{number}")
    with pytest.raises(NodeRefused):
        grants.require("node", "source-0")
    grants.require("node", "source-1")
    grants.require("node", "source-2")
