"""The commands of snapshots, as a person and as a program use them.

- A snapshot is made of a volume by its name or id, found again by the same command, listed, shown, and deleted after a
  question; tables and JSON say the same.
- A volume that is made of it, or of its volume, is like its source.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.conformance.commands import hostvol, succeeded
from tests.harness import Driver

SOURCES: dict[str, tuple[str, ...]] = {
    "image": (),
    "thick": ("--thick",),
    "xfs": ("--fs", "xfs", "--size", "300MiB"),
    "block": ("--block",),
    "directory": ("--type", "directory", "--no-quota"),
}


@pytest.mark.parametrize("options", SOURCES.values(), ids=SOURCES)
def test_a_snapshot_goes_round_and_volumes_are_made_of_it_and_of_its_volume(
    driver: Driver, options: tuple[str, ...]
) -> None:
    def told(*arguments: str) -> dict[str, str]:
        found: dict[str, str] = json.loads(succeeded(driver, *arguments, "-o", "json"))
        return found

    size = () if "--size" in options else ("--size", "16MiB")
    source = told("volume", "create", "data", *size, *options)
    made = told("snapshot", "create", "data", "before-upgrade")
    assert told("snapshot", "create", source["volume_id"], "before-upgrade") == made
    assert (made["state"], made["source_volume_id"], made["size_bytes"]) == (
        "ready",
        source["volume_id"],
        source["capacity_bytes"],
    )
    assert told("snapshot", "show", "before-upgrade") == told("snapshot", "show", made["snapshot_id"]) == made
    assert json.loads(succeeded(driver, "snapshot", "list", "-o", "json")) == [made]
    table = succeeded(driver, "snapshot", "list")
    assert re.search(rf"^{made['snapshot_id']} +before-upgrade +{source['volume_id']} .* ready ", table, re.MULTILINE)
    restored = told("volume", "create", "restored", "--from-snapshot", "before-upgrade")
    clone = told("volume", "clone", "data", "copy", "--size", "400MiB")
    inherited = ("pool", "type", "access", "filesystem", "provisioning", "quota")
    for copy in (restored, clone):
        assert {key: copy[key] for key in inherited} == {key: source[key] for key in inherited}
    assert restored["capacity_bytes"] == source["capacity_bytes"]
    assert (restored["source"], clone["source"]) == (
        f"snapshot {made['snapshot_id']}",
        f"volume {source['volume_id']}",
    )
    done = hostvol("snapshot", "delete", "before-upgrade", answer="n\n", CSI_ENDPOINT=driver.endpoint)
    assert done.returncode not in (0, 2)
    assert made["snapshot_id"] in succeeded(driver, "snapshot", "delete", "before-upgrade", "--yes")
    assert json.loads(succeeded(driver, "snapshot", "list", "-o", "json")) == []
    for name in ("data", "restored", "copy"):
        succeeded(driver, "volume", "delete", name, "--yes")
