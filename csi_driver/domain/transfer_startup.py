"""Transfers that an earlier process had under way, taken over when a pool comes into service; knows no disk."""

from __future__ import annotations

from csi_driver.domain.departures import Departures
from csi_driver.domain.half_arrivals import HalfArrivals
from csi_driver.domain.pools import Pool


class TransferStartup:
    """Both directions."""

    def __init__(self, departures: Departures, half_arrivals: HalfArrivals) -> None:
        self._departures = departures
        self._half_arrivals = half_arrivals

    def take_over(self, pool: Pool) -> None:
        """Before the pool's volumes and snapshots are served: what is held is held again."""
        self._departures.take_over(pool)
        self._half_arrivals.load(pool)

    def tend(self, pool: Pool) -> None:
        """Clear what nobody asks for any more."""
        self._half_arrivals.tend(pool)
