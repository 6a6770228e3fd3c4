"""Log lines on stderr, as text or as JSON, one per finished RPC; knows no RPC's meaning."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO CreateVolume pvc-1 OK 3.21 ms`; a cause follows in the same line."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_timestamp(record)} {record.levelname}"
        rpc = getattr(record, "rpc", None)
        if rpc is None:
            return f"{head} {one_line(super().format(record))}"
        cause = f": {one_line(rpc['cause'])}" if rpc["cause"] else ""
        return f"{head} {rpc['method']} {one_line(rpc['object'])} {rpc['code']} {rpc['milliseconds']} ms{cause}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, then `message`, or the fields of an RPC."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {"time": _timestamp(record), "level": record.levelname}
        rpc = getattr(record, "rpc", None)
        if rpc is None:
            fields["message"] = super().format(record)
        else:
            fields.update({key: value for key, value in rpc.items() if value != ""})
        return json.dumps(fields, ensure_ascii=False)


def configure(log_format: str, level: str) -> None:
    """Send everything below the logger `hostvol` to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger("hostvol")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    # Where a line was logged from is never shown, and costs a walk up the stack each time.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def one_line(text: str) -> str:
    """A caller's text can neither forge a second line nor command a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
