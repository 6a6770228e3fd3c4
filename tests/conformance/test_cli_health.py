"""`hostvol health` and the column of `hostvol volume list`.

- When all is well, it says so and ends with 0; a volume is `ok`.
- What is wrong with pools, volumes and records is told with reason, cause and remedy, once each, and ends with 3: not
  the code of a failure, nor that of a misspelled command.
- What is well again is not told any more.
- As long as not everything has been looked at, nothing is said to be well, and the code is one of its own.
- A filesystem that hangs is told, and keeps neither command from answering; a driver that hangs itself is not waited
  for without end.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver.rpc import client
from tests.conformance.commands import Done, failed, hostvol, succeeded
from tests.harness import MIB, Driver, Workload
from tests.health.asking import OFTEN
from tests.soak.observing import unanswering_filesystem
from tests.waiting import until


def health(driver: Driver, *arguments: str) -> Done:
    return hostvol("health", *arguments, CSI_ENDPOINT=driver.endpoint)


def reasons(driver: Driver) -> set[tuple[str, str, str]]:
    rows = json.loads(health(driver, "-o", "json").stdout)
    return {(row["kind"], row["name"], row["reason"]) for row in rows}


def column(driver: Driver) -> dict[str, str]:
    rows = json.loads(succeeded(driver, "volume", "list", "-o", "json"))
    return {row["name"]: row["health"] for row in rows}


def test_all_is_well(driver: Driver) -> None:
    succeeded(driver, "volume", "create", "data", "--size", "8MiB")
    # A busy machine may take a while to look for the first time.
    until(lambda: health(driver).returncode != 4, 60)
    done = health(driver)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is well\n", "")
    assert health(driver, "-o", "json").stdout == "[]\n"
    assert column(driver) == {"data": "ok"}
    assert " ok " in succeeded(driver, "volume", "list")
    succeeded(driver, "volume", "delete", "data", "--yes")


def test_what_nobody_has_looked_at_is_not_said_to_be_well(tmp_path: Path, make_driver: Callable[..., Driver]) -> None:
    # No image is ever opened by a look: there is no time for it.
    driver = make_driver(tmp_path / "pool", constants={"domain.health.LOOK_SECONDS": -1.0, **OFTEN})
    for name in ("unread", "gone"):
        succeeded(driver, "volume", "create", name, "--size", "8MiB")
    unknown = ("pool", "default", "VolumesNotLookedAt")
    until(lambda: reasons(driver) == {unknown}, 60, what=lambda: reasons(driver))
    done = health(driver)
    assert (done.returncode, done.stderr) == (4, "")
    assert "UNKNOWN" in done.stdout
    assert "well" not in done.stdout
    assert column(driver) == {"unread": "unknown", "gone": "unknown"}
    volume_id = json.loads(succeeded(driver, "volume", "show", "gone", "-o", "json"))["volume_id"]
    (tmp_path / "pool" / "volumes" / volume_id / "disk.img").unlink()
    until(lambda: reasons(driver) == {unknown, ("volume", "gone", "ContentMissing")}, 60, what=lambda: reasons(driver))
    assert health(driver).returncode == 3


def test_what_is_wrong_is_told_with_its_remedy_and_a_code_of_its_own(
    tmp_path: Path, make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(tmp_path / "pool", tmp_path / "second", names=["default", "second"])
    for name in ("well", "lost", "damaged"):
        succeeded(driver, "volume", "create", name, "--size", "8MiB")
    succeeded(driver, "snapshot", "create", "well", "cut")
    ids = {row["name"]: row["volume_id"] for row in json.loads(succeeded(driver, "volume", "list", "-o", "json"))}
    driver.stop()
    volumes = tmp_path / "pool" / "volumes"
    (volumes / ids["lost"] / "disk.img").rename(tmp_path / "kept")
    (volumes / ids["damaged"] / "record.json").write_text("{")
    next((tmp_path / "pool" / "snapshots").iterdir()).joinpath("record.json").write_text("{")
    (tmp_path / "second" / "hostvol-pool.json").rename(tmp_path / "identity")
    driver.init_pools = False
    driver.start()
    expected = {
        ("pool", "second", "PoolUnavailable"),
        ("volume", "lost", "ContentMissing"),
        ("volume", "", "RecordQuarantined"),
        ("snapshot", "", "RecordQuarantined"),
    }
    until(lambda: reasons(driver) == expected, 60, what=lambda: reasons(driver))
    done = health(driver)
    assert (done.returncode, done.stderr) == (3, "")
    for words in ("restore it", str(tmp_path / "second"), ids["damaged"], "DATA_LOSS", "INACCESSIBLE"):
        assert words in done.stdout
    assert column(driver) == {"well": "ok", "lost": "ContentMissing", "": "RecordQuarantined"}
    assert "ContentMissing" in succeeded(driver, "volume", "list")
    (tmp_path / "kept").rename(volumes / ids["lost"] / "disk.img")
    until(lambda: reasons(driver) == expected - {("volume", "lost", "ContentMissing")}, 60)
    failed(1, "hostvol node", arguments=("health",), endpoint=f"unix://{tmp_path}/nobody.sock")


def test_a_filesystem_that_hangs_is_told_and_keeps_nobody_waiting(
    tmp_path: Path, make_driver: Callable[..., Driver]
) -> None:
    driver = make_driver(tmp_path / "pool")
    hung = Workload(driver, "hung", fs_type="xfs", size_bytes=300 * MIB)
    hung.create()
    hung.stage()
    with unanswering_filesystem(hung.staging):
        until(lambda: reasons(driver) == {("volume", "hung", "NotAnswering")}, 60, what=lambda: reasons(driver))
        assert column(driver) == {"hung": "NotAnswering"}


def test_a_driver_that_never_answers_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_MEMORY_SECONDS", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        failed(1, "eadline", arguments=("health",), endpoint=f"unix://{tmp_path}/silent.sock")
