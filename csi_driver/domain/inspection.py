"""What an operator may see of pools and volumes, observed now; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from csi_driver.domain.node import Node
from csi_driver.domain.pools import Pool
from csi_driver.errors import RecordDamaged
from csi_driver.linux.mountinfo import MountEntry
from csi_driver.metrics import Figures, PoolFigures
from csi_driver.model import Volume

_SCRAPE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One volume with what the kernel says of it; a quarantined one has only its id and a message."""

    volume_id: str
    volume: Volume | None = None
    allocated_bytes: int = 0
    staging_paths: tuple[str, ...] = ()
    target_paths: tuple[str, ...] = ()
    message: str = ""


def view(node: Node, volume_id: str) -> VolumeView:
    """One volume.

    Raises: VolumeNotFound.
    """
    try:
        return _view_of(node, node.catalogue.get(volume_id))
    except RecordDamaged as damage:
        return VolumeView(volume_id, message=str(damage))


def views(node: Node, volumes: list[Volume]) -> Iterator[VolumeView]:
    """Several volumes, one after the other."""
    return (_view_of(node, volume) for volume in volumes)


def quarantined_views(node: Node) -> list[VolumeView]:
    """All objects that are kept and not served."""
    return [VolumeView(volume_id, message=str(why)) for volume_id, why in sorted(node.catalogue.quarantined().items())]


def _figures(node: Node) -> Figures:
    """The node's numbers for a scrape, which is an operation itself and not counted."""
    return Figures(node.claims.count() - 1, node.is_ready, [_pool_figures(node, pool) for pool in _pools(node)])


def figures_once(node: Node) -> Figures:
    """The same, by one thread at a time: a pool whose disk hangs must not collect the scrapers.

    Raises: OperationPending when they are not there in ten seconds.
    """
    deadline = time.monotonic() + _SCRAPE_SECONDS
    return node.claims.run(("a look at", "figures"), "", deadline, lambda: _figures(node))


def volume_counts(node: Node) -> dict[str, int]:
    """Served volumes by pool."""
    counts: dict[str, int] = {}
    for volume in node.catalogue.all():
        counts[volume.pool] = counts.get(volume.pool, 0) + 1
    return counts


def quarantined_count(node: Node, pool: Pool) -> int:
    """Quarantined objects of one pool."""
    prefix = f"{pool.store.directory}/"
    return sum(damage.path.startswith(prefix) for damage in node.catalogue.quarantined().values())


def _pools(node: Node) -> list[Pool]:
    return [node.pools.opened[name] for name in sorted(node.pools.opened)]


def _pool_figures(node: Node, pool: Pool) -> PoolFigures:
    return PoolFigures(
        pool=pool.name,
        volumes=volume_counts(node).get(pool.name, 0),
        quarantined=quarantined_count(node, pool),
        promised_bytes=pool.ledger.promised_bytes,
        available_bytes=pool.ledger.space().available_bytes,
        grantable_bytes=pool.ledger.grantable_bytes(pool.overcommit),
    )


def _view_of(node: Node, volume: Volume) -> VolumeView:
    backend = node.pools.backend(volume)
    staged_at = node.mounts.staging_path(volume)
    targets = [entry.target for entry in _mounts(node, volume)]
    staging = (staged_at,) if staged_at and (staged_at in targets or backend.is_attached(volume)) else ()
    try:
        allocated = backend.own_bytes(volume)
        message = ""
    except OSError as cause:
        allocated, message = 0, f"cannot be measured: {cause.strerror}"
    published = tuple(sorted(target for target in targets if target != staged_at))
    return VolumeView(volume.volume_id, volume, allocated, staging, published, message)


def _mounts(node: Node, volume: Volume) -> list[MountEntry]:
    return node.pools.backend(volume).mounts(volume)
