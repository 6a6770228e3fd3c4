"""The two calls of an inline ephemeral volume, twice, at once and against each other.

- 64 callers of one publish make one volume and one mount; 64 of one unpublish leave nothing.
- A publish and an unpublish that race leave one of both states, with codes that kubelet understands.
- Pods that come and go at once never get more than the ceiling, and leave neither descriptors nor anything else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import MIB, Code, Driver, PodVolume, admin_volumes
from tests.soak.observing import assert_nothing_remains, descriptors, together
from tests.soak.test_duplicates import code_of, race, until_not_aborted

CALLERS = 64
ROUNDS = 12
PODS = 16
CEILING = 64 * MIB


@pytest.fixture
def driver(tmp_path: Path, make_driver: object) -> Driver:
    return make_driver(tmp_path / "pool", options=[f",ephemeral={CEILING}"])  # type: ignore[operator,no-any-return]


def effect(driver: Driver) -> tuple[int, int, int]:
    """Mounts, loop devices and volumes."""
    return len(driver.mounts()), len(driver.loops()), len(admin_volumes(driver))


def test_sixty_four_callers_of_one_request_have_one_effect(driver: Driver) -> None:
    inline = PodVolume(driver, "pod", {"size": "8Mi"})
    request = inline.publish_request()
    codes = together(CALLERS, lambda _: driver.code("NodePublishVolume", request))
    assert set(codes) <= {Code.OK, Code.ABORTED}
    assert Code.OK in codes
    until_not_aborted(inline.publish)
    assert effect(driver) == (1, 1, 1)
    codes = together(CALLERS, lambda _: code_of(inline.unpublish))
    assert set(codes) <= {Code.OK, Code.ABORTED}
    until_not_aborted(inline.unpublish)
    assert_nothing_remains(driver)


def test_a_publish_and_an_unpublish_that_race_leave_one_of_both_states(driver: Driver) -> None:
    inline = PodVolume(driver, "pod", {"size": "8Mi"})
    for _ in range(ROUNDS):
        for codes in race(inline.publish, inline.unpublish):
            assert codes <= {Code.OK, Code.ABORTED}, codes
        found = effect(driver)
        assert found in ((1, 1, 1), (0, 0, 0)), found
    until_not_aborted(inline.publish)
    assert effect(driver) == (1, 1, 1)
    until_not_aborted(inline.unpublish)
    assert_nothing_remains(driver)


def test_pods_that_come_and_go_at_once_leave_nothing(driver: Driver) -> None:
    pods = [PodVolume(driver, f"pod-{number}", {"size": "8Mi"}) for number in range(PODS)]
    before: list[str] = []
    for turn in range(ROUNDS):
        codes = together(PODS, lambda number: code_of(pods[number].publish))
        assert codes.count(Code.OK) == CEILING // (8 * MIB)
        assert codes.count(Code.RESOURCE_EXHAUSTED) == PODS - CEILING // (8 * MIB)
        assert set(together(PODS, lambda number: code_of(pods[number].unpublish))) == {Code.OK}
        assert_nothing_remains(driver)
        # The first turn opens what stays open.
        before = before if turn else descriptors(driver.pid)
    assert descriptors(driver.pid) == before
