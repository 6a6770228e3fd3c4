"""The router's numbers for a scrape; looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from csi_driver.cluster.alarms import Alarms
from csi_driver.cluster.crossings import Crossings
from csi_driver.cluster.duplicates import Duplicates
from csi_driver.cluster.orphans import Orphans
from csi_driver.cluster.peers import Peers
from csi_driver.cluster.presence import Presence
from csi_driver.cluster.registry import Registry
from csi_driver.cluster.router import Router


class RouterFigures(Collector):
    """Asked from another thread than the event loop's: it only reads numbers and lengths."""

    def __init__(  # noqa: PLR0917 - each of them tells numbers
        self,
        registry: Registry,
        presence: Presence,
        router: Router,
        peers: Peers,
        alarms: Alarms,
        duplicates: Duplicates,
        orphans: Orphans,
        crossings: Crossings,
    ) -> None:
        self._registry = registry
        self._presence = presence
        self._router = router
        self._peers = peers
        self._alarms = alarms
        self._duplicates = duplicates
        self._orphans = orphans
        self._crossings = crossings

    def collect(self) -> Iterator[Metric]:
        sessions = list(self._registry.sessions())
        yield GaugeMetricFamily("hostvol_router_nodes", "Nodes that are attached.", len(sessions))
        yield GaugeMetricFamily(
            "hostvol_router_absent_nodes",
            "Ready nodes with this driver that are not attached: lists leave out what they hold.",
            self._presence.absent_count,
        )
        yield GaugeMetricFamily(
            "hostvol_router_operations_in_flight",
            "Calls that nodes have not answered yet.",
            sum(session.in_flight() for session in sessions),
        )
        yield GaugeMetricFamily("hostvol_router_volumes", "Volumes of all nodes.", self._registry.volume_count())
        yield GaugeMetricFamily(
            "hostvol_router_duplicate_names",
            "Names that volumes on more than one node bear.",
            self._registry.names.duplicates(),
        )
        yield CounterMetricFamily(
            "hostvol_router_retired_volumes",
            "Volumes that lost their name to another node's, and lie in the trash of their pool.",
            self._duplicates.retired,
        )
        yield GaugeMetricFamily(
            "hostvol_router_orphaned_volumes",
            "Volumes that no PersistentVolume names, found twice in ten minutes.",
            len(self._orphans.found),
        )
        yield GaugeMetricFamily("hostvol_router_alarms", "Alarms of all nodes.", self._alarms.count())
        yield CounterMetricFamily(
            "hostvol_router_refused_streams", "Streams that ended with an error.", self._peers.refused
        )
        yield CounterMetricFamily(
            "hostvol_router_deleted_on_gone_nodes",
            "Deletions that succeeded because the Node object is gone; nothing was deleted.",
            self._router.deleted_on_gone_nodes,
        )
        yield GaugeMetricFamily(
            "hostvol_router_transfers", "Contents that cross between nodes now.", self._crossings.count()
        )
        yield CounterMetricFamily(
            "hostvol_router_transferred_bytes", "What has crossed between nodes.", self._crossings.passed_bytes
        )
