"""The orchestrator's API (Kubernetes), the few calls that the router needs; knows no CSI and no node's stream.

Nothing is cached: whoever asks gets what is true now. Every call blocks one thread of a few; none of them is made for
a volume that is created, deleted or asked for on a node that is there.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import os
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

from csi_driver.errors import InvalidField, OrchestratorUnavailable

_ACCOUNT_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
_SECONDS = 10.0
_THREADS = 16
_PAGE = 500
# Names only: a list of a thousand whole Node objects is megabytes.
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_NODE_NAME = "authentication.kubernetes.io/node-name"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
# Where Events about objects of the cluster belong.
_EVENTS_NAMESPACE = "default"
_MESSAGE_CHARACTERS = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API is, and how we prove ourselves; the files are read again whenever they are needed."""

    url: str
    ca_file: str = ""
    token_file: str = ""

    @classmethod
    def given(cls, api_server: str, api_ca: str, api_token: str) -> Access:
        """What flags say, or else what the pod is given.

        Raises: InvalidField when there is neither.
        """
        access = cls(api_server.rstrip("/"), api_ca, api_token) if api_server else cls.in_pod()
        if access is None:
            raise InvalidField("api-server", "", "the URL of the API server; inside a pod it is known")
        return access

    @classmethod
    def in_pod(cls) -> Access | None:
        """What every pod with a service account is given; None outside of one."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            return None
        shown = f"[{host}]" if ":" in host else host
        return cls(f"https://{shown}:{port}", f"{_ACCOUNT_DIRECTORY}/ca.crt", f"{_ACCOUNT_DIRECTORY}/token")


@dataclass(frozen=True, slots=True)
class Review:
    """What the API says about a token; the empty string for what it does not say."""

    authenticated: bool
    audiences: tuple[str, ...]
    user_name: str
    node_name: str
    pod_name: str
    pod_uid: str
    error: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an Event is about. `namespace` is empty for an object of the cluster."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""

    @classmethod
    def driver(cls, name: str) -> Subject:
        return cls("storage.k8s.io/v1", "CSIDriver", name)

    @classmethod
    def node(cls, name: str) -> Subject:
        # kubelet writes the name for the uid, and what describes a node looks for that.
        return cls("v1", "Node", name, uid=name)

    @classmethod
    def claim_of(cls, volume: dict[str, Any]) -> Subject | None:
        """The claim that a PersistentVolume is bound to; None when there is none."""
        claim = volume.get("spec", {}).get("claimRef")
        if not claim:
            return None
        return cls("v1", "PersistentVolumeClaim", claim["name"], claim["namespace"], claim.get("uid", ""))


class Conflict(Exception):
    """The object was made or changed by somebody else in the meantime."""


class Orchestrator:
    """The API server, asked over connections that are kept."""

    def __init__(self, access: Access, component: str) -> None:
        """`component`: who tells Events; the driver's name."""
        self._access = access
        self._component = component
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="orchestrator")
        self._local = threading.local()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def review_token(self, token: str, audience: str) -> Review:
        """TokenReview: whose token it is, and whether it was made for `audience`.

        Raises: OrchestratorUnavailable.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        answer = await self._ask("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)
        return _review(answer.get("status", {}))

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The pod as it is now; None when there is none."""
        return await self._find(f"/api/v1/namespaces/{_quoted(namespace)}/pods/{_quoted(name)}")

    async def node_names(self) -> set[str]:
        """The names of all Node objects.

        Raises: OrchestratorUnavailable.
        """
        return {_name(node) for node in await self._list("/api/v1/nodes", _METADATA_ONLY)}

    async def expected_nodes(self, driver_name: str) -> set[str]:
        """The names of the nodes that are Ready and on which kubelet has registered the driver."""
        registered = {
            _name(node)
            for node in await self._list("/apis/storage.k8s.io/v1/csinodes")
            if any(driver.get("name") == driver_name for driver in node.get("spec", {}).get("drivers") or [])
        }
        return {_name(node) for node in await self._list("/api/v1/nodes") if _is_ready(node)} & registered

    async def secret(self, namespace: str, name: str) -> tuple[dict[str, bytes], str] | None:
        """The data of a Secret and its resourceVersion."""
        found = await self._find(f"/api/v1/namespaces/{_quoted(namespace)}/secrets/{_quoted(name)}")
        if found is None:
            return None
        data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        return data, found["metadata"]["resourceVersion"]

    async def write_secret(self, namespace: str, name: str, data: dict[str, bytes], version: str = "") -> None:
        """Create the Secret, or replace exactly `version` of it.

        Raises: Conflict when somebody was faster.
        """
        body = {"kind": "Secret", "data": {key: base64.b64encode(value).decode() for key, value in data.items()}}
        await self._write(namespace, "secrets", name, body, version)

    async def config_map(self, namespace: str, name: str) -> tuple[dict[str, str], str] | None:
        """The data of a ConfigMap and its resourceVersion."""
        found = await self._find(f"/api/v1/namespaces/{_quoted(namespace)}/configmaps/{_quoted(name)}")
        return None if found is None else (found.get("data") or {}, found["metadata"]["resourceVersion"])

    async def write_config_map(self, namespace: str, name: str, data: dict[str, str], version: str = "") -> None:
        """Create the ConfigMap, or replace exactly `version` of it.

        Raises: Conflict when somebody was faster.
        """
        await self._write(namespace, "configmaps", name, {"kind": "ConfigMap", "data": data}, version)

    async def persistent_volume(self, name: str) -> dict[str, Any] | None:
        """The PersistentVolume as it is now; None when there is none."""
        return await self._find(f"/api/v1/persistentvolumes/{_quoted(name)}")

    async def volume_handles(self, driver_name: str) -> set[str]:
        """The handles that the PersistentVolumes of the driver name."""
        sources = (volume["spec"].get("csi") or {} for volume in await self._list("/api/v1/persistentvolumes"))
        return {source["volumeHandle"] for source in sources if source.get("driver") == driver_name}

    async def tell(self, subject: Subject, reason: str, message: str) -> None:
        """An Event of the type Warning about the object, or nothing when the same stands there already.

        Its name is a digest of what it says: routers that tell the same make one Event.
        """
        event = _event(subject, self._component, reason, message)
        with suppress(Conflict):
            await self._ask("POST", f"/api/v1/namespaces/{_quoted(event['metadata']['namespace'])}/events", event)

    async def _write(self, namespace: str, plural: str, name: str, body: dict[str, Any], version: str) -> None:
        metadata = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "hostvol"}}
        collection = f"/api/v1/namespaces/{_quoted(namespace)}/{plural}"
        if version:
            metadata["resourceVersion"] = version
            await self._ask("PUT", f"{collection}/{_quoted(name)}", {"apiVersion": "v1", **body, "metadata": metadata})
        else:
            await self._ask("POST", collection, {"apiVersion": "v1", **body, "metadata": metadata})

    async def _find(self, path: str) -> dict[str, Any] | None:
        return await self._in_thread(lambda: self._exchange("GET", path, None, "application/json", missing_ok=True))

    async def _list(self, path: str, accept: str = "application/json") -> list[dict[str, Any]]:
        return await self._in_thread(lambda: self._pages(path, accept))

    async def _ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._in_thread(lambda: self._exchange(method, path, body, "application/json") or {})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _pages(self, path: str, accept: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        token = ""
        while True:
            query = urllib.parse.urlencode({"limit": _PAGE, **({"continue": token} if token else {})})
            page = self._exchange("GET", f"{path}?{query}", None, accept) or {}
            items.extend(page.get("items") or [])
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return items

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, accept: str, *, missing_ok: bool = False
    ) -> dict[str, Any] | None:
        try:
            status, text = self._once(method, path, body, accept)
        except (OSError, http.client.HTTPException) as cause:
            raise OrchestratorUnavailable(f"the API server at {self._access.url} does not answer: {cause}") from cause
        if status == HTTPStatus.NOT_FOUND and missing_ok:
            return None
        if status == HTTPStatus.CONFLICT:
            raise Conflict(path)
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise OrchestratorUnavailable(f"the API server refuses {method} {path}: {status} {_reason(text)}")
        try:
            answer: dict[str, Any] = json.loads(text)
        except ValueError as cause:
            raise OrchestratorUnavailable(f"the API server's answer to {method} {path} is no JSON") from cause
        return answer

    def _once(self, method: str, path: str, body: dict[str, Any] | None, accept: str) -> tuple[int, bytes]:
        headers = {"Accept": accept, "User-Agent": "hostvol-controller"}
        if self._access.token_file:
            with open(self._access.token_file, encoding="ascii") as file:
                headers["Authorization"] = f"Bearer {file.read().strip()}"
        payload = None if body is None else json.dumps(body).encode()
        if payload is not None:
            headers["Content-Type"] = "application/json"
        kept = getattr(self._local, "connection", None)
        if kept is not None:
            self._local.connection = None
            try:
                return self._talk(kept, method, path, payload, headers)
            except (OSError, http.client.HTTPException):
                # The server closes connections that idle; only an answer says that something was done, and what we
                # ask may be asked twice.
                kept.close()
        return self._talk(self._connect(), method, path, payload, headers)

    def _talk(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> tuple[int, bytes]:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if not response.will_close:
            self._local.connection = connection
        return response.status, text

    def _connect(self) -> http.client.HTTPConnection:
        url = urllib.parse.urlsplit(self._access.url)
        host = url.hostname or ""
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=self._access.ca_file or None)
            return http.client.HTTPSConnection(host, url.port, timeout=_SECONDS, context=context)
        return http.client.HTTPConnection(host, url.port, timeout=_SECONDS)


