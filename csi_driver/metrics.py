"""The numbers that the driver tells about itself, as Prometheus metrics; knows no RPC and no volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool at the moment of a scrape; bytes."""

    pool: str
    volumes: int
    snapshots: int
    cut_extents: int
    cut_seconds: float
    quarantined: int
    trash_entries: int
    trash_bytes: int
    promised_bytes: int
    available_bytes: int
    grantable_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The node at the moment of a scrape."""

    in_flight: int
    ready: bool
    pools: Iterable[PoolFigures]
    # How many volumes suffer from each reason.
    unhealthy: Mapping[str, int] = field(default_factory=dict)


_POOL_GAUGES: dict[str, tuple[str, Callable[[PoolFigures], float]]] = {
    "hostvol_volumes": ("Volumes that are served.", lambda pool: pool.volumes),
    "hostvol_snapshots": ("Snapshots that are served, those not ready yet included.", lambda pool: pool.snapshots),
    "hostvol_last_cut_extents": (
        "Extents of the image that was cut last, which its writes waited for.",
        lambda pool: pool.cut_extents,
    ),
    "hostvol_last_cut_seconds": ("How long sharing them took.", lambda pool: pool.cut_seconds),
    "hostvol_quarantined_records": (
        "Objects whose record is damaged: kept, not served.",
        lambda pool: pool.quarantined,
    ),
    "hostvol_trash_entries": ("Deleted objects that are kept in the trash.", lambda pool: pool.trash_entries),
    "hostvol_trash_bytes": (
        "What the end of all that is in the trash would give back, as far as it was measured.",
        lambda pool: pool.trash_bytes,
    ),
    "hostvol_pool_promised_bytes": (
        "What the volumes on the pool's filesystem may still allocate.",
        lambda pool: pool.promised_bytes,
    ),
    "hostvol_pool_available_bytes": (
        "What the pool's filesystem can still give to files.",
        lambda pool: pool.available_bytes,
    ),
    "hostvol_pool_grantable_bytes": (
        "The largest thin volume that would be granted.",
        lambda pool: pool.grantable_bytes,
    ),
}


class _FiguresCollector(Collector):
    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        pools = list(figures.pools)
        yield GaugeMetricFamily("hostvol_operations_in_flight", "Operations under way.", figures.in_flight)
        yield GaugeMetricFamily("hostvol_ready", "1 when volumes are served.", float(figures.ready))
        text = "Volumes that something is wrong with, by reason; one with two reasons counts twice."
        unhealthy = GaugeMetricFamily("hostvol_unhealthy_volumes", text, labels=["reason"])
        for reason, count in sorted(figures.unhealthy.items()):
            unhealthy.add_metric([reason], count)
        yield unhealthy
        for name, (text, value) in _POOL_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["pool"])
            for pool in pools:
                family.add_metric([pool.pool], value(pool))
            yield family


class Metrics:
    """One registry: RPC latencies are observed as they happen, everything else is asked at a scrape."""

    def __init__(self, figures: Callable[[], Figures] | None = None) -> None:
        self._registry = CollectorRegistry()
        self._rpc_seconds = Histogram(
            "hostvol_rpc_seconds",
            "Duration of finished RPCs.",
            ["method", "code"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, str], Histogram] = {}
        if figures is not None:
            self._registry.register(_FiguresCollector(figures))

    def add(self, collector: Collector) -> None:
        """The collector, too, is asked at each scrape."""
        self._registry.register(collector)

    def observe_rpc(self, method: str, code: str, seconds: float) -> None:
        """An RPC has finished."""
        child = self._children.get((method, code))
        if child is None:
            child = self._children[method, code] = self._rpc_seconds.labels(method, code)
        child.observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
