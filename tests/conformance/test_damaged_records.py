"""Damaged records: whatever is wrong with one, its volume is kept and not served, and every other volume is served.

- A record that is flipped, cut, empty, missing, replaced, from the future, of another volume or huge does not keep the
  driver from starting, nor for long.
- Its volume is quarantined: every call that needs it is FAILED_PRECONDITION naming the record and the remedy; it is in
  no list of an orchestrator, in `hostvol volume list` with its reason, and in the metric `hostvol_quarantined_records`.
- What is mounted of it can still be unpublished and unstaged, so that no pod sticks.
- No second volume is made under a name that its record still shows.
- Nothing of it is deleted or changed; with its record restored it is served again, with its data.
- A pool whose identity is damaged or that is not there costs only itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from csi_driver.store import records
from tests.conformance.probing import list_volume_ids, refused, what_exists
from tests.harness import DIRECTORY, MIB, Code, Driver, PoolPlace, Workload, capability, create_request

Damage = Callable[[Path], object]


def flip(position: float) -> Damage:
    """Flip one bit of the byte at this part of the record."""

    def damage(record: Path) -> None:
        content = bytearray(record.read_bytes())
        content[int(position * (len(content) - 2))] ^= 0x04
        record.write_bytes(content)

    return damage


def cut(part: float) -> Damage:
    def damage(record: Path) -> None:
        os.truncate(record, int(record.stat().st_size * part))

    return damage


def put(content: bytes) -> Damage:
    return lambda record: record.write_bytes(content)


def resealed(**changes: object) -> Damage:
    """A record whose checksum is right and whose content is not."""

    def damage(record: Path) -> None:
        body = records.unseal(record.read_bytes(), "volume", str(record))
        del body["schema"], body["kind"]
        record.write_bytes(records.seal("volume", {**body, **changes}))

    return damage


def without(key: str) -> Damage:
    def damage(record: Path) -> None:
        body = records.unseal(record.read_bytes(), "volume", str(record))
        for gone in ("schema", "kind", key):
            del body[gone]
        record.write_bytes(records.seal("volume", body))

    return damage


def from_the_future(record: Path) -> None:
    body = records.unseal(record.read_bytes(), "volume", str(record))
    del body["schema"], body["kind"]
    schema = records.SCHEMA
    try:
        records.SCHEMA = schema + 1
        record.write_bytes(records.seal("volume", body))
    finally:
        records.SCHEMA = schema


def replaced_by(make: Callable[[Path], object]) -> Damage:
    def damage(record: Path) -> None:
        record.unlink()
        make(record)

    return damage


def linked_elsewhere(record: Path) -> None:
    """The record is whole, but in another place, and a link leads there."""
    elsewhere = record.parent.parent.parent.parent / f"elsewhere-{record.parent.name}"
    record.rename(elsewhere)
    record.symlink_to(elsewhere)


def directory_linked_elsewhere(record: Path) -> None:
    """The volume's directory is whole, but outside the pool, and a link leads there."""
    volume = record.parent
    elsewhere = volume.parent.parent.parent / f"outside-{volume.name}"
    volume.rename(elsewhere)
    volume.symlink_to(elsewhere)


def directory_replaced_by_a_file(record: Path) -> None:
    volume = record.parent
    volume.rename(volume.parent.parent.parent / f"moved-{volume.name}")
    volume.write_text("not a directory")


def nested(depth: int) -> bytes:
    return b'{"record":' + b"[" * depth + b"]" * depth + b',"sha256":""}'


