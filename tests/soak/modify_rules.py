"""The rule of changed parameters for the state machine, beside its model of volumes."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import invariant, rule

from tests.harness import Code, admin_volumes
from tests.soak.calls import Calls

NAMES = st.sampled_from(("red", "green", "blue", "red", "green"))
CHANGES = st.sampled_from(
    (("provisioning", "thick"), ("provisioning", "thin"), ("quota", "none"), ("quota", "required"), ("iops", "9"))
)
LOSSES = st.sampled_from(("", "", "", "", "", "deadline", "cancel", "kill"))


class ModifyRules(Calls):
    """ControllerModifyVolume on volumes whose name goes on standing for what was asked first."""

    def __init__(self) -> None:
        super().__init__()
        self.thick: set[str] = set()

    @rule(name=NAMES, change=CHANGES, loss=LOSSES)
    def modify(self, name: str, change: tuple[str, str], loss: str) -> None:
        volume, (key, value) = self.volumes.get(name), change
        allowed = {Code.NOT_FOUND} if volume is None else {modify_code(volume.kind.is_image, key, value)}
        asked = {"volume_id": self.id_of(name), "mutable_parameters": {key: value}}
        self.expect(allowed, "ControllerModifyVolume", loss=loss, **asked)
        if volume is not None and key == "provisioning" and volume.kind.is_image:
            (self.thick.add if value == "thick" else self.thick.discard)(volume.volume_id)

    @invariant()
    def volumes_are_thick_that_were_made_so(self) -> None:
        served = {one.volume_id: one.provisioning for one in admin_volumes(self.driver)}
        thick = {volume_id for volume_id, provisioning in served.items() if provisioning == "thick"}
        assert thick == {one.volume_id for one in self.volumes.values()} & self.thick


def modify_code(is_image: bool, key: str, value: str) -> Code:
    """The answer for a volume of the machine: its directories have no quota, and their pools enforce none."""
    if key != ("provisioning" if is_image else "quota"):
        return Code.INVALID_ARGUMENT
    return Code.FAILED_PRECONDITION if value == "required" else Code.OK
