"""A small API server on loopback: TokenReview, Nodes, CSINodes, Pods, Secrets, ConfigMaps, Events; over real HTTP.

It answers as the real one does, as far as the controller asks. What it holds is set by the tests.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

DRIVER = "csi.hostvol.dev"
NAMESPACE = "hostvol-system"
ACCOUNT = "hostvol-node"
VOLUMES = "/api/v1/persistentvolumes"


@dataclass
class Token:
    """What the API server knows of a token."""

    user_name: str
    audiences: list[str]
    extra: dict[str, list[str]]
    expires_at: float


@dataclass
class FakeApi:
    """The server and its objects."""

    nodes: dict[str, bool] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: dict[str, Token] = field(default_factory=dict)
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: bool = False

    def __post_init__(self) -> None:
        self._versions = itertools.count(1)
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(
        self,
        node: str,
        *,
        account: str = ACCOUNT,
        namespace: str = NAMESPACE,
        audience: str = DRIVER,
        seconds: float = 3600,
        extra: dict[str, list[str]] | None = None,
    ) -> str:
        """A token as kubelet projects it into a pod on `node`."""
        expires = time.time() + seconds
        parts = [{"alg": "none"}, {"exp": int(expires)}]
        text = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        token = ".".join([*text, secrets.token_hex(16)])
        known = {"authentication.kubernetes.io/node-name": [node]} if extra is None else extra
        self.tokens[token] = Token(f"system:serviceaccount:{namespace}:{account}", [audience], known, expires)
        return token

    def add_volume(self, name: str, handle: str, driver: str = DRIVER) -> None:
        """A PersistentVolume, bound to the claim `orders` in the namespace `shop`."""
        claim = {"kind": "PersistentVolumeClaim", "namespace": "shop", "name": "orders", "uid": "u-1"}
        spec = {"csi": {"driver": driver, "volumeHandle": handle}, "claimRef": claim}
        self.stored[f"{VOLUMES}/{name}"] = {"metadata": {"name": name}, "spec": spec}

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.broken:
            return 503, {"message": "broken on purpose"}
        if path.endswith("/tokenreviews"):
            return 201, {"status": self._review(body["spec"])}
        if path.endswith("/events"):
            return self._event(body)
        found = self._look(path)
        return self._store(method, path, body) if found is None else found

    def _event(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if any(event["metadata"] == body["metadata"] for event in self.events):
            return 409, {"message": "conflict"}
        self.events.append(body)
        return 201, body

    def _look(self, path: str) -> tuple[int, dict[str, Any]] | None:
        if path == "/api/v1/nodes":
            return 200, {"metadata": {}, "items": [_node(name, ready) for name, ready in self.nodes.items()]}
        if path == "/apis/storage.k8s.io/v1/csinodes":
            spec = {"drivers": [{"name": DRIVER}]}
            return 200, {"items": [{"metadata": {"name": name}, "spec": spec} for name in self.nodes]}
        if path == VOLUMES:
            return 200, {"items": [one for place, one in self.stored.items() if place.startswith(f"{VOLUMES}/")]}
        if found := re.fullmatch(r"/api/v1/namespaces/[^/]+/pods/(.+)", path):
            return (200, self.pods[found[1]]) if found[1] in self.pods else (404, {})
        return None

    def _store(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if method == "GET":
                return (200, self.stored[path]) if path in self.stored else (404, {})
            key = path if method == "PUT" else f"{path}/{body['metadata']['name']}"
            held = self.stored.get(key)
            asked = body["metadata"].get("resourceVersion")
            if (held is None) == (method == "PUT") or (held and held["metadata"]["resourceVersion"] != asked):
                return 409, {"message": "conflict"}
            body["metadata"]["resourceVersion"] = str(next(self._versions))
            self.stored[key] = body
            return 201, body

    def _review(self, spec: dict[str, Any]) -> dict[str, Any]:
        token = self.tokens.get(spec["token"])
        if token is None or token.expires_at < time.time():
            return {"authenticated": False, "error": "token has expired" if token else "unknown token"}
        audiences = [audience for audience in token.audiences if audience in spec["audiences"]]
        if not audiences:
            return {"authenticated": False, "error": "token audiences do not match"}
        user = {"username": token.user_name, "extra": token.extra}
        return {"authenticated": True, "audiences": audiences, "user": user}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = urlsplit(self.path).path
                api.requests.append(f"{self.command} {path}")
                status, answer = api._answer(self.command, path, json.loads(body or b"{}"))
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = _serve  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler


def _node(name: str, ready: bool) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return {"metadata": {"name": name}, "status": status}
