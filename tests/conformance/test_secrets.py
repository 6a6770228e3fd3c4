"""What is confidential is seen by nobody: neither in a log at its chattiest, nor in an error, nor on the disk.

- Fields that the protocol marks with `csi_secret`, wherever they stand and whatever becomes of the call.
- Values of contexts and parameters under keys that the driver does not know: kubelet puts tokens there.
- Values of mount flags, which the protocol says may be confidential.
- In text and in JSON; and every log line is one line, whatever a caller writes into names and paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from csi_driver.pb import csi_pb2
from csi_driver.rpc import redaction
from tests.conformance.probing import SPEC_METHODS, request_of
from tests.harness import MIB, Driver, Failure, PoolPlace, capability, create_request

MARK = "hunter2-s3cr3t"


def secret_fields(descriptor: Any, prefix: str = "") -> Iterator[str]:
    """The fields that the protocol marks, by path; of the options alone, without the driver's help."""
    option: Any = csi_pb2.csi_secret
    for field in descriptor.fields:
        if field.GetOptions().Extensions[option]:
            yield prefix + field.name
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:
            yield from secret_fields(field.message_type, f"{prefix}{field.name}.")


SECRET = {
    method: list(secret_fields(descriptor.input_type))
    for method, descriptor in SPEC_METHODS.items()
    if any(secret_fields(descriptor.input_type))
}


@pytest.fixture(scope="module", params=["text", "json"])
def chatty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A driver that logs all it can."""
    where = tmp_path_factory.mktemp("chatty")
    arguments = ["--log-level=debug", f"--log-format={request.param}"]
    driver = Driver(where / "driver", [PoolPlace(where / "pool")], arguments=arguments)
    driver.start()
    yield driver
    driver.stop()
    driver.clean_up()


def everything_written(driver: Driver) -> str:
    """The log, and all files that the driver wrote but images."""
    found = [driver.log()]
    for root in (driver.home / "state", driver.pool):
        found += [path.read_text(errors="replace") for path in root.rglob("*.json")]
        found += [path.read_text(errors="replace") for path in root.rglob("*") if path.is_file() and not path.suffix]
    return "\n".join(found)


def said(driver: Driver, method: str, request: Any) -> str:
    """What the caller hears, good or bad."""
    try:
        return str(driver.call(method, request))
    except Failure as failure:
        return failure.details


def test_the_protocol_marks_the_fields_that_these_tests_fill() -> None:
    assert {"CreateVolume", "DeleteVolume", "NodeStageVolume", "NodePublishVolume"} <= set(SECRET)
    assert all(paths == ["secrets"] for paths in SECRET.values())


@pytest.mark.parametrize("method", SECRET)
def test_secrets_of_every_call_are_heard_by_nobody(chatty: Driver, method: str) -> None:
    volume = chatty.call("CreateVolume", create_request("held", 8 * MIB)).volume.volume_id
    sane = {
        "CreateVolume": create_request("secret", 8 * MIB),
        "NodeStageVolume": csi_pb2.NodeStageVolumeRequest(
            volume_id=volume, staging_target_path=chatty.staging("s"), volume_capability=capability()
        ),
        "ValidateVolumeCapabilities": csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=volume, volume_capabilities=[capability()]
        ),
    }
    for request in (request_of(method), sane.get(method, request_of(method))):
        for secrets in ({"password": MARK}, {MARK: "x"}, {"big": MARK * 1000}):
            request.ClearField("secrets")
            request.secrets.update(secrets)
            assert MARK not in said(chatty, method, request)
    assert MARK not in everything_written(chatty)
    chatty.call("NodeUnstageVolume", volume_id=volume, staging_target_path=chatty.staging("s"))
    for name in ("held", "secret"):
        made = chatty.call("CreateVolume", create_request(name, 8 * MIB)).volume.volume_id
        chatty.call("DeleteVolume", volume_id=made)


def leaking(given: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Requests with something confidential in a place that is not marked."""
    tokens = {"csi.storage.k8s.io/serviceAccount.tokens": MARK, "unknown": MARK}
    stage = {"volume_id": given, "staging_target_path": "/nowhere/s", "volume_capability": capability()}
    publish = {**stage, "target_path": "/nowhere/t"}
    flagged = capability(flags=[f"password={MARK}"])
    return {
        "stage context": ("NodeStageVolume", {**stage, "volume_context": tokens}),
        "publish context": ("NodePublishVolume", {**publish, "volume_context": tokens, "publish_context": tokens}),
        "validate context": (
            "ValidateVolumeCapabilities",
            {"volume_id": given, "volume_capabilities": [capability()], "volume_context": {"unknown": MARK}},
        ),
        "huge context": ("NodePublishVolume", {**publish, "volume_context": {"unknown": MARK * 1000}}),
        "ephemeral context": (
            "NodePublishVolume",
            {
                **publish,
                "volume_id": "csi-ephemeral",
                "volume_context": {**tokens, "csi.storage.k8s.io/ephemeral": "true"},
                "secrets": {"password": MARK},
            },
        ),
        "stage flag": ("NodeStageVolume", {**stage, "volume_capability": flagged}),
        "publish flag": ("NodePublishVolume", {**publish, "volume_capability": flagged}),
        "create flag": ("CreateVolume", {"name": "leak", "volume_capabilities": [flagged]}),
        "long flag": (
            "CreateVolume",
            {"name": "leak", "volume_capabilities": [capability(flags=[f"p={MARK}{'x' * 200}"])]},
        ),
        "huge flags": ("CreateVolume", {"name": "leak", "volume_capabilities": [capability(flags=[MARK * 1000])]}),
        "unknown parameter": (
            "CreateVolume",
            {"name": "leak", "volume_capabilities": [capability()], "parameters": {"password": MARK}},
        ),
        "mutable parameter": (
            "CreateVolume",
            {"name": "leak", "volume_capabilities": [capability()], "mutable_parameters": {"password": MARK}},
        ),
    }


