"""The size limits that CSI sets for all fields of a request; knows no method.

Spec: "Size Limits": 128 bytes for a string, 4 KiB for a map, unless a field says otherwise. Paths may have PATH_MAX;
the mount flags of a capability have 4 KiB together (spec: VolumeCapability.MountVolume).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from csi_driver.errors import InvalidField

STRING_BYTES = 128
MAP_BYTES = 4096
PATH_BYTES = 4095
NODE_ID_BYTES = 256
_UNLIMITED = frozenset({"starting_token"})

Check = Callable[[Any, str], None]


def check_limits(request: Message) -> None:
    """Refuse a request with a field that is too large.

    Raises: InvalidField naming the field, its size and the limit; never its content.
    """
    for check in _checks(request.DESCRIPTOR):
        check(request, "")


@cache
def _checks(descriptor: Descriptor) -> tuple[Check, ...]:
    checks = []
    for field in descriptor.fields:
        check = _check_of(field)
        if check is not None:
            checks.append(check)
    return tuple(checks)


def _check_of(field: Any) -> Check | None:
    if field.type == FieldDescriptor.TYPE_STRING:
        return None if field.name in _UNLIMITED else _string_check(field)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return None
    if field.message_type.GetOptions().map_entry:
        return _map_check(field)
    return _message_check(field) if field.message_type.full_name.startswith("csi.") else None


def _string_check(field: FieldDescriptor) -> Check:
    name = field.name
    if field.is_repeated:

        def check_all(message: Any, prefix: str) -> None:
            _refuse(prefix + name, sum(len(value.encode()) for value in getattr(message, name)), MAP_BYTES)

        return check_all
    limit = PATH_BYTES if name.endswith("_path") else NODE_ID_BYTES if name == "node_id" else STRING_BYTES

    def check(message: Any, prefix: str) -> None:
        value = getattr(message, name)
        # A character has at most four bytes: most strings need not be encoded to be judged.
        if len(value) * 4 > limit:
            _refuse(prefix + name, len(value.encode()), limit)

    return check


def _map_check(field: FieldDescriptor) -> Check:
    name = field.name

    def check(message: Any, prefix: str) -> None:
        pairs = getattr(message, name)
        if pairs:
            size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs.items())
            _refuse(prefix + name, size, MAP_BYTES)

    return check


def _message_check(field: FieldDescriptor) -> Check:
    name, repeated, inner = field.name, field.is_repeated, field.message_type

    def check(message: Any, prefix: str) -> None:
        if not repeated and not message.HasField(name):
            return
        held = getattr(message, name)
        for value in held if repeated else (held,):
            for inner_check in _checks(inner):
                inner_check(value, f"{prefix}{name}.")

    return check


def _refuse(field: str, size: int, limit: int) -> None:
    if size > limit:
        raise InvalidField(field, f"{size} bytes", f"at most {limit} bytes")
