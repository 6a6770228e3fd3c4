"""Staging and target paths that are relative, led astray by links, in use, in a pool or not there: refused.

Whatever such a path points to stays as it is, and nothing outside the pools and the given paths is touched: a tree of
canaries beside them stays as it is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance.bad_requests import INVALID, PRECONDITION, PUBLISH, STAGE, Given
from tests.conformance.probing import refused, traces, what_exists
from tests.harness import MIB, Code, Workload, run


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Path]:
    """A tree that hostile paths point to; it must look the same afterwards, to the last time stamp."""
    tree = tmp_path / "canaries"
    (tree / "full" / "deep").mkdir(parents=True)
    (tree / "full" / "deep" / "file").write_text("precious")
    (tree / "empty").mkdir()
    (tree / "empty-file").touch()
    (tree / "file").write_text("precious")
    before = what_exists(tree)
    yield tree
    assert what_exists(tree) == before
    assert (tree / "full" / "deep" / "file").read_text() == (tree / "file").read_text() == "precious"


@pytest.fixture
def places(given: Given, canaries: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Paths that lead astray, by name."""
    home = tmp_path / "places"
    home.mkdir()
    links = {
        "link to a directory": canaries / "empty",
        "link to a full directory": canaries / "full",
        "link to /etc": Path("/etc"),
        "link to a file": canaries / "empty-file",
        "dangling link": tmp_path / "nothing" / "there",
        "link to a pool": given.driver.pool,
        "link to itself": home / "link-to-itself",
    }
    found = {}
    for name, leads_to in links.items():
        path = home / name.replace(" ", "-").replace("/", "")
        path.symlink_to(leads_to)
        found[name] = str(path)
    os.mkfifo(home / "fifo")
    (home / "a-file").write_text("precious")
    (home / "an-empty-file").touch()
    (home / "full").mkdir()
    (home / "full" / "file").write_text("precious")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(home / "sock"))
    pool = given.driver.pool
    found |= {
        "relative": "relative/path",
        "dot": ".",
        "parent": "..",
        "the root": "/",
        "the root twice": "//.",
        "through the parent": f"{home}/x/../../y",
        "ending in the parent": f"{home}/..",
        "NUL": f"{home}/a\0b",
        "a component of 256 bytes": f"{home}/{'x' * 256}",
        "no parent": f"{home}/missing/target",
        "a file as parent": f"{home}/a-file/target",
        "a link to itself as parent": f"{home}/link-to-itself/target",
        "a magic link": f"/proc/self/root{home}/target",
        "a descriptor": "/proc/self/fd/0/target",
        "a fifo": f"{home}/fifo",
        "a socket": f"{home}/sock",
        "a full file": f"{home}/a-file",
        "a full directory": f"{home}/full",
        "the pool": str(pool),
        "in the pool": f"{pool}/target",
        "a volume": f"{pool}/volumes/{given.image.volume_id}",
        "in a volume": f"{pool}/volumes/{given.image.volume_id}/target",
        "an image": f"{pool}/volumes/{given.image.volume_id}/disk.img",
        "the other pool": f"{given.driver.pools[1].directory}/target",
        "in the pool through a link": f"{home}/link-to-a-pool/target",
        "/etc": "/etc",
        "/dev/null": "/dev/null",
    }
    before = what_exists(home)
    yield found
    assert what_exists(home) == before
    assert (home / "a-file").read_text() == (home / "full" / "file").read_text() == "precious"


PATHS = (
    *("link to a directory", "link to a full directory", "link to /etc", "link to a file", "dangling link"),
    *("link to a pool", "link to itself", "relative", "dot", "parent", "the root", "the root twice"),
    *("through the parent", "ending in the parent", "NUL", "a component of 256 bytes", "no parent", "a file as parent"),
    *("a link to itself as parent", "a magic link", "a descriptor", "a fifo", "a socket", "a full file"),
    *("a full directory", "the pool", "in the pool", "a volume", "in a volume", "an image", "the other pool"),
    *("in the pool through a link", "/etc", "/dev/null"),
)
# What is in the way, rather than wrong in itself.
OCCUPIED = {"a full directory", "a full file", "/etc", "link to /etc", "/dev/null"}


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_target_path_is_refused_and_touched_by_no_call(
    given: Given, places: dict[str, str], name: str, block: bool
) -> None:
    workload = given.device if block else given.image
    request = workload.publish_request()
    request.target_path = places[name]
    before = traces(given.driver)
    codes = {INVALID, PRECONDITION} if name in OCCUPIED else {INVALID}
    refused(given.driver, PUBLISH, codes, "target_path", request=request)
    code = given.driver.code("NodeUnpublishVolume", volume_id=workload.volume_id, target_path=places[name])
    assert code in {INVALID, PRECONDITION} or name in ("no parent", "a file as parent")
    assert traces(given.driver) == before


