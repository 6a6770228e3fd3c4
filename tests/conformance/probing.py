"""What the probes share: a refusal with its words, what is on disk and mounted, records in bulk."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from csi_driver.model import AccessType, PoolName, Volume, VolumeId, VolumeParameters, node_key
from csi_driver.pb import csi_pb2
from csi_driver.store import records
from tests.harness import Code, Driver, Failure, run

SPEC_SERVICES = csi_pb2.DESCRIPTOR.services_by_name
SPEC_METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in SPEC_SERVICES.values() for method in service.methods
}


def request_of(method: str, **fields: Any) -> Any:
    """An empty request of a method, or one with these fields."""
    return message_factory.GetMessageClass(SPEC_METHODS[method].input_type)(**fields)


def refused(driver: Driver, method: str, codes: Code | Collection[Code], *words: str, **request: Any) -> Failure:
    """The call is refused with one of the codes and a message that a person can act on, containing every word."""
    wanted = {codes} if isinstance(codes, Code) else set(codes)
    with pytest.raises(Failure) as caught:
        driver.call(method, **request)
    failure = caught.value
    assert failure.code in wanted, failure
    assert_readable(failure.details)
    for word in words:
        assert word in failure.details, failure
    return failure


def assert_readable(message: str) -> None:
    """One line of words: neither a traceback nor the name of an exception nor a bare number."""
    assert len(message.split()) >= 3, message
    assert "\n" not in message, message
    assert not re.search(r"Traceback|Error\(|Exception|unforeseen|<[a-z_.]+ object", message), message


def what_exists(*roots: Path | str) -> dict[str, tuple[Any, ...]]:
    """Every path below the roots with kind, owner, mode, size and, of files, the last change."""
    found: dict[str, tuple[Any, ...]] = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                seen = os.lstat(path)
                # A mounted image changes by itself: journals are written in the background.
                is_still = stat.S_ISREG(seen.st_mode) and name != "disk.img"
                changed: int | bytes = seen.st_mtime_ns if is_still else 0
                if "/state/" in path and is_still:
                    # Rewritten by an attempt and by its undoing; what it says counts.
                    changed = Path(path).read_bytes()
                found[path] = (seen.st_mode, seen.st_size, seen.st_uid, seen.st_gid, changed)
    return found


def traces(driver: Driver) -> tuple[dict[str, tuple[Any, ...]], list[str], list[str]]:
    """All that a refused call could leave: below the driver's home and pools, its mounts, its loop devices."""
    found = what_exists(driver.home, *(pool.directory for pool in driver.pools))
    kept = {
        path: seen
        for path, seen in found.items()
        # The log tells of the refusal; templates are a cache.
        if not path.endswith("/log") and "/templates" not in path and not path.endswith("/tmp")
    }
    return kept, driver.mounts(), driver.loops()


def list_volume_ids(driver: Driver, max_entries: int = 0) -> Iterator[list[str]]:
    """The pages of ListVolumes."""
    token = ""
    while True:
        page = driver.call("ListVolumes", max_entries=max_entries, starting_token=token)
        yield [entry.volume.volume_id for entry in page.entries]
        token = page.next_token
        if not token:
            return


def mount_options(target: str) -> tuple[set[str], set[str]]:
    """The options of the topmost mount at a path, of the mount and of its filesystem, as findmnt tells."""
    words = run("findmnt", "-n", "-o", "VFS-OPTIONS,FS-OPTIONS", "--mountpoint", target).splitlines()[-1].split()
    return set(words[0].split(",")), set(words[1].split(","))


def write_records(pool: Path, pool_name: str, node_id: str, numbers: range) -> None:
    """Records of volumes in a pool that no driver serves now; their images are empty holes."""
    volumes = pool / "volumes"
    model = volumes / "model"
    model.mkdir(mode=0o700)
    descriptor = os.open(model, os.O_RDONLY | os.O_DIRECTORY)
    try:
        records.write_volume(descriptor, _synthetic(pool_name, node_id, 0))
    finally:
        os.close(descriptor)
    path = model / records.RECORD
    body = records.unseal(path.read_bytes(), "volume", str(path))
    del body["schema"], body["kind"]
    path.unlink()
    model.rmdir()
    for number in numbers:
        one = _synthetic(pool_name, node_id, number)
        changed = {"volume_id": one.volume_id, "name": one.name, "fs_uuid": one.fs_uuid, "created_at": one.created_at}
        where = volumes / one.volume_id
        where.mkdir(mode=0o700)
        (where / records.RECORD).write_bytes(records.seal("volume", {**body, **changed}))
        with (where / "disk.img").open("xb") as image:
            image.truncate(one.capacity_bytes)


def _synthetic(pool_name: str, node_id: str, number: int) -> Volume:
    return Volume(
        volume_id=VolumeId(f"vol-{node_key(node_id)}-{number:016x}"),
        name=f"pvc-{uuid.UUID(int=number)}",
        capacity_bytes=8 << 20,
        access_type=AccessType.MOUNT,
        fs_type="ext4",
        parameters=dataclasses.replace(VolumeParameters(), pool=PoolName(pool_name)),
        created_at=1.7e9 + number,
        fs_uuid=str(uuid.UUID(int=number)),
    )


@contextmanager
def created(driver: Driver, request: csi_pb2.CreateVolumeRequest) -> Iterator[csi_pb2.Volume]:
    """The volume, deleted afterwards."""
    volume = driver.call("CreateVolume", request).volume
    try:
        yield volume
    finally:
        driver.call("DeleteVolume", volume_id=volume.volume_id)
