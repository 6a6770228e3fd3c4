"""Memory that this process does not need any more, given back to the machine; it knows nobody's needs.

Source: malloc_trim(3) of glibc; another C library keeps what it has.
"""

from __future__ import annotations

import gc

from csi_driver.linux.libc import libc


def give_back() -> None:
    """Free what a start left behind, which the allocator would keep for a process that lives for months."""
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