DAMAGES: dict[str, Damage] = {
    "a bit of the first byte": flip(0),
    "a bit of the middle": flip(0.5),
    "a bit of the checksum": flip(0.95),
    "cut in the middle": cut(0.5),
    "cut before the end": cut(0.98),
    "empty": cut(0),
    "missing": Path.unlink,
    "zeros": put(b"\0" * 700),
    "noise": put(bytes(range(256)) * 3),
    "no JSON": put(b"volume_id: x\n"),
    "another JSON": put(b'{"volume_id": "x"}'),
    "a list": put(b"[]"),
    "null": put(b"null"),
    "a number": put(b"1e999"),
    "a record that is a text": put(b'{"record":"x","sha256":"x"}'),
    "text of no encoding": put(b'{"record":{"name":"\xff\xfe"},"sha256":""}'),
    "nested without end": put(nested(7000)),
    "a number of 9000 digits": put(b'{"record":' + b"9" * 9000 + b',"sha256":""}'),
    "huge": put(b" " * (3 * MIB)),
    "twice": lambda record: record.write_bytes(record.read_bytes() * 2),
    "from the future": from_the_future,
    "of another volume": resealed(volume_id="vol-0000000000000000-0000000000000000"),
    "of another pool": resealed(pool="elsewhere"),
    "of another kind": lambda record: record.write_bytes(records.seal("snapshot", {"volume_id": record.parent.name})),
    "without a size": without("capacity_bytes"),
    "with a size that is none": resealed(capacity_bytes="many"),
    "with a growth that is none": resealed(growing_to_bytes="more"),
    "with a type that is none": resealed(type="lvm"),
    "a directory": replaced_by(Path.mkdir),
    "a dangling link": replaced_by(lambda record: record.symlink_to("nothing")),
    "a link to itself": replaced_by(lambda record: record.symlink_to(record.name)),
    "a link to /dev/zero": replaced_by(lambda record: record.symlink_to("/dev/zero")),
    "a link to the whole record": linked_elsewhere,
    "a pipe": replaced_by(os.mkfifo),
    "a directory that is a link": directory_linked_elsewhere,
    "a directory that is a file": directory_replaced_by_a_file,
}
STRANGERS: dict[str, Damage] = {
    "lost+found": Path.mkdir,
    ".hidden": Path.touch,
    "vol-x y\nz": Path.mkdir,
    "UPPER": Path.mkdir,
}


@dataclass
class Patients:
    """A driver whose pool holds one damaged volume per kind of damage, and some healthy ones."""

    driver: Driver
    port: int
    damaged: dict[str, str]
    healthy: list[Workload] = field(default_factory=list)
    before: dict[str, tuple[Any, ...]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patients]:
    where = tmp_path_factory.mktemp("damaged")
    driver = Driver(where / "driver", [PoolPlace(where / "pool")], arguments=["--http-address=127.0.0.1:0"])
    driver.start()
    damaged = {
        name: driver.call("CreateVolume", create_request(f"damaged {name}", 8 * MIB)).volume.volume_id
        for name in DAMAGES
    }
    healthy = [
        Workload(driver, f"healthy-{number}", size_bytes=8 * MIB, parameters=DIRECTORY if number else {})
        for number in range(3)
    ]
    for workload in healthy:
        workload.create()
    assert driver.stop() == 0
    volumes = driver.pool / "volumes"
    for name, damage in DAMAGES.items():
        damage(volumes / damaged[name] / records.RECORD)
    for name, make in STRANGERS.items():
        make(volumes / name)
    before = what_exists(where / "pool" / "volumes", *where.glob("outside-*"))
    (driver.home / "log").unlink()
    driver.start()
    found = re.search(r"metrics and health on port (\d+)", driver.log())
    assert found is not None
    yield Patients(driver, int(found[1]), damaged, healthy, before)
    driver.stop()
    driver.clean_up()
    assert "unforeseen" not in driver.log(), driver.log()


