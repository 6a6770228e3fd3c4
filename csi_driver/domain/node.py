"""One node's driver, assembled: what the protocol edge and the command line talk to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.pools import PoolOptions, Pools
from csi_driver.domain.publishing import Publishing
from csi_driver.domain.startup import Startup
from csi_driver.domain.volumes import Volumes
from csi_driver.errors import NotReady
from csi_driver.model import topology_key


class Node:
    """Everything about this node's pools; serves once `start` has returned."""

    def __init__(self, node_id: str, driver_name: str, pools: Sequence[PoolOptions], state_dir: str) -> None:
        self.node_id = node_id
        self.driver_name = driver_name
        self.topology = {topology_key(driver_name): node_id}
        self.pools = Pools()
        self.catalogue = Catalogue()
        self.claims = Claims()
        self.publishing = Publishing(self.pools, self.catalogue, self.claims)
        self.volumes = Volumes(node_id, self.pools, self.catalogue, self.claims, self.publishing)
        self._startup = Startup(
            pools,
            driver_name=driver_name,
            state_dir=state_dir,
            pools=self.pools,
            catalogue=self.catalogue,
            publishing=self.publishing,
        )
        self._ready = threading.Event()
        self._housekeeper = threading.Thread(target=self._startup.keep_house, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Bring the pools into service.

        Raises: PoolRefused when none can be served.
        """
        self._startup.run()
        self._ready.set()
        self._housekeeper.start()

    def stop(self) -> None:
        """Give the pools back; nothing may be in flight any more."""
        self._ready.clear()
        self._startup.stop()
        if self._housekeeper.ident is not None:
            self._housekeeper.join(timeout=5.0)
        # A housekeeper that still clears something needs its descriptors; the process ends anyway.
        if not self._housekeeper.is_alive():
            self.pools.close()

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def require_ready(self) -> None:
        """Refuse a call that comes before the records are loaded.

        Raises: NotReady.
        """
        if not self._ready.is_set():
            raise NotReady("the node is starting: its records are being read; repeat the call")
