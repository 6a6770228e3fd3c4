"""What an operator must know of this node now: looks, and changes nothing.

Pools and volumes that something is wrong with, pools that can hardly grant anything, records in quarantine, volumes
that lost their name, ephemeral volumes that lost their pod. A sentence stays the same while its cause lasts, so that
whoever hears it again knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.domain.node import Node
from csi_driver.domain.pools import Pool
from csi_driver.errors import HostvolError

# A pool that can grant less than this part of its filesystem is nearly full.
_NEARLY_FULL = 0.05


@dataclass(frozen=True, slots=True)
class Alarm:
    """One cause; `reason` is one word for programs, `volume_name` the name of the volume concerned, if it is known."""

    reason: str
    message: str
    volume_name: str = ""


def alarms(node: Node) -> list[Alarm]:
    """All alarms of the node, in a fixed order. A pool whose disk hangs makes this hang."""
    return [
        *_of_pools(node),
        *_nearly_full(node),
        *_log_trees(node),
        *_quarantined(node),
        *_of_volumes(node),
        *_retired(node),
        *_left(node),
    ]


def _of_pools(node: Node) -> Iterator[Alarm]:
    for _, trouble in node.health.pool_troubles():
        yield Alarm(trouble.reason, trouble.message)


def _of_volumes(node: Node) -> Iterator[Alarm]:
    for volume, trouble in node.health.own_troubles():
        yield Alarm(trouble.reason, trouble.message, volume.name)


def _log_trees(node: Node) -> Iterator[Alarm]:
    for _, pool in sorted(node.pools.opened.items()):
        if pool.has_log_tree:
            yield Alarm("BtrfsLogTree", pool.log_tree_remedy)


def _nearly_full(node: Node) -> Iterator[Alarm]:
    for name, pool in sorted(node.pools.opened.items()):
        if _is_nearly_full(pool):
            yield Alarm(
                "PoolNearlyFull",
                f"pool {name} ({pool.store.directory}) can grant new volumes less than {_NEARLY_FULL:.0%} of its "
                "filesystem: delete volumes or enlarge the filesystem",
            )


def _is_nearly_full(pool: Pool) -> bool:
    try:
        return pool.grantable_bytes() < pool.ledger.space().total_bytes * _NEARLY_FULL
    except (OSError, HostvolError):
        # The pool's keeper says so, in words of its own.
        return False


def _retired(node: Node) -> Iterator[Alarm]:
    for name, pool in sorted(node.pools.opened.items()):
        for kept in pool.store.kept_names():
            yield Alarm(
                "VolumeRetired",
                f"pool {name}: {pool.store.directory}/trash/{kept} holds a volume whose name another node's volume "
                f"bears: when nobody misses its data, say on the node: hostvol trash purge {kept}",
            )


def _left(node: Node) -> Iterator[Alarm]:
    for volume in sorted(node.ephemeral.left(), key=lambda volume: volume.volume_id):
        yield Alarm(
            "EphemeralVolumeLeft",
            f"pool {volume.pool}: ephemeral volume {volume.volume_id} of pod {volume.pod or 'unknown'} is mounted "
            f"nowhere; if that pod is gone, say on the node: hostvol volume delete {volume.volume_id}",
        )


def _quarantined(node: Node) -> Iterator[Alarm]:
    for catalogue in (node.catalogue, node.snapshot_catalogue):
        names = catalogue.quarantined_names()
        for object_id, damage in sorted(catalogue.quarantined().items()):
            yield Alarm("RecordQuarantined", f"{object_id} is not served: {damage}", names.get(object_id, ""))
