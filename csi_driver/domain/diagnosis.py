"""All that is wrong with a node's pools, volumes, snapshots and groups, as the node remembers it; looks at nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from csi_driver.domain import troubles
from csi_driver.domain.catalogue import HeldT, Index
from csi_driver.domain.node import Node
from csi_driver.domain.troubles import Trouble


@dataclass(frozen=True, slots=True)
class Complaint:
    """One trouble of one object; a volume's are its own, and not those that it suffers with its pool.

    `object_id` is a pool's name; `name` is empty where it is not known.
    """

    kind: str
    object_id: str
    name: str
    trouble: Trouble


def complaints(node: Node) -> Iterator[Complaint]:
    """All of them, in a fixed order: pools, what nobody has looked at yet, volumes, then records in quarantine."""
    for pool, trouble in chain(node.health.pool_troubles(), node.health.unseen()):
        yield Complaint("pool", pool, pool, trouble)
    for volume, trouble in node.health.own_troubles():
        yield Complaint("volume", volume.volume_id, volume.name, trouble)
    yield from _quarantined("volume", node.catalogue)
    yield from _quarantined("snapshot", node.snapshot_catalogue)
    yield from _quarantined("group", node.group_catalogue)


def _quarantined(kind: str, index: Index[HeldT]) -> Iterator[Complaint]:
    names = index.quarantined_names()
    for object_id, damage in sorted(index.quarantined().items()):
        yield Complaint(kind, object_id, names.get(object_id, ""), troubles.quarantined(object_id, damage))
