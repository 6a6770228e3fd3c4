"""The admission policy says what the driver would say.

- It knows the driver's parameters, filesystems and mkfs options, and no others.
- The driver judges every class of the table as the policy must: tests/kubernetes asks an API server about the same.
- The chart's own classes are good ones, and the driver gives them what their names say.
"""

from __future__ import annotations

import ast
import re

import pytest

from csi_driver.domain.modification import require_fitting
from csi_driver.errors import InvalidField
from csi_driver.linux.filesystem import FILESYSTEMS
from csi_driver.model import AccessType, Provisioning, QuotaPolicy, RetentionPolicy, VolumeType
from csi_driver.rpc import mutable, parameters
from tests.deployment.chart import Objects
from tests.deployment.classes import ACCEPTED, ATTRIBUTES_ACCEPTED, ATTRIBUTES_REFUSED, FSTYPE, REFUSED

pytestmark = pytest.mark.usefixtures("needs_helm")


def judge(given: dict[str, str], access_type: AccessType) -> tuple[VolumeType, str]:
    """What kind of volume the driver makes of a class.

    Raises: InvalidField.
    """
    values = parameters.parse(given, access_type)
    # The provisioner makes the capability's fs_type from it, for a mounted volume.
    asked = given.get(FSTYPE, "") if access_type is AccessType.MOUNT else ""
    fs_type = parameters.filesystem_of(values, access_type, asked)
    parameters.check_mkfs_options(values, fs_type)
    return values.volume_type, fs_type


def judge_attributes(given: dict[str, str]) -> None:
    """Whether there is any volume that the driver would give what the class says.

    Raises: InvalidField.
    """
    changes = mutable.parse(given)
    refusals = []
    for volume_type in VolumeType:
        try:
            require_fitting(volume_type, changes)
        except InvalidField as refusal:
            refusals.append(refusal)
    if len(refusals) == len(VolumeType):
        raise refusals[0]


def variable(objects: Objects, name: str, of: str = "hostvol-storageclasses") -> str:
    policy = objects["ValidatingAdmissionPolicy", of]
    [found] = [one["expression"] for one in policy["spec"]["variables"] if one["name"] == name]
    return found


def choices(objects: Objects, key: str) -> list[str]:
    """The values that the policy lets a parameter have."""
    policy = objects["ValidatingAdmissionPolicy", "hostvol-storageclasses"]
    expressions = " ".join(one["expression"] for one in policy["spec"]["validations"])
    [found] = re.findall(rf"{re.escape(key)} in (\[[^]]*\])", expressions)
    return ast.literal_eval(found)


def test_the_policy_knows_the_drivers_parameters(objects: Objects) -> None:
    assert ast.literal_eval(variable(objects, "known")) == list(parameters._KEYS)


def test_the_policy_knows_what_can_change_in_a_living_volume(objects: Objects) -> None:
    known = variable(objects, "mutable", "hostvol-volumeattributesclasses")
    assert ast.literal_eval(known) == list(mutable.MUTABLE)
    # Every parameter of a class can change, or there is a reason why not.
    assert {*mutable.MUTABLE, *mutable.IMMUTABLE} == set(parameters._KEYS)


@pytest.mark.parametrize("given", ATTRIBUTES_ACCEPTED, ids=str)
def test_the_driver_takes_the_attributes_that_the_policy_must_let_pass(given: dict[str, str]) -> None:
    judge_attributes(given)


@pytest.mark.parametrize("given", [given for given, _ in ATTRIBUTES_REFUSED], ids=str)
def test_the_driver_refuses_the_attributes_that_the_policy_must_refuse(given: dict[str, str]) -> None:
    with pytest.raises(InvalidField):
        judge_attributes(given)


def test_the_policy_knows_the_drivers_choices(objects: Objects) -> None:
    assert choices(objects, "variables.kind") == list(VolumeType)
    assert choices(objects, "variables.given['provisioning']") == list(Provisioning)
    assert choices(objects, "variables.given['quota']") == list(QuotaPolicy)
    assert choices(objects, "variables.given['retentionPolicy']") == list(RetentionPolicy)
    assert choices(objects, "variables.given['blockSize']") == list(parameters._BLOCK_SIZES)
    assert choices(objects, "variables.fstype") == ["", *FILESYSTEMS]


def test_the_policy_knows_the_options_of_each_mkfs(objects: Objects) -> None:
    known = ast.literal_eval(variable(objects, "mkfs"))
    assert known == {name: list(kind.mkfs_options) for name, kind in FILESYSTEMS.items()}


@pytest.mark.parametrize("given", ACCEPTED, ids=str)
def test_the_driver_takes_what_the_policy_must_let_pass(given: dict[str, str]) -> None:
    refusals = []
    for access_type in AccessType:
        try:
            judge(given, access_type)
        except InvalidField as refusal:
            refusals.append(refusal)
    # A class for one of the two access types is a good class.
    assert len(refusals) < len(AccessType), refusals


@pytest.mark.parametrize("given", [given for given, _ in REFUSED], ids=str)
def test_the_driver_refuses_what_the_policy_must_refuse(given: dict[str, str]) -> None:
    # A raw block volume has no filesystem that could be a wrong one.
    for access_type in [AccessType.MOUNT] if FSTYPE in given else AccessType:
        with pytest.raises(InvalidField):
            judge(given, access_type)


def test_the_charts_classes_make_what_they_are_named_for(objects: Objects) -> None:
    classes = {name: one for (kind, name), one in objects.items() if kind == "StorageClass"}
    assert {name: judge(one["parameters"], AccessType.MOUNT) for name, one in classes.items()} == {
        "hostvol": (VolumeType.IMAGE, "ext4"),
        "hostvol-directory": (VolumeType.DIRECTORY, ""),
    }
    assert {one["volumeBindingMode"] for one in classes.values()} == {"WaitForFirstConsumer"}
