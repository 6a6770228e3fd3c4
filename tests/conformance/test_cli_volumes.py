"""The commands of volumes, as a person and as a program use them.

- A volume of every kind is created, listed, shown, mounted, expanded, unmounted and deleted; tables and JSON say the
  same; its name may be any, its size is spelled in several ways.
- What was made or changed is told as done, also when the node cannot be asked about it just then.
- It is mounted nowhere but where a mount does no harm, and deleted only after a question.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from csi_driver.cli import volumes
from csi_driver.errors import CallFailed
from csi_driver.linux import growth
from csi_driver.rpc.client import Client
from tests.conformance.commands import failed, hostvol, hostvol_process, succeeded
from tests.harness import MIB, Driver, run

pytestmark = pytest.mark.usefixtures("private_run")
KINDS = {
    "ext4": (),
    "thick": ("--thick",),
    "xfs": ("--fs", "xfs", "--size", "300MiB"),
    "second pool": ("--pool", "second"),
    "directory": ("--type", "directory", "--no-quota"),
    "block": ("--block", "-p", "blockSize=512"),
    "mkfs options": ("-p", "mkfsOptions=-m 1 -L data"),
}


def test_a_volume_goes_round_in_processes_of_their_own(driver: Driver, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    for arguments in (
        ("create", "data", "--size", "16MiB"),
        ("list",),
        ("show", "data"),
        ("mount", "data", target),
        ("umount", "data", target),
        ("delete", "data", "--yes"),
    ):
        assert succeeded(driver, "volume", *arguments, run=hostvol_process)
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_volume_goes_round(driver: Driver, tmp_path: Path, options: tuple[str, ...]) -> None:
    size = () if "--size" in options else ("--size", "16MiB")
    created = json.loads(succeeded(driver, "volume", "create", "data", *size, *options, "--output", "json"))
    volume_id = created["volume_id"]
    assert created["name"] == "data"
    again = json.loads(succeeded(driver, "volume", "create", "data", *size, *options, "--output", "json"))
    assert again["volume_id"] == volume_id

    table = succeeded(driver, "volume", "list")
    assert re.search(rf"^{volume_id} +data +", table, re.MULTILINE)
    listed = json.loads(succeeded(driver, "volume", "list", "--output", "json"))
    assert [one["volume_id"] for one in listed] == [volume_id]
    shown = json.loads(succeeded(driver, "volume", "show", "data", "--output", "json"))
    assert shown["capacity_bytes"] == created["capacity_bytes"] >= 16 * MIB
    assert volume_id in succeeded(driver, "volume", "show", volume_id)

    target = tmp_path / "target"
    assert str(target) in succeeded(driver, "volume", "mount", "data", str(target))
    if "--block" in options:
        assert target.is_block_device()
        assert run("blockdev", "--getss", str(target)).strip() == "512"
    else:
        (target / "file").write_text("hello")
    assert str(target) in json.loads(succeeded(driver, "volume", "show", "data", "-o", "json"))["target_paths"]
    assert str(target) in succeeded(driver, "volume", "list")
    failed(1, "in use", str(target), arguments=("volume", "delete", "data", "--yes"), endpoint=driver.endpoint)
    succeeded(driver, "volume", "umount", "data", str(target))
    assert not target.exists()
    assert (driver.mounts(), driver.loops()) == ([], [])

    assert volume_id in succeeded(driver, "volume", "delete", "data", "--yes")
    assert json.loads(succeeded(driver, "volume", "list", "--output", "json")) == []
    assert driver.files() == []


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_volume_grows_while_it_is_mounted_and_while_it_is_not(
    driver: Driver, tmp_path: Path, options: tuple[str, ...]
) -> None:
    size = 300 * MIB if "xfs" in options else 16 * MIB
    succeeded(driver, "volume", "create", "data", *options, "--size", str(size))
    target = str(tmp_path / "target")

    def expand(times: int) -> int:
        arguments = ("volume", "expand", "data", "--size", str(times * size), "--output", "json")
        return int(json.loads(succeeded(driver, *arguments))["capacity_bytes"])

    assert expand(2) == 2 * size
    succeeded(driver, "volume", "mount", "data", target)
    is_ext4 = run("findmnt", "-no", "FSTYPE", "--mountpoint", target).strip() == "ext4" and "directory" not in options
    if is_ext4 and not growth.may_grow_mounted_ext4():
        words = ("CAP_SYS_RESOURCE", f"{3 * size >> 20} MiB now", "not yet")
        arguments = ("volume", "expand", "data", "--size", str(3 * size))
        failed(1, *words, arguments=arguments, endpoint=driver.endpoint)
        succeeded(driver, "volume", "umount", "data", target)
        succeeded(driver, "volume", "mount", "data", target)
    assert expand(3) == expand(1) == 3 * size
    if "--block" in options:
        assert int(run("blockdev", "--getsize64", target)) == 3 * size
    elif "directory" not in options:
        assert os.statvfs(target).f_blocks * 4096 > 5 * size // 2
    succeeded(driver, "volume", "umount", "data", target)
    limited = ("volume", "expand", "data", "--size", "1MiB", "--limit", "2MiB")
    failed(1, "limit_bytes", "never becomes smaller", arguments=limited, endpoint=driver.endpoint)
    succeeded(driver, "volume", "delete", "data", "--yes")


@pytest.mark.parametrize("refusals", [2, 1000], ids=["for a while", "for long"])
def test_what_is_done_is_no_failure_because_nobody_can_look_at_it(
    driver: Driver, refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, refused = Client.volume, 0

    def looked(client: Client, name_or_id: str) -> dict[str, Any]:
        nonlocal refused
        if name_or_id != "data" and refused < refusals:
            refused += 1
            raise CallFailed("ABORTED", "too many ask")
        return look(client, name_or_id)

    monkeypatch.setattr(Client, "volume", looked)
    monkeypatch.setattr(volumes, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(volumes, "_LOOK_SECONDS", 60.0 if refusals == 2 else 0.05)
    for arguments in (
        ("create", "data", "--size", "16MiB"),
        ("expand", "data", "--size", "32MiB"),
        ("modify", "data", "provisioning=thick"),
        ("clone", "data", "other"),
    ):
        refused = 0
        done = hostvol("volume", *arguments, "--output", "json", CSI_ENDPOINT=driver.endpoint)
        assert done.returncode == 0, done
        told = json.loads(done.stdout)
        assert told["name"] == ("other" if "other" in arguments else "data")
        assert told["capacity_bytes"] == (16 if arguments[0] == "create" else 32) * MIB
        assert ("allocated_bytes" in told) == (refusals == 2)
        assert ("it is done" in done.stderr) == (refusals > 2)
        assert refused >= 2
    monkeypatch.undo()
    for name in ("data", "other"):
        hostvol("volume", "delete", name, "--yes", CSI_ENDPOINT=driver.endpoint)


def test_a_person_sees_how_far_a_long_expansion_is(tmp_path: Path) -> None:
    # A terminal of its own, in which nothing takes long but the work that is watched.
    script = (
        "import time; from csi_driver.cli.progress import watched; began = time.monotonic(); "
        "print(watched('allocating', lambda: time.sleep(3) or 'done', "
        "lambda: (int(1000 * (time.monotonic() - began)), 3000)))"
    )
    log = tmp_path / "terminal"
    run("script", "--quiet", "--command", f'{sys.executable} -c "{script}"', str(log))
    shown = log.read_text()
    assert "done" in shown
    percents = [int(one) for one in re.findall(r"(\d+)%", shown)]
    assert len(percents) >= 3
    assert percents == sorted(percents)
    assert "%" not in run(sys.executable, "-c", script)


def test_a_volume_is_mounted_read_only_and_with_flags(driver: Driver, tmp_path: Path) -> None:
    succeeded(driver, "volume", "create", "data", "--size", "16MiB")
    target = tmp_path / "target"
    succeeded(driver, "volume", "mount", "data", str(target), "--read-only", "--flags", "noatime,noexec")
    options = run("findmnt", "-n", "-o", "VFS-OPTIONS", "--mountpoint", str(target)).strip().split(",")
    assert {"ro", "noatime", "noexec", "nosuid", "nodev"} <= set(options)
    succeeded(driver, "volume", "umount", "data", str(target))
    succeeded(driver, "volume", "delete", "data", "--yes")


@pytest.mark.parametrize("name", ["two words", "../../etc", "--help-me", "line\nfeed", "ünï\u202eçode", "'\"$(x)`"])
def test_a_name_of_any_kind_goes_round_and_stays_in_its_row(driver: Driver, name: str) -> None:
    succeeded(driver, "volume", "create", "--size", "8MiB", "--", name)
    rows = succeeded(driver, "volume", "list").splitlines()
    assert len(rows) == 2
    assert "\u202e" not in rows[1]
    assert json.loads(succeeded(driver, "volume", "list", "-o", "json"))[0]["name"] == name
    succeeded(driver, "volume", "delete", "--yes", "--", name)


def test_nothing_is_deleted_without_being_asked(driver: Driver) -> None:
    succeeded(driver, "volume", "create", "kept", "--size", "8MiB")
    for answer in ("n\n", "\n", ""):
        done = hostvol("volume", "delete", "kept", answer=answer, CSI_ENDPOINT=driver.endpoint)
        assert (done.returncode, "all its data?" in done.stdout) == (1, True)
        assert "nothing was done" in done.stderr
        assert ("--yes" in done.stderr) == (not answer)
        assert len(json.loads(succeeded(driver, "volume", "list", "-o", "json"))) == 1
    done = hostvol("volume", "delete", "kept", answer="y\n", CSI_ENDPOINT=driver.endpoint)
    assert done.returncode == 0
    assert json.loads(succeeded(driver, "volume", "list", "-o", "json")) == []


@pytest.mark.parametrize(
    ("size", "given"),
    [("8MiB", 8 << 20), ("8Mi", 8 << 20), ("9M", 9_003_008), ("0.01GiB", 10_739_712), ("8388609", 8392704)],
)
def test_sizes_can_be_spelled_in_several_ways(driver: Driver, size: str, given: int) -> None:
    created = json.loads(succeeded(driver, "volume", "create", "sized", "--size", size, "--block", "-o", "json"))
    assert created["capacity_bytes"] == given
    succeeded(driver, "volume", "delete", "sized", "--yes")


MOUNTS_REFUSED = {
    "a full directory": ("{tmp}/full", "is in it"),
    "a missing parent": ("{tmp}/no/such/target", "target_path"),
    "the pool": ("{pool}/target", "outside the pool"),
    "a file": ("{tmp}/file", "a directory"),
}


@pytest.mark.parametrize(("target", "word"), MOUNTS_REFUSED.values(), ids=MOUNTS_REFUSED)
def test_a_mount_at_a_wrong_place_is_refused_and_nothing_is_left(
    driver: Driver, tmp_path: Path, target: str, word: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    succeeded(driver, "volume", "create", "data", "--size", "8MiB")
    where = target.replace("{tmp}", str(tmp_path)).replace("{pool}", str(driver.pool))
    failed(1, where, word, arguments=("volume", "mount", "data", where), endpoint=driver.endpoint)
    failed(1, "noflag", arguments=("volume", "mount", "data", "/mnt/x", "--flags", "noflag"), endpoint=driver.endpoint)
    succeeded(driver, "volume", "delete", "data", "--yes")
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]
    assert (driver.mounts(), driver.loops(), driver.files()) == ([], [], [])