@pytest.mark.parametrize("case", leaking(""))
def test_what_may_be_confidential_is_not_repeated(chatty: Driver, case: str) -> None:
    given = chatty.call("CreateVolume", create_request("held", 8 * MIB)).volume.volume_id
    method, fields = leaking(given)[case]
    answer = said(chatty, method, request_of(method, **fields))
    if not case.startswith("validate"):
        # The answer to a validation echoes the context to the one who sent it.
        assert MARK not in answer
    assert MARK not in everything_written(chatty)
    assert method in chatty.log()


def test_a_call_is_one_line_whatever_is_written_into_it(chatty: Driver) -> None:
    forged = "x\n2026-01-01T00:00:00.000Z INFO DeleteVolume forged OK 1 ms\r\x1b[31mred"
    calls: dict[str, dict[str, Any]] = {
        "CreateVolume": {"name": "a\nb\rc\td", "volume_capabilities": [capability()], "parameters": {forged: forged}},
        "DeleteVolume": {"volume_id": forged},
        "NodeUnpublishVolume": {"volume_id": "x", "target_path": f"/{forged}"},
        "ListVolumes": {"starting_token": forged},
    }
    for method, fields in calls.items():
        assert "\n" not in said(chatty, method, request_of(method, **fields))
    is_json = "--log-format=json" in chatty.arguments
    for line in chatty.log().splitlines():
        assert "\x1b" not in line
        if is_json:
            assert {"time", "level"} <= set(json.loads(line))
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[0-9:.]+Z (DEBUG|INFO|WARNING|ERROR) ", line), line
            assert " forged OK" not in line.split("Z ", 1)[1][:40]


def test_a_finished_call_is_logged_with_method_object_code_and_time(chatty: Driver) -> None:
    chatty.call("DeleteVolume", volume_id="logged-volume")
    line = next(line for line in reversed(chatty.log().splitlines()) if "logged-volume" in line and "INFO" in line)
    if "--log-format=json" in chatty.arguments:
        fields = json.loads(line)
        assert (fields["method"], fields["object"], fields["code"]) == ("DeleteVolume", "logged-volume", "OK")
        assert fields["milliseconds"] >= 0
    else:
        assert re.search(r"INFO DeleteVolume logged-volume OK [0-9.]+ ms$", line)


# The redaction itself, for every message of the protocol


def filled(descriptor: Any, depth: int = 0) -> Any:
    """A message with the mark in every string."""
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["unknown"] = MARK
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth < 4 and field.message_type.file.package == "csi.v1":
            inner = filled(field.message_type, depth + 1)
            if field.is_repeated:
                getattr(message, field.name).append(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
        elif field.type == FieldDescriptor.TYPE_STRING and field.name == "mount_flags":
            message.mount_flags.append(f"password={MARK}")
    return message


@pytest.mark.parametrize("method", SPEC_METHODS)
def test_no_message_shows_a_map_or_a_flag_that_is_not_known(method: str) -> None:
    for descriptor in (SPEC_METHODS[method].input_type, SPEC_METHODS[method].output_type):
        assert MARK not in str(redaction.redacted(filled(descriptor)))


def test_what_is_known_is_shown() -> None:
    asked = create_request(
        "pvc-1",
        parameters={"type": "image", "colour": "red"},
        volume_capabilities=[capability(flags=["noatime", "commit=5", "unknown"])],
    )
    shown = redaction.redacted(asked)
    flags = shown["volume_capabilities"][0]["mount"]["mount_flags"]
    assert flags == ["noatime", f"commit={redaction.REDACTED}", redaction.REDACTED]
    assert shown["name"] == "pvc-1"
    assert shown["parameters"] == {"type": "image", "colour": redaction.REDACTED}


def test_the_pool_and_the_memory_of_the_driver_are_for_root_alone(chatty: Driver) -> None:
    assert chatty.pool.stat().st_mode & 0o777 == 0o700
    made = chatty.call("CreateVolume", create_request("private", 8 * MIB)).volume.volume_id
    for path in Path(chatty.pool, "volumes", made).rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    chatty.call("DeleteVolume", volume_id=made)
