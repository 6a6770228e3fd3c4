"""The command line, as a person and as a program use it.

- Every command explains itself, with an example, and ends with 0.
- A volume of every kind is created, listed, shown, mounted, unmounted and deleted; tables and JSON say the same.
- So is a snapshot, and a volume that is made of it, or of its volume, is like its source.
- Whatever goes wrong ends in one sentence on stderr that names the remedy, with exit code 1, or 2 where the command was
  misspelled: without a driver, with a bad size, name, pool, path or flag; never in a traceback.
- Nothing is deleted without being asked.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from csi_driver.app import cli, main
from csi_driver.linux import growth
from tests.harness import MIB, Driver, run


@pytest.fixture(scope="module", autouse=True)
def private_run() -> Iterator[None]:
    """The command stages below /run: one that nobody else sees."""
    run("mount", "-t", "tmpfs", "none", "/run")
    yield
    run("umount", "/run")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def hostvol(*arguments: str | bytes, answer: str = "", **environment: str) -> Done:
    """Run the command as its entry point does, in this process: a new one costs half a second each."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "stdin", io.StringIO(answer))
        patch.setattr(sys, "argv", ["hostvol"])
        for name, value in {"COLUMNS": "120", **environment}.items():
            patch.setenv(name, value)
        try:
            main([os.fsdecode(argument) for argument in arguments])
        except SystemExit as ended:
            return Done(int(ended.code or 0), out.getvalue(), err.getvalue())
    return Done(0, out.getvalue(), err.getvalue())


def hostvol_process(*arguments: str | bytes, answer: str = "", **environment: str) -> Done:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "csi_driver", *arguments],
        check=False,
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "120", **environment},
    )
    return Done(done.returncode, done.stdout, done.stderr)


Run = Callable[..., Done]


def succeeded(driver: Driver, *arguments: str, run: Run = hostvol) -> str:
    done = run(*arguments, CSI_ENDPOINT=driver.endpoint)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def failed(
    code: int, *words: str, arguments: tuple[str | bytes, ...], endpoint: str = "unix:///no/driver", run: Run = hostvol
) -> str:
    """The command fails with this code and one sentence on stderr that has these words."""
    done = run(*arguments, CSI_ENDPOINT=endpoint)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()
    if code == 1:
        assert len(sentence) == 1, done.stderr
        assert sentence[0].startswith("hostvol: ")
    for word in words:
        assert word in done.stderr, done.stderr
    return done.stderr


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    if isinstance(group, click.Group):
        group.list_commands(click.Context(group))
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))


TREE = dict(commands(cli))


