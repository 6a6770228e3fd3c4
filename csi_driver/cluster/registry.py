"""Which nodes are attached and what all of them hold; lives in the event loop's thread, remembers nothing on disk."""

from __future__ import annotations

import asyncio
import bisect
import logging
import time
from collections.abc import Collection, Iterable, Iterator

from csi_driver.cluster.inventory import Inventory
from csi_driver.cluster.streams import Session
from csi_driver.errors import NodeKeyTaken
from csi_driver.pb import peer_pb2

_log = logging.getLogger("hostvol.cluster")
# So long a node that went away stays in the lists: a stream that is dialled again is no loss of volumes.
_GRACE_SECONDS = 30.0


class Names:
    """Which node holds the volume of each name; more than one is a create that moved, and is reported."""

    def __init__(self) -> None:
        self._holder: dict[str, str] = {}
        self._others: dict[str, set[str]] = {}

    def holder(self, name: str) -> str:
        """The key of the node that holds the name, or nothing."""
        return self._holder.get(name, "")

    def duplicates(self) -> int:
        """How many names are held by more than one node."""
        return len(self._others)

    def duplicated(self) -> list[str]:
        """The names that are held by more than one node."""
        return list(self._others)

    def holders(self, name: str) -> set[str]:
        """The keys of all nodes that hold the name."""
        first = self._holder.get(name)
        return set() if first is None else {first, *self._others.get(name, ())}

    def add(self, name: str, key: str, volume_id: str) -> None:
        holder = self._holder.setdefault(name, key)
        if holder != key:
            self._others.setdefault(name, set()).add(key)
            _log.warning("the name %r is held by two nodes; the second holds it as %s", name, volume_id)

    def remove(self, name: str, key: str) -> None:
        others = self._others.get(name, set())
        if self._holder.get(name) == key:
            del self._holder[name]
            if others:
                self._holder[name] = others.pop()
        else:
            others.discard(key)
        if not others:
            self._others.pop(name, None)


class Registry:
    """The nodes of the cluster, by key."""

    def __init__(self) -> None:
        self.names = Names()
        self.started_at = time.monotonic()
        self._sessions: dict[str, Session] = {}
        self._inventories: dict[str, Inventory] = {}
        self._left_at: dict[str, float] = {}
        # What nodes that are away for long had told last: the ids of their volumes.
        self._absent: dict[str, list[str]] = {}
        self._ordered: list[str] = []
        self._changed = asyncio.Condition()

    async def attach(self, session: Session, inventory: Inventory) -> None:
        """The session serves its node from now on; an older one of the same node only ends what it has begun.

        Raises: NodeKeyTaken when another node has the key.
        """
        older = self._sessions.get(session.key)
        if older is not None:
            if older.node_id != session.node_id:
                raise NodeKeyTaken(session.node_id, older.node_id)
            older.retire("a newer stream of the node took over")
        self._forget(session.key)
        self._absent.pop(session.key, None)
        self._sessions[session.key] = session
        self._inventories[session.key] = inventory
        bisect.insort(self._ordered, session.key)
        for volume_id, entry in inventory.volumes.entries():
            self.names.add(entry.name, session.key, volume_id)
        async with self._changed:
            self._changed.notify_all()

    def detach(self, session: Session) -> None:
        """The session is over; what its node holds stays listed for a little. Idempotent."""
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
            self._left_at[session.key] = time.monotonic()

    def apply(self, session: Session, part: peer_pb2.Inventory) -> None:
        """The node tells a change.

        Raises: NodeRefused.
        """
        if self._sessions.get(session.key) is not session:
            return
        for name, volume_id, is_there in self._inventories[session.key].apply(part):
            if is_there:
                self.names.add(name, session.key, volume_id)
            else:
                self.names.remove(name, session.key)

    def session(self, key: str) -> Session | None:
        """The stream of the node; None when it is not attached."""
        return self._sessions.get(key)

    def sessions(self) -> Collection[Session]:
        """All attached nodes."""
        return self._sessions.values()

    def inventory(self, key: str) -> Inventory | None:
        """What the node holds, also for a little after it went away."""
        self._drop_departed()
        return self._inventories.get(key)

    def alarms(self, key: str) -> tuple[peer_pb2.Alarm, ...]:
        """What the node says an operator must know."""
        inventory = self._inventories.get(key)
        return () if inventory is None else inventory.alarms

    def inventories_from(self, key: str) -> Iterator[Inventory]:
        """The inventories of all nodes in the order of their keys, from `key` on."""
        self._drop_departed()
        for index in range(bisect.bisect_left(self._ordered, key), len(self._ordered)):
            yield self._inventories[self._ordered[index]]

    def keys_from(self, key: str) -> list[str]:
        """The keys of all nodes that are, or were, attached, in order, from `key` on."""
        self._drop_departed()
        return sorted(one for one in (*self._inventories, *self._absent) if one >= key)

    def absent_volumes(self, key: str) -> list[str]:
        """The ids of the volumes of a node that is away for long, in order; none when it is there or unknown."""
        self._drop_departed()
        return self._absent.get(key, [])

    def absent_keys(self) -> set[str]:
        """The nodes that are away for long."""
        self._drop_departed()
        return set(self._absent)

    def forget_absent(self, key: str) -> None:
        """The node does not exist any more. Idempotent."""
        self._absent.pop(key, None)

    def volumes_named(self, name: str) -> dict[str, str]:
        """The ids of all volumes that bear the name, each with its node's key."""
        return {
            volume_id: key
            for key in self.names.holders(name)
            for volume_id, entry in self._inventories[key].volumes.entries()
            if entry.name == name
        }

    def volume_ids(self) -> Iterator[str]:
        """The ids of all volumes that are known."""
        return (volume_id for one in list(self._inventories.values()) for volume_id, _ in one.volumes.entries())

    def volume_count(self) -> int:
        """All volumes that are known."""
        return sum(len(inventory.volumes) for inventory in list(self._inventories.values()))

    async def wait_for(self, keys: Iterable[str], seconds: float) -> bool:
        """Whether all these nodes are attached, at the latest after so long."""
        wanted = set(keys)
        try:
            async with asyncio.timeout(max(0.0, seconds)), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._sessions.keys())
        except TimeoutError:
            return wanted <= self._sessions.keys()
        return True

    def _drop_departed(self) -> None:
        horizon = time.monotonic() - _GRACE_SECONDS
        for key in [key for key, left_at in self._left_at.items() if left_at < horizon]:
            self._absent[key] = sorted(volume_id for volume_id, _ in self._inventories[key].volumes.entries())
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._left_at.pop(key, None)
        inventory = self._inventories.pop(key, None)
        if inventory is None:
            return
        del self._ordered[bisect.bisect_left(self._ordered, key)]
        for _, entry in inventory.volumes.entries():
            self.names.remove(entry.name, key)
