"""Callers that take snapshots and copies, one volume at a time or several at one instant."""

from __future__ import annotations

import random
from dataclasses import dataclass

from csi_driver.pb import csi_pb2
from tests.durability.callers import Caller, content, number_in, source_of
from tests.durability.load import read_number, write_number
from tests.harness import Code, Driver, Failure, Workload, create_request

_MOST = 3
_MOST_GROUPS = 2


def restored(source: Workload, name: str, snapshot_id: str) -> str:
    """A volume like the source, with what the snapshot holds."""
    of = csi_pb2.VolumeContentSource()
    of.snapshot.snapshot_id = snapshot_id
    request = create_request(
        name,
        source.size_bytes,
        parameters=source.parameters,
        volume_capabilities=[source.capability],
        volume_content_source=of,
    )
    return str(source.driver.call("CreateVolume", request).volume.volume_id)


class SnapshotCaller(Caller):
    """Takes snapshots of one volume, makes copies of them and deletes both."""

    def __init__(self, driver: Driver, kind: str, *, can_share: bool) -> None:
        super().__init__(driver, f"snapshots-{kind}")
        self.source = source_of(driver, kind, f"source-{kind}", published=can_share)
        self._can_share = can_share
        self._number = 1
        # Acknowledged: the number that was in the volume.
        self._cuts: dict[str, int] = {}
        self._copies: dict[str, int] = {}
        self._gone: set[str] = set()
        self._unsure: set[str] = set()

    def step(self, choices: random.Random, name: str) -> None:
        if self._can_share and choices.random() < 0.5:
            write_number(self.source.target(), self._number + 1)
            self._number += 1
        chance = choices.random()
        if chance < 0.45 and len(self._cuts) < _MOST:
            number = self._number
            self._told(self._cuts, self._cut(name), number)
        elif chance < 0.7 and self._cuts and len(self._copies) < _MOST:
            snapshot_id = choices.choice(sorted(self._cuts))
            self._told(self._copies, restored(self.source, name, snapshot_id), self._cuts[snapshot_id])
        elif self._cuts and chance < 0.85:
            self._take_away("DeleteSnapshot", "snapshot_id", self._cuts, choices.choice(sorted(self._cuts)))
        elif self._copies:
            self._take_away("DeleteVolume", "volume_id", self._copies, choices.choice(sorted(self._copies)))

    def _told(self, known: dict[str, int], object_id: str, number: int) -> None:
        if self.heard():
            known[object_id] = number

    def _cut(self, name: str) -> str:
        asked = {"name": name, "source_volume_id": self.source.volume_id}
        return str(self.driver.call("CreateSnapshot", **asked).snapshot.snapshot_id)

    def _take_away(self, method: str, field_name: str, known: dict[str, int], object_id: str) -> None:
        # Until it is answered nobody knows.
        del known[object_id]
        self._unsure.add(object_id)
        self.driver.call(method, **{field_name: object_id})
        if self.heard():
            self._unsure.discard(object_id)
            self._gone.add(object_id)

    def check(self) -> None:
        found = self.driver.call("ListSnapshots", source_volume_id=self.source.volume_id).entries
        snapshots = {entry.snapshot.snapshot_id for entry in found}
        volumes = {entry.volume.volume_id for entry in self.driver.call("ListVolumes").entries}
        assert set(self._cuts) <= snapshots, "an acknowledged snapshot is lost"
        assert set(self._copies) <= volumes, "an acknowledged copy is lost"
        assert not self._gone & (snapshots | volumes), "what was deleted has risen"
        for snapshot_id, number in self._cuts.items():
            copy = restored(self.source, f"check-{snapshot_id}", snapshot_id)
            assert number_in(self.driver, copy, self.source) == number
            self.driver.call("DeleteVolume", volume_id=copy)
        for volume_id, number in self._copies.items():
            assert number_in(self.driver, volume_id, self.source) == number
        for snapshot_id in snapshots - set(self._cuts):
            self.driver.call("DeleteSnapshot", snapshot_id=snapshot_id)
        self._unsure.clear()

    def volumes(self) -> set[str]:
        return {self.source.volume_id, *self._copies}

    def come_back(self) -> None:
        if self._can_share:
            self.source.stage()
            # What was written last may have come after the cut, or be down without an answer.
            self._number = read_number(self.source.publish())


