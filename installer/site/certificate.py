"""Whether a certificate that somebody issued will do for a Harbor, before anybody connects to it.

What is wrong with a certificate shows late and in riddles: a node that can't pull says "certificate
signed by unknown authority" whether a file was mixed up, an intermediate left out or the clock
wrong. So the files are looked at before anything is changed, and each defect becomes a sentence
that names the file, the certificate in it, and what to do. Whether a chain leads to its authority
is decided by cryptography's verifier (RFC 5280 and 6125); the checks here find the words.

Pure: bytes and the time come in, a verdict goes out.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    Extension = TypeVar("Extension", bound=x509.ExtensionType)

_SOON = timedelta(days=30)
_RSA_BITS = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_WEAK_HASHES = (hashes.MD5, hashes.SHA1)
_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_BLOCK = re.compile(
    rb"^-----BEGIN ([A-Z0-9 ]+)-----\s.*?^-----END \1-----", re.DOTALL | re.MULTILINE
)
_PKCS7 = rb"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07"
_FORMATS = (
    # How a file begins, what it is, what makes PEM of it.
    (
        re.compile(rb"\xef\xbb\xbf|\xff\xfe|\xfe\xff"),
        "text with a byte order mark, which hides the first block: save it as plain ASCII",
    ),
    (
        re.compile(rb"\x30.{1,5}\x02\x01\x03\x30.{1,5}" + _PKCS7, re.DOTALL),
        (
            "PKCS#12 (.p12, .pfx): `openssl pkcs12 -in FILE -nokeys` gives the certificates, and "
            "`-nocerts -nodes` the key"
        ),
    ),
    (
        re.compile(rb"\x30.{1,5}" + _PKCS7, re.DOTALL),
        "PKCS#7 (.p7b): `openssl pkcs7 -inform DER -in FILE -print_certs` gives the certificates",
    ),
    (
        re.compile(rb"\x30[\x80-\x84]"),
        (
            "DER, not PEM: `openssl x509 -inform DER -in FILE` gives a certificate, and `openssl "
            "pkey -inform DER -in FILE` a key"
        ),
    ),
)
_OTHERS = {
    "PRIVATE KEY": "there is a private key in it, which here would be handed out: keep it in the "
    "file of `key` only",
    "CERTIFICATE REQUEST": "it is a request (CSR): give what the authority answered to it",
    "PKCS7": "it is PKCS#7: `openssl pkcs7 -in FILE -print_certs` gives the certificates",
}
"""What a block of another kind says about a file of certificates, by the end of its label."""


@dataclass(frozen=True)
class TlsFiles:
    """What a server needs, in PEM: the chain, leaf first, and its key; ``ca`` is for clients.

    ``ca`` is empty if everybody knows the authority.
    """

    chain: bytes
    key: bytes = field(repr=False)
    ca: bytes

    @property
    def pem(self) -> bytes:
        """Chain and key in one, as HAProxy takes them; as secret as the key."""
        return self.chain.rstrip() + b"\n" + self.key.strip() + b"\n"


@dataclass(frozen=True)
class Verdict:
    """What is wrong and what will be, a sentence each; it can be used if nothing is wrong."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def examine(
    chain: bytes, key: bytes, ca: bytes, external_url: str, now: datetime, public: bytes = b""
) -> Verdict:
    """Look at the files of ``harbor.certificate.provided`` for Harbor at ``external_url``.

    Without a ``ca``, the authorities in ``public`` (PEM) count: those that this machine knows.
    """
    found = _Findings()
    certificates = _certificates("certificate", chain, found)
    half = _public_half(key, found)
    authorities = _certificates("ca", ca, found) if ca.strip() else []
    if not certificates or (ca.strip() and not authorities):
        return found.verdict()
    path = _path(certificates, half, found)
    _check_leaf(path[0], external_url, found)
    _check_each(path, "certificate", now, found)
    if authorities:
        anchors = [] if _is_root(path[0]) else _anchors(path, authorities, found)
        _check_each(anchors, "ca", now, found)
    # Where words were found, the verifier's would only repeat them.
    if not found.problems and authorities:
        _verify(path, authorities, external_url, now, found)
    elif not found.problems:
        _verify_public(path, load_certificates(public), external_url, now, found)
    return found.verdict()


def covers(names: Iterable[x509.GeneralName], host: str) -> bool:
    """Whether one of the names is for the host, a name or an address (RFC 6125).

    A wildcard stands for one whole label, the first, and never for a part of an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host)) in names
    except ValueError:
        wanted = host.lower()
    first, _, rest = wanted.partition(".")
    dns = {name.value.lower() for name in names if isinstance(name, x509.DNSName)}
    return wanted in dns or bool(first and rest and f"*.{rest}" in dns)


class _Findings:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def verdict(self) -> Verdict:
        return Verdict(tuple(dict.fromkeys(self.problems)), tuple(dict.fromkeys(self.warnings)))


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Give those certificates of a PEM file that can be read: a trust store may have others."""
    return [made for _, data in _blocks(pem) if isinstance(made := _load(data), x509.Certificate)]


