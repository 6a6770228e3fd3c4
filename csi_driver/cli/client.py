"""What the commands need of a running driver; the protocol edge fulfils it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from csi_driver.cli.progress import Amount
from csi_driver.errors import CallFailed


class DriverClient(Protocol):
    """The RPCs of one driver; every method raises CallFailed with the driver's own words."""

    def close(self) -> None: ...

    def pools(self) -> list[dict[str, Any]]: ...

    def grow_pool(self, name: str, size_bytes: int) -> dict[str, Any]: ...

    def volumes(self) -> Iterator[dict[str, Any]]: ...

    def listed_volumes(self) -> Iterator[dict[str, Any]]: ...

    def volume(self, volume_id: str) -> dict[str, Any]: ...

    def volume_named(self, name: str) -> dict[str, Any]: ...

    def create_volume(
        self,
        name: str,
        *,
        required_bytes: int,
        limit_bytes: int,
        block: bool,
        fs_type: str,
        mount_flags: Sequence[str],
        parameters: Mapping[str, str],
        from_snapshot: str = "",
        from_volume: str = "",
    ) -> dict[str, Any]: ...

    def operations(self) -> list[dict[str, Any]]: ...

    def troubles(self) -> Iterator[dict[str, Any]]: ...

    def delete_volume(self, volume_id: str) -> None: ...

    def snapshots(self) -> Iterator[dict[str, Any]]: ...

    def snapshot(self, snapshot_id: str) -> dict[str, Any]: ...

    def snapshot_named(self, name: str) -> dict[str, Any]: ...

    def create_snapshot(self, name: str, source_volume_id: str) -> dict[str, Any]: ...

    def delete_snapshot(self, snapshot_id: str) -> None: ...

    def snapshot_blocks(self, snapshot_id: str, base_id: str, starting_offset: int) -> Iterator[tuple[int, int]]: ...

    def export(self, object_id: str, base_id: str = "") -> Iterator[bytes]: ...

    def import_volume(self, chunks: Iterator[bytes], options: Mapping[str, Any]) -> dict[str, Any]: ...

    def groups(self) -> Iterator[dict[str, Any]]: ...

    def group(self, group_id: str) -> dict[str, Any]: ...

    def group_named(self, name: str) -> dict[str, Any]: ...

    def create_group(self, name: str, source_volume_ids: Sequence[str]) -> str: ...

    def delete_group(self, group_id: str, snapshot_ids: Sequence[str]) -> None: ...

    def trash(self) -> Iterator[dict[str, Any]]: ...

    def restore_trash(self, entry: str) -> dict[str, Any]: ...

    def purge_trash(self, entry: str) -> None: ...

    def rollback_volume(self, volume_id: str, snapshot_id: str) -> str: ...

    def expand_volume(self, volume_id: str, *, required_bytes: int, limit_bytes: int) -> dict[str, Any]: ...

    def modify_volume(self, volume_id: str, mutable_parameters: Mapping[str, str]) -> None: ...

    def expand_on_node(self, volume_id: str, path: str) -> None: ...

    def stage(self, volume_id: str, path: str, *, block: bool, mount_flags: Sequence[str]) -> None: ...

    def publish(
        self,
        volume_id: str,
        staging: str,
        target: str,
        *,
        block: bool,
        mount_flags: Sequence[str],
        read_only: bool,
    ) -> None: ...

    def unpublish(self, volume_id: str, target: str) -> None: ...

    def unstage(self, volume_id: str, path: str) -> None: ...


# A name need not be fit for an id.
GOES_ON = "the driver goes on with it; the same command joins it"
_NO_SUCH = frozenset({"NOT_FOUND", "INVALID_ARGUMENT"})
Connect = Callable[[str], DriverClient]


def find_volume(client: DriverClient, name_or_id: str) -> dict[str, Any]:
    """The volume with this id, or else with this name.

    Raises: CallFailed.
    """
    return _found(name_or_id, "volume", client.volume, client.volume_named)


def find_snapshot(client: DriverClient, name_or_id: str) -> dict[str, Any]:
    """The snapshot with this id, or else with this name.

    Raises: CallFailed.
    """
    return _found(name_or_id, "snapshot", client.snapshot, client.snapshot_named)


def find_group(client: DriverClient, name_or_id: str) -> dict[str, Any]:
    """The group snapshot with this id, or else with this name.

    Raises: CallFailed.
    """
    return _found(name_or_id, "group", client.group, client.group_named)


def done_of(client: DriverClient, kinds: Collection[str], *, object_id: str = "", name: str = "") -> Amount | None:
    """How far the operation of one of these kinds is on the object with this id or name; None when there is none."""
    for one in client.operations():
        if one["kind"] in kinds and (one["object_id"] == object_id or (name and one["name"] == name)):
            return one["done_bytes"], one["total_bytes"]
    return None


def _found(name_or_id: str, kind: str, *look_ups: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    for look_up in look_ups:
        try:
            return look_up(name_or_id)
        except CallFailed as failure:
            if failure.code not in _NO_SUCH:
                raise
    raise CallFailed("NOT_FOUND", f"no {kind} has the id or name {name_or_id!r}; see `hostvol {kind} list`")
