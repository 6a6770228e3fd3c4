"""The commands of group snapshots, as a person and as a program use them.

- A group is made of volumes by their names or ids, found again by the same command, listed, shown, and deleted after a
  question; tables and JSON say the same.
- The list of snapshots tells the group of each and shows the members of one; none of them is deleted alone.
- Whatever goes wrong ends in one sentence that names the remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.commands import failed, hostvol, succeeded
from tests.harness import Driver, PoolPlace


@pytest.fixture
def sharing(make_pool: Callable[..., PoolPlace], make_driver: Callable[..., Driver]) -> Driver:
    """A driver with a pool that shares blocks, and two volumes in it."""
    driver = make_driver(make_pool("xfs"))
    for name in ("data", "log"):
        succeeded(driver, "volume", "create", name, "--size", "16MiB")
    return driver


def told(driver: Driver, *arguments: str) -> Any:
    return json.loads(succeeded(driver, *arguments, "-o", "json"))


def test_a_group_goes_round(sharing: Driver) -> None:
    log_id = told(sharing, "volume", "show", "log")["volume_id"]
    made = told(sharing, "group", "create", "before-upgrade", "data", log_id)
    assert (made["name"], made["state"], made["pool"], made["size_bytes"]) == (
        "before-upgrade",
        "ready",
        "default",
        32 << 20,
    )
    assert made["source_volume_ids"][1] == log_id
    assert told(sharing, "group", "create", "before-upgrade", "log", "data") == made
    group_id, snapshot_ids = made["group_snapshot_id"], made["snapshot_ids"]
    assert told(sharing, "group", "list") == [made]
    assert told(sharing, "group", "show", "before-upgrade") == told(sharing, "group", "show", group_id) == made
    table = succeeded(sharing, "group", "list")
    assert re.search(rf"^{group_id} +before-upgrade +default +2 +32 MiB .* ready$", table, re.MULTILINE)

    succeeded(sharing, "snapshot", "create", "data", "alone")
    members = told(sharing, "snapshot", "list", "--group", "before-upgrade")
    assert {one["snapshot_id"] for one in members} == set(snapshot_ids)
    assert {one["group_snapshot_id"] for one in members} == {group_id}
    assert len(told(sharing, "snapshot", "list")) == 3
    table = succeeded(sharing, "snapshot", "list")
    assert re.search(rf"^{snapshot_ids[0]} .* {group_id}$", table, re.MULTILINE)
    assert re.search(r"^\S+ +alone .* -$", table, re.MULTILINE)
    words = (group_id, "group")
    failed(1, *words, arguments=("snapshot", "delete", snapshot_ids[0], "--yes"), endpoint=sharing.endpoint)
    succeeded(sharing, "volume", "create", "restored", "--from-snapshot", snapshot_ids[1])

    done = hostvol("group", "delete", "before-upgrade", answer="n\n", CSI_ENDPOINT=sharing.endpoint)
    assert (done.returncode, "its 2 snapshots?" in done.stdout) == (1, True)
    assert group_id in succeeded(sharing, "group", "delete", "before-upgrade", "--yes")
    assert told(sharing, "group", "list") == []
    assert [one["name"] for one in told(sharing, "snapshot", "list")] == ["alone"]


def test_what_is_wrong_with_a_group_is_said_in_one_sentence(sharing: Driver) -> None:
    refused = {
        ("group", "show", "nothing"): ("'nothing'", "hostvol group list"),
        ("group", "delete", "nothing", "--yes"): ("'nothing'", "hostvol group list"),
        ("snapshot", "list", "--group", "nothing"): ("'nothing'", "hostvol group list"),
        ("group", "create", "cut", "data", "nothing"): ("'nothing'", "hostvol volume list"),
    }
    for arguments, words in refused.items():
        failed(1, *words, arguments=arguments, endpoint=sharing.endpoint)
    succeeded(sharing, "group", "create", "cut", "data")
    failed(1, "'cut'", arguments=("group", "create", "cut", "log"), endpoint=sharing.endpoint)
    failed(2, "VOLUME", arguments=("group", "create", "cut"), endpoint=sharing.endpoint)