def key_block(pem: bytes) -> bytes:
    """The private key of a PEM file, without the text that tools write around it."""
    return b"".join(block for label, block in _blocks(pem) if label.endswith("PRIVATE KEY"))


def _blocks(pem: bytes) -> list[tuple[str, bytes]]:
    return [(match[1].decode(), match[0] + b"\n") for match in _BLOCK.finditer(pem)]


def _load(pem: bytes) -> x509.Certificate | str:
    """A certificate whose parts can all be read, or why not."""
    try:
        with warnings.catch_warnings(action="ignore"):  # old oddities, such as a serial number of 0
            certificate = x509.load_pem_x509_certificate(pem)
            _ = certificate.public_key(), certificate.extensions, certificate.subject
            _ = certificate.issuer
    except _UNREADABLE as error:
        return str(error)
    return certificate


def _certificates(what: str, data: bytes, found: _Findings) -> list[x509.Certificate]:
    """All certificates of a PEM file, in their order; none if there is a problem with the file."""
    certificates, problems = [], []
    blocks = _read(what, data, found)
    for place, (label, block) in enumerate(blocks, 1):
        if label == "CERTIFICATE":
            made = _load(block)
            if isinstance(made, x509.Certificate):
                certificates.append(made)
            else:
                problems.append(f"{what}: block {place} is damaged ({made}): copy the file again")
        for end, words in _OTHERS.items():
            if label.endswith(end):
                problems.append(f"{what}: {words}")
    if blocks and not certificates and not problems:
        labels = ", ".join(dict.fromkeys(label for label, _ in blocks))
        problems.append(f"{what}: there is no certificate in it, only {labels}")
    found.problems += problems
    return [] if problems else certificates


def _read(what: str, data: bytes, found: _Findings) -> list[tuple[str, bytes]]:
    """Labels and text of the PEM blocks of a file; none with a problem that says what it is."""
    blocks = _blocks(data)
    for pattern, words in _FORMATS[: 1 if blocks else None]:
        if pattern.match(data):
            found.problems.append(f"{what}: it is {words}")
            return []
    if not data.strip():
        found.problems.append(f"{what}: the file is empty")
    elif not blocks and b"-----BEGIN" in data:
        found.problems.append(
            f"{what}: no block is whole: each needs a BEGIN and an END line, without anything "
            "before them: copy the file again"
        )
    elif not blocks:
        found.problems.append(
            f"{what}: it is not PEM: that has lines like `-----BEGIN CERTIFICATE-----`"
        )
    return blocks


