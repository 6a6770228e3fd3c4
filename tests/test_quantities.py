"""Sizes as Kubernetes writes them.

- Every suffix means what Kubernetes says; parts of a byte are rounded up.
- What is no such size, or no size that a volume could have, is refused.
"""

from __future__ import annotations

import pytest

from csi_driver import quantities

GOOD = {
    "1": 1,
    "1024": 1024,
    "64Mi": 64 << 20,
    "1Gi": 1 << 30,
    "1.5Gi": 3 << 29,
    "0.1Ki": 103,
    "2k": 2000,
    "2M": 2 * 10**6,
    "1G": 10**9,
    "1T": 10**12,
    "1Ti": 1 << 40,
    "7Ei": 7 << 60,
    "1e9": 10**9,
    "2E3": 2000,
    "1E": 10**18,
    "9223372036854775807": (1 << 63) - 1,
}
BAD = ["", " ", "0", "0.0Gi", "-1", "+1", "1GiB", "1KB", "1K", "1m", "1 Gi", "Gi", ".5Gi", "1.Gi", "1e", "1e999", "8Ei"]
BAD += ["9223372036854775808", "9" * 20, "1_000", "\u0661", "1Gi\n", "nan", "1e99"]


@pytest.mark.parametrize("text", GOOD)
def test_every_suffix_means_what_kubernetes_says(text: str) -> None:
    assert quantities.parse_bytes(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"64Mi|less than 8Ei"):
        quantities.parse_bytes(text)