@dataclass(frozen=True)
class Group:
    """One that was acknowledged: its members, and the number that was in both volumes."""

    members: frozenset[str]
    number: int


class GroupCaller(Caller):
    """Cuts a mounted volume and one that nobody uses at one instant, and deletes the groups.

    A number is written to the first volume, then to the second: all of a group has one number.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, "groups")
        self._mounted = source_of(driver, "ext4", "group-mounted", published=True)
        self._idle = source_of(driver, "block", "group-idle", published=False)
        self._number = 1
        self._groups: dict[str, Group] = {}
        self._gone: set[str] = set()
        self._asked: set[str] = set()  # names of creates without an answer
        self._leaving: set[str] = set()  # ids of deletes without one

    def step(self, choices: random.Random, name: str) -> None:
        chance = choices.random()
        if chance < 0.2:
            write_number(self._mounted.target(), self._number + 1)
            write_number(str(content(self.driver, "volumes", self._idle.volume_id)), self._number + 1)
            self._number += 1
        elif chance < 0.65 and len(self._groups) < _MOST_GROUPS:
            self._cut(name)
        elif self._groups:
            group_id = choices.choice(sorted(self._groups))
            del self._groups[group_id]
            self._leaving.add(group_id)
            self.driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=group_id)
            if self.heard():
                self._leaving.discard(group_id)
                self._gone.add(group_id)

    def _cut(self, name: str) -> None:
        self._asked.add(name)
        try:
            made = self._create(name)
        except Failure as failure:
            # Not done within the budget of the freeze, on a busy machine.
            if failure.code is not Code.FAILED_PRECONDITION:
                raise
            return
        if self.heard():
            self._asked.discard(name)
            members = frozenset(member.snapshot_id for member in made.snapshots)
            self._groups[made.group_snapshot_id] = Group(members, self._number)

    def _create(self, name: str) -> csi_pb2.VolumeGroupSnapshot:
        ids = [self._mounted.volume_id, self._idle.volume_id]
        return self.driver.call("CreateVolumeGroupSnapshot", name=name, source_volume_ids=ids).group_snapshot

    def check(self) -> None:
        groups = self._listed()
        assert all(len(members) == 2 for members in groups.values()), f"a part of a group is left: {groups}"
        known = {group_id: group.members for group_id, group in self._groups.items()}
        assert known.items() <= groups.items(), "an acknowledged group is lost"
        assert not self._gone & set(groups), "a group that was deleted has risen"
        for group in self._groups.values():
            self._check_numbers(group)
        for name in self._asked:
            # Made, or found whole; the mounted volume is idle now, so nothing is in the way.
            made = self._create(name)
            assert len(made.snapshots) == 2
            self.driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=made.group_snapshot_id)
        for group_id in self._leaving:
            self.driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=group_id)
        assert set(self._listed()) == set(self._groups)
        self._asked.clear()
        self._leaving.clear()

    def _listed(self) -> dict[str, frozenset[str]]:
        """The members of each group, as the list of snapshots has them."""
        found: dict[str, set[str]] = {}
        for entry in self.driver.call("ListSnapshots").entries:
            if entry.snapshot.source_volume_id in self.volumes():
                found.setdefault(entry.snapshot.group_snapshot_id, set()).add(entry.snapshot.snapshot_id)
        return {group_id: frozenset(members) for group_id, members in found.items()}

    def _check_numbers(self, group: Group) -> None:
        for snapshot_id in group.members:
            told = self.driver.call("GetSnapshot", snapshot_id=snapshot_id).snapshot
            if told.source_volume_id == self._idle.volume_id:
                assert read_number(str(content(self.driver, "snapshots", snapshot_id))) == group.number
            else:
                copy = restored(self._mounted, f"check-{snapshot_id}", snapshot_id)
                assert number_in(self.driver, copy, self._mounted) == group.number
                self.driver.call("DeleteVolume", volume_id=copy)

    def volumes(self) -> set[str]:
        return {self._mounted.volume_id, self._idle.volume_id}

    def come_back(self) -> None:
        self._mounted.stage()
        # What was written and fsynced last may have come after the cut.
        self._number = max(self._number, read_number(self._mounted.publish()))
        write_number(self._mounted.target(), self._number)
        write_number(str(content(self.driver, "volumes", self._idle.volume_id)), self._number)
