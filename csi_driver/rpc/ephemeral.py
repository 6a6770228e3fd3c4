"""A pod's volumeAttributes parsed and judged: what an inline ephemeral volume may be; knows no pool's state.

Kubelet hands them on as volume_context, with keys of its own under `csi.storage.k8s.io/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from csi_driver import quantities
from csi_driver.errors import InvalidField
from csi_driver.model import AccessType, CapacityRange, Publication, QuotaPolicy, VolumeSpec
from csi_driver.rpc import parameters

KEYS: Final = ("size", "type", "pool", "quota", "mkfsOptions")
_KUBELETS: Final = "csi.storage.k8s.io/"
_EPHEMERAL: Final = f"{_KUBELETS}ephemeral"
_POD_NAME, _POD_NAMESPACE = f"{_KUBELETS}pod.name", f"{_KUBELETS}pod.namespace"
_KUBERNETES_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# The beginnings of ids that this driver makes (and routes by).
_OWN_ID: Final = re.compile(r"(vol|snap|grp)-[0-9a-f]{16}-.*")


def is_asked(volume_context: Mapping[str, str]) -> bool:
    """Whether a publish is to make the volume. Kubelet overrides what a pod or a PV says here (podInfoOnMount)."""
    return volume_context.get(_EPHEMERAL) == "true"


def spec(handle: str, publication: Publication, volume_context: Mapping[str, str]) -> VolumeSpec:
    """The volume that a pod asks for.

    Raises: InvalidField naming the attribute.
    """
    if _OWN_ID.fullmatch(handle):
        raise InvalidField("volume_id", handle, f"a handle of the orchestrator's making where {_EPHEMERAL} is true")
    asked = publication.capability
    if asked.access_type is AccessType.BLOCK:
        raise InvalidField("volume_capability", "block", "mount: an ephemeral volume is shown as a filesystem")
    own = {key: value for key, value in volume_context.items() if not key.startswith(_KUBELETS)}
    for key in own:
        if key not in KEYS:
            raise InvalidField(f"volume_context.{key}", key, ", ".join(KEYS))
    size_bytes = _size(own.pop("size", ""))
    with as_attributes():
        values = parameters.parse(own, AccessType.MOUNT)
        fs_type = parameters.filesystem_of(values, AccessType.MOUNT, asked.fs_type)
        parameters.check_mkfs_options(values, fs_type)
        parameters.check_mount_flags(fs_type, asked, "volume_capability")
    if values.quota is QuotaPolicy.NONE:
        # Every author of a pod could fill the pool.
        raise InvalidField(
            "volume_context.quota", values.quota, "required: the size of an ephemeral volume is enforced"
        )
    return VolumeSpec(handle, CapacityRange(size_bytes), AccessType.MOUNT, fs_type, values, pod=_pod(volume_context))


@contextmanager
def as_attributes() -> Iterator[None]:
    """Word refusals of class parameters for the author of a pod, who wrote volumeAttributes."""
    try:
        yield
    except InvalidField as refused:
        field = refused.field.replace("parameters.", "volume_context.").replace(
            "volume_capabilities", "volume_capability"
        )
        raise InvalidField(field, refused.given, refused.allowed) from refused


def _size(value: str) -> int:
    """Bytes; 0, which leaves it to the default of all volumes, where nothing is said."""
    if not value:
        return 0
    try:
        return quantities.parse_bytes(value)
    except ValueError as cause:
        raise InvalidField("volume_context.size", value, str(cause)) from cause


def _pod(volume_context: Mapping[str, str]) -> str:
    """`namespace/name`, for people; empty unless both are told."""
    told = [volume_context.get(key, "") for key in (_POD_NAMESPACE, _POD_NAME)]
    return "/".join(told) if all(_KUBERNETES_NAME.fullmatch(one) for one in told) else ""
