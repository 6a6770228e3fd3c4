"""One node's driver, assembled: what the protocol edge and the command line talk to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypedDict

from csi_driver.domain.amendment import Amendment
from csi_driver.domain.arrivals import Arrivals
from csi_driver.domain.block_lists import BlockLists
from csi_driver.domain.catalogue import Catalogue, GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.consignments import Consignments
from csi_driver.domain.copies import Copies
from csi_driver.domain.departures import Departures
from csi_driver.domain.ephemeral import Ephemeral
from csi_driver.domain.exports import Exports
from csi_driver.domain.extension import Extension
from csi_driver.domain.freezing import Freezing
from csi_driver.domain.group_departures import GroupDepartures
from csi_driver.domain.group_startup import GroupStartup
from csi_driver.domain.groups import Groups
from csi_driver.domain.growth import Growth
from csi_driver.domain.half_arrivals import HalfArrivals
from csi_driver.domain.health import Health
from csi_driver.domain.kinship import Kinship
from csi_driver.domain.members import Members
from csi_driver.domain.modification import Modification
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.operations import Operations
from csi_driver.domain.pool_growth import PoolGrowth
from csi_driver.domain.pools import PoolOptions, Pools
from csi_driver.domain.publishing import Publishing
from csi_driver.domain.rollback import Rollback
from csi_driver.domain.snapshots import Snapshots
from csi_driver.domain.sources import Sources
from csi_driver.domain.staging import Staging
from csi_driver.domain.startup import Startup
from csi_driver.domain.statistics import Statistics
from csi_driver.domain.stills import Stills
from csi_driver.domain.throttle import Throttle
from csi_driver.domain.transfer_startup import TransferStartup
from csi_driver.domain.trash import Trash
from csi_driver.domain.undelete import Undelete
from csi_driver.domain.volumes import Volumes
from csi_driver.errors import NotReady
from csi_driver.linux import memory
from csi_driver.model import Volume, topology_key


class _Held(TypedDict):
    """What snapshots and sources have in common."""

    volumes: Catalogue
    snapshots: SnapshotCatalogue
    claims: Claims
    copies: Copies
    stills: Stills


class Node:
    """Everything about this node's pools; serves once `start` has returned."""

    def __init__(
        self,
        node_id: str,
        driver_name: str,
        pools: Sequence[PoolOptions],
        state_dir: str,
        *,
        transfer_rate: int = 0,
    ) -> None:
        """`transfer_rate`: what may come from other nodes, and go to them, in bytes a second each; 0: no limit."""
        self.node_id = node_id
        self.driver_name = driver_name
        self.topology = {topology_key(driver_name): node_id}
        self.pools = Pools()
        self.catalogue = Catalogue()
        self.snapshot_catalogue = SnapshotCatalogue()
        self.group_catalogue = GroupCatalogue()
        self.claims = Claims()
        kinship = Kinship(self.catalogue, self.snapshot_catalogue)
        self.trash = self.pools.trash = Trash(self.claims, kinship)
        self.operations = Operations()
        self.copies = Copies(self.snapshot_catalogue, self.claims, self.operations)
        self.mounts = VolumeMounts(self.pools)
        self.pool_growth = PoolGrowth(self.pools, self.claims)
        extension = Extension(self.pools, self.catalogue)
        self.staging = Staging(self.mounts, self.catalogue, self.claims, extension)
        self.publishing = Publishing(self.mounts, self.staging, self.catalogue, self.claims)
        self.health = Health(node_id, self.mounts, self.catalogue, self.claims)
        self.statistics = Statistics(self.pools, self.catalogue, self.claims)
        amendment = Amendment(self.pools, self.catalogue)
        self.modification = Modification(
            self.pools, self.catalogue, self.claims, extension, amendment, operations=self.operations
        )
        self.growth = Growth(self.mounts, self.catalogue, self.claims, extension)
        freezing = Freezing(state_dir)
        held: _Held = {
            "volumes": self.catalogue,
            "snapshots": self.snapshot_catalogue,
            "claims": self.claims,
            "copies": self.copies,
            "stills": Stills(freezing),
        }
        self.block_lists = BlockLists(self.pools, self.snapshot_catalogue, self.claims)
        sources = Sources(node_id, self.pools, **held, operations=self.operations)
        self.departures = Departures(Consignments(sources), Throttle(transfer_rate))
        half_arrivals = HalfArrivals(self.claims)
        self.arrivals = Arrivals(node_id, Throttle(transfer_rate))
        self.snapshots = Snapshots(node_id, self.pools, **held, groups=self.group_catalogue, trash=self.trash)
        self.volumes = Volumes(
            node_id,
            self.pools,
            catalogue=self.catalogue,
            claims=self.claims,
            staging=self.staging,
            sources=sources,
            arrivals=self.arrivals,
            half_arrivals=half_arrivals,
            trash=self.trash,
        )

        self.exports = Exports(sources, self.volumes, self.catalogue, self.snapshot_catalogue, self.block_lists)

        def settle(volume: Volume) -> Volume:
            return amendment.settle(extension.settle(volume))

        known = (self.mounts, self.catalogue, self.snapshot_catalogue, self.claims, settle)
        self.undelete = Undelete(*known, trash=self.trash)
        self.rollback = Rollback(*known, trash=self.trash, sources=sources)
        self.ephemeral = Ephemeral(self.mounts, self.staging, self.volumes, self.catalogue, self.claims)
        leaving = GroupDepartures(
            self.pools, self.snapshot_catalogue, self.group_catalogue, self.claims, self.snapshots.retain
        )
        self.groups = Groups(
            node_id,
            self.pools,
            snapshots=self.snapshot_catalogue,
            groups=self.group_catalogue,
            claims=self.claims,
            members=Members(node_id, self.pools, self.catalogue, self.claims, freezing),
            departures=leaving,
        )
        self._startup = Startup(
            pools,
            driver_name=driver_name,
            state_dir=state_dir,
            pools=self.pools,
            catalogue=self.catalogue,
            snapshots=self.snapshot_catalogue,
            kinship=kinship,
            resume=self.snapshots.resume,
            trash=self.trash,
            groups=self.group_catalogue,
            group_startup=GroupStartup(self.snapshot_catalogue, self.group_catalogue, leaving),
            transfers=TransferStartup(self.departures, half_arrivals),
            mounts=self.mounts,
            extension=extension,
            amendment=amendment,
        )
        self._ready = threading.Event()

    def start(self) -> None:
        """Bring the pools into service; without one too.

        Raises: PoolMisconfigured when no pool ever could be served.
        """
        self._startup.run()
        self.health.start()
        self._ready.set()
        memory.give_back()

    def stop(self) -> None:
        """Give the pools back; nothing may be in flight any more."""
        self._ready.clear()
        self.health.stop()
        # A keeper that still clears something needs its descriptors; the process ends anyway.
        if self._startup.stop():
            self.pools.close()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    @property
    def has_no_pool(self) -> bool:
        """Whether all pools are refused."""
        return self._startup.all_refused

    @property
    def is_opening_pool(self) -> bool:
        """Whether a pool may be served in a moment, also one that was refused before."""
        return self._startup.is_opening

    def require_ready(self) -> None:
        """Refuse a call that comes before the records are loaded.

        Raises: NotReady.
        """
        if not self._ready.is_set():
            raise NotReady("the node is starting: its records are being read; repeat the call")
