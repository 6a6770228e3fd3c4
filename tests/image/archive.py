"""An image as scripts/build-image writes it: its settings, its layers, its files."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import run

TAG = "localhost/hostvol-csi:of-the-tests"
WHITEOUT = ".wh."  # OCI image layout: this name before another says that the other is gone


def build(tree: Path, base: str, output: Path) -> Archive:
    """Build the image of a tree.

    Raises: AssertionError with what the builder said.
    """
    command = [tree / "scripts/build-image", "--tag", TAG, "--output", output, "--base", base]
    # In another process group a builder that hangs could not be interrupted together with the tests.
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return Archive(output)


@dataclass(frozen=True)
class Archive:
    """A tar file of one image, as `docker load` takes it."""

    path: Path

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        (only,) = self._json("manifest.json")
        return dict(only)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return dict(self._json(self.manifest["Config"]))

    @property
    def settings(self) -> dict[str, Any]:
        """What a container gets from the image: user, environment, entry point, labels."""
        return dict(self.config["config"])

    @property
    def layers(self) -> list[str]:
        """The digests of the layers, the base's first."""
        return list(self.config["rootfs"]["diff_ids"])

    def layer_bytes(self, number: int) -> int:
        """The size of one layer."""
        with tarfile.open(self.path) as archive:
            return archive.getmember(self.manifest["Layers"][number]).size

    def unpack(self, directory: Path) -> None:
        """Write the files of all layers, one over the other, as a container runtime does."""
        layer = directory.with_suffix(".layer")
        for name in self.manifest["Layers"]:
            with layer.open("wb") as file:
                subprocess.run(["tar", "-xOf", self.path, name], check=True, stdout=file)
            for gone in _whiteouts(layer):
                run("rm", "-rf", "--", str(directory / gone))
            run("tar", "-xpf", str(layer), f"--exclude={WHITEOUT}*", "-C", str(directory))
        layer.unlink()

    def _json(self, member: str) -> Any:
        with tarfile.open(self.path) as archive:
            file = archive.extractfile(member)
            assert file is not None, member
            return json.load(file)


def _whiteouts(layer: Path) -> list[str]:
    """What a layer takes away from those below it, relative to the root."""
    with tarfile.open(layer) as archive:
        paths = [os.path.split(name) for name in archive.getnames()]
    return [os.path.join(parent, name.removeprefix(WHITEOUT)) for parent, name in paths if name.startswith(WHITEOUT)]