def _public_half(data: bytes, found: _Findings) -> object | None:
    """The public half of the key; None with a problem."""
    blocks = _read("key", data, found)
    keys = [(label, block) for label, block in blocks if label.endswith("PRIVATE KEY")]
    if blocks and len(keys) != 1:
        count = "there are several private keys" if keys else "there is no private key"
        found.problems.append(f"key: {count} in it: give the one that belongs to the certificate")
    if len(keys) != 1:
        return None
    label, block = keys[0]
    if label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in block:
        found.problems.append(
            "key: it is encrypted, and a server starts without anybody who types a passphrase: "
            "`openssl pkey -in FILE -out NEW` decrypts it; let only root read NEW"
        )
        return None
    try:
        return serialization.load_pem_private_key(block, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not the library's words: nobody knows what of the key they hold.
        found.problems.append("key: it is damaged or of an unknown kind: copy the file again")
        return None


def _path(
    certificates: list[x509.Certificate], half: object | None, found: _Findings
) -> list[x509.Certificate]:
    """The certificates from the leaf upwards, as far as they go, without a root."""
    leaf = next((c for c in certificates if c.public_key() == half), None)
    if half is not None and leaf is None:
        found.problems.append(
            f"key: it does not belong to {_title(certificates[0])}: give the one that it was "
            "requested with (`openssl x509 -noout -pubkey` and `openssl pkey -pubout` print the "
            "same for a pair)"
        )
    if leaf is None:
        leaf = next((c for c in certificates if not _is_authority(c)), certificates[0])
    path, rest = [leaf], [c for c in certificates if c != leaf]
    while not _is_root(path[-1]) and (issuer := _issuer(path[-1], rest)):
        rest.remove(issuer)
        path.append(issuer)
    order = ", ".join(_title(c) for c in path)
    if certificates[0] != leaf:
        found.problems.append(
            f"certificate: the server's own, {_title(leaf)}, is not the first: write them in the "
            f"order {order}"
        )
    elif [c for c in dict.fromkeys(certificates) if c in path] != path:
        found.problems.append(
            "certificate: the order is wrong, each has to be followed by the one that issued it: "
            f"write them in the order {order}"
        )
    found.warnings += [
        f"certificate: {_title(c)} is not above {_title(leaf)}: take it out" for c in rest
    ]
    if len(path) > 1 and _is_root(path[-1]):
        found.warnings.append(
            f"certificate: the root {_title(path.pop())} is sent needlessly, clients go by the one "
            "that they have: take it out"
        )
    return path


def _check_leaf(leaf: x509.Certificate, external_url: str, found: _Findings) -> None:
    title, host = f"certificate: {_title(leaf)}", _host(external_url)
    if _is_root(leaf):
        found.problems.append(
            f"{title} is self-signed, and clients would have to trust each new one: have one "
            "issued by an authority, or write `selfSigned: {}`, which makes both"
        )
    elif _is_authority(leaf):
        found.problems.append(
            f"{title} is an authority (CA:TRUE) and no server's: have one issued for {host}"
        )
    elif leaf.subject == leaf.issuer:
        found.problems.append(
            f"{title} has the same name as its issuer, so OpenSSL takes it for self-signed: have "
            "it issued with a name of its own"
        )
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    if usage is not None and not any(purpose in usage for purpose in _SERVER):
        found.problems.append(
            f"{title} is not for servers (extendedKeyUsage without serverAuth): have one issued "
            "with it"
        )
    names = _extension(leaf, x509.SubjectAlternativeName)
    if not names:
        found.problems.append(
            f"{title} has no subjectAltName, and clients ignore the common name: have it issued "
            f"with {host} there"
        )
    elif not covers(names, host):
        kinds = (x509.DNSName, x509.IPAddress)
        values = ", ".join(repr(str(name.value)) for name in names if isinstance(name, kinds))
        found.problems.append(
            f"{title} is for {values or 'no host'}, and externalURL's host is {host}: have it "
            "issued for that, or change externalURL"
        )


def _check_each(
    certificates: Iterable[x509.Certificate], what: str, now: datetime, found: _Findings
) -> None:
    """Dates, keys and signatures of those that a client looks at."""
    clock = f"this machine's clock says {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    for certificate in certificates:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        title = f"{what}: {_title(certificate)}"
        if now < start:
            found.problems.append(
                f"{title} is not valid before {start:%Y-%m-%d %H:%M} UTC, and {clock}: is it right?"
            )
        elif now > end:
            found.problems.append(
                f"{title} ended on {end:%Y-%m-%d %H:%M} UTC, and {clock}: have it renewed, if the "
                "clock is right"
            )
        elif end - now < _SOON:
            found.warnings.append(
                f"{title} ends on {end:%Y-%m-%d %H:%M} UTC, in {(end - now).days} days: have it "
                "renewed now"
            )
        if weakness := _weakness(certificate.public_key()):
            found.problems.append(
                f"{title} has {weakness}: have one issued for RSA with {_RSA_BITS} bits or more, "
                "or for P-256"
            )
        # A root's signature is its own and tells nobody anything.
        if not _is_root(certificate) and (name := _weak_hash(certificate)):
            found.problems.append(
                f"{title} is signed with {name.upper()}, which clients refuse: have it issued "
                "again with SHA-256"
            )


def _anchors(
    path: list[x509.Certificate], authorities: list[x509.Certificate], found: _Findings
) -> list[x509.Certificate]:
    """What of ``ca`` is above the path, up to a root; what is missing there is a problem."""
    for authority in authorities:
        if not _is_authority(authority):
            found.problems.append(
                f"ca: {_title(authority)} is a server's certificate and no authority: give that of "
                f"{_text(authority.issuer)}, which issued it"
            )
    # An authority may be there twice, before and after its renewal.
    known = [a for a in authorities if _is_authority(a)]
    known.sort(key=lambda a: a.not_valid_after_utc, reverse=True)
    anchors: list[x509.Certificate] = []
    top = path[-1]
    while known and not _is_root(top):
        issuer = _issuer(top, [a for a in known if a not in path and a not in anchors])
        if issuer is None:
            found.problems.append(_missing(top, known))
            break
        anchors.append(issuer)
        top = issuer
    found.warnings += [
        f"certificate: {_title(a)} is only in ca: append it, for clients that have only the root"
        for a in anchors
        if not _is_root(a)
    ]
    return anchors


def _missing(top: x509.Certificate, known: list[x509.Certificate]) -> str:
    title, issuer = _title(top), _text(top.issuer)
    if top in known:
        return f"ca: {title} is no root, and {issuer}, which issued it, is missing: append that"
    if any(a.subject == top.issuer for a in known):
        return (
            f"ca: {issuer} has the name of what issued {title}, but another key: give the "
            "certificate of that authority that belongs to it"
        )
    return (
        f"certificate: {title} was issued by {issuer}, and ca holds "
        f"{', '.join(_title(a) for a in known)}: append the intermediate certificates between "
        f"them, or give {issuer} as ca, if it is the right authority"
    )


def _verify(
    path: list[x509.Certificate],
    authorities: list[x509.Certificate],
    external_url: str,
    now: datetime,
    found: _Findings,
) -> None:
    """Let the verifier have the last word: as every client does, then as the strict ones do."""
    roots = [a for a in authorities if _is_root(a)]
    others = [a for a in [*path[1:], *authorities] if a not in roots]
    if reason := _refusal(path[0], others, roots, external_url, now):
        found.problems.append(
            f"certificate: {_title(path[0])} can't be verified with ca: {reason}: have it issued "
            "again, or give the ca that belongs to it"
        )
    elif reason := _refusal(path[0], others, roots, external_url, now, strict=True):
        found.warnings.append(
            f"certificate: strict clients, Python 3.13 among them, may refuse {_title(path[0])}: "
            f"{reason}: have it issued as RFC 5280 wants it"
        )


def _verify_public(
    path: list[x509.Certificate],
    known: list[x509.Certificate],
    external_url: str,
    now: datetime,
    found: _Findings,
) -> None:
    reason = _refusal(path[0], path[1:], known, external_url, now) if known else "it is empty"
    if reason:
        found.warnings.append(
            f"certificate: {_title(path[0])} can't be verified with this machine's trust store "
            f"({reason}): if {_text(path[-1].issuer)} is a public intermediate, append it; if it "
            "is an authority of yours, give the root as ca; else clients and nodes refuse Harbor"
        )


def _refusal(
    leaf: x509.Certificate,
    others: list[x509.Certificate],
    roots: list[x509.Certificate],
    external_url: str,
    now: datetime,
    *,
    strict: bool = False,
) -> str:
    """Why a client would refuse, in the verifier's words; nothing if it would not."""
    host = _host(external_url)
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    builder = PolicyBuilder().store(Store(roots)).time(now)
    if not strict:
        builder = builder.extension_policies(ca_policy=_LAX_AUTHORITY, ee_policy=_LAX_LEAF)
    try:
        builder.build_server_verifier(subject).verify(leaf, others)
    except (VerificationError, ValueError) as error:
        text = str(error).removeprefix("validation failed: ").removeprefix("candidates exhausted: ")
        return text.partition(" (encountered processing")[0]
    return ""


def _must_be_authority(_: Policy, __: x509.Certificate, value: x509.BasicConstraints) -> None:
    if not value.ca:
        raise ValueError("an issuer is no authority")


def _may_sign(_: Policy, __: x509.Certificate, value: x509.KeyUsage | None) -> None:
    if value is not None and not value.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _may_serve(_: Policy, __: x509.Certificate, value: x509.ExtendedKeyUsage | None) -> None:
    if value is not None and not any(purpose in value for purpose in _SERVER):
        raise ValueError("an issuer is not for servers' certificates")


# OpenSSL and Go do without many extensions that RFC 5280 demands; what is there has to hold.
_LAX_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _must_be_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_serve)
)
_LAX_LEAF = ExtensionPolicy.permit_all().require_present(
    x509.SubjectAlternativeName, Criticality.AGNOSTIC, None
)