def _event(subject: Subject, component: str, reason: str, message: str) -> dict[str, Any]:
    namespace = subject.namespace or _EVENTS_NAMESPACE
    said = "\0".join((subject.kind, namespace, subject.name, subject.uid, reason, message))
    name = f"{component}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
    about = {"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name}
    if subject.namespace:
        about["namespace"] = subject.namespace
    if subject.uid:
        about["uid"] = subject.uid
    now = datetime.now(UTC)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about,
        "type": "Warning",
        "reason": reason,
        "action": reason,
        "message": message[:_MESSAGE_CHARACTERS],
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        # For those who show Events by the older fields.
        "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "count": 1,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": os.environ.get("HOSTNAME", "hostvol-controller")[:128],
    }


def _review(status: dict[str, Any]) -> Review:
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    return Review(
        authenticated=status.get("authenticated") is True,
        audiences=tuple(status.get("audiences") or ()),
        user_name=user.get("username", ""),
        node_name=_only(extra.get(_NODE_NAME)),
        pod_name=_only(extra.get(_POD_NAME)),
        pod_uid=_only(extra.get(_POD_UID)),
        error=status.get("error", ""),
    )


def _only(values: list[str] | None) -> str:
    """The value of an extra that has exactly one; whoever has two has none."""
    return values[0] if values and len(values) == 1 else ""


def _name(item: dict[str, Any]) -> str:
    return str(item["metadata"]["name"])


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _reason(text: bytes) -> str:
    try:
        return str(json.loads(text).get("message", ""))[:300]
    except (ValueError, AttributeError):
        return text[:200].decode(errors="replace")


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe="")