@pytest.mark.parametrize("name", PATHS)
def test_a_hostile_staging_path_is_refused_and_touched_by_no_call(
    given: Given, places: dict[str, str], name: str
) -> None:
    fresh = Workload(given.driver, "fresh", size_bytes=8 * MIB)
    fresh.create()
    request = fresh.stage_request()
    os.rmdir(fresh.staging)
    request.staging_target_path = places[name]
    before = traces(given.driver)
    codes = {INVALID, PRECONDITION} if name in OCCUPIED else {INVALID}
    refused(given.driver, STAGE, codes, "staging_target_path", request=request)
    # Nothing is staged there: OK says so, and must have touched nothing either.
    code = given.driver.code("NodeUnstageVolume", volume_id=fresh.volume_id, staging_target_path=places[name])
    assert code in {Code.OK, INVALID, PRECONDITION}
    assert traces(given.driver) == before
    given.driver.call("DeleteVolume", volume_id=fresh.volume_id)


@pytest.mark.parametrize("name", ["relative", "through the parent", "NUL", "in the pool", "link to a directory"])
def test_a_hostile_staging_path_of_a_publish_is_refused(given: Given, places: dict[str, str], name: str) -> None:
    request = given.image.publish_request()
    request.staging_target_path = places[name]
    before = traces(given.driver)
    refused(given.driver, PUBLISH, {INVALID, PRECONDITION}, "staging", request=request)
    assert traces(given.driver) == before


@pytest.mark.parametrize("block", [False, True], ids=["mount", "block"])
def test_a_target_that_is_the_staging_path_is_refused(given: Given, block: bool) -> None:
    workload = given.device if block else given.image
    request = workload.publish_request()
    request.target_path = request.staging_target_path
    before = traces(given.driver)
    refused(given.driver, PUBLISH, {INVALID, PRECONDITION}, "target_path", workload.staging, request=request)
    refused(
        given.driver,
        "NodeUnpublishVolume",
        {INVALID, PRECONDITION},
        "target_path",
        volume_id=workload.volume_id,
        target_path=workload.staging,
    )
    assert traces(given.driver) == before


def test_an_empty_directory_or_file_at_the_target_is_taken(given: Given) -> None:
    os.mkdir(given.image.target())
    Path(given.device.target()).touch()
    for workload in (given.image, given.device):
        workload.publish()
        workload.unpublish()
        assert not os.path.lexists(workload.target())


def test_a_directory_at_the_target_of_a_device_is_refused_and_kept(given: Given) -> None:
    target = Path(given.device.target())
    target.mkdir()
    before = traces(given.driver)
    refused(given.driver, PUBLISH, INVALID, "target_path", "an empty file", request=given.device.publish_request())
    assert traces(given.driver) == before
    target.rmdir()


def test_a_file_at_the_target_of_a_filesystem_is_refused_and_kept(given: Given) -> None:
    target = Path(given.image.target())
    target.touch()
    before = traces(given.driver)
    refused(given.driver, PUBLISH, INVALID, "target_path", "a directory", request=given.image.publish_request())
    assert traces(given.driver) == before
    target.unlink()


def test_ancestors_of_a_path_may_be_links(given: Given, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    request = given.image.publish_request()
    request.target_path = str(tmp_path / "link" / "target")
    given.driver.call(PUBLISH, request)
    assert run("findmnt", "-n", "-o", "TARGET", "--mountpoint", str(tmp_path / "real" / "target")).strip()
    given.driver.call("NodeUnpublishVolume", volume_id=given.image.volume_id, target_path=request.target_path)
    assert os.listdir(tmp_path / "real") == []
