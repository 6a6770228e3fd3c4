"""Volumes through their whole lives, of claims and of pods, and what the operator's view tells of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from csi_driver.pb import admin_pb2, csi_pb2
from tests.harness.calls import capability, create_request
from tests.harness.driver import Driver
from tests.harness.places import MIB


@dataclass
class Workload:
    """One volume of some kind, through its whole life, with calls that only name what differs."""

    driver: Driver
    name: str
    block: bool = False
    fs_type: str = ""
    size_bytes: int = 64 * MIB
    parameters: dict[str, str] = field(default_factory=dict)
    mode: str = "SINGLE_NODE_MULTI_WRITER"
    flags: Sequence[str] = ()
    volume_id: str = ""

    @property
    def capability(self) -> csi_pb2.VolumeCapability:
        return capability(self.mode, block=self.block, fs_type=self.fs_type, flags=self.flags)

    def create(self) -> str:
        request = create_request(
            self.name, self.size_bytes, parameters=self.parameters, volume_capabilities=[self.capability]
        )
        self.volume_id = self.driver.call("CreateVolume", request).volume.volume_id
        return self.volume_id

    @property
    def staging(self) -> str:
        return self.driver.staging(self.volume_id)

    def target(self, number: int = 0) -> str:
        return self.driver.target(f"{self.name}-{number}")

    def stage_request(self) -> csi_pb2.NodeStageVolumeRequest:
        return csi_pb2.NodeStageVolumeRequest(
            volume_id=self.volume_id, staging_target_path=self.staging, volume_capability=self.capability
        )

    def publish_request(self, number: int = 0, *, readonly: bool = False) -> csi_pb2.NodePublishVolumeRequest:
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=self.volume_id,
            staging_target_path=self.staging,
            target_path=self.target(number),
            volume_capability=self.capability,
            readonly=readonly,
        )

    def stage(self) -> None:
        self.driver.call("NodeStageVolume", self.stage_request())

    def publish(self, number: int = 0, *, readonly: bool = False) -> str:
        self.driver.call("NodePublishVolume", self.publish_request(number, readonly=readonly))
        return self.target(number)

    def expand(self, size_bytes: int) -> int:
        """ControllerExpandVolume; the size that the volume has then."""
        return int(self.driver.call("ControllerExpandVolume", self.expand_request(size_bytes)).capacity_bytes)

    def expand_request(self, size_bytes: int) -> csi_pb2.ControllerExpandVolumeRequest:
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=self.volume_id)
        request.capacity_range.required_bytes = size_bytes
        return request

    def expand_on_node(self, path: str = "") -> int:
        """NodeExpandVolume at a path, that of the first publication if it is not given; the volume's size."""
        answer = self.driver.call("NodeExpandVolume", volume_id=self.volume_id, volume_path=path or self.target())
        return int(answer.capacity_bytes)

    def unpublish(self, number: int = 0) -> None:
        self.driver.call("NodeUnpublishVolume", volume_id=self.volume_id, target_path=self.target(number))

    def unstage(self) -> None:
        self.driver.call("NodeUnstageVolume", volume_id=self.volume_id, staging_target_path=self.staging)

    def delete(self) -> None:
        self.driver.call("DeleteVolume", volume_id=self.volume_id)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.staging)

    def up(self) -> str:
        """Create, stage, publish; returns the target path."""
        self.create()
        self.stage()
        return self.publish()

    def down(self) -> None:
        """Unpublish, unstage, delete."""
        self.unpublish()
        self.unstage()
        self.delete()


def exported(driver: Driver, object_id: str, *, timeout: float = 60) -> bytes:
    """The content of a volume or snapshot as a stream."""
    return b"".join(chunk.data for chunk in driver.call("Export", id=object_id, timeout=timeout))


def admin_volumes(driver: Driver) -> list[Any]:
    """All volumes as the operator's view tells them."""
    return list(driver.caller.admin_stub("ListVolumes")(admin_pb2.ListVolumesRequest(), timeout=60).volumes)


def admin_pools(driver: Driver) -> list[Any]:
    """All pools as the operator's view tells them."""
    return list(driver.caller.admin_stub("ListPools")(admin_pb2.ListPoolsRequest(), timeout=60).pools)


@dataclass
class PodVolume:
    """An inline ephemeral volume of a pod, with the two calls that kubelet makes for it, and with its handle."""

    driver: Driver
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    fs_type: str = ""
    mode: str = "SINGLE_NODE_MULTI_WRITER"

    @property
    def handle(self) -> str:
        return f"csi-{hashlib.sha256(self.name.encode()).hexdigest()}"

    def target(self, number: int = 0) -> str:
        return self.driver.target(f"{self.name}-{number}")

    def context(self) -> dict[str, str]:
        prefix = "csi.storage.k8s.io"
        kubelets = {"pod.name": self.name, "pod.namespace": "default", "pod.uid": "1-2-3", "ephemeral": "true"}
        return {**self.attributes, **{f"{prefix}/{key}": value for key, value in kubelets.items()}}

    def publish_request(self, number: int = 0, *, readonly: bool = False) -> csi_pb2.NodePublishVolumeRequest:
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=self.handle,
            target_path=self.target(number),
            volume_capability=capability(self.mode, fs_type=self.fs_type),
            readonly=readonly,
            volume_context=self.context(),
        )

    def publish(self, number: int = 0, *, readonly: bool = False) -> str:
        self.driver.call("NodePublishVolume", self.publish_request(number, readonly=readonly))
        return self.target(number)

    def unpublish(self, number: int = 0) -> None:
        self.driver.call("NodeUnpublishVolume", volume_id=self.handle, target_path=self.target(number))

    def held(self) -> Any:
        """What the operator's view tells of it; None when there is none."""
        return next((one for one in admin_volumes(self.driver) if one.name == self.handle), None)
