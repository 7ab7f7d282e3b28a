"""A certificate authority of the site's own: made once, kept, and renewed before it ends.

P-256 like the bundle's signatures. The authority signs leaves for addresses of the site only and
its key never leaves the state folder; its certificate is public and goes to nodes and clients.
The authority is its key: a renewed certificate of it has the same name and key, so that clients
with the earlier one go on until that ends.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from installer.errors import InvalidInput, PreflightFailed
from installer.site.private import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MACHINES = timedelta(days=3650)
"""Validity of an authority, and of a leaf that only containerd and other programs in Go check."""
PEOPLE = timedelta(days=824)
"""Validity of a leaf that browsers check: Apple's refuse more than 825 days, and count the first
and the last second, also below an authority that a user added. Others take any length there."""
LEAF = "tls"
"""How the files of a leaf are called, unless the authority has several."""
_RENEW = timedelta(days=400)
"""People come by once a year, and late: what ends before the next visit is renewed at this one."""
_SKEW = timedelta(days=1)
"""Clocks at a site are not set by the network."""
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_MAX_NAME = 253


def authority_is_good(folder: Path, now: datetime) -> bool:
    """Whether the folder holds an authority that lasts."""
    certificate = _certificate(folder / "ca.crt")
    return (
        certificate is not None
        and _lasts(certificate, now)
        and _fits(_key(folder / "ca.key"), certificate)
    )


def leaf_is_good(folder: Path, hosts: Iterable[str], now: datetime, name: str = LEAF) -> bool:
    """Whether the folder holds a leaf for exactly these hosts, and both it and its issuer last."""
    authority, leaf = _certificate(folder / "ca.crt"), _certificate(folder / f"{name}.crt")
    if authority is None or leaf is None or not belong_together(folder, name):
        return False
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    wanted = set(general_names(hosts))
    return _lasts(authority, now) and _lasts(leaf, now) and set(names) == wanted


def belong_together(folder: Path, name: str = LEAF) -> bool:
    """Whether the folder's authority signed its leaf, and the leaf has its key."""
    authority, leaf = _certificate(folder / "ca.crt"), _certificate(folder / f"{name}.crt")
    if authority is None or leaf is None or not _fits(_key(folder / f"{name}.key"), leaf):
        return False
    try:
        leaf.verify_directly_issued_by(authority)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is made
        return False
    return True


def check_clock(folder: Path, now: datetime, name: str = LEAF) -> None:
    """Raise PreflightFailed if the folder has a certificate of the future.

    With such a clock anything made now would end at a time that nobody wants, and what is there
    would look worn out.
    """
    for path in (folder / "ca.crt", folder / f"{name}.crt"):
        certificate = _certificate(path)
        if certificate is not None and certificate.not_valid_before_utc > now:
            raise PreflightFailed(
                f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, "
                f"and this machine's clock says {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
                hint="set the clock; if it was wrong when the file was made, delete the file and "
                "run again",
            )


def ensure_certificates(
    folder: Path,
    subject: str,
    hosts: Iterable[str],
    now: datetime,
    *,
    validity: timedelta = MACHINES,
    name: str = LEAF,
    mutual: bool = False,
) -> None:
    """Make ``ca.crt``, ``ca.key``, ``tls.crt``, ``tls.key`` in a private folder where needed.

    ``subject`` names a new authority. The leaf is for all ``hosts``: names, wildcards of one label
    (``*.example``) and addresses. It is valid for ``validity``, but never longer than its issuer.
    ``name`` is that of its files, where one authority has several leaves; with ``mutual`` it is
    good for a client as well.

    Raises InvalidInput for what is no host, PreflightFailed as ``check_clock`` does.
    """
    hosts = tuple(hosts)
    names = general_names(hosts)
    check_clock(folder, now, name)
    issuer, issuer_key = _authority(folder, subject, now)
    if leaf_is_good(folder, hosts, now, name):
        return
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
    purposes += [ExtendedKeyUsageOID.CLIENT_AUTH] if mutual else []
    purpose = x509.ExtendedKeyUsage(purposes)
    end = min(now - _SKEW + validity, issuer.not_valid_after_utc)
    certificate = (
        _builder(_subject(hosts[0]), issuer.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(purpose, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    _write_key(folder / f"{name}.key", key)
    _write_certificate(folder / f"{name}.crt", certificate)


def general_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Give hosts as a certificate names them, each once; raises InvalidInput."""
    return list(dict.fromkeys(_name(host) for host in hosts))


def ends(folder: Path, names: Iterable[str]) -> datetime | None:
    """When the first of the folder's authority and these leaves ends; None if one is missing."""
    found = [_certificate(folder / f"{name}.crt") for name in ("ca", *names)]
    there = [certificate for certificate in found if certificate is not None]
    return min(one.not_valid_after_utc for one in there) if len(there) == len(found) else None


def _authority(
    folder: Path, subject: str, now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, key = _certificate(folder / "ca.crt"), _key(folder / "ca.key")
    name = _subject(subject)
    if certificate is not None and key is not None and _fits(key, certificate):
        if _lasts(certificate, now):
            return certificate, key
        name = certificate.subject
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(folder / "ca.key", key)
    certificate = (
        _builder(name, name, key.public_key(), now, now - _SKEW + MACHINES)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_certificate(folder / "ca.crt", certificate)
    return certificate, key


def _key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    data = read_file(path)
    try:
        key = serialization.load_pem_private_key(data, password=None) if data else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _fits(key: ec.EllipticCurvePrivateKey | None, certificate: x509.Certificate) -> bool:
    """Whether the key belongs to the certificate: a run may have ended between the two files."""
    return key is not None and key.public_key() == certificate.public_key()


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_file(path, pem)


def _write_certificate(path: Path, certificate: x509.Certificate) -> None:
    write_file(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(end)
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
        # The zone of a link-local address is of this machine only (RFC 6874).
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        name = host.lower().rstrip(".")
    labels = name.removeprefix("*.").split(".")
    good = len(name) <= _MAX_NAME and all(_LABEL.match(label) for label in labels)
    if not good or labels[-1].isdigit():
        raise InvalidInput(
            f"not a host that a certificate can name: {host[:100]!r}",
            hint="a name like harbor.example, *.harbor.example for any one label, or an IP "
            "address; other letters than ASCII in their xn-- form",
        )
    return x509.DNSName(name)


def _certificate(path: Path) -> x509.Certificate | None:
    data = read_file(path)
    try:
        certificate = x509.load_pem_x509_certificate(data) if data else None
        if certificate is not None:
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return certificate


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start <= now and end - now > _RENEW


def utc_now() -> datetime:
    """The machine's clock; a parameter everywhere else."""
    return datetime.now(UTC)
