"""The authority and the router's certificate, over the years.

- What is fresh is kept; a router's certificate that nears its end is made again by the same authority.
- An authority that nears its end is replaced, and nodes trust both until the older one is over.
- Of two routers that replace it at once one wins, and both use the winner's.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

certificates = pytest.importorskip("csi_driver.cluster.certificates", reason="needs cryptography")

NAMES = ("hostvol-controller", "127.0.0.1")


def refreshed(directory: Path) -> object:
    made = certificates.Certificates(certificates.DirectoryKeeper(str(directory)), NAMES)
    asyncio.run(made.refresh())
    return made


def published(directory: Path) -> list[bytes]:
    return (directory / "ca.crt").read_bytes().split(b"-----BEGIN CERTIFICATE-----")[1:]


def test_what_is_fresh_is_kept(tmp_path: Path) -> None:
    made = refreshed(tmp_path)
    before, authority = made.current, published(tmp_path)
    asyncio.run(made.refresh())
    assert made.current is before
    refreshed(tmp_path)
    assert published(tmp_path) == authority
    assert len(authority) == 1


def test_a_certificate_that_nears_its_end_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_SERVER_LIFE", timedelta(days=5))
    made = refreshed(tmp_path)
    before, authority = made.current, published(tmp_path)
    asyncio.run(made.refresh())
    assert made.current is not before
    assert published(tmp_path) == authority


def test_an_authority_that_nears_its_end_is_replaced_and_both_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as short:
        short.setattr(certificates, "_AUTHORITY_LIFE", timedelta(days=100))
        short.setattr(certificates, "_AUTHORITY_RENEWED", timedelta(days=1))
        made = refreshed(tmp_path)
    (old,) = published(tmp_path)
    before = made.current
    asyncio.run(made.refresh())
    assert made.current is not before
    new, previous = published(tmp_path)
    assert (previous, new != old) == (old, True)
    assert refreshed(tmp_path) is not None
    assert published(tmp_path) == [new, previous]


def test_of_two_routers_one_wins(tmp_path: Path) -> None:
    keeper = certificates.DirectoryKeeper(str(tmp_path))
    both = [certificates.Certificates(keeper, NAMES) for _ in range(2)]

    async def together() -> None:
        await asyncio.gather(*(one.refresh() for one in both))

    asyncio.run(together())
    assert both[0]._authority == both[1]._authority
    assert (tmp_path / "authority.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.pem", "ca.crt"]
