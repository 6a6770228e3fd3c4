"""The image, built for real and run for real: its files, read-only, with what a pod mounts over them.

- The archive says whose image it is; two builds in two places are the same, and after a change of the code they differ
  in the last, small layer alone.
- Nothing of the building is left in it, all Python is compiled, and every tool that the driver calls starts.
- `hostvol node` makes, mounts, fills and deletes a volume of each filesystem.
- `hostvol controller` serves as nobody, without a capability, and writes nowhere but where it is told.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_driver import __version__
from csi_driver.linux import process
from tests.harness import MIB, backing_files
from tests.image.archive import TAG, Archive, build
from tests.image.conftest import BASE
from tests.image.container import Container

pytestmark = pytest.mark.timeout(900)

Make = Callable[..., Container]
SOCKET = "/run/hostvol/csi.sock"
# Not called by this version, so not in the image.
UNUSED_TOOLS = {"cryptsetup"}
UNCHECKED_HASH = 0b01  # PEP 552: the compiled file is trusted whatever the source's time


def test_the_archive_says_whose_image_it_is(built: Archive) -> None:
    assert built.manifest["RepoTags"] == [TAG]
    assert built.settings["User"] == "65532:65532"
    assert built.settings["Entrypoint"] == ["hostvol"]
    labels = {name.rpartition(".")[2]: value for name, value in built.settings["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["title"] == "hostvol"


def test_the_same_tree_elsewhere_is_the_same_image(built: Archive, elsewhere: Path, tmp_path: Path) -> None:
    again = build(elsewhere, BASE, tmp_path / "image.tar")
    assert again.layers == built.layers


def test_after_a_change_of_the_code_only_the_last_layer_differs(
    built: Archive, elsewhere: Path, tmp_path: Path
) -> None:
    with (elsewhere / "csi_driver/__init__.py").open("a") as file:
        file.write("# changed\n")
    changed = build(elsewhere, BASE, tmp_path / "image.tar")
    assert changed.layers[:-1] == built.layers[:-1]
    assert changed.layers[-1] != built.layers[-1]
    assert changed.layer_bytes(-1) < 6 * MIB


def test_nothing_of_the_building_is_left(root: Path) -> None:
    packages = next(root.glob("opt/hostvol/lib/python3*/site-packages"))
    names = {re.split(r"-[0-9]", path.name)[0] for path in packages.glob("*.dist-info")}
    lock = (Path(__file__).parents[2] / "requirements/runtime.lock").read_text()
    locked = {name.replace("-", "_") for name in re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)}
    assert names == locked - {"setuptools"} | {"hostvol_csi"}
    assert not (root / "build").exists()
    assert not list(root.glob("run/secrets/*"))
    assert not list(root.glob("usr/share/python-wheels/*"))


def test_all_python_is_compiled_once_and_for_all(root: Path) -> None:
    sources = list((root / "opt/hostvol/lib").rglob("*.py"))
    assert len(sources) > 100
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        (flags,) = struct.unpack_from("<4xI", compiled.read_bytes())
        assert flags == UNCHECKED_HASH, compiled


@pytest.mark.parametrize("tool", sorted(process.DEBIAN_PACKAGES.keys() - UNUSED_TOOLS))
def test_a_tool_is_there_with_every_library_that_it_links(tool: str, root: Path) -> None:
    found = [f"{place}/{tool}" for place in process.TOOL_DIRECTORIES if (root / f"{place}/{tool}".lstrip("/")).exists()]
    assert found
    linked = subprocess.run(["chroot", root, "ldd", found[0]], check=True, capture_output=True, text=True).stdout
    assert "not found" not in linked


def test_the_command_tells_its_version(make_container: Make) -> None:
    container = make_container(arguments=["--help"])
    assert container.execute("hostvol", "--version") == f"hostvol, version {__version__}\n"
    assert "--listen" in container.execute("hostvol", "controller", "--help")


def test_a_node_serves_volumes_of_every_filesystem(make_container: Make, tmp_path: Path) -> None:
    volumes = {"/var/lib/hostvol": tmp_path / "pool", "/run/hostvol": tmp_path / "run", "/mnt": tmp_path / "mnt"}
    for directory in volumes.values():
        directory.mkdir()
    node = make_container(arguments=["node", "--node-id=n1"], volumes=volumes, privileged=True)
    assert node.wait_answers(SOCKET, "Probe").ready.value
    for fs_type in ("ext4", "xfs", "btrfs"):
        target = f"/mnt/{fs_type}"
        node.execute("hostvol", "volume", "create", fs_type, "--size=300MiB", f"--fs={fs_type}")
        node.execute("hostvol", "volume", "mount", fs_type, target)
        (node.path(target) / "greeting").write_text("hello")
        assert node.execute("findmnt", "-no", "FSTYPE", target).strip() == fs_type
        node.execute("hostvol", "volume", "umount", fs_type, target)
        node.execute("hostvol", "volume", "delete", fs_type, "--yes")
    assert node.stop() == 0
    assert not os.listdir(tmp_path / "pool/volumes")
    assert not [path for _, path in backing_files() if "/pool/volumes/" in path and str(tmp_path) in path]


def test_a_controller_serves_as_nobody_and_writes_nowhere_else(make_container: Make, tmp_path: Path) -> None:
    volumes = {"/run/hostvol": tmp_path / "run", "/tls": tmp_path / "tls"}
    for directory in volumes.values():
        directory.mkdir()
        os.chown(directory, 65532, 65532)
    controller = make_container(
        arguments=["controller", "--listen=127.0.0.1:0", "--tls-directory=/tls", "--api-server=https://127.0.0.1:1"],
        volumes=volumes,
    )
    assert controller.wait_answers(SOCKET, "GetPluginInfo").vendor_version == __version__
    assert controller.process is not None
    status = Path(f"/proc/{controller.process.pid}/status").read_text()
    assert re.findall(r"^Uid:\s+(.*)$", status, re.MULTILINE) == ["\t".join(["65532"] * 4)]
    assert re.findall(r"^CapBnd:\s+0*(\w)$", status, re.MULTILINE) == ["0"]
    assert os.listdir(tmp_path / "run") == ["csi.sock"]
    assert "ca.crt" in os.listdir(tmp_path / "tls")
    assert controller.stop() == 0
