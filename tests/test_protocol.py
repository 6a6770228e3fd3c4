"""The protocol says on the wire what CSI 1.13 says, marks every secret, and its modules are those of proto/.

tests/data/csi-1.13.facts was rendered by `facts` when the protocol was compared with the published one. It
changes only with the version of the interface.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from csi_driver.pb import admin_pb2, csi_pb2

ROOT = Path(__file__).resolve().parent.parent
RECORDED_FACTS = ROOT / "tests/data/csi-1.13.facts"

Field = descriptor_pb2.FieldDescriptorProto


def marks(options: Message) -> str:
    """Return the names of the options that are set, in brackets."""
    names = [field.name for field, _ in options.ListFields() if field.name != "map_entry"]
    return f" [{', '.join(names)}]" if names else ""


def type_of(field: Field) -> str:
    """Return a field's type, with its repetition."""
    name = field.type_name.lstrip(".") or Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.label == Field.LABEL_REPEATED else name


def enum_facts(enum: descriptor_pb2.EnumDescriptorProto, scope: str) -> Iterator[str]:
    """Yield one line for the enum and for each of its values."""
    name = f"{scope}.{enum.name}"
    yield f"enum {name}{marks(enum.options)}"
    for value in enum.value:
        yield f"value {name}.{value.name} = {value.number}{marks(value.options)}"


def message_facts(message: descriptor_pb2.DescriptorProto, scope: str) -> Iterator[str]:
    """Yield one line for the message, each of its fields and all that is nested in it."""
    name = f"{scope}.{message.name}"
    yield f"message {name}{' map' if message.options.map_entry else ''}{marks(message.options)}"
    for span in message.reserved_range:
        yield f"reserved {name} {span.start}..{span.end - 1}"
    for field in message.field:
        oneof = f" in {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else ""
        yield f"field {name}.{field.name} = {field.number} {type_of(field)}{oneof}{marks(field.options)}"
    for enum in message.enum_type:
        yield from enum_facts(enum, name)
    for nested in message.nested_type:
        yield from message_facts(nested, name)


def service_facts(service: descriptor_pb2.ServiceDescriptorProto, scope: str) -> Iterator[str]:
    """Yield one line for the service and for each of its methods."""
    name = f"{scope}.{service.name}"
    yield f"service {name}{marks(service.options)}"
    for method in service.method:
        stream = "stream " if method.server_streaming else ""
        types = f"{method.input_type.lstrip('.')} -> {stream}{method.output_type.lstrip('.')}"
        yield f"method {name}.{method.name} {types}{marks(method.options)}"


def facts(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    """Return all that matters on the wire, sorted, one fact a line."""
    lines = [f"package {file.package} {file.syntax}"]
    lines.extend(f"extend {e.extendee} {e.name} = {e.number} {type_of(e)}" for e in file.extension)
    for enum in file.enum_type:
        lines.extend(enum_facts(enum, file.package))
    for message in file.message_type:
        lines.extend(message_facts(message, file.package))
    for service in file.service:
        lines.extend(service_facts(service, file.package))
    return sorted(lines)


def csi_facts() -> list[str]:
    """Return the facts of the generated CSI module."""
    file = descriptor_pb2.FileDescriptorProto.FromString(csi_pb2.DESCRIPTOR.serialized_pb)
    return facts(file)


def is_secret(field: FieldDescriptor) -> bool:
    """Say whether the field bears the csi_secret option."""
    return csi_pb2.csi_secret.name in {option.name for option, _ in field.GetOptions().ListFields()}


def all_messages() -> Iterator[Descriptor]:
    """Yield every message of CSI, nested ones too."""
    waiting = list(csi_pb2.DESCRIPTOR.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_types)
        yield message


def test_the_protocol_says_on_the_wire_what_the_interface_says() -> None:
    assert csi_facts() == RECORDED_FACTS.read_text().splitlines()


def test_the_interface_has_its_five_services_and_their_calls() -> None:
    services = csi_pb2.DESCRIPTOR.services_by_name
    assert {name: len(service.methods) for name, service in services.items()} == {
        "Identity": 3,
        "Controller": 17,
        "GroupController": 4,
        "SnapshotMetadata": 2,
        "Node": 10,
    }


def test_every_field_called_secrets_is_marked_and_nothing_else_is() -> None:
    fields = [field for message in all_messages() for field in message.fields]
    marked = {field.full_name for field in fields if is_secret(field)}
    assert marked == {field.full_name for field in fields if field.name == "secrets"}


def test_the_messages_that_carry_secrets_are_known() -> None:
    carriers = {m.name for m in all_messages() if any(is_secret(field) for field in m.fields)}
    assert carriers == {
        "ControllerExpandVolumeRequest",
        "ControllerGetVolumeHealthRequest",
        "ControllerListVolumeHealthRequest",
        "ControllerModifyVolumeRequest",
        "ControllerPublishVolumeRequest",
        "ControllerUnpublishVolumeRequest",
        "CreateSnapshotRequest",
        "CreateVolumeGroupSnapshotRequest",
        "CreateVolumeRequest",
        "DeleteSnapshotRequest",
        "DeleteVolumeGroupSnapshotRequest",
        "DeleteVolumeRequest",
        "GetMetadataAllocatedRequest",
        "GetMetadataDeltaRequest",
        "GetSnapshotRequest",
        "GetVolumeGroupSnapshotRequest",
        "ListSnapshotsRequest",
        "NodeExpandVolumeRequest",
        "NodeGetStorageHealthRequest",
        "NodePublishVolumeRequest",
        "NodeStageVolumeRequest",
        "ValidateVolumeCapabilitiesRequest",
    }


def test_the_operators_protocol_looks_and_does_what_csi_has_no_call_for() -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
    looks = ["ListPools", "ListVolumes", "GetVolume", "ListSnapshots", "GetSnapshot"]
    from_memory = ["ListTroubles", "ListOperations", "ListGroupSnapshots", "GetGroupSnapshot"]
    of_the_trash = ["ListTrash", "RestoreTrash", "PurgeTrash", "RollbackVolume"]
    expected = [*looks, *from_memory, "GrowPool", *of_the_trash, "Export", "Import"]
    assert [method.name for method in service.methods] == expected
    assert service.full_name == "hostvol.admin.v1.Admin"


def test_the_generated_modules_are_those_of_the_protocols() -> None:
    script = [sys.executable, str(ROOT / "scripts/generate"), "--check"]
    result = subprocess.run(script, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
