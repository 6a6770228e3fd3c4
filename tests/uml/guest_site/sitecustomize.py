"""Hands `without_xstate.ENVIRONMENT` on to the tools that the driver runs: they inherit no variable of the driver."""

from __future__ import annotations

import os

from csi_driver.linux import process

process.ENVIRONMENT.update({name: os.environ[name] for name in ("GLIBC_TUNABLES",) if name in os.environ})
