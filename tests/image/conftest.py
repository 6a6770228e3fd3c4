"""Tests of the container image; the built one is tested where a base to build on is given.

HOSTVOL_TEST_IMAGE_BASE is what `scripts/build-image --base` takes. Without it nothing of that is collected.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.archive import Archive, build
from tests.image.container import Container

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = os.environ.get("HOSTVOL_TEST_IMAGE_BASE", "")

collect_ignore = [] if BASE else ["test_built_image.py"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The image of this tree."""
    return build(REPOSITORY, BASE, tmp_path_factory.mktemp("image") / "image.tar")


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as the build sees it, in another directory, with nothing kept from an earlier build."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("csi_driver", "daemonset", "requirements", "scripts"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tree / name)
    return tree


@pytest.fixture(scope="session")
def root(built: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's files."""
    directory = tmp_path_factory.mktemp("root")
    built.unpack(directory)
    return directory


@pytest.fixture
def make_container(root: Path, built: Archive) -> Iterator[Callable[..., Container]]:
    """Start containers of the image, `make_container(volumes={…}, arguments=[…])`; each is stopped afterwards."""
    containers: list[Container] = []

    def make(**options: object) -> Container:
        container = Container(root, built.settings, **options)
        containers.append(container)
        container.start()
        return container

    yield make
    for container in reversed(containers):
        container.remove()