def _issuer(
    certificate: x509.Certificate, candidates: Iterable[x509.Certificate]
) -> x509.Certificate | None:
    named = [c for c in candidates if c.subject == certificate.issuer]
    if _weak_hash(certificate):  # the library does not compute these any more
        return next(iter(named), None)
    return next((c for c in named if _signed(certificate, c)), None)


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_root(certificate: x509.Certificate) -> bool:
    """Whether it is self-signed, not only named like its issuer."""
    return _issuer(certificate, [certificate]) is not None


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _weakness(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"an RSA key of {key.key_size} bits" if key.key_size < _RSA_BITS else ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "" if isinstance(key.curve, _CURVES) else f"a key on the curve {key.curve.name}"
    return "a key of a kind that browsers refuse"


def _weak_hash(certificate: x509.Certificate) -> str:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return ""
    return algorithm.name if isinstance(algorithm, _WEAK_HASHES) else ""


def _title(certificate: x509.Certificate) -> str:
    """What a certificate is called in a sentence; public leaves of today have no subject."""
    if certificate.subject:
        return _text(certificate.subject)
    return f"the certificate with serial number {certificate.serial_number:x}"


def _text(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    # Quoted as Python does it: nobody's name may move the cursor.
    return repr(common[0].value if common else name.rfc4514_string())


def _host(external_url: str) -> str:
    return (urlsplit(external_url).hostname or "").rstrip(".")
