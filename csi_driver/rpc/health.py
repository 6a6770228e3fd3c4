"""Metrics and health over HTTP for probes and scrapers; knows no volume.

/metrics  Prometheus text    /healthz  200 while callers can reach us    /readyz  200 once volumes are served
"""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus

from csi_driver.errors import HostvolError, InvalidField
from csi_driver.metrics import CONTENT_TYPE, Metrics

_TEXT = "text/plain; charset=utf-8"
_TIMEOUT_SECONDS = 30.0


def parse_address(address: str) -> tuple[str, int]:
    """`HOST:PORT`, `[V6]:PORT`, or `:PORT` for every address of both families, as a pair.

    Raises: InvalidField.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidField("http-address", address, "HOST:PORT, for example 127.0.0.1:9808")
    return host.strip("[]"), int(port)


class HealthServer:
    """Owner of the HTTP listener and its threads."""

    def __init__(
        self, address: str, metrics: Metrics, *, is_ready: Callable[[], bool], is_alive: Callable[[], bool]
    ) -> None:
        """Listen; serve from `start`. What is not alive is to be restarted, what is not ready to be waited for.

        Raises: InvalidField; OSError when the address cannot be bound.
        """
        host, port = parse_address(address)
        if not host and socket.has_dualstack_ipv6():
            host = "::"
        kind = _ListenerV6 if ":" in host else _Listener
        self._server = kind((host, port), _handler(metrics, is_ready, is_alive))
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that is listened on, also when 0 was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True


class _ListenerV6(_Listener):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        # Whatever the machine's default is, `::` takes IPv4 too.
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _exposition(metrics: Metrics) -> tuple[HTTPStatus, str, bytes]:
    try:
        return HTTPStatus.OK, CONTENT_TYPE, metrics.exposition()
    except (HostvolError, OSError) as cause:
        # A pool whose disk hangs or fails.
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{cause}\n".encode()


def _handler(
    metrics: Metrics, is_ready: Callable[[], bool], is_alive: Callable[[], bool]
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS
        server_version = "hostvol"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(*_exposition(metrics))
            elif path == "/healthz":
                self._tell(is_alive(), b"ok\n", b"the socket is gone\n")
            elif path == "/readyz":
                self._tell(is_ready(), b"ready\n", b"starting\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"known paths: /metrics /healthz /readyz\n")

        def _tell(self, holds: bool, yes: bytes, no: bytes) -> None:
            self._answer(HTTPStatus.OK if holds else HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, yes if holds else no)

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Scrapes are not worth a line each."""

    return Handler
