"""What can be said of the image without building it.

- The Dockerfile starts from one base, which can be exchanged, and takes Python packages by the lock's hashes alone.
- Its labels are the project's; it runs as nobody; what it copies is there and is let through to it.
- scripts/build-image refuses what it cannot do, names the remedy, and leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from csi_driver import __version__

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/build-image"
# One instruction a line.
DOCKERFILE = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "daemonset/Dockerfile").read_text(), flags=re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILDERS = ("docker", "podman", "buildah")


def instructions(name: str) -> list[str]:
    """The arguments of all instructions of one kind."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_every_stage_comes_from_the_one_base() -> None:
    first, *others = [line.split()[0] for line in instructions("FROM")]
    names = {line.split(" AS ")[1] for line in instructions("FROM") if " AS " in line}
    assert first == "${BASE}"
    assert set(others) <= names
    assert re.findall(r"BASE=(\S+)", DOCKERFILE) == ["docker.io/library/debian:trixie-slim"]


def test_python_packages_come_from_the_lock_by_hash_or_from_the_tree() -> None:
    locked, own = re.findall(r"\$PIP install (.*?)(?:;|$)", "\n".join(instructions("RUN")), re.MULTILINE)
    assert "--require-hashes --requirement /build/runtime.lock" in locked
    assert "--only-binary :all:" in locked
    assert "--no-deps --no-index" in own
    assert "requirements/runtime.lock /build/" in instructions("COPY")


def test_the_labels_are_those_of_the_project() -> None:
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels == {
        "title": "hostvol",
        "description": PROJECT["description"],
        "licenses": PROJECT["license"],
        "version": "${VERSION}",
    }
    assert f"VERSION={__version__}" in instructions("ARG")


def test_the_image_runs_as_nobody_and_starts_the_command() -> None:
    assert instructions("USER") == ["65532:65532"]
    assert instructions("ENTRYPOINT") == ['["hostvol"]']


def test_what_is_copied_is_there_and_is_all_that_the_builder_sees() -> None:
    copied = [line.split() for line in instructions("COPY") if not line.startswith("--from=")]
    sources = {source for *sources, _ in copied for source in sources}
    assert all((ROOT / source).exists() for source in sources)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == sources


def build_image(*arguments: str, path: str | None = None, script: Path = SCRIPT) -> tuple[int, str]:
    """The exit code, and what is said on stderr."""
    environment = {**os.environ, **({"PATH": path} if path else {})}
    done = subprocess.run([script, *arguments], check=False, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory of all programs of this machine but those that build images, for PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for place in ("/usr/sbin", "/usr/bin"):
        for name in set(os.listdir(place)) - {*BUILDERS, *os.listdir(directory)}:
            (directory / name).symlink_to(f"{place}/{name}")
    return directory


def add_program(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_help_tells_every_option_and_variable() -> None:
    done = subprocess.run([SCRIPT, "--help"], check=True, capture_output=True, text=True)
    accepted = re.findall(r"^ +(--\w+(?: \| --\w+)*)\)", SCRIPT.read_text(), re.MULTILINE)
    for option in " | ".join(accepted).split(" | "):
        assert f"{option} " in done.stdout
    for variable in ("SSL_CERT_FILE", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SOURCE_DATE_EPOCH"):
        assert variable in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--tag NAME:TAG is needed"),
        (["--tag"], "--tag needs a value"),
        (["--tag", "hostvol"], "--tag hostvol is not NAME:TAG"),
        (["--tag", "Hostvol:1"], "--tag Hostvol:1 is not NAME:TAG"),
        (["--tag", "hostvol:1", "--output", "/nowhere/image.tar"], "--output /nowhere/image.tar: not a file in"),
        (["--tag", "hostvol:1", "--output", "/tmp"], "--output /tmp: not a file in"),
        (["--tag", "hostvol:1", "--base", "/nowhere/root.tar"], "--base /nowhere/root.tar: there is no such file"),
        (["--tag", "hostvol:1", "--base", str(SCRIPT)], "build-image: not a tar file, or a compressed one"),
        (["--tag", "hostvol:1", "--push"], "unknown argument --push"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: list[str], said: str) -> None:
    code, stderr = build_image(*arguments)
    assert code == 2
    assert said in stderr
    assert stderr.endswith("; --help tells more\n")


@pytest.mark.parametrize(
    "tag", ["hostvol:1", "localhost/hostvol-csi:test", "registry.example.org:5000/storage/hostvol:v0.1.0-rc.1"]
)
def test_tags_that_can_be_are_taken(tag: str, tools: Path) -> None:
    _, stderr = build_image("--tag", tag, path=str(tools))
    assert "no docker engine answers" in stderr


def test_a_machine_without_a_builder_is_told_how_to_get_one(tools: Path) -> None:
    add_program(tools, "docker", "exit 1")
    code, stderr = build_image("--tag", "hostvol:1", path=str(tools))
    assert (code, stderr.count("\n")) == (1, 1)
    assert "apt-get install buildah" in stderr


def test_buildah_alone_needs_a_file_to_write(tools: Path) -> None:
    add_program(tools, "buildah", "exit 1")
    code, stderr = build_image("--tag", "hostvol:1", path=str(tools))
    assert code == 2
    assert "--output FILE.tar" in stderr


def test_a_build_that_fails_leaves_nothing_and_tells_the_remedy(tools: Path, elsewhere: Path, tmp_path: Path) -> None:
    add_program(tools, "podman", "echo 'dial tcp: no route to host' >&2; exit 125")
    arguments = ["--tag", "hostvol:1", "--output", str(tmp_path / "image.tar")]
    code, stderr = build_image(*arguments, path=str(tools), script=elsewhere / "scripts/build-image")
    assert code == 1
    assert "no route to host" in stderr
    assert stderr.endswith("podman could not build it; if that was for want of a registry: --base FILE.tar\n")
    assert not (tmp_path / "image.tar").exists()
    assert not list((elsewhere / ".tools").glob("image.??????"))
