"""The same for inline ephemeral volumes: killed at every step of the two calls that kubelet makes for them.

- After a publish that was killed at any point, and a restart, the same publish shows the volume, once and by one loop
  device; the unpublish that a deleted pod brings instead leaves nothing.
- After an unpublish that was killed, the same unpublish leaves nothing; a publish in its place shows either all that
  the pod wrote or a new, empty volume.
- Volumes that nobody touches stay as they are, to the last byte.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.crash.lane import CONTENT, Lane, Lanes, attached
from tests.crash.tally import Tally
from tests.crash.test_crash_points import held
from tests.harness import PodVolume

KINDS: dict[str, dict[str, Any]] = {
    "ext4": {"attributes": {"size": "16Mi"}},
    "ext4-reflink": {"attributes": {"size": "16Mi", "pool": "xfs"}},
    "xfs": {"attributes": {"size": "300Mi"}, "fs_type": "xfs"},
    "btrfs": {"attributes": {"size": "128Mi"}, "fs_type": "btrfs"},
    "directory-qgroup": {"attributes": {"size": "16Mi", "type": "directory", "pool": "btrfs"}},
}


@dataclass(frozen=True)
class Operation:
    """A call, the state it is made in, and what comes after the crash."""

    prepare: Callable[[Lane, PodVolume], object]
    call: Callable[[PodVolume], object]
    same: Callable[[Lane, PodVolume], object]
    opposite: Callable[[Lane, PodVolume], object]


def nothing(lane: Lane, inline: PodVolume) -> None:
    pass


def nothing_as_in_a_new_pool(lane: Lane, inline: PodVolume) -> None:
    lane.drop_templates()
    lane.drop_quota()


def written(lane: Lane, inline: PodVolume) -> None:
    inline.publish()
    write(inline)


def write(inline: PodVolume) -> None:
    command = ("dd", "status=none", "conv=fsync", f"of={inline.target()}/content")
    subprocess.run(command, input=CONTENT, check=True, timeout=60)


def content(inline: PodVolume) -> bytes:
    path = f"{inline.target()}/content"
    if not os.path.exists(path):
        return b""
    return subprocess.run(("cat", path), capture_output=True, check=True, timeout=60).stdout


def check_up(lane: Lane, inline: PodVolume) -> None:
    assert lane.driver.mounts().count(inline.target()) == 1
    found = inline.held()
    assert found is not None
    loops = [path for _, path in attached() if path.endswith(f"/volumes/{found.volume_id}/disk.img")]
    assert len(loops) == (inline.attributes.get("type") != "directory")


def published(lane: Lane, inline: PodVolume) -> None:
    lane.heal(inline.publish)
    check_up(lane, inline)
    assert content(inline) == b""
    write(inline)
    unpublished(lane, inline)


def published_as_it_was_or_new(lane: Lane, inline: PodVolume) -> None:
    was_there = inline.held() is not None
    lane.heal(inline.publish)
    check_up(lane, inline)
    assert content(inline) == (CONTENT if was_there else b"")
    unpublished(lane, inline)


def unpublished(lane: Lane, inline: PodVolume) -> None:
    lane.heal(inline.unpublish)
    assert inline.held() is None
    assert not os.path.lexists(inline.target())


OPERATIONS = {
    "first-publish": Operation(nothing_as_in_a_new_pool, PodVolume.publish, published, unpublished),
    "publish": Operation(nothing, PodVolume.publish, published, unpublished),
    "unpublish": Operation(written, PodVolume.unpublish, unpublished, published_as_it_was_or_new),
}
MATRIX = [
    pytest.param(kind, operation, id=f"{kind}-{operation}")
    for kind in KINDS
    for operation in OPERATIONS
    if operation != "first-publish" or kind != "btrfs"
]


def new_volume(lane: Lane, kind: str) -> PodVolume:
    return PodVolume(lane.driver, f"{kind}-{uuid.uuid4().hex[:8]}", **KINDS[kind])


def dry_run(lane: Lane, kind: str, operation: Operation) -> list[str]:
    inline = new_volume(lane, kind)
    operation.prepare(lane, inline)
    points = lane.passing(lambda: operation.call(inline))
    unpublished(lane, inline)
    lane.check_baseline()
    return points


def crash_case(
    kind: str, operation: Operation, point: str, after: Callable[[Lane, PodVolume], object], lane: Lane
) -> None:
    inline = new_volume(lane, kind)
    operation.prepare(lane, inline)
    lane.crash(point, lambda: operation.call(inline))
    lane.driver.start()
    lane.check_bystanders()
    after(lane, inline)
    lane.check_baseline()


@pytest.mark.parametrize(("kind", "operation"), MATRIX)
def test_after_a_crash_at_any_point_a_pod_begins_and_ends(
    kind: str, operation: str, lanes: Lanes, tally: Tally
) -> None:
    asked = OPERATIONS[operation]
    for lane in lanes.all:
        warm = new_volume(lane, kind)
        warm.publish()
        warm.unpublish()
    points = dry_run(lanes.all[0], kind, asked)
    assert {f"ephemeral.{step}:1" for step in STEPS[operation]} <= set(points)
    tally.meet(f"ephemeral {kind} {operation}", points)
    cases = {
        f"ephemeral {kind} {operation} {point} {which}": partial(crash_case, kind, asked, point, after)
        for point in points
        for which, after in (("same", asked.same), ("opposite", asked.opposite))
    }
    held(tally, lanes, cases)


STEPS = {
    "first-publish": ("created", "shown"),
    "publish": ("created", "shown"),
    "unpublish": ("unstaged", "target_removed", "deleted"),
}
