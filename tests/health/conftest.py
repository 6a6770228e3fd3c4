"""Drivers that look at everything whenever a list is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Driver
from tests.health.asking import OFTEN


@pytest.fixture
def driver(tmp_path: Path, make_driver: Callable[..., Driver]) -> Driver:
    """A driver with one pool on the machine's own filesystem."""
    return make_driver(tmp_path / "pool", constants=OFTEN)
