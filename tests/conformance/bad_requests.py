"""What a bad request is made of: volumes that are staged, and sane requests of which one thing is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tests.conformance.probing import request_of
from tests.harness import Code, Driver, Workload, capability, create_request

INVALID = Code.INVALID_ARGUMENT
PRECONDITION = Code.FAILED_PRECONDITION


@dataclass
class Given:
    """What a bad request can be made of: one staged volume with a filesystem, one staged block volume."""

    driver: Driver
    image: Workload
    device: Workload


Build = Callable[[Given], Any]
Case = tuple[str, Build, Code | Collection[Code], tuple[str, ...]]


def create(**fields: Any) -> Build:
    """A CreateVolumeRequest that is sane except for `fields`."""
    return lambda _: create_request("refused", **fields)


def create_with(change: Callable[[Any], object]) -> Build:
    def build(_: Given) -> Any:
        request = create_request("refused")
        change(request)
        return request

    return build


def stage_with(change: Callable[[Any], object]) -> Build:
    def build(given: Given) -> Any:
        request = given.image.stage_request()
        change(request)
        return request

    return build


def publish_with(change: Callable[[Any], object]) -> Build:
    def build(given: Given) -> Any:
        request = given.image.publish_request()
        change(request)
        return request

    return build


def raw(method: str, **fields: Any) -> Build:
    return lambda _: request_of(method, **fields)


def first(request: Any) -> Any:
    """The first capability of a CreateVolumeRequest."""
    return request.volume_capabilities[0]


BLOCK = [capability(block=True)]
CREATE, STAGE, PUBLISH = "CreateVolume", "NodeStageVolume", "NodePublishVolume"
BIG = "x" * 129
HUGE_MAP = {f"key{number}": "v" * 100 for number in range(45)}