CALLS: dict[str, dict[str, Any]] = {
    "ControllerGetVolume": {},
    "DeleteVolume": {},
    "ValidateVolumeCapabilities": {"volume_capabilities": [capability()]},
    "NodeStageVolume": {"staging_target_path": "/nowhere/staging", "volume_capability": capability()},
    "NodePublishVolume": {
        "staging_target_path": "/nowhere/staging",
        "target_path": "/nowhere/target",
        "volume_capability": capability(),
    },
    "NodeGetVolumeStats": {"volume_path": "/nowhere"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_call_on_a_quarantined_volume_names_its_record_and_the_remedy(patients: Patients, damage: str) -> None:
    volume_id = patients.damaged[damage]
    record = str(patients.driver.pool / "volumes" / volume_id / records.RECORD)
    for method, fields in CALLS.items():
        failure = refused(
            patients.driver, method, Code.FAILED_PRECONDITION, record, "restore", volume_id=volume_id, **fields
        )
        assert "untouched" in failure.details


def test_what_is_nowhere_mounted_of_a_quarantined_volume_is_unpublished_and_unstaged(patients: Patients) -> None:
    for volume_id in patients.damaged.values():
        patients.driver.call("NodeUnpublishVolume", volume_id=volume_id, target_path="/nowhere/target")
        patients.driver.call("NodeUnstageVolume", volume_id=volume_id, staging_target_path="/nowhere/staging")


@pytest.mark.parametrize("damage", ["a bit of the checksum", "twice", "cut before the end", "of another pool"])
def test_no_second_volume_is_made_under_a_name_that_the_record_still_shows(patients: Patients, damage: str) -> None:
    refused(
        patients.driver,
        "CreateVolume",
        Code.FAILED_PRECONDITION,
        patients.damaged[damage],
        "restore",
        request=create_request(f"damaged {damage}", 8 * MIB),
    )


def test_all_other_volumes_are_served(patients: Patients) -> None:
    ids = sorted(workload.volume_id for workload in patients.healthy)
    assert list(list_volume_ids(patients.driver)) == [ids]
    for workload in patients.healthy:
        assert workload.create() in ids
        workload.stage()
        Path(workload.publish(), "file").write_text("hello")
        workload.unpublish()
        workload.unstage()


def test_new_volumes_can_be_made(patients: Patients) -> None:
    workload = Workload(patients.driver, "new", size_bytes=8 * MIB)
    workload.create()
    workload.delete()


def test_nothing_of_a_quarantined_volume_is_changed(patients: Patients) -> None:
    patients.driver.restart()
    for method, fields in CALLS.items():
        for volume_id in patients.damaged.values():
            patients.driver.code(method, volume_id=volume_id, **fields)
    where = patients.driver.pool.parent
    now = what_exists(where / "pool" / "volumes", *where.glob("outside-*"))
    healthy = {workload.volume_id for workload in patients.healthy}
    differences = {
        path
        for path in {*now, *patients.before}
        if now.get(path) != patients.before.get(path) and not any(one in path for one in healthy)
    }
    assert differences == set()


def test_the_metric_counts_them(patients: Patients) -> None:
    found = re.findall(r"metrics and health on port (\d+)", patients.driver.log())
    with urllib.request.urlopen(f"http://127.0.0.1:{found[-1]}/metrics", timeout=10) as answer:
        families = {one.name: one for one in text_string_to_metric_families(answer.read().decode())}
    samples = {sample.labels["pool"]: sample.value for sample in families["hostvol_quarantined_records"].samples}
    assert samples == {"default": len(DAMAGES) + len(STRANGERS)}
    served = {sample.labels["pool"]: sample.value for sample in families["hostvol_volumes"].samples}
    assert served == {"default": len(patients.healthy)}


def test_the_operator_sees_each_of_them_and_why(patients: Patients) -> None:
    command = [sys.executable, "-m", "csi_driver", "volume", "list", "--endpoint", patients.driver.endpoint]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    listed = json.loads(
        subprocess.run([*command, "--output", "json"], check=True, capture_output=True, text=True).stdout
    )
    by_id = {one["volume_id"]: one for one in listed}
    for volume_id in patients.damaged.values():
        assert by_id[volume_id]["state"] == "quarantined"
        assert volume_id in by_id[volume_id]["message"]
        assert re.search(rf"^{volume_id}\s.*quarantined", table, re.MULTILINE)
    for workload in patients.healthy:
        assert by_id[workload.volume_id]["state"] == "ready"


def test_the_log_names_each_of_them_in_one_line(patients: Patients) -> None:
    lines = patients.driver.log().splitlines()
    for volume_id in patients.damaged.values():
        assert [line for line in lines if f"volume {volume_id} is quarantined" in line]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in lines), "a name forged a line"


@pytest.mark.parametrize("damage", ["cut in the middle", "missing", "a bit of the middle"])
def test_a_restored_record_brings_the_volume_back_with_its_data(
    make_driver: Callable[..., Driver], tmp_path: Path, damage: str
) -> None:
    driver = make_driver(tmp_path / "pool")
    workload = Workload(driver, "restored", size_bytes=8 * MIB)
    Path(workload.up(), "file").write_text("precious")
    workload.unpublish()
    workload.unstage()
    record = driver.pool / "volumes" / workload.volume_id / records.RECORD
    saved = record.read_bytes()
    driver.kill()
    DAMAGES[damage](record)
    driver.start()
    refused(driver, "NodeStageVolume", Code.FAILED_PRECONDITION, str(record), request=workload.stage_request())
    driver.kill()
    record.write_bytes(saved)
    driver.start()
    workload.stage()
    assert Path(workload.publish(), "file").read_text() == "precious"
    workload.down()


@pytest.mark.parametrize("kind", [{}, {"block": True}, {"parameters": DIRECTORY}], ids=["ext4", "block", "directory"])
def test_a_volume_that_is_quarantined_while_it_is_published_can_be_taken_down(
    make_driver: Callable[..., Driver], tmp_path: Path, kind: dict[str, Any]
) -> None:
    driver = make_driver(tmp_path / "pool")
    workload = Workload(driver, "published", size_bytes=8 * MIB, **kind)
    target = workload.up()
    if not workload.block:
        Path(target, "file").write_text("precious")
    record = driver.pool / "volumes" / workload.volume_id / records.RECORD
    saved = record.read_bytes()
    driver.kill()
    cut(0.5)(record)
    driver.start()
    refused(driver, "DeleteVolume", Code.FAILED_PRECONDITION, str(record), volume_id=workload.volume_id)
    for _ in range(2):
        workload.unpublish()
    for _ in range(2):
        workload.unstage()
    assert (driver.mounts(), driver.loops()) == ([], [])
    assert not os.path.lexists(target)
    driver.kill()
    record.write_bytes(saved)
    driver.start()
    workload.stage()
    target = workload.publish()
    if not workload.block:
        assert Path(target, "file").read_text() == "precious"
    workload.down()


IDENTITIES: dict[str, Damage] = {
    "cut": cut(0.5),
    "a flipped bit": flip(0.5),
    "empty": cut(0),
    "missing": Path.unlink,
    "another driver's": lambda identity: identity.write_bytes(
        records.seal("pool", {"uuid": "x", "driver": "other.example", "created_at": 1.0})
    ),
    "a directory": replaced_by(Path.mkdir),
    "a link": replaced_by(lambda identity: identity.symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("damage", IDENTITIES)
def test_a_pool_without_its_identity_costs_only_itself(
    make_driver: Callable[..., Driver], tmp_path: Path, damage: str
) -> None:
    pools = [PoolPlace(tmp_path / "good"), PoolPlace(tmp_path / "bad")]
    driver = make_driver(*pools)
    good = driver.call("CreateVolume", create_request("good", 8 * MIB)).volume.volume_id
    bad = driver.call("CreateVolume", create_request("bad", 8 * MIB, parameters={"pool": "pool1"})).volume.volume_id
    driver.stop()
    IDENTITIES[damage](pools[1].directory / "hostvol-pool.json")
    driver.init_pools = False
    before = what_exists(pools[1].directory)
    driver.start()
    assert list(list_volume_ids(driver)) == [[good]]
    message = refused(
        driver,
        "CreateVolume",
        Code.UNAVAILABLE,
        "pool1",
        request=create_request("new", 8 * MIB, parameters={"pool": "pool1"}),
    ).details
    assert str(pools[1].directory) in message
    # Asked to forget a volume of a pool that is not there now: whatever is answered, nothing is gone.
    driver.code("DeleteVolume", volume_id=bad)
    assert what_exists(pools[1].directory) == before
    assert str(pools[1].directory) in driver.log()
