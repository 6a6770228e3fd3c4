"""The command line, as a person and as a program use it.

- Every command explains itself, with an example, and ends with 0.
- Pools are made once, and listed.
- Whatever goes wrong ends in one sentence on stderr that names the remedy, with exit code 1, or 2 where the command was
  misspelled: without a driver, with a bad size, name, pool, path or flag; never in a traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from csi_driver.app import cli
from tests.conformance.commands import failed, hostvol, hostvol_process, succeeded
from tests.harness import Driver

pytestmark = pytest.mark.usefixtures("private_run")


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
