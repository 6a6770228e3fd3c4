"""How a call ended, as it travels between a node and the router; knows no method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """A gRPC status code with its words, and the serialized response when it is 0 (OK)."""

    code: int
    message: str = ""
    response: bytes = b""
