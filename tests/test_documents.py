"""The documents say what is so.

- The README's tables of flags, parameters and metrics name exactly those that there are.
- docs/health.md names exactly the troubles that there are.
- docs/ephemeral.md names exactly the attributes that a pod may give.
- docs/storageclass.md names exactly the options of mkfs and mount that are allowed.
- Every `hostvol …` command, every script and every link in the documents leads to something.
- The locks pin every package that pyproject.toml asks for, with hashes, and name no place they came from.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from csi_driver import __version__, app, quantities
from csi_driver.linux import filesystem_options
from csi_driver.linux.filesystem import FILESYSTEMS
from csi_driver.metrics import Figures, Metrics, PoolFigures
from csi_driver.model import (
    DEFAULT_CAPACITY_BYTES,
    AccessMode,
    AccessType,
    Publication,
    VolumeCapability,
    VolumeParameters,
)
from csi_driver.rpc import ephemeral, parameters

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
HEALTH = (ROOT / "docs/health.md").read_text()
EPHEMERAL = (ROOT / "docs/ephemeral.md").read_text()
STORAGECLASS = (ROOT / "docs/storageclass.md").read_text()
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, each a list of cells."""
    section = text.split(f"{heading}\n", 1)[1]
    rows: list[list[str]] = []
    for line in section.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    return rows[2:]


