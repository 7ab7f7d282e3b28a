"""A certificate authority of the site's own: made once, kept, and renewed before it ends.

P-256 like the bundle's signatures. The authority signs leaves for addresses of the site only and
its key never leaves the state folder; its certificate is public and goes to the nodes.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from installer.errors import Corrupt
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

_VALID = timedelta(days=3650)
_RENEW = timedelta(days=365)
"""People come by once a year: what ends before the next visit is renewed at this one."""
_SKEW = timedelta(days=1)
"""Clocks at a site are not set by the network."""


def authority_is_good(folder: Path, now: datetime) -> bool:
    """Whether the folder holds an authority that lasts."""
    certificate = _certificate(folder / "ca.crt")
    return (
        certificate is not None
        and _lasts(certificate, now)
        and _fits(folder / "ca.key", certificate)
    )


def leaf_is_good(folder: Path, host: str, now: datetime) -> bool:
    """Whether the folder holds a leaf for the host that lasts and that its authority signed."""
    authority, leaf = _certificate(folder / "ca.crt"), _certificate(folder / "tls.crt")
    if authority is None or leaf is None or not _fits(folder / "tls.key", leaf):
        return False
    try:
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is made
        return False
    return _lasts(leaf, now) and _name(host) in list(names)


def ensure_certificates(folder: Path, site: str, host: str, now: datetime) -> None:
    """Make ``ca.crt``, ``ca.key``, ``tls.crt``, ``tls.key`` in a private folder where needed."""
    if not authority_is_good(folder, now):
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject(f"seed registry of {site}")
        certificate = (
            _builder(name, name, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca", key, certificate)
    if not leaf_is_good(folder, host, now):
        authority_key = serialization.load_pem_private_key(
            (folder / "ca.key").read_bytes(), password=None
        )
        authority = _certificate(folder / "ca.crt")
        if authority is None or not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            raise Corrupt(f"{folder}: not an authority that the installer made")
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            _builder(_subject(host), authority.subject, key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(purpose, critical=False)
            .add_extension(x509.SubjectAlternativeName([_name(host)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                critical=False,
            )
            .sign(authority_key, hashes.SHA256())
        )
        _write(folder / "tls", key, certificate)


def _fits(path: Path, certificate: x509.Certificate) -> bool:
    """Whether the key belongs to the certificate: a run may have ended between the two files."""
    data = read_file(path)
    try:
        key = serialization.load_pem_private_key(data, password=None) if data else None
    except (ValueError, TypeError):
        return False
    return key is not None and key.public_key() == certificate.public_key()


def _write(stem: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(stem.with_suffix(".key"), pem)
    write_file(
        stem.with_suffix(".crt"), certificate.public_bytes(serialization.Encoding.PEM), mode=0o644
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(text: str) -> x509.Name:
    # 64 characters are the limit of a common name (RFC 5280, ub-common-name).
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(path: Path) -> x509.Certificate | None:
    data = read_file(path)
    try:
        return x509.load_pem_x509_certificate(data) if data else None
    except ValueError:
        return None


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start <= now and end - now > _RENEW


def utc_now() -> datetime:
    """The machine's clock; a parameter everywhere else."""
    return datetime.now(UTC)
