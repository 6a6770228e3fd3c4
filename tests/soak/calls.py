"""How the state machine makes its calls: with the answers that may come, and with answers that are lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis.stateful import RuleBasedStateMachine

from csi_driver.pb import admin_pb2, csi_pb2
from tests.harness import Code, Driver, Failure
from tests.soak.volume_model import VolumeModel

# Each costs as much time as forty calls.
DISTURBANCES_PER_EXAMPLE = 2


class Calls(RuleBasedStateMachine):
    """One node with a few names, paths and targets, small enough that rules often meet the same volume."""

    driver: ClassVar[Driver]
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.volumes: dict[str, VolumeModel] = {}
        self.gone: list[str] = []
        self.disturbances = 0

    def expect(self, allowed: set[Code], method: str, request: Any = None, *, loss: str = "", **fields: Any) -> Any:
        """Make a call, the first time perhaps without hearing the answer; the answer of the last when it was OK."""
        self.counts["steps"] += 1
        if loss:
            self.lose(loss, method, request, fields)
        for attempt in range(40 if loss else 3):
            try:
                answer = self.driver.call(method, request, **fields)
            except Failure as failure:
                if failure.code is Code.ABORTED and Code.ABORTED not in allowed:
                    self.counts["aborted"] += 1
                    time.sleep(0.05 * (attempt + 1) if loss else 0.5)
                    continue
                answer, code, said = None, failure.code, str(failure)
            else:
                code, said = Code.OK, f"{method}: OK"
            assert code in allowed, f"{said}; allowed {sorted(code.name for code in allowed)}"
            self.counts[code.name] += 1
            return answer
        raise AssertionError(f"{method} is still answered ABORTED")

    def lose(self, loss: str, method: str, request: Any, fields: dict[str, Any]) -> None:
        """Make a call and do not hear its answer."""
        if request is None:
            request = _request(method, fields)
        self.abandon(loss, lambda timeout: self.driver.caller.stub(method).future(request, timeout=timeout))

    def abandon(self, loss: str, begin: Callable[[float], Any]) -> None:
        """Begin a call, which has so many seconds, and do not hear its answer."""
        if loss == "kill":
            if self.disturbances >= DISTURBANCES_PER_EXAMPLE:
                return
            self.disturbances += 1
        self.counts[f"lost by {loss}"] += 1
        if loss == "deadline":
            begin(0.002).exception()
            return
        pending = begin(60)
        threading.Event().wait((0.0005, 0.002, 0.006)[self.counts["steps"] % 3])
        if loss == "cancel":
            pending.cancel()
        else:
            self.driver.restart()

    def modelled(self, name: str) -> VolumeModel | None:
        return self.volumes.get(name)

    def id_of(self, name: str) -> str:
        """The volume's id; of one that is gone, or never was, when there is none of that name."""
        volume = self.modelled(name)
        if volume is not None:
            return volume.volume_id
        return self.gone[-1] if self.gone else "vol-nobody"

    def staging(self, path: str) -> str:
        return self.driver.staging(path)


def _request(method: str, fields: dict[str, Any]) -> Any:
    of = csi_pb2 if hasattr(csi_pb2, f"{method}Request") else admin_pb2
    return getattr(of, f"{method}Request")(**fields)
