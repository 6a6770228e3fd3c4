"""How full volumes are, asked where they are mounted; changes nothing."""

from __future__ import annotations

import os

from csi_driver.domain.backend import Backend
from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.mounts import open_shown
from csi_driver.domain.pools import Pools
from csi_driver.domain.targets import TargetPath
from csi_driver.errors import InvalidField, VolumeNotAtPath
from csi_driver.model import Usage, Volume


class Statistics:
    """The usage of this node's volumes."""

    def __init__(self, pools: Pools, catalogue: Catalogue, claims: Claims) -> None:
        self._pools = pools
        self._catalogue = catalogue
        self._claims = claims

    def usage(self, volume_id: str, volume_path: str, deadline: float | None) -> Usage:
        """How full the volume is that is mounted at `volume_path`.

        One call per volume at a time asks the kernel, so that a filesystem that hangs holds one thread.

        Raises: VolumeNotFound; VolumeNotAtPath; OperationPending.
        """
        volume = self._catalogue.get(volume_id)
        key = ("statistics of volume", volume_id)
        with self._pools.of(volume).question():
            return self._claims.run(key, volume_path, deadline, lambda: self._usage(volume, volume_path))

    def _usage(self, volume: Volume, path: str) -> Usage:
        backend = self._pools.backend(volume)
        try:
            with TargetPath(path, "volume_path", self._pools) as target:
                return _usage_at(volume, backend, target)
        except InvalidField as cause:
            raise VolumeNotAtPath(volume.volume_id, path) from cause


def _usage_at(volume: Volume, backend: Backend, target: TargetPath) -> Usage:
    path_fd = open_shown(volume, backend, target)
    try:
        return backend.usage(volume, path_fd)
    finally:
        os.close(path_fd)
