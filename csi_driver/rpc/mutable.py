"""Mutable parameters parsed and judged: what of a volume can change while it lives; knows no volume."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

from csi_driver import durations
from csi_driver.errors import InvalidField
from csi_driver.model import ParameterChanges, Provisioning, QuotaPolicy, RetentionPolicy
from csi_driver.rpc.parameters import SIDECAR_PREFIX


def _one_of(kind: type[enum.StrEnum]) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        try:
            return kind(value)
        except ValueError as cause:
            raise ValueError(", ".join(kind)) from cause

    return read


# What can change: the attribute of ParameterChanges, and how its value is read (ValueError says what is allowed).
MUTABLE: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "provisioning": ("provisioning", _one_of(Provisioning)),
    "quota": ("quota", _one_of(QuotaPolicy)),
    "retention": ("retention_seconds", durations.parse_seconds),
    "retentionPolicy": ("retention_policy", _one_of(RetentionPolicy)),
}
# What a StorageClass decides once and for all: why, and what to do instead.
IMMUTABLE: Final = {
    "type": "an image does not become a directory: copy the files into a new volume",
    "pool": "the data stays in its pool: clone it into a volume in the other one",
    "mkfsOptions": "its filesystem is made: copy the files into a new volume",
    "blockSize": "its content is laid out for it: copy it into a new volume",
}


def parse(given: Mapping[str, str]) -> ParameterChanges:
    """What is to change; keys that sidecars add are ignored.

    Raises: InvalidField naming every key that cannot be, or the value that is not allowed.
    """
    own = {key: value for key, value in given.items() if not key.startswith(SIDECAR_PREFIX)}
    refused = sorted(own.keys() - MUTABLE.keys())
    if refused:
        # Without their values, which may be secrets that strayed here.
        reasons = [f"{key}: {IMMUTABLE[key]}" for key in refused if key in IMMUTABLE]
        raise InvalidField("mutable_parameters", ", ".join(refused), "; ".join([", ".join(MUTABLE), *reasons]))
    return ParameterChanges(**{MUTABLE[key][0]: _value(key, value) for key, value in own.items()})


def _value(key: str, value: str) -> Any:
    try:
        return MUTABLE[key][1](value)
    except ValueError as cause:
        raise InvalidField(f"mutable_parameters.{key}", value, str(cause)) from cause


def merged(parameters: Mapping[str, str], mutable: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a create: what is mutable takes precedence (spec: CreateVolumeRequest.mutable_parameters).

    Raises: InvalidField.
    """
    parse(mutable)
    return {**parameters, **mutable}
