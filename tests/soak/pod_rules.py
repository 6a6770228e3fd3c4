"""The rules of inline ephemeral volumes for the state machine, as kubelet calls the node for them."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import rule

from tests.harness import Code, PodVolume
from tests.soak.calls import Calls
from tests.soak.volume_model import KINDS, PODS, PodModel, losses, pods, read, write


class PodRules(Calls):
    """Volumes that begin and end with their pod."""

    def __init__(self) -> None:
        super().__init__()
        self.pods: dict[str, PodModel] = {}

    @rule(pod=pods, readonly=st.sampled_from((False, False, True)), text=st.sampled_from(("", "pears")), loss=losses)
    def pod_begins(self, pod: str, readonly: bool, text: str, loss: str) -> None:
        inline, held = PodVolume(self.driver, pod, {"size": "8Mi", "pool": PODS[pod]}), self.pods.get(pod)
        is_other = held is not None and held.read_only != readonly
        request = inline.publish_request(readonly=readonly)
        self.expect({Code.ALREADY_EXISTS} if is_other else {Code.OK}, "NodePublishVolume", request, loss=loss)
        model = self.pods.setdefault(pod, PodModel(inline, readonly))
        assert read(inline.target(), KINDS["ext4"]) == model.written
        if text and not model.read_only:
            write(inline.target(), KINDS["ext4"], text)
            model.written = text

    @rule(pod=pods, loss=losses)
    def pod_ends(self, pod: str, loss: str) -> None:
        inline = PodVolume(self.driver, pod)
        target = inline.target()
        self.expect({Code.OK}, "NodeUnpublishVolume", volume_id=inline.handle, target_path=target, loss=loss)
        self.pods.pop(pod, None)
