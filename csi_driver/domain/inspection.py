"""What an operator may see of pools, volumes and snapshots, observed now; changes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from csi_driver.domain.node import Node
from csi_driver.domain.pools import Pool
from csi_driver.errors import CopyFailed, RecordDamaged
from csi_driver.linux.mountinfo import MountEntry
from csi_driver.metrics import Figures, PoolFigures
from csi_driver.model import Snapshot, Volume

_SCRAPE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One volume with what the kernel says of it; a quarantined one has only its id and a message.

    `health` is "ok", or the reasons why not, with commas, as the node remembers them; "unknown" before it looked.
    """

    volume_id: str
    volume: Volume | None = None
    allocated_bytes: int = 0
    staging_paths: tuple[str, ...] = ()
    target_paths: tuple[str, ...] = ()
    message: str = ""
    health: str = "RecordQuarantined"


def view(node: Node, volume_id: str) -> VolumeView:
    """One volume.

    Raises: VolumeNotFound.
    """
    try:
        return _view_of(node, node.catalogue.get(volume_id))
    except RecordDamaged as damage:
        return VolumeView(volume_id, message=str(damage))


@contextmanager
def asking(node: Node, volumes: Iterable[Volume]) -> Iterator[None]:
    """Look at these volumes, beside so many others who ask that pools whose disks hang leave threads to the rest.

    To be taken before the claim: whoever waits for another's outcome holds a thread as well.

    Raises: OperationPending when too many ask one of their pools already.
    """
    with ExitStack() as held:
        for name in sorted({volume.pool for volume in volumes}):
            held.enter_context(node.pools.get(name).question())
        yield


def views(node: Node, volumes: list[Volume]) -> Iterator[VolumeView]:
    """Several volumes, one after the other."""
    return (_view_of(node, volume) for volume in volumes)


def quarantined_views(node: Node) -> list[VolumeView]:
    """All objects that are kept and not served."""
    return [VolumeView(volume_id, message=str(why)) for volume_id, why in sorted(node.catalogue.quarantined().items())]


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """One snapshot and how far its copy is; a quarantined one has only its id and a message.

    `copy_bytes` is 0 where it is not known.
    """

    snapshot_id: str
    snapshot: Snapshot | None = None
    state: str = "quarantined"
    copied_bytes: int = 0
    copy_bytes: int = 0
    message: str = ""


def snapshot_view(node: Node, snapshot_id: str) -> SnapshotView:
    """One snapshot.

    Raises: SnapshotNotFound.
    """
    try:
        snapshot = node.snapshot_catalogue.get(snapshot_id)
    except RecordDamaged as damage:
        return SnapshotView(snapshot_id, message=str(damage))
    if snapshot.is_ready:
        return SnapshotView(snapshot_id, snapshot, "ready")
    try:
        node.copies.require_under_way(snapshot)
    except CopyFailed as failure:
        return SnapshotView(snapshot_id, snapshot, "stopped", message=str(failure))
    return SnapshotView(snapshot_id, snapshot, "copying", *node.copies.progress(snapshot_id))


def quarantined_snapshots(node: Node) -> list[SnapshotView]:
    """All snapshots that are kept and not served."""
    damaged = sorted(node.snapshot_catalogue.quarantined().items())
    return [SnapshotView(snapshot_id, message=str(why)) for snapshot_id, why in damaged]


def _figures(node: Node) -> Figures:
    """The node's numbers for a scrape, which is an operation itself and not counted."""
    pools = [_pool_figures(node, pool) for pool in _pools(node)]
    unhealthy = Counter(one.reason for its in node.health.unhealthy().values() for one in its)
    return Figures(node.claims.count() - 1, node.is_ready, pools, unhealthy)


def figures_once(node: Node) -> Figures:
    """The same, by one thread at a time: a pool whose disk hangs must not collect the scrapers.

    Raises: OperationPending when they are not there in ten seconds.
    """
    deadline = time.monotonic() + _SCRAPE_SECONDS
    return node.claims.run(("a look at", "figures"), "", deadline, lambda: _figures(node))


def volume_counts(node: Node) -> dict[str, int]:
    """Served volumes by pool."""
    return Counter(volume.pool for volume in node.catalogue.all())


def snapshot_counts(node: Node) -> dict[str, int]:
    """Served snapshots by pool."""
    return Counter(snapshot.pool for snapshot in node.snapshot_catalogue.all())


def quarantined_count(node: Node, pool: Pool) -> int:
    """Quarantined objects of one pool."""
    prefix = f"{pool.store.directory}/"
    damaged = [*node.catalogue.quarantined().values(), *node.snapshot_catalogue.quarantined().values()]
    damaged += node.group_catalogue.quarantined().values()
    return sum(damage.path.startswith(prefix) for damage in damaged)


def _pools(node: Node) -> list[Pool]:
    return [node.pools.opened[name] for name in sorted(node.pools.opened)]


def _pool_figures(node: Node, pool: Pool) -> PoolFigures:
    trash_count, trash_bytes = node.trash.figures(pool)
    return PoolFigures(
        pool=pool.name,
        volumes=volume_counts(node).get(pool.name, 0),
        snapshots=snapshot_counts(node).get(pool.name, 0),
        cut_extents=pool.last_cut.extents,
        cut_seconds=pool.last_cut.seconds,
        quarantined=quarantined_count(node, pool),
        trash_entries=trash_count,
        trash_bytes=trash_bytes,
        promised_bytes=pool.ledger.promised_bytes,
        available_bytes=pool.ledger.space().available_bytes,
        grantable_bytes=pool.grantable_bytes(),
    )


def _view_of(node: Node, volume: Volume) -> VolumeView:
    backend = node.pools.backend(volume)
    staged_at = node.mounts.staging_path(volume)
    targets = [entry.target for entry in _mounts(node, volume)]
    staging = (staged_at,) if staged_at and (staged_at in targets or backend.is_attached(volume)) else ()
    found = node.health.latest(volume)
    health = ",".join(one.reason for one in found) or ("ok" if node.health.has_seen(volume) else "unknown")
    try:
        allocated = backend.own_bytes(volume)
        message = "; ".join(one.message for one in found)
    except OSError as cause:
        allocated, message = 0, f"cannot be measured: {cause.strerror}"
    published = tuple(sorted(target for target in targets if target != staged_at))
    return VolumeView(volume.volume_id, volume, allocated, staging, published, message, health)


def _mounts(node: Node, volume: Volume) -> list[MountEntry]:
    return node.pools.backend(volume).mounts(volume)
