"""The commands of the trash, as a person and as a program use them.

- What was deleted is listed, in a table and as JSON, comes back by its name, and is purged only after a question.
- A rollback asks, says how it is undone, and is undone by what it says.
- Whatever goes wrong ends in one sentence that names the remedy.
"""

from __future__ import annotations

import json

from tests.conformance.commands import hostvol
from tests.harness import Driver


def test_the_trash_on_the_command_line(driver: Driver) -> None:
    endpoint = ("--endpoint", driver.endpoint)
    hostvol("volume", "create", "data", "--size", "16MiB", "--block", "-p", "retention=1d", *endpoint)
    volume_id = json.loads(hostvol("volume", "show", "data", "-o", "json", *endpoint).stdout)["volume_id"]
    hostvol("volume", "delete", "data", "--yes", *endpoint)
    [row] = json.loads(hostvol("trash", "list", "-o", "json", *endpoint).stdout)
    assert (row["object_id"], row["kind"], row["name"], row["state"]) == (volume_id, "volume", "data", "retained")
    table = hostvol("trash", "list", *endpoint).stdout
    assert table.split()[:3] == ["ENTRY", "KIND", "NAME"]
    assert row["entry"] in table
    restored = hostvol("trash", "restore", "data", *endpoint)
    assert (restored.returncode, restored.stdout) == (0, f"volume {volume_id} (data) is back\n")
    failed = hostvol("trash", "restore", "data", *endpoint)
    assert failed.returncode == 1
    assert "hostvol trash list" in failed.stderr
    hostvol("volume", "delete", "data", "--yes", *endpoint)
    assert hostvol("trash", "purge", *endpoint).returncode == 2
    assert hostvol("trash", "purge", "--all", *endpoint, answer="n\n").returncode == 1
    assert hostvol("trash", "purge", "--expired", "--yes", *endpoint).stdout == ""
    wrong = hostvol("trash", "purge", "vol-nobody@1", "--yes", *endpoint)
    assert (wrong.returncode, "vol-nobody@1" in wrong.stderr) == (1, True)
    purged = hostvol("trash", "purge", "--all", *endpoint, answer="y\n")
    assert "is purged" in purged.stdout
    assert driver.files() == []


def test_a_rollback_on_the_command_line(driver: Driver) -> None:
    endpoint = ("--endpoint", driver.endpoint)
    hostvol("volume", "create", "data", "--size", "16MiB", "--block", *endpoint)
    hostvol("snapshot", "create", "data", "cut", *endpoint)
    assert hostvol("volume", "rollback", "data", "cut", *endpoint, answer="n\n").returncode == 1
    done = hostvol("volume", "rollback", "data", "cut", "--yes", *endpoint)
    assert done.returncode == 0, done.stderr
    entry = done.stdout.rpartition(" ")[2].strip()
    assert entry.endswith(".replaced")
    assert hostvol("trash", "purge", "--all", "--yes", *endpoint).stdout == ""
    assert hostvol("trash", "restore", entry, *endpoint).returncode == 0
    assert "is purged" in hostvol("trash", "purge", entry, "--yes", *endpoint).stdout
    wrong = hostvol("volume", "rollback", "data", "nothing", "--yes", *endpoint)
    assert wrong.returncode == 1
    assert "hostvol snapshot list" in wrong.stderr