def words(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def test_the_tables_of_health_name_every_trouble() -> None:
    source = (ROOT / "csi_driver/domain/troubles.py").read_text() + (ROOT / "csi_driver/cluster/lists.py").read_text()
    told = set(re.findall(r'(?:_degraded|_inaccessible|_lost)\(\s*"(\w+)"|reason="(\w+)"', source))
    rows = table(HEALTH, "## Volumes") + table(HEALTH, "## Pools")
    assert {row[0].strip("`") for row in rows} == {one or other for one, other in told}


def node_options() -> dict[str, click.Option]:
    return {option.opts[0]: option for option in app.node.params if isinstance(option, click.Option)}


def test_the_table_of_flags_is_the_help_of_hostvol_node() -> None:
    rows = {
        words(flag)[0]: (words(variable)[0], default)
        for flag, variable, default, _ in table(README, "### Flags of `hostvol node`")
    }
    assert {flag: variable for flag, (variable, _) in rows.items()} == {
        flag: option.envvar for flag, option in node_options().items()
    }
    for flag, (_, default) in rows.items():
        value = node_options()[flag].default
        if words(default) and isinstance(value, str | float) and flag != "--node-id":
            assert words(default) == [str(value)], flag
    assert words(rows["--pool"][1]) == [f"default={app.DEFAULT_POOL_DIRECTORY}"]


def test_the_table_of_parameters_is_what_a_class_may_say() -> None:
    rows = table(README, "### StorageClass parameters")
    assert [words(name)[0] for name, *_ in rows] == list(parameters._KEYS)
    defaults = {words(name)[0]: words(default) for name, _, default, _ in rows}
    unset = VolumeParameters()
    assert defaults == {
        "type": [unset.volume_type],
        "pool": [unset.pool],
        "provisioning": [unset.provisioning],
        "mkfsOptions": [],
        "quota": [unset.quota],
        "retention": ["0s"],
        "retentionPolicy": [unset.retention_policy],
        "blockSize": [str(unset.block_size)],
    }


def test_the_attributes_of_a_pods_volume_are_those_of_the_code() -> None:
    rows = {words(name)[0]: (words(values), default) for name, values, default in table(EPHEMERAL, "## Use them")}
    assert tuple(rows) == ephemeral.KEYS
    size, capability = rows.pop("size"), VolumeCapability(AccessType.MOUNT, AccessMode.SINGLE_NODE_WRITER)
    assert [quantities.parse_bytes(one) for one in words(size[1])] == [DEFAULT_CAPACITY_BYTES]
    given = [("size", value) for value in size[0]] + [(key, one) for key, (values, _) in rows.items() for one in values]
    for key, value in given:
        directory = {"type": "directory"} if key == "quota" else {}
        ephemeral.spec("csi-0", Publication("/x", capability, False), {**directory, key: value})


def test_the_values_in_the_table_of_parameters_are_accepted() -> None:
    for name, values, *_ in table(README, "### StorageClass parameters"):
        for value in words(values):
            given = {words(name)[0]: value}
            if "quota" in given:
                given["type"] = "directory"
            access = AccessType.BLOCK if "blockSize" in given else AccessType.MOUNT
            parameters.parse(given, access)


def test_the_table_of_metrics_is_what_is_exported() -> None:
    figures = Figures(in_flight=0, ready=True, pools=[PoolFigures("default", *[0] * 10)])
    exported = re.findall(r"^# TYPE (\S+) (\S+)", Metrics(lambda: figures).exposition().decode(), re.MULTILINE)
    rows = {words(name)[0]: kind.split()[0] for name, kind, _ in table(README, "### Metrics")}
    assert rows == {name: kind for name, kind in exported if not name.endswith("_created")}


def test_the_least_sizes_are_those_of_the_code() -> None:
    rows = dict(table(README, "### Needs and sizes"))
    titles = {"ext4": "image with ext4", "xfs": "image with XFS", "btrfs": "image with btrfs"}
    assert {name: re.findall(r"(\d+) MiB", rows[titles[name]]) for name in FILESYSTEMS} == {
        name: [str(size >> 20) for size in dict.fromkeys((kind.minimum_bytes, kind.grown_minimum_bytes))]
        for name, kind in FILESYSTEMS.items()
    }


def test_the_allowed_options_of_mkfs_and_mount_are_all_told() -> None:
    mkfs = {filesystem: words(options) for filesystem, options in table(STORAGECLASS, "## Options of mkfs")}
    assert mkfs == {name: list(rules) for name, rules in filesystem_options.MKFS_OPTIONS.items()}
    mount = {name: words(flags) for name, flags in table(STORAGECLASS, "## Mount flags")}
    assert mount.pop("every volume that is mounted") == list(filesystem_options.ATTRIBUTES)
    assert {name: sorted(flags) for name, flags in mount.items()} == {
        name: sorted(rules) for name, rules in filesystem_options.MOUNT_OPTIONS.items()
    }


def commands(text: str) -> list[list[str]]:
    """Every hostvol command line, as words, in code of the document."""
    code = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + [f"{word}\n" for word in words(text)]
    lines = "\n".join(code).splitlines()
    return [line.split()[1:] for line in lines if re.match(r"(\.venv/bin/)?hostvol( |$)", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    for arguments in commands(document.read_text()):
        command: click.Command = app.cli
        app.cli.list_commands(click.Context(app.cli))
        flags: set[str] = set()
        for word in arguments:
            if word.startswith("-"):
                flags.add(word.partition("=")[0])
            elif isinstance(command, click.Group) and "|" in word:
                assert set(word.split("|")) == set(command.commands), word
                break
            elif isinstance(command, click.Group) and word != "…":
                assert word in command.commands, f"hostvol {' '.join(arguments)}"
                command = command.commands[word]
        known = {"--help", "--version"} | {name for option in command.params for name in option.opts}
        assert flags <= known, f"hostvol {' '.join(arguments)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    named = re.findall(r"(?<![\w/.-])((?:scripts|tests|csi_driver|proto|docs|requirements)/[\w./-]*\w)", text)
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == __version__


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock.read_text(), re.MULTILINE))


def test_the_locks_pin_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = project["project"]["dependencies"] + project["build-system"]["requires"]
    asked = {"runtime": runtime, "dev": runtime + project["project"]["optional-dependencies"]["dev"]}
    for name, requirements in asked.items():
        pinned = pins(ROOT / f"requirements/{name}.lock")
        for requirement in map(Requirement, requirements):
            held = pinned.get(requirement.name, "0")
            assert requirement.specifier.contains(held), f"{requirement} is not in {name}.lock: run scripts/lock"
    assert pins(ROOT / "requirements/runtime.lock").items() <= pins(ROOT / "requirements/dev.lock").items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_has_hashes_for_everything_and_names_no_place(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"://|^-|\s/", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for entry in re.split(r"^(?=[a-z])", "\n".join(lines), flags=re.MULTILINE)[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( \\\n +--hash=sha256:[0-9a-f]{64})+\n?", entry), entry[:80]
