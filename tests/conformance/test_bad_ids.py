"""Ids that are none: refused by every call that takes one, and looked up nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.bad_requests import INVALID, PUBLISH, STAGE, Given
from tests.conformance.probing import refused, traces
from tests.harness import MIB, Code, capability

TAKES_ID: dict[str, dict[str, Any]] = {
    "DeleteVolume": {},
    "ControllerGetVolume": {},
    "ValidateVolumeCapabilities": {"volume_capabilities": [capability()]},
    STAGE: {"staging_target_path": "/nowhere/staging", "volume_capability": capability()},
    "NodeUnstageVolume": {"staging_target_path": "/nowhere/staging"},
    PUBLISH: {
        "staging_target_path": "/nowhere/staging",
        "target_path": "/nowhere/target",
        "volume_capability": capability(),
    },
    "NodeUnpublishVolume": {"target_path": "/nowhere/target"},
    "NodeGetVolumeStats": {"volume_path": "/nowhere"},
}
BAD_IDS = {
    "empty": "",
    "parent": "..",
    "this": ".",
    "traversal": "../../etc",
    "absolute": "/etc",
    "below": "a/b",
    "129 bytes": "v" * 129,
    "a megabyte": "v" * MIB,
    "NUL": "vol\0",
    "line feed": "vol\n",
    "space": "vol 1",
    "letters of no alphabet": "vоl-1",
    "option": "-rf",
    "trash": "vol@1",
    "glob": "*",
    "shell": "$(reboot)",
    "format": "%s%n",
}
GONE_IDS = ("vol-0000000000000000-0000000000000000", "fake-vol-id", "a" * 128, "record.json", "tmp", "CON")


@pytest.mark.parametrize("volume_id", BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.parametrize("method", TAKES_ID)
def test_an_id_that_is_none_is_refused(given: Given, method: str, volume_id: str) -> None:
    before = traces(given.driver)
    refused(given.driver, method, INVALID, "volume_id", volume_id=volume_id, **TAKES_ID[method])
    assert traces(given.driver) == before


@pytest.mark.parametrize("method", [method for method in TAKES_ID if method != "DeleteVolume"])
def test_an_id_of_nothing_is_not_found(given: Given, method: str) -> None:
    before = traces(given.driver)
    for volume_id in (*GONE_IDS, given.image.volume_id.upper(), f"{given.image.volume_id}0"):
        refused(given.driver, method, Code.NOT_FOUND, "volume_id", volume_id, volume_id=volume_id, **TAKES_ID[method])
    assert traces(given.driver) == before
