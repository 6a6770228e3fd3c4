"""The chart as Helm renders it: objects by kind and name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "daemonset/chart"
HELM = ROOT / ".tools/bin/helm"

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]


class Refused(Exception):
    """Helm's answer to values that it does not take."""


def helm(*arguments: str, values: Object | None = None) -> str:
    """What Helm prints.

    Raises: Refused.
    """
    command = [str(HELM), *arguments, *(["--values", "-"] if values else [])]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def render_text(values: Object | None = None, namespace: str = "hostvol-system") -> str:
    return helm("template", "hostvol", str(CHART), "--namespace", namespace, values=values)


def render(values: Object | None = None, namespace: str = "hostvol-system") -> Objects:
    """All objects; kind and name are unique but for a Role and its like in two namespaces."""
    found = [one for one in yaml.safe_load_all(render_text(values, namespace)) if one]
    objects = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(objects) == len(found)
    return objects


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]["spec"]


def container(workload: Object, name: str) -> Object:
    [found] = [one for one in pod_of(workload)["containers"] if one["name"] == name]
    return found


def strings(value: Any) -> Iterator[str]:
    """Every key and text in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value
