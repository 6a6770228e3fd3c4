"""Lists of volumes can be walked at every page size, while volumes come and go; bad tokens are ABORTED."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.probing import list_volume_ids, refused
from tests.harness import MIB, Code, Driver, create_request


@pytest.fixture(scope="module")
def seven(driver: Driver) -> Iterator[list[str]]:
    """Seven volumes, the only ones."""
    volumes = [driver.call("CreateVolume", create_request(f"listed-{n}", 8 * MIB)).volume for n in range(7)]
    ids = sorted(volume.volume_id for volume in volumes)
    yield ids
    for volume_id in ids:
        driver.call("DeleteVolume", volume_id=volume_id)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 6, 7, 8, 1000, (1 << 31) - 1])
def test_a_list_can_be_walked_at_every_page_size(driver: Driver, seven: list[str], size: int) -> None:
    pages = list(list_volume_ids(driver, size))
    assert all(0 < len(page) <= (size or 7) for page in pages)
    assert sum(pages, []) == seven
    assert len(pages) == -(-7 // (size or 7)), "an empty last page"


def test_a_token_holds_after_its_volume_is_deleted_and_others_came(driver: Driver, seven: list[str]) -> None:
    extra = [driver.call("CreateVolume", create_request(f"extra-{n}", 8 * MIB)).volume.volume_id for n in range(3)]
    everything = sorted([*seven, *extra])
    for victim in extra:
        position = everything.index(victim)
        page = driver.call("ListVolumes", max_entries=position + 1)
        assert page.entries[-1].volume.volume_id == victim
        driver.call("DeleteVolume", volume_id=victim)
        came = driver.call("CreateVolume", create_request(f"came-{victim}", 8 * MIB)).volume.volume_id
        token, found = page.next_token, []
        while token:
            rest = driver.call("ListVolumes", max_entries=2, starting_token=token)
            found += [entry.volume.volume_id for entry in rest.entries]
            token = rest.next_token
        # Behind the last one nothing follows, and no token says so.
        behind = [one for one in sorted([*everything, came]) if one > victim]
        assert found == (behind if page.next_token else [])
        driver.call("DeleteVolume", volume_id=came)
        everything.remove(victim)


def test_a_token_can_be_used_twice(driver: Driver, seven: list[str]) -> None:
    token = driver.call("ListVolumes", max_entries=3).next_token
    first = driver.call("ListVolumes", max_entries=3, starting_token=token)
    assert driver.call("ListVolumes", max_entries=3, starting_token=token) == first
    assert [entry.volume.volume_id for entry in first.entries] == seven[3:6]


@pytest.mark.parametrize(
    "token", ["invalid-token", "0", "-1", "99999999", "after:", "after:../..", "after:A", "after:a b", "\0", "x" * 9000]
)
def test_a_token_that_is_not_ours_is_aborted(driver: Driver, seven: list[str], token: str) -> None:
    refused(driver, "ListVolumes", Code.ABORTED, "starting_token", "from the beginning", starting_token=token)


@pytest.mark.parametrize("value", [-1, -(1 << 31)])
def test_a_negative_page_size_is_refused(driver: Driver, value: int) -> None:
    refused(driver, "ListVolumes", Code.INVALID_ARGUMENT, "max_entries", str(value), max_entries=value)
