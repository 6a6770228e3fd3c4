"""Mount flags that are unknown, dangerous, contradicting or hidden: refused by every call that takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.bad_requests import CREATE, INVALID, PUBLISH, STAGE, Given
from tests.conformance.probing import refused, traces
from tests.harness import Workload, create_request

BAD_FLAGS = {
    "unknown": "notaflag",
    "of another filesystem": "logbufs=4",
    "that shows torn data": "norecovery",
    "that names a device": "journal_path=/dev/vda",
    "that stops the machine": "errors=panic",
    "bind": "bind",
    "remount": "remount",
    "loop": "loop",
    "uid": "uid=0",
    "hidden behind a comma": "noatime,norecovery",
    "hidden behind an empty one": ",,norecovery",
    "empty": "",
    "with a wrong value": "commit=0",
    "without its value": "commit",
    "with a value too many": "noatime=1",
    "two equals signs": "commit=5=6",
    "white space": "noatime ",
    "NUL": "noatime\0",
    "line feed": "noatime\nsuid",
    "option": "-o",
    "upper case": "NOATIME",
    "contradiction": "ro,rw",
    "context": "context=system_u:object_r:etc_t:s0",
    "subvolume": "subvol=/",
}


@pytest.mark.parametrize("flag", BAD_FLAGS.values(), ids=BAD_FLAGS)
@pytest.mark.parametrize("method", [CREATE, STAGE, PUBLISH])
def test_a_mount_flag_that_is_not_on_the_list_is_refused_and_nothing_is_mounted(
    given: Given, method: str, flag: str
) -> None:
    fresh = Workload(given.driver, "flags", volume_id=given.image.volume_id, flags=[flag])
    requests: dict[str, Callable[[], Any]] = {
        CREATE: lambda: create_request("refused", volume_capabilities=[fresh.capability]),
        STAGE: fresh.stage_request,
        PUBLISH: fresh.publish_request,
    }
    request = requests[method]()
    before = traces(given.driver)
    words = ("mount_flags", "contradict" if flag == "ro,rw" else "allow")
    refused(given.driver, method, INVALID, *words, request=request)
    assert traces(given.driver) == before


# Ids
