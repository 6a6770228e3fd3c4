"""A request as it may be logged: secrets by descriptor, contexts by known keys, flags by name; knows no method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from csi_driver.linux import filesystem
from csi_driver.pb import csi_pb2

REDACTED = "***"
# Kubelet puts tokens into the volume context beside the pod's name: only keys that are known to be harmless are shown.
_SHOWN_KEYS = frozenset(
    {
        "size",
        "type",
        "pool",
        "provisioning",
        "mkfsOptions",
        "quota",
        "retention",
        "retentionPolicy",
        "blockSize",
        "csi.storage.k8s.io/pod.name",
        "csi.storage.k8s.io/pod.namespace",
        "csi.storage.k8s.io/pvc/name",
        "csi.storage.k8s.io/pvc/namespace",
        "csi.storage.k8s.io/pv/name",
        "csi.storage.k8s.io/ephemeral",
    }
)


def redacted(message: Message) -> dict[str, Any]:
    """The message as plain values, without anything that may be confidential, wherever in the message it stands."""
    return {field.name: _shown(field, value) for field, value in message.ListFields()}


def is_secret(field: FieldDescriptor) -> bool:
    """Whether the protocol marks the field as confidential (CSI option csi_secret)."""
    option: Any = csi_pb2.csi_secret
    return bool(field.GetOptions().Extensions[option])


def _shown(field: Any, value: Any) -> Any:
    if is_secret(field):
        return REDACTED
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        return _shown_map(value)
    if field.name == "mount_flags":
        return [_shown_flag(flag) for flag in value]
    if field.is_repeated:
        return [_shown_one(field, item) for item in value]
    return _shown_one(field, value)


def _shown_one(field: FieldDescriptor, value: Any) -> Any:
    return redacted(value) if field.type == FieldDescriptor.TYPE_MESSAGE else value


def _shown_flag(flag: str) -> str:
    # The protocol: mount_flags may hold something confidential.
    name, equals, _ = flag.partition("=")
    return f"{name if filesystem.is_known_flag(name) else REDACTED}{equals}{REDACTED if equals else ''}"


def _shown_map(pairs: Mapping[str, Any]) -> dict[str, Any]:
    shown = (key in _SHOWN_KEYS or key.startswith("topology.") for key in pairs)
    return {key: value if show else REDACTED for (key, value), show in zip(pairs.items(), shown, strict=True)}
