"""The small certificate authority that nodes trust, and the router's certificate; knows no stream and no token.

The authority is made by whichever router comes first and kept where all of them find it; each router makes a key of
its own and has it certified, in memory. An authority nears its end after years: the next one is made in its place,
and both are published until the older one is over.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from csi_driver.cluster.orchestrator import Conflict, Orchestrator
from csi_driver.errors import OrchestratorUnavailable

_log = logging.getLogger("hostvol.cluster")
_AUTHORITY_LIFE = timedelta(days=3650)
_AUTHORITY_RENEWED = timedelta(days=365)
_SERVER_LIFE = timedelta(days=30)
_SERVER_RENEWED = timedelta(days=10)
# Clocks of nodes may be behind.
_SKEW = timedelta(hours=1)
_ATTEMPTS = 5
_BEGIN = b"-----BEGIN "
_KEY, _CERTIFICATE, _PREVIOUS = "ca.key", "ca.crt", "previous.crt"


@dataclass(frozen=True, slots=True)
class Kept:
    """What an authority consists of, in PEM; `version` names exactly this state of it."""

    key: bytes
    certificate: bytes
    previous: bytes = b""
    version: str = ""

    @property
    def bundle(self) -> bytes:
        """What nodes trust."""
        return self.certificate + self.previous


class Keeper(Protocol):
    """Where the authority is kept, for all routers, and where nodes find its certificate."""

    async def load(self) -> Kept | None: ...

    async def store(self, kept: Kept, version: str) -> None:
        """Create it (`version` empty), or replace exactly that version.

        Raises: Conflict.
        """
        ...

    async def publish(self, bundle: bytes) -> None:
        """Nodes find `bundle`. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A router's key and certificate in PEM."""

    key: bytes
    certificate: bytes
    ends: datetime


class Certificates:
    """The certificate that this router shows, kept fresh by calling `refresh` from time to time."""

    def __init__(self, keeper: Keeper, names: Sequence[str]) -> None:
        self._keeper = keeper
        self._names = names
        self._authority = b""
        self.current: ServerCertificate | None = None

    async def refresh(self) -> None:
        """Afterwards there is an authority, nodes can find it, and `current` is certified by it.

        Raises: OrchestratorUnavailable, OSError.
        """
        kept = await self._ensure_authority()
        await self._keeper.publish(kept.bundle)
        current = self.current
        if current is None or self._authority != kept.certificate or current.ends - _SERVER_RENEWED < _now():
            self.current = _certify(kept, self._names)
            self._authority = kept.certificate

    async def _ensure_authority(self) -> Kept:
        for _ in range(_ATTEMPTS):
            kept = await self._keeper.load()
            if kept is not None and _ends(kept.certificate) - _AUTHORITY_RENEWED > _now():
                return kept
            fresh = _make_authority(previous=b"" if kept is None else kept.certificate)
            try:
                await self._keeper.store(fresh, "" if kept is None else kept.version)
                _log.info("a certificate authority was made")
            except Conflict:
                # Another router was faster; its authority is ours.
                continue
        raise OrchestratorUnavailable("the certificate authority changes again and again")


class SecretKeeper:
    """A Secret for the key, a ConfigMap of the same name for what nodes trust."""

    def __init__(self, orchestrator: Orchestrator, namespace: str, name: str) -> None:
        self._orchestrator = orchestrator
        self._namespace = namespace
        self._name = name

    async def load(self) -> Kept | None:
        found = await self._orchestrator.secret(self._namespace, self._name)
        if found is None:
            return None
        data, version = found
        return Kept(data[_KEY], data[_CERTIFICATE], data.get(_PREVIOUS, b""), version)

    async def store(self, kept: Kept, version: str) -> None:
        data = {_KEY: kept.key, _CERTIFICATE: kept.certificate, _PREVIOUS: kept.previous}
        await self._orchestrator.write_secret(self._namespace, self._name, data, version)

    async def publish(self, bundle: bytes) -> None:
        found = await self._orchestrator.config_map(self._namespace, self._name)
        data = {_CERTIFICATE: bundle.decode()}
        if found is not None and found[0] == data:
            return
        with suppress(Conflict):
            await self._orchestrator.write_config_map(self._namespace, self._name, data, found[1] if found else "")


class DirectoryKeeper:
    """A directory that all routers share: `authority.pem` (key, certificate, previous) and `ca.crt` for the nodes."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def load(self) -> Kept | None:
        try:
            with open(f"{self._directory}/authority.pem", "rb") as file:
                text = file.read()
        except FileNotFoundError:
            return None
        key, certificate, *previous = [_BEGIN + part for part in text.split(_BEGIN)[1:]]
        return Kept(key, certificate, b"".join(previous), version="there")

    async def store(self, kept: Kept, version: str) -> None:
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        path = f"{self._directory}/authority.pem"
        fresh = f"{path}.{os.getpid()}"
        _write(fresh, kept.key + kept.certificate + kept.previous, 0o600)
        try:
            if version:
                os.replace(fresh, path)
                return
            # A link never replaces what is there.
            os.link(fresh, path)
        except FileExistsError as cause:
            raise Conflict(path) from cause
        finally:
            with suppress(FileNotFoundError):
                os.unlink(fresh)

    async def publish(self, bundle: bytes) -> None:
        path = f"{self._directory}/{_CERTIFICATE}"
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if file.read() == bundle:
                return
        _write(f"{path}.{os.getpid()}", bundle, 0o644)
        os.replace(f"{path}.{os.getpid()}", path)


def _make_authority(previous: bytes) -> Kept:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hostvol nodes' authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _unsigned(name, name, key.public_key(), _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    still_good = previous if previous and _ends(previous) > _now() else b""
    return Kept(_key_pem(key), certificate.public_bytes(serialization.Encoding.PEM), still_good)


def _certify(kept: Kept, names: Sequence[str]) -> ServerCertificate:
    authority = x509.load_pem_x509_certificate(kept.certificate)
    authority_key = serialization.load_pem_private_key(kept.key, None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise OrchestratorUnavailable("the kept authority's key is not one that hostvol makes; remove it")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _unsigned(subject, authority.subject, key.public_key(), _SERVER_LIFE)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return ServerCertificate(
        _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM), certificate.not_valid_after_utc
    )


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _SKEW)
        .not_valid_after(_now() + life)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _ends(certificate: bytes) -> datetime:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _write(path: str, content: bytes, mode: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _now() -> datetime:
    return datetime.now(UTC)
