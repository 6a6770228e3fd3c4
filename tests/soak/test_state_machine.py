"""All RPCs in any order, beside a model that says what each must answer and what the machine must look like.

- Every answer is the code that the specification's tables give for the state that the volume is in; ABORTED ("still
  running") only passes: the third call is answered.
- After every step the list of volumes, the mounts (mountinfo) and the loop devices (sysfs) are those of the model,
  whether the driver was restarted, killed, killed in the middle of a call, or its reply was lost.
- A volume never becomes smaller, and is as large as it was told to be: its answers, its image, its device.
- A walk in pages meets every volume that exists all the while exactly once, whatever happens between its pages.
- What was written to a volume is read from it until it is deleted (by its pod's unpublish, if it is an ephemeral one),
  and from every volume that is made of it or of a snapshot that was taken then.

HOSTVOL_EXAMPLES says how many examples are run, HOSTVOL_STEPS how long each is, HOSTVOL_SEED lets them differ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.backing.backed import Backed
from tests.harness import Code, Driver, PoolPlace
from tests.soak.calls import DISTURBANCES_PER_EXAMPLE
from tests.soak.group_rules import GroupRules
from tests.soak.import_rules import ImportRules
from tests.soak.modify_rules import ModifyRules
from tests.soak.node_rules import NodeRules
from tests.soak.observing import assert_nothing_remains, mount_table
from tests.soak.pod_rules import PodRules
from tests.soak.pool_rules import PoolRules
from tests.soak.trash_rules import TrashRules
from tests.soak.volume_model import NAMES, SHARED_MODE, VolumeModel, kinds

EXAMPLES = int(os.environ.get("HOSTVOL_EXAMPLES", "40"))
STEPS = int(os.environ.get("HOSTVOL_STEPS", "40"))
SEED = int(os.environ.get("HOSTVOL_SEED", "0"))


class Machine(GroupRules, ImportRules, ModifyRules, NodeRules, PodRules, PoolRules, TrashRules):
    """All rules together, and what must hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.counts["examples"] += 1

    @initialize(first=kinds, second=kinds)
    def begin(self, first: str, second: str) -> None:
        """Two volumes, one published, one cut and only staged: most rules would otherwise meet nothing."""
        self.create(name="red", kind=first, size=0, mode=SHARED_MODE, loss="")
        self.create(name="green", kind=second, size=0, mode=SHARED_MODE, loss="")
        self.snapshot(name="green", cut="dawn", loss="")
        for name in ("red", "green"):
            self.stage(name=name, path="a", mode=SHARED_MODE, flags=(), loss="")
        self.publish(name="red", path="a", at="one", mode=SHARED_MODE, flags=(), readonly=False, loss="")

    # the driver

    @precondition(lambda self: self.disturbances < DISTURBANCES_PER_EXAMPLE)
    @rule(how=st.sampled_from(("stop", "kill")))
    def restart(self, how: str) -> None:
        self.disturbances += 1
        self.counts[how] += 1
        if how == "stop":
            assert self.driver.stop() == 0
            assert not self.driver.socket_path.exists()
        else:
            self.driver.kill()
        self.driver.start()

    # what must hold after every step

    @invariant()
    def the_list_is_the_models(self) -> None:
        listed = [entry.volume.volume_id for entry in self.driver.call("ListVolumes").entries]
        assert sorted(listed) == sorted(volume.volume_id for volume in self.volumes.values())

    @invariant()
    def the_images_are_as_large_as_the_models(self) -> None:
        for volume in self.volumes.values():
            if volume.kind.is_image:
                [image] = [
                    path
                    for pool in self.driver.pools
                    for path in pool.content.glob(f"volumes/{volume.volume_id}/disk.img")
                ]
                assert image.stat().st_size == volume.size_bytes

    @invariant()
    def the_mounts_are_the_models(self) -> None:
        expected: list[tuple[str, bool]] = []
        for volume in self.volumes.values():
            if volume.staged_at and not volume.kind.block:
                expected.append((volume.staged_at, False))
            expected += [(target, held.read_only) for target, held in volume.publications.items()]
        of_pods = {pod.inline.target(): pod.read_only for pod in self.pods.values()}
        expected += of_pods.items()
        assert sorted(mount_table(self.driver.home)) == sorted(expected)
        published = {target for volume in self.volumes.values() for target in volume.publications}
        left = {str(path) for path in (self.driver.home / "targets").glob("*")} - published - set(of_pods)
        assert not left, "a target was left behind"

    @invariant()
    def the_loop_devices_are_the_models(self) -> None:
        attached = [volume for volume in self.volumes.values() if volume.staged_at and volume.kind.is_image]
        assert len(self.driver.loops()) == len(attached) + len(self.pods)

    def teardown(self) -> None:
        self.drop_snapshots()
        for name in NAMES:
            volume = self.modelled(name)
            if volume is not None:
                self.drain(volume)
        for pod in list(self.pods):
            self.pod_ends(pod=pod, loss="")
        self.purge()
        assert_nothing_remains(self.driver)

    def drain(self, volume: VolumeModel) -> None:
        for target in list(volume.publications):
            self.expect({Code.OK}, "NodeUnpublishVolume", volume_id=volume.volume_id, target_path=target)
        if volume.staged_at:
            self.expect(
                {Code.OK}, "NodeUnstageVolume", volume_id=volume.volume_id, staging_target_path=volume.staged_at
            )
        self.expect({Code.OK}, "DeleteVolume", volume_id=volume.volume_id)


@pytest.mark.timeout(560)
def test_every_order_of_calls_does_what_the_model_says(
    plain: PoolPlace, backed: Backed, make_driver: Callable[..., Driver]
) -> None:
    Machine.driver = make_driver(plain, backed.place, options=[",ephemeral=64Mi"] * 2)
    Machine.backed = backed
    Machine.backing_bytes = backed.image.stat().st_size
    Machine.filesystem_bytes = backed.filesystem_bytes()
    Machine.counts.clear()
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        derandomize=not SEED,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if SEED else (Phase.generate,),
    )
    began = time.monotonic()
    try:
        run_state_machine_as_test(with_seed(SEED)(Machine) if SEED else Machine, settings=profile)
    finally:
        told = ", ".join(f"{what} {count}" for what, count in sorted(Machine.counts.items()))
        print(f"{time.monotonic() - began:.0f} s: {told}")
    if EXAMPLES >= 40:
        for what in ("import OK", "pool grown"):
            assert Machine.counts[what], f"no {what}: the rules did not test it"
