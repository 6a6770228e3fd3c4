"""The rule of growing pools for the state machine, beside its model of volumes."""

from __future__ import annotations

from typing import ClassVar

import hypothesis.strategies as st
from hypothesis.stateful import invariant, rule

from tests.backing.backed import Backed
from tests.harness import GIB, MIB, Code, admin_pools
from tests.soak.calls import Calls
from tests.soak.volume_model import losses

_STEP_BYTES = 16 * MIB
# As far as the file's filesystem has room for, however many examples are run.
_MOST_BYTES = 2 * GIB


class PoolRules(Calls):
    """GrowPool on a pool in a backing file, which goes on from one example to the next, and on one without."""

    backed: ClassVar[Backed]
    backing_bytes: ClassVar[int]
    filesystem_bytes: ClassVar[int]

    @rule(
        pool=st.sampled_from(("pool1", "pool1", "pool1", "default")), steps=st.sampled_from((0, 1, 1, -1)), loss=losses
    )
    def grow_pool(self, pool: str, steps: int, loss: str) -> None:
        wanted = min(self.backing_bytes + steps * _STEP_BYTES, _MOST_BYTES)
        if pool == "default":
            self.expect({Code.FAILED_PRECONDITION}, "GrowPool", name=pool, size_bytes=wanted, loss=loss)
            return
        allowed = {Code.INVALID_ARGUMENT} if steps < 0 else {Code.OK}
        self.expect(allowed, "GrowPool", name=pool, size_bytes=wanted, loss=loss)
        if wanted > self.backing_bytes:
            self.counts["pool grown"] += 1
            type(self).filesystem_bytes += wanted - self.backing_bytes
            type(self).backing_bytes = wanted
        [told] = [row for row in admin_pools(self.driver) if row.name == pool]
        assert (told.backing_bytes, told.size_bytes) == (self.backing_bytes, self.filesystem_bytes)

    @invariant()
    def the_backing_file_is_as_large_as_the_model(self) -> None:
        assert self.backed.image.stat().st_size == self.backing_bytes
        assert self.backed.filesystem_bytes() == self.filesystem_bytes
