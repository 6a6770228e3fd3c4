"""A pool that is being opened, for the first time or again, is not one that is refused for good.

- A container that has had no pool for ten minutes does not end while it opens one: that may take its time.
- That a pool is opened again is known while it is, and not afterwards.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from csi_driver import app
from csi_driver.domain import startup
from csi_driver.domain.node import Node
from csi_driver.domain.pools import PoolOptions, Pools
from csi_driver.domain.startup import PoolLoader
from csi_driver.errors import NotReady, PoolRefused
from csi_driver.model import PoolName
from tests.waiting import until


def test_a_container_that_opens_a_pool_just_then_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opening:
        """A node that has never had a pool, and opens one while it is asked for the first few times."""

        has_no_pool, pools, asked = True, Pools(), 0

        @property
        def is_opening_pool(self) -> bool:
            self.asked += 1
            return self.asked <= 3

    monkeypatch.setattr(app, "_POOLLESS_SECONDS", 0.0)
    monkeypatch.setattr(app, "_LISTEN_SECONDS", 0.001)
    node: Any = Opening()
    with pytest.raises(NotReady, match="may see other mounts"):
        app._await_end(node, threading.Event(), in_container=True)
    assert node.asked == 4


def test_a_pool_that_is_opened_again_is_known_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PoolOptions(PoolName("default"), str(tmp_path))
    node = Node("node", "csi.hostvol.dev", [options], str(tmp_path / "state"))
    seen: list[tuple[bool, bool]] = []

    def refuse(_: PoolLoader, asked: PoolOptions) -> None:
        seen.append((node.has_no_pool, node.is_opening_pool))
        raise PoolRefused(asked.directory, "a test")

    monkeypatch.setattr(PoolLoader, "open", refuse)
    monkeypatch.setattr(startup, "_TRY_AGAIN_SECONDS", 0.2)
    node.start()
    try:
        until(lambda: len(seen) > 1, 60)
        assert seen[:2] == [(False, True), (True, True)]
        until(lambda: node.has_no_pool and not node.is_opening_pool, 60)
    finally:
        node.stop()