@pytest.mark.parametrize("path", TREE, ids=lambda path: " ".join(path) or "hostvol")
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = hostvol(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")
    command = TREE[path]
    if isinstance(command, click.Group):
        for name in command.commands:
            assert re.search(rf"^  {name} +\S+.*\.$", done.stdout, re.MULTILINE)
            assert not re.search(rf"^  {name} .*\.\.\.$", done.stdout, re.MULTILINE), "cut short"
    else:
        assert re.search(rf"Examples?:\n +hostvol {' '.join(path)}", done.stdout)
        assert [one.opts for one in command.params if isinstance(one, click.Option) and not one.help] == []
    assert hostvol(*path, "-h").stdout == done.stdout


def test_the_version_is_the_one_that_the_driver_tells(driver: Driver) -> None:
    assert driver.call("GetPluginInfo").vendor_version in succeeded(driver, "--version", run=hostvol_process)


# Round trips

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


def test_pools_are_made_once_and_listed(driver: Driver, tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "pool"
    first = succeeded(driver, "pool", "init", str(directory))
    assert str(directory) in first
    assert succeeded(driver, "pool", "init", str(directory)) == first
    assert directory.stat().st_mode & 0o777 == 0o700
    pools = json.loads(succeeded(driver, "pool", "list", "--output", "json"))
    assert [pool["name"] for pool in pools] == ["default", "second"]
    assert [pool["state"] for pool in pools] == ["ready", "ready"]
    assert pools[0]["directory"] == str(driver.pool)
    assert 0 < pools[0]["grantable_bytes"] <= pools[0]["available_bytes"] <= pools[0]["size_bytes"]
    table = succeeded(driver, "pool", "list")
    assert re.search(r"^default +ready ", table, re.MULTILINE)
    assert re.search(r"^NAME +STATE ", table)


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


# What goes wrong

WITHOUT_A_DRIVER = (
    ("pool", "list"),
    ("volume", "list"),
    ("volume", "show", "x"),
    ("volume", "create", "x"),
    ("volume", "delete", "x", "--yes"),
    ("volume", "mount", "x", "/nowhere/target"),
    ("volume", "umount", "x", "/nowhere/target"),
    ("volume", "clone", "x", "y"),
    ("volume", "create", "x", "--from-snapshot", "y"),
    ("snapshot", "list"),
    ("snapshot", "show", "x"),
    ("snapshot", "create", "x", "y"),
    ("snapshot", "delete", "x", "--yes"),
    ("group", "list"),
    ("group", "create", "x", "y"),
    ("group", "delete", "x", "--yes"),
    ("health",),
)


@pytest.mark.parametrize("arguments", WITHOUT_A_DRIVER, ids=" ".join)
def test_without_a_driver_a_command_says_how_to_start_one(arguments: tuple[str, ...], tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/csi.sock"
    failed(1, f"{tmp_path}/csi.sock", "hostvol node", "--endpoint", arguments=arguments, endpoint=nowhere)


@pytest.mark.parametrize(
    ("code", "arguments"), [(1, ("volume", "list")), (1, ("volume", "create", b"\xff")), (2, ("volume", "resize"))]
)
def test_a_process_of_its_own_ends_with_the_code_and_no_traceback(
    code: int, arguments: tuple[str | bytes, ...], tmp_path: Path
) -> None:
    failed(code, arguments=arguments, endpoint=f"unix://{tmp_path}/csi.sock", run=hostvol_process)


REFUSED: dict[str, tuple[tuple[str | bytes, ...], tuple[str, ...]]] = {
    "an unknown volume": (("volume", "show", "nobody"), ("'nobody'", "hostvol volume list")),
    "to delete an unknown volume": (("volume", "delete", "nobody", "--yes"), ("'nobody'", "hostvol volume list")),
    "to mount an unknown volume": (("volume", "mount", "nobody", "/mnt"), ("'nobody'", "hostvol volume list")),
    "to umount an unknown volume": (("volume", "umount", "nobody", "/mnt"), ("'nobody'", "hostvol volume list")),
    "an empty name": (("volume", "create", ""), ("name", "required")),
    "a long name": (("volume", "create", "x" * 129), ("name", "128 bytes")),
    "a name with a control character": (("volume", "create", "a\x07b"), ("name", "control characters")),
    "a name of no encoding": (("volume", "create", b"\xff\xfe"), ("UTF-8",)),
    "to show a name of no encoding": (("volume", "show", b"\xff\xfe"), ("UTF-8",)),
    "a snapshot of a volume that is not there": (("snapshot", "create", "nothing", "x"), ("'nothing'", "volume list")),
    "a snapshot that is not there": (("snapshot", "show", "nothing"), ("'nothing'", "snapshot list")),
    "the deletion of no snapshot": (("snapshot", "delete", "nothing", "--yes"), ("'nothing'", "snapshot list")),
    "a copy of no snapshot": (("volume", "create", "x", "--from-snapshot", "nothing"), ("'nothing'", "snapshot list")),
    "a clone of nothing": (("volume", "clone", "nothing", "x"), ("'nothing'", "volume list")),
    "an unknown pool": (("volume", "create", "x", "--pool", "third"), ("'third'", "default, second")),
    "an unknown filesystem": (("volume", "create", "x", "--fs", "ntfs"), ("'ntfs'", "ext4, xfs, btrfs")),
    "a filesystem too small": (
        ("volume", "create", "x", "--fs", "xfs", "--size", "1MiB", "--limit", "20MiB"),
        ("limit_bytes", "at least"),
    ),
    "more than there is": (("volume", "create", "x", "--size", "10TiB"), ("granted", "delete volumes")),
    "a limit below the size": (("volume", "create", "x", "--size", "2GiB", "--limit", "1GiB"), ("limit_bytes",)),
    "an expansion of nothing": (("volume", "expand", "nothing", "--size", "1GiB"), ("nothing", "hostvol volume list")),
    "an unknown parameter": (("volume", "create", "x", "-p", "colour=red"), ("parameters.colour", "mkfsOptions")),
    "a thick directory": (("volume", "create", "x", "--type", "directory", "--thick"), ("provisioning",)),
    "a directory as a device": (("volume", "create", "x", "--type", "directory", "--block"), ("parameters.type",)),
    "mkfs options that are not allowed": (
        ("volume", "create", "x", "-p", "mkfsOptions=-d /etc"),
        ("mkfsOptions", "allowed are"),
    ),
    "a pool in a directory with content": (("pool", "init", "/usr"), ("/usr", "not empty")),
    "a pool in a file": (("pool", "init", "/etc/hostname"), ("/etc/hostname",)),
    "a pool below a file": (("pool", "init", "/etc/hostname/pool"), ("/etc/hostname",)),
    "an endpoint that is none": (("volume", "list", "--endpoint", "tcp://localhost:1"), ("unix:///",)),
    "an endpoint too long": (("volume", "list", "--endpoint", f"unix:///{'x' * 200}"), ("107",)),
    "a node with a bad id": (("node", "--node-id", "a b"), ("node-id", "'a b'")),
    "a node with a bad pool": (("node", "--pool", "relative"), ("pool", "NAME=DIR")),
    "a node with a relative pool": (("node", "--pool", "a=b"), ("pool", "absolute")),
    "a node with a pool twice": (("node", "--pool", "a=/x", "--pool", "a=/y"), ("pool", "once")),
    "a node with a bad ceiling": (("node", "--pool", "a=/x,ephemeral=10GiB"), ("ephemeral=10GiB", "such as 64Mi")),
    "a node with a bad retention": (("node", "--pool", "a=/x,retention=1h1d"), ("retention=1h1d", "72h")),
    "a node with a bad share": (("node", "--pool", "a=/x,trash=0%"), ("trash=0%", "1% to 100%")),
    "a node with no ceiling": (("node", "--pool", "a=/x,ephemeral=0"), ("ephemeral=0", "at least 1 byte")),
    "a node with a bad overcommit": (("node", "--pool", "a=/x,overcommit=0"), ("overcommit=0", "1.0 to")),
    "a node with an upper-case driver name": (("node", "--driver-name", "CSI.Example"), ("driver-name", "54")),
    "a node with a driver name too long for its topology key": (("node", "--driver-name", "d" * 55), ("54",)),
    "a node with a bad address": (
        (
            "node",
            "--state-dir",
            "{tmp}/s",
            "--pool",
            "a={tmp}/p",
            "--init-pools",
            "--endpoint",
            "unix://{tmp}/e",
            "--http-address",
            "nowhere",
        ),
        ("http-address", "127.0.0.1:9808"),
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_in_one_sentence(
    driver: Driver, tmp_path: Path, arguments: tuple[str | bytes, ...], words: tuple[str, ...]
) -> None:
    filled = tuple(one.replace("{tmp}", str(tmp_path)) if isinstance(one, str) else one for one in arguments)
    # A node takes over the process's signals and its log.
    run_it = hostvol_process if arguments[0] == "node" else hostvol
    failed(1, *words, arguments=filled, endpoint=driver.endpoint, run=run_it)
    assert driver.files() == []


MISSPELLED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such command": (("volumes",), "No such command"),
    "no such subcommand": (("volume", "resize"), "No such command"),
    "no argument": (("volume", "create"), "NAME"),
    "no such option": (("volume", "list", "--colour"), "No such option"),
    "an expansion without a size": (("volume", "expand", "x"), "--size"),
    "an unknown output": (("volume", "list", "-o", "xml"), "table"),
    "an unknown type": (("volume", "create", "x", "--type", "lvm"), "directory"),
    "a parameter without a value": (("volume", "create", "x", "-p", "colour"), "KEY=VALUE"),
    "a node with an unknown log level": (("node", "--log-level", "all"), "debug"),
    **{
        f"the size {size[:9]!r}": (("volume", "create", "x", f"--size={size}"), "--size")
        for size in (
            "",
            "0",
            "0GiB",
            "-1",
            "ten",
            "1Q",
            "1e9",
            "1.2.3",
            "10 GiB GiB",
            "9EiB",
            "9" * 20,
            "9" * 5000,
            "nan",
        )
    },
}


@pytest.mark.parametrize(("arguments", "word"), MISSPELLED.values(), ids=MISSPELLED)
def test_what_is_misspelled_is_explained(driver: Driver, arguments: tuple[str, ...], word: str) -> None:
    run_it = hostvol_process if arguments[0] == "node" else hostvol
    failed(2, word, "--help", arguments=arguments, endpoint=driver.endpoint, run=run_it)
    assert driver.files() == []


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
