"""Nothing is mounted here: Helm renders, and files are compared."""

from __future__ import annotations

import pytest

from tests.deployment.chart import HELM, Objects, render


@pytest.fixture(scope="session", autouse=True)
def private_mounts() -> None:
    """Without root as well."""


@pytest.fixture(scope="session")
def needs_helm() -> None:
    if not HELM.exists():
        pytest.skip("needs helm, which scripts/setup --test builds")


@pytest.fixture(scope="session")
def objects(needs_helm: None) -> Objects:
    """The chart with its default values."""
    return render()
