"""What nobody has looked at, or could look at, is not said to be well, and what is gone meanwhile breaks no answer.

- Until the first look at a pool has ended that is told, also while it hangs; so is that not all volumes were looked at.
- A look that fails is told, beside what was found before.
- Whoever looks from time to time goes on after a failure.
- A volume that is deleted, or is put into quarantine, while troubles are listed is left out.
- Pools that hang hold a part of the threads of the operator's questions only.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi_driver.domain import health, inspection
from csi_driver.domain.alarms import alarms
from csi_driver.domain.diagnosis import complaints
from csi_driver.domain.health import Health, PoolHealth
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions
from csi_driver.model import PoolName
from csi_driver.pb import admin_pb2
from tests.harness import Code, Driver, Workload
from tests.health.asking import OFTEN, image
from tests.soak.observing import unanswering_filesystem
from tests.waiting import until

NOT_YET = ("default", "PoolNotLookedAt", "UNKNOWN")


@pytest.fixture
def node(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node in this process, which looks only when it is asked; of its volumes `fine` and `lost` one is lost."""
    for name in ("fine", "lost"):
        Workload(driver, name, block=True, size_bytes=4096).create()
    driver.stop()
    monkeypatch.setattr(health, "_PATIENCE_SECONDS", 0.01)
    options = PoolOptions(PoolName("default"), str(driver.pool))
    made = Node(driver.node_id, "csi.hostvol.dev", [options], str(driver.home / "state"))
    with monkeypatch.context() as start:
        start.setattr(Health, "start", lambda _: None)
        made.start()
    lost = made.catalogue.named("lost")
    assert lost is not None
    (driver.pool / "volumes" / lost.volume_id / "disk.img").unlink()
    yield made
    made.stop()


def told(node: Node) -> set[tuple[str, str, str]]:
    return {(one.name, one.trouble.reason, one.trouble.severity) for one in complaints(node)}


def column(node: Node) -> set[str]:
    return {one.health for one in inspection.views(node, node.catalogue.all())}


def looked(node: Node) -> set[tuple[str, str, str]]:
    node.health._look(60, name_silent=False)
    return told(node)


LOST = ("lost", "ContentMissing", "DATA_LOSS")
FAILED = ("default", "PoolLookFailed", "DEGRADED")


def test_until_a_look_has_ended_nothing_is_said_to_be_well(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, look = threading.Event(), node.health._health

    def hang(pool: Any) -> PoolHealth:
        assert go_on.wait(60)
        return look(pool)

    monkeypatch.setattr(node.health, "_health", hang)
    assert (told(node), column(node)) == ({NOT_YET}, {"unknown"})
    for _ in range(3):
        node.health.refresh()
        assert (told(node), column(node)) == ({NOT_YET}, {"unknown"})
    go_on.set()

    def has_looked() -> bool:
        node.health.refresh()
        return told(node) == {LOST}

    until(has_looked, 60, what=lambda: told(node))
    assert column(node) == {"ok", "ContentMissing"}


def test_a_look_that_fails_is_told_beside_what_was_found_before(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(node) == {LOST}

    def fail(_: Any) -> PoolHealth:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(node.health, "_health", fail)
        assert looked(node) == {LOST, FAILED}
        assert any("Input/output error" in one.message for one in alarms(node))
        assert column(node) == {"PoolLookFailed", "PoolLookFailed,ContentMissing"}
    assert looked(node) == {LOST}


def test_whoever_looks_goes_on_after_a_failure(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    failures, look = [RuntimeError("first"), RuntimeError("second")], node.health._look

    def fail_first(patience_seconds: float, *, name_silent: bool) -> None:
        if failures:
            raise failures.pop()
        look(patience_seconds, name_silent=name_silent)

    monkeypatch.setattr(health, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(node.health, "_look", fail_first)
    node.health.start()
    until(lambda: told(node) == {LOST}, 60, what=lambda: told(node))
    assert not failures


class Vanishing(dict[str, Any]):
    """An index in which each object is gone as soon as somebody has seen that it is there."""

    def __contains__(self, key: object) -> bool:
        return self.pop(str(key), None) is not None


def test_what_is_deleted_while_troubles_are_listed_is_left_out(node: Node) -> None:
    assert looked(node) == {LOST}
    lost = node.catalogue.named("lost")
    assert lost is not None
    node.catalogue._by_id = Vanishing(node.catalogue._by_id)
    for answer in (told, alarms):
        answer(node)
    node.catalogue.remove(lost)
    assert told(node) == set()
    assert [one.reason for one in alarms(node)] == []


def test_pools_that_hang_leave_threads_to_who_asks_what_is_wrong(
    tmp_path: Path, make_driver: Callable[..., Driver]
) -> None:
    """Nine may look at one volume at a time, sixty-four threads are there: more ask of a pool that hangs."""
    constants = {**OFTEN, "domain.health._SILENT_SECONDS": 1.0}
    driver = make_driver(tmp_path / "pool", tmp_path / "other", names=["default", "other"], constants=constants)
    volumes = [Workload(driver, f"v{number}", block=True, size_bytes=4096) for number in range(8)]
    other = Workload(driver, "other", block=True, size_bytes=4096, parameters={"pool": "other"})
    for one in (*volumes, other):
        one.create()
    get = driver.caller.admin_stub("GetVolume")
    with ExitStack() as held:
        silences = [held.enter_context(unanswering_filesystem(str(image(one).parent))) for one in volumes]
        asked: list[Any] = [
            get.future(admin_pb2.GetVolumeRequest(volume_id=one.volume_id), timeout=60)
            for one in volumes
            for _ in range(9)
        ]
        until(lambda: sum(one.done() for one in asked) == len(asked) - 32, 60)
        assert {one.code() for one in asked if one.done()} == {Code.ABORTED}
        assert get(admin_pb2.GetVolumeRequest(volume_id=other.volume_id), timeout=20).name == "other"

        def reasons() -> set[str]:
            return {one.reason for one in driver.call("ListTroubles", timeout=20)}

        until(lambda: reasons() == {"PoolNotAnswering"}, 60, what=reasons)
        for abort in silences:
            abort()
        until(lambda: all(one.done() for one in asked), 60)
