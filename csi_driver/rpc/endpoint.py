"""The UNIX socket that the driver listens on: a stale one is replaced, a live one refused; knows no service."""

from __future__ import annotations

import os
import socket
import stat

from csi_driver.errors import InvalidField

_SCHEME = "unix://"
# sizeof(sockaddr_un.sun_path) with its final NUL, linux/un.h
_PATH_BYTES = 107
_CONNECT_SECONDS = 2.0


def socket_path(endpoint: str) -> str:
    """The absolute path in `unix:///…/csi.sock` (or a bare absolute path).

    Raises: InvalidField.
    """
    path = endpoint.removeprefix(_SCHEME) if endpoint.startswith(_SCHEME) else endpoint.removeprefix("unix:")
    if not path.startswith("/"):
        raise InvalidField("endpoint", endpoint, "unix:///absolute/path.sock")
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise InvalidField("endpoint", endpoint, f"a socket path of at most {_PATH_BYTES} bytes")
    return path


def clear_stale(path: str) -> None:
    """Nothing is at `path` afterwards.

    Raises: InvalidField when another process answers there, or when something that is no socket is there; OSError.
    """
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidField("endpoint", path, "a path at which nothing or a stale socket is; remove what is there")
    if _is_live(path):
        raise InvalidField("endpoint", path, "a socket of its own; another process is listening on this one")
    os.unlink(path)


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            # Full backlog or no answer: somebody owns it.
            return True
        return True
