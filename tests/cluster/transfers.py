"""What the tests of transfers share: copies on another node, creates that are repeated, and what was sent."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from csi_driver.pb import csi_pb2
from tests.cluster.cluster import Controller, topology
from tests.harness import MIB, Caller, Code, Driver, Failure, capability, create_request
from tests.mounted_trees import digest
from tests.waiting import until

RAW = {"type": "image"}
PASSING = (Code.ABORTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def made(controller: Controller, name: str, node: str, size_bytes: int = 64 * MIB, **fields: Any) -> csi_pb2.Volume:
    """A volume on the node, by as many calls as that takes."""
    request = asked(name, node, size_bytes, **fields)
    ends = time.monotonic() + 120
    while True:
        try:
            return controller.call("CreateVolume", request, timeout=60).volume
        except Failure as failure:
            assert failure.code in PASSING, failure
            assert time.monotonic() < ends, failure
            time.sleep(0.2)


def asked(name: str, node: str, size_bytes: int, *, source: str = "", **fields: Any) -> csi_pb2.CreateVolumeRequest:
    """A raw block volume, unless the fields say otherwise."""
    fields = {"parameters": RAW, "volume_capabilities": [capability(block=True)], **fields}
    if source:
        content = csi_pb2.VolumeContentSource()
        if source.startswith("snap-"):
            content.snapshot.snapshot_id = source
        else:
            content.volume.volume_id = source
        fields["volume_content_source"] = content
    return create_request(name, size_bytes, accessibility_requirements=topology(node), **fields)


def image_of(node: Driver, name: str) -> Path:
    return node.pool / "volumes" / name / "disk.img"


def written(node: Driver, name: str, size_bytes: int) -> str:
    """Random bytes in the image of a volume that nobody uses; their digest."""
    with image_of(node, name).open("r+b") as image:
        for _ in range(size_bytes // MIB):
            image.write(os.urandom(MIB))
    return digest(image_of(node, name))


def sends(node: Driver, *, since: int = 0) -> int:
    """How many transfers left the node so far, or since its log was so long."""
    return node.log()[since:].count("is fetched by another node")


def sent_bytes(node: Driver) -> int:
    """What the last transfer that is over has sent, in all."""
    until(lambda: node.log().count("bytes were sent") == sends(node), what="the transfer is over")
    return int(re.findall(r"is over: (\d+) bytes were sent", node.log())[-1])


class Create:
    """A create that is repeated, as an orchestrator does it, until it ends finally, or its router is done with."""

    def __init__(self, controller: Controller, request: csi_pb2.CreateVolumeRequest) -> None:
        self._controller, self._request = controller, request
        self.volume: csi_pb2.Volume | None = None
        self.failure: Failure | None = None
        self.codes: list[Code] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self.volume is None and self.failure is None and not self._controller.is_over.is_set():
            caller = Caller(self._controller.socket_path)
            try:
                self.volume = caller.call("CreateVolume", self._request, timeout=2).volume
            except Failure as failure:
                self.codes.append(failure.code)
                if failure.code not in PASSING:
                    self.failure = failure
                self._controller.is_over.wait(0.2)
            finally:
                caller.close()

    def made(self) -> csi_pb2.Volume:
        self._thread.join(120)
        assert self.volume is not None, (self.failure, self.codes)
        return self.volume

    def failed(self) -> Failure:
        self._thread.join(120)
        assert self.failure is not None, self.volume
        return self.failure


def half_way(node: Driver) -> None:
    """Wait until some of a content has come to the node."""
    until(lambda: sum(file.stat().st_blocks * 512 for file in building(node)) > 8 * MIB, what="some has come")


def building(node: Driver) -> list[Path]:
    return [path for path in (node.pool / "tmp").rglob("*") if path.is_file()]


def left(node: Driver) -> list[str]:
    """What is in the node's rooms besides volumes."""
    return [path.name for room in ("tmp", "trash") for path in (node.pool / room).iterdir()]
