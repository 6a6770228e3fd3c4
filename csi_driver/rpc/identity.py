"""CSI Identity: who this is, what it can do, whether it serves; answers in constant time whatever hangs elsewhere."""

from __future__ import annotations

from typing import Protocol

from csi_driver import __version__
from csi_driver.pb import csi_pb2
from csi_driver.rpc.edge import Call

_SERVICES = (
    csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE,
    csi_pb2.PluginCapability.Service.GROUP_CONTROLLER_SERVICE,
    csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    csi_pb2.PluginCapability.Service.SNAPSHOT_METADATA_SERVICE,
    csi_pb2.PluginCapability.Service.SNAPSHOT_ACCESSIBILITY_CONSTRAINTS,
)


class Plugin(Protocol):
    """Whoever serves: a node, or the router of a cluster."""

    driver_name: str

    @property
    def is_ready(self) -> bool: ...


class IdentityServicer:
    """Spec: Identity Service RPC."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def GetPluginInfo(self, request: csi_pb2.GetPluginInfoRequest, call: Call) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=self._plugin.driver_name, vendor_version=__version__)

    def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, call: Call
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        response = csi_pb2.GetPluginCapabilitiesResponse()
        for service in _SERVICES:
            response.capabilities.add().service.type = service
        # Spec: volumes may also be expanded while they are published, not only then.
        response.capabilities.add().volume_expansion.type = csi_pb2.PluginCapability.VolumeExpansion.ONLINE
        return response

    def Probe(self, request: csi_pb2.ProbeRequest, call: Call) -> csi_pb2.ProbeResponse:
        # While starting: not ready, without an error, since sidecars exit at an error.
        response = csi_pb2.ProbeResponse()
        response.ready.value = self._plugin.is_ready
        return response
