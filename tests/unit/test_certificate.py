"""Each defect of a certificate that somebody issued gets its sentence; what is good gets none."""

from __future__ import annotations

import base64
import ipaddress
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from installer.deploy.cert_manager import check_api
from installer.deploy.certificates import HarborCertificate, registry_host
from installer.deploy.nodes import TellNodes, hosts_toml
from installer.deploy.trust import trust_store
from installer.errors import DeploymentFailed, InvalidInput, PreflightFailed
from installer.site.certificate import TlsFiles, Verdict, covers, examine
from installer.site.harbor import Certificate, Harbor, Provided
from installer.site.model import Cluster, Nodes, Seed, Serve, Site
from installer.site.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

NOW = datetime(2026, 11, 23, tzinfo=UTC)
URL = "https://harbor.plant.test"
PEM = serialization.Encoding.PEM
DER = serialization.Encoding.DER


@cache
def key(name: str, bits: int = 0) -> Any:
    """A key that stays the same in this run: P-256, or RSA of so many bits."""
    del name
    # Nobody else may see 1024 bits: here they are what has to be refused.
    return (
        rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())
    )


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


@dataclass(frozen=True)
class Spec:
    """What to issue: an authority, or a leaf if it has ``names``."""

    subject: str
    issuer: str
    names: tuple[str, ...] = ("harbor.plant.test",)
    ca: bool = False
    start: int = -10
    end: int = 300
    purposes: tuple[Any, ...] = (ExtendedKeyUsageOID.SERVER_AUTH,)
    key: Any = None
    issuer_key: Any = None
    bare: bool = False
    more: tuple[tuple[Any, bool], ...] = field(default=())


def issue(spec: Spec) -> x509.Certificate:
    own = spec.key or key(spec.subject)
    issuer_key = spec.issuer_key or key(spec.issuer)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(spec.subject))
        .issuer_name(name_of(spec.issuer))
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=spec.start))
        .not_valid_after(NOW + timedelta(days=spec.end))
    )
    extensions: list[tuple[Any, bool]] = list(spec.more)
    if spec.ca:
        extensions.append((x509.BasicConstraints(ca=True, path_length=None), True))
    elif spec.purposes:
        extensions.append((x509.ExtendedKeyUsage(spec.purposes), False))
    if spec.names:
        general = [san(text) for text in spec.names]
        extensions.append((x509.SubjectAlternativeName(general), not spec.subject))
    if not spec.bare:
        public = issuer_key.public_key()
        extensions += [
            (x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(public), False),
        ]
        if spec.ca:
            extensions.append((usage_of_authority(), True))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer_key, algorithm)


def usage_of_authority(*, signs: bool = True) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, crl_sign=signs, **none)


def san(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def authority(subject: str, issuer: str = "", **more: Any) -> x509.Certificate:
    return issue(Spec(subject, issuer or subject, **{"names": (), "ca": True, **more}))


def leaf(**more: Any) -> x509.Certificate:
    return issue(Spec(**{"subject": "harbor", "issuer": "Issuing CA", **more}))


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(PEM) for c in certificates)


def key_pem(private: Key, password: bytes = b"", *, old: bool = False) -> bytes:
    form = serialization.PrivateFormat
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return private.private_bytes(PEM, form.TraditionalOpenSSL if old else form.PKCS8, encryption)


def weakened(certificate: x509.Certificate, algorithm: str) -> x509.Certificate:
    """The same signed with SHA-1 or MD5, which the library does not do: only one byte differs."""
    before = bytes.fromhex("2a864886f70d01010b")
    after = before[:-1] + {"sha1": b"\x05", "md5": b"\x04"}[algorithm]
    # What is refused has to be made once.
    hashed = {"sha1": hashes.SHA1(), "md5": hashes.MD5()}[algorithm]  # noqa: S303
    inner = certificate.tbs_certificate_bytes
    changed = inner.replace(before, after)
    issuer = key(certificate.issuer.rfc4514_string().removeprefix("CN="), 2048)
    signature = issuer.sign(changed, padding.PKCS1v15(), hashed)
    der = certificate.public_bytes(DER).replace(inner, changed)
    return x509.load_der_x509_certificate(
        der.replace(before, after).replace(certificate.signature, signature)
    )


ROOT = authority("Plant Root")
MIDDLE = authority("Issuing CA", "Plant Root")
LEAF = leaf()
KEY = key_pem(key("harbor"))
GOOD: dict[str, Any] = {"chain": pem(LEAF, MIDDLE), "key": KEY, "ca": pem(ROOT)}


def look(**changes: Any) -> Verdict:
    given = GOOD | {"external_url": URL, "now": NOW} | changes
    return examine(**given)


def under_root(**more: Any) -> dict[str, Any]:
    """Files of a leaf that the root issued itself."""
    return {"chain": pem(leaf(issuer="Plant Root", **more)), "ca": pem(ROOT)}


# Good


def test_nothing_is_said_of_what_is_good() -> None:
    assert look() == Verdict((), ())


@pytest.mark.parametrize(
    "more",
    [
        {"subject": "", "key": key("harbor")},
        {"names": ("other.test", "HARBOR.plant.test")},
        {"names": ("*.plant.test",)},
        {"purposes": ()},
        {"purposes": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)},
        {"end": 31},
    ],
    ids=["no subject", "upper case", "wildcard", "no purpose", "two purposes", "31 days"],
)
def test_other_good_leaves(more: dict[str, Any]) -> None:
    assert look(**under_root(**more)) == Verdict((), ())


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://10.0.0.7:8443", "10.0.0.7"),
        ("https://[fd00::7]", "fd00::7"),
        ("https://harbor", "harbor"),
        ("https://Harbor.Plant.Test./", "harbor.plant.test"),
    ],
)
def test_other_hosts(url: str, name: str) -> None:
    assert look(**under_root(names=(name,)), external_url=url) == Verdict((), ())


@pytest.mark.parametrize(
    "private",
    [
        key_pem(key("harbor"), old=True),
        b"Bag Attributes\n    friendlyName: x\n" + KEY,
        KEY.replace(b"\n", b"\r\n"),
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + KEY,
    ],
    ids=["SEC1", "attributes", "CRLF", "parameters"],
)
def test_other_good_keys(private: bytes) -> None:
    assert look(key=private) == Verdict((), ())


def test_rsa_and_text_between() -> None:
    private = key("harbor", 2048)
    made = leaf(issuer="Plant Root", key=private)
    chain = b"subject=CN = harbor\n" + pem(made).replace(b"\n", b"\r\n") + b"\n\n"
    assert look(chain=chain, key=key_pem(private, old=True)) == Verdict((), ())


def test_a_root_may_have_signed_itself_with_sha1() -> None:
    private = key("Old Root", 2048)
    root = weakened(authority("Old Root", key=private, issuer_key=private), "sha1")
    made = leaf(issuer="Old Root", issuer_key=private)
    assert look(chain=pem(made), ca=pem(root)) == Verdict((), ())


def test_an_authority_may_be_there_before_and_after_its_renewal() -> None:
    old = authority("Plant Root", start=-900, end=-1)
    for ca in (pem(old, ROOT), pem(ROOT, old)):
        assert look(ca=ca) == Verdict((), ())


def test_without_ca_the_public_ones_count() -> None:
    assert look(ca=b"", public=pem(authority("Other"), ROOT)) == Verdict((), ())


# Wrong

CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(name_of("harbor"))
    .sign(key("harbor"), hashes.SHA256())
    .public_bytes(PEM)
)
RSA_PARENT = authority("Old CA", "Plant Root", key=key("Old CA", 2048))
PKCS12 = pkcs12.serialize_key_and_certificates(
    b"x", key("harbor"), LEAF, [MIDDLE], serialization.BestAvailableEncryption(b"secret")
)
P192 = ec.generate_private_key(ec.SECP192R1())
K256 = ec.generate_private_key(ec.SECP256K1())
ED = ed25519.Ed25519PrivateKey.generate()
SELF_SIGNED = leaf(issuer="harbor")
OTHER_ROOT = authority("Other Root")
SAME_NAME = authority("Plant Root", key=key("impostor"), issuer_key=key("impostor"))


def weak_leaf(algorithm: str) -> bytes:
    made = leaf(issuer="Old CA", issuer_key=key("Old CA", 2048))
    return pem(weakened(made, algorithm), RSA_PARENT)


def spki(private: Key) -> bytes:
    return private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    # The files
    "chain is empty": (lambda: {"chain": b" \n"}, "certificate: the file is empty"),
    "key is empty": (lambda: {"key": b""}, "key: the file is empty"),
    "chain is DER": (
        lambda: {"chain": LEAF.public_bytes(DER)},
        "certificate: it is DER, not PEM: `openssl x509 -inform DER",
    ),
    "key is DER": (
        lambda: {
            "key": key("harbor").private_bytes(
                DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        },
        "key: it is DER, not PEM",
    ),
    "ca is DER": (lambda: {"ca": ROOT.public_bytes(DER)}, "ca: it is DER, not PEM"),
    "chain is PKCS#12": (lambda: {"chain": PKCS12}, "certificate: it is PKCS#12 (.p12, .pfx)"),
    "key is PKCS#12": (lambda: {"key": PKCS12}, "key: it is PKCS#12 (.p12, .pfx)"),
    "chain is PKCS#7": (
        lambda: {"chain": pkcs7.serialize_certificates([LEAF, MIDDLE], DER)},
        "certificate: it is PKCS#7 (.p7b)",
    ),
    "chain is PKCS#7 in PEM": (
        lambda: {"chain": pkcs7.serialize_certificates([LEAF, MIDDLE], PEM)},
        "certificate: it is PKCS#7: `openssl pkcs7 -in FILE -print_certs`",
    ),
    "chain is prose": (lambda: {"chain": b"see the mail"}, "certificate: it is not PEM"),
    "chain is indented": (
        lambda: {"chain": pem(LEAF).replace(b"-----BEGIN", b"  -----BEGIN")},
        "certificate: no block is whole",
    ),
    "chain is torn": (lambda: {"chain": pem(LEAF)[:300]}, "certificate: no block is whole"),
    "chain is damaged": (
        lambda: {"chain": pem(LEAF)[:80] + pem(LEAF)[148:]},
        "certificate: block 1 is damaged",
    ),
    "chain has a byte order mark": (
        lambda: {"chain": b"\xef\xbb\xbf" + pem(LEAF, MIDDLE)},
        "certificate: it is text with a byte order mark",
    ),
    "chain is UTF-16": (
        lambda: {"chain": pem(LEAF).decode().encode("utf-16")},
        "certificate: it is text with a byte order mark",
    ),
    "chain is a request": (lambda: {"chain": CSR}, "certificate: it is a request (CSR)"),
    "chain is a public key": (
        lambda: {"chain": spki(key("harbor"))},
        "certificate: there is no certificate in it, only PUBLIC KEY",
    ),
    "chain has the key": (
        lambda: {"chain": pem(LEAF, MIDDLE) + KEY},
        "certificate: there is a private key in it",
    ),
    "ca has a key": (lambda: {"ca": pem(ROOT) + KEY}, "ca: there is a private key in it"),
    "files are swapped": (
        lambda: {"chain": KEY, "key": pem(LEAF)},
        "key: there is no private key in it",
    ),
    "key is public": (lambda: {"key": spki(key("harbor"))}, "key: there is no private key in it"),
    "key is double": (
        lambda: {"key": KEY + key_pem(key("x"))},
        "key: there are several private keys in it",
    ),
    "key is damaged": (lambda: {"key": KEY[:60] + KEY[70:]}, "key: it is damaged"),
    "key is encrypted": (
        lambda: {"key": key_pem(key("harbor"), b"secret")},
        "key: it is encrypted",
    ),
    "key is encrypted in the old way": (
        lambda: {"key": key_pem(key("harbor"), b"secret", old=True)},
        "key: it is encrypted",
    ),
    # The chain
    "key is another's": (
        lambda: {"key": key_pem(key("x"))},
        "key: it does not belong to 'harbor'",
    ),
    "leaf is not first": (
        lambda: {"chain": pem(MIDDLE, LEAF)},
        "is not the first: write them in the order 'harbor', 'Issuing CA'",
    ),
    "root first": (lambda: {"chain": pem(ROOT, MIDDLE, LEAF)}, "is not the first"),
    "order is wrong": (
        lambda: {"chain": pem(leaf(issuer="Deep CA"), MIDDLE, authority("Deep CA", "Issuing CA"))},
        "the one that issued it: write them in the order 'harbor', 'Deep CA', 'Issuing CA'",
    ),
    "intermediate is missing": (
        lambda: {"chain": pem(LEAF)},
        "'harbor' was issued by 'Issuing CA', and ca holds 'Plant Root': append the intermediate",
    ),
    "ca is another": (
        lambda: {"ca": pem(OTHER_ROOT)},
        "'Issuing CA' was issued by 'Plant Root', and ca holds 'Other Root'",
    ),
    "ca is another, root sent": (
        lambda: {"chain": pem(LEAF, MIDDLE, ROOT), "ca": pem(OTHER_ROOT)},
        "or give 'Plant Root' as ca",
    ),
    "ca has the right name only": (
        lambda: {"ca": pem(SAME_NAME)},
        "ca: 'Plant Root' has the name of what issued 'Issuing CA', but another key",
    ),
    "ca is the leaf": (
        lambda: {"ca": pem(LEAF)},
        "ca: 'harbor' is a server's certificate and no authority: give that of 'Issuing CA'",
    ),
    "ca is an intermediate": (
        lambda: {"ca": pem(MIDDLE)},
        "ca: 'Issuing CA' is no root, and 'Plant Root', which issued it, is missing",
    ),
    "ca is an intermediate that was not sent": (
        lambda: {"chain": pem(LEAF), "ca": pem(MIDDLE)},
        "ca: 'Issuing CA' is no root, and 'Plant Root', which issued it, is missing",
    ),
    "an issuer is no authority": (
        lambda: {
            "chain": pem(
                leaf(issuer="other", issuer_key=key("other")), leaf(subject="other"), MIDDLE
            )
        },
        "can't be verified with ca: ",
    ),
    "an issuer may not sign": (
        lambda: {
            "chain": pem(
                LEAF,
                authority(
                    "Issuing CA",
                    "Plant Root",
                    bare=True,
                    more=((usage_of_authority(signs=False), True),),
                ),
            )
        },
        "can't be verified with ca: ",
    ),
    "an issuer may not sign for this name": (
        lambda: {
            "chain": pem(
                LEAF,
                authority(
                    "Issuing CA",
                    "Plant Root",
                    more=((x509.NameConstraints([x509.DNSName("office.test")], None), True),),
                ),
            )
        },
        "can't be verified with ca: ",
    ),
    # The leaf
    "self-signed": (
        lambda: {"chain": pem(SELF_SIGNED), "ca": pem(SELF_SIGNED)},
        "'harbor' is self-signed",
    ),
    "self-signed without ca": (
        lambda: {"chain": pem(SELF_SIGNED), "ca": b""},
        "'harbor' is self-signed",
    ),
    "leaf is an authority": (
        lambda: under_root(ca=True),
        "'harbor' is an authority (CA:TRUE)",
    ),
    "named like its issuer": (
        lambda: {"chain": pem(leaf(subject="Plant Root", issuer="Plant Root", key=key("harbor")))},
        "has the same name as its issuer",
    ),
    "not for servers": (
        lambda: under_root(purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
        "'harbor' is not for servers (extendedKeyUsage without serverAuth)",
    ),
    "common name only": (
        lambda: under_root(names=()),
        "'harbor' has no subjectAltName, and clients ignore the common name",
    ),
    "for another host": (
        lambda: under_root(names=("registry.test", "10.0.0.7")),
        "is for 'registry.test', '10.0.0.7', and externalURL's host is harbor.plant.test",
    ),
    "wildcard of the domain itself": (
        lambda: under_root(names=("*.harbor.plant.test",)),
        "is for '*.harbor.plant.test', and externalURL's host is harbor.plant.test",
    ),
    "wildcard for two labels": (
        lambda: under_root(names=("*.test",)),
        "is for '*.test', and externalURL's host is harbor.plant.test",
    ),
    "wildcard for an address": (
        lambda: under_root(names=("*.0.0.7",)) | {"external_url": "https://10.0.0.7"},
        "is for '*.0.0.7', and externalURL's host is 10.0.0.7",
    ),
    "address as a name": (
        lambda: {
            "chain": pem(
                leaf(
                    issuer="Plant Root",
                    names=(),
                    more=((x509.SubjectAlternativeName([x509.DNSName("10.0.0.7")]), False),),
                )
            ),
            "external_url": "https://10.0.0.7",
        },
        "is for '10.0.0.7', and externalURL's host is 10.0.0.7",
    ),
    # Dates
    "leaf ended": (
        lambda: under_root(start=-400, end=-1),
        "'harbor' ended on 2026-11-22 00:00 UTC, and this machine's clock says 2026-11-23 00:00",
    ),
    "leaf is not valid yet": (
        lambda: under_root(start=2),
        "is not valid before 2026-11-25 00:00 UTC, and this machine's clock says 2026-11-23 00:00",
    ),
    "clock is at its beginning": (
        lambda: {"now": datetime(1970, 1, 1, tzinfo=UTC)},
        "this machine's clock says 1970-01-01 00:00 UTC: is it right?",
    ),
    "intermediate ended": (
        lambda: {"chain": pem(LEAF, authority("Issuing CA", "Plant Root", end=-2))},
        "certificate: 'Issuing CA' ended on 2026-11-21",
    ),
    "ca ended": (lambda: {"ca": pem(authority("Plant Root", end=-2))}, "ca: 'Plant Root' ended on"),
    # Keys and signatures
    "RSA is short": (
        lambda: under_root(key=key("harbor", 1024)) | {"key": key_pem(key("harbor", 1024))},
        "certificate: 'harbor' has an RSA key of 1024 bits",
    ),
    "authority's RSA is short": (
        lambda: {
            "chain": pem(leaf(issuer="Weak", issuer_key=key("Weak", 1024))),
            "ca": pem(authority("Weak", key=key("Weak", 1024), issuer_key=key("Weak", 1024))),
        },
        "ca: 'Weak' has an RSA key of 1024 bits",
    ),
    "curve is short": (
        lambda: under_root(key=P192) | {"key": key_pem(P192)},
        "'harbor' has a key on the curve secp192r1",
    ),
    "curve of another kind": (
        lambda: under_root(key=K256) | {"key": key_pem(K256)},
        "'harbor' has a key on the curve secp256k1",
    ),
    "Ed25519": (
        lambda: under_root(key=ED) | {"key": key_pem(ED)},
        "'harbor' has a key of a kind that browsers refuse",
    ),
    "SHA-1": (lambda: {"chain": weak_leaf("sha1")}, "'harbor' is signed with SHA1"),
    "MD5": (lambda: {"chain": weak_leaf("md5")}, "'harbor' is signed with MD5"),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_defect_is_named(defect: str) -> None:
    make, words = WRONG[defect]
    problems = look(**make()).problems
    assert any(words in problem for problem in problems), problems
    for problem in problems:
        assert problem.startswith(("certificate: ", "key: ", "ca: "))
        assert problem.count("\n") == 0


def test_each_defect_is_told_once_and_alone() -> None:
    # Two files are wrong, three certificates are of the future.
    several = {"files are swapped": 2, "clock is at its beginning": 3}
    for defect, (make, _) in WRONG.items():
        problems = look(**make()).problems
        assert len(problems) == several.get(defect, 1), (defect, problems)


def test_several_defects_are_all_told() -> None:
    made = leaf(issuer="Plant Root", names=("x.test",), end=-1, purposes=())
    problems = look(chain=pem(made), key=key_pem(key("x"))).problems
    assert len(problems) == 3


def test_a_key_never_shows() -> None:
    files = TlsFiles(pem(LEAF), KEY, pem(ROOT))
    assert "PRIVATE" not in repr(files)
    lines = [line for line in KEY.decode().splitlines() if "-----" not in line]
    for changes in ({"key": KEY[:60] + KEY[70:]}, {"key": KEY + KEY}, {"chain": KEY}):
        text = repr(look(**changes))
        assert not any(line[:20] in text for line in lines)


def test_chain_and_key_stay_two_blocks() -> None:
    files = TlsFiles(pem(LEAF, MIDDLE).rstrip(), KEY, b"")
    assert files.pem.count(b"-----\n-----BEGIN") == 2
    assert examine(files.pem[: files.pem.index(KEY[:20])], KEY, pem(ROOT), URL, NOW).problems == ()


# Soon wrong

WARNED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "leaf ends soon": (
        lambda: under_root(end=29),
        "'harbor' ends on 2026-12-22 00:00 UTC, in 29 days",
    ),
    "intermediate ends soon": (
        lambda: {"chain": pem(LEAF, authority("Issuing CA", "Plant Root", end=3))},
        "'Issuing CA' ends on 2026-11-26 00:00 UTC, in 3 days",
    ),
    "ca ends soon": (
        lambda: {"ca": pem(authority("Plant Root", end=3))},
        "ca: 'Plant Root' ends on 2026-11-26",
    ),
    "root is sent": (
        lambda: {"chain": pem(LEAF, MIDDLE, ROOT)},
        "the root 'Plant Root' is sent needlessly",
    ),
    "a stranger is sent": (
        lambda: {"chain": pem(LEAF, MIDDLE, OTHER_ROOT)},
        "'Other Root' is not above 'harbor': take it out",
    ),
    "intermediate is only in ca": (
        lambda: {"chain": pem(LEAF), "ca": pem(ROOT, MIDDLE)},
        "'Issuing CA' is only in ca: append it",
    ),
    "extensions of RFC 5280 are missing": (
        lambda: under_root(bare=True),
        "strict clients, Python 3.13 among them, may refuse 'harbor'",
    ),
    "this machine does not know the authority": (
        lambda: {"ca": b"", "public": pem(OTHER_ROOT)},
        "can't be verified with this machine's trust store",
    ),
    "this machine knows none": (
        lambda: {"ca": b"", "chain": pem(LEAF)},
        "if 'Issuing CA' is a public intermediate, append it",
    ),
}


@pytest.mark.parametrize("defect", WARNED)
def test_what_works_for_now_is_warned_of(defect: str) -> None:
    make, words = WARNED[defect]
    verdict = look(**make())
    assert verdict.problems == ()
    assert len(verdict.warnings) == 1
    assert words in verdict.warnings[0]


def test_a_name_moves_no_cursor() -> None:
    made = leaf(subject="a\x1b[2J\nb", issuer="Plant Root", key=key("harbor"), end=-1)
    (problem,) = look(chain=pem(made)).problems
    assert "\x1b" not in problem
    assert "\n" not in problem


# Properties

labels = st.text("ab*-1", min_size=1, max_size=3)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
addresses = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "::ffff:10.0.0.1"])


@settings(max_examples=300, deadline=None)
@given(st.lists(hosts | addresses, min_size=1, max_size=3), hosts | addresses)
@example(["*.b"], "a.b")
@example(["*.b"], "b")
@example(["*"], "a")
@example(["a*.b"], "ab.b")
@example(["10.0.0.1"], "::ffff:10.0.0.1")
def test_hosts_are_covered_as_the_verifier_has_it(names: list[str], host: str) -> None:
    general = [san(text) for text in names]
    made = issue(Spec("x", "Plant Root", names=tuple(names)))
    lax = ExtensionPolicy.permit_all()
    policy = lax.require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    try:
        subject = san(host)
        assert isinstance(subject, (x509.DNSName, x509.IPAddress))
        verifier = (
            PolicyBuilder()
            .store(Store([ROOT]))
            .time(NOW)
            .extension_policies(ca_policy=lax, ee_policy=policy)
            .build_server_verifier(subject)
        )
    except ValueError:  # no host that anybody can ask for
        return
    try:
        verifier.verify(made, [])
        expected = True
    except VerificationError:
        expected = False
    assert covers(general, host) == expected


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=80) | st.sampled_from([pem(LEAF), KEY, PKCS12, CSR, pem(ROOT)]),
    st.sampled_from([pem(LEAF, MIDDLE), KEY, pem(ROOT), b""]),
    st.integers(0, 2000),
    st.integers(0, 255),
)
def test_bytes_of_any_kind_get_a_verdict(head: bytes, tail: bytes, at: int, byte: int) -> None:
    data = bytearray(head + tail)
    if data:
        data[at % len(data)] = byte
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("chain", "key", "ca"):
            look(**{name: bytes(data)})


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(LEAF.public_bytes(DER)) - 1), st.integers(0, 255))
def test_a_damaged_certificate_is_never_good(at: int, byte: int) -> None:
    der = bytearray(LEAF.public_bytes(DER))
    if der[at] == byte:
        return
    der[at] = byte
    label = b"CERTIFICATE-----"
    lines = [b"-----BEGIN " + label, base64.b64encode(der), b"-----END " + label, pem(MIDDLE)]
    assert look(chain=b"\n".join(lines)).problems


# The step


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    with state.held():
        yield state


def provided(folder: Path, url: str = URL, *, own_ca: bool = False, **changes: bytes) -> Harbor:
    files = {"chain": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
    for name, file in files.items():
        (folder / file).write_bytes((GOOD | changes)[name])
    paths = [str(folder / file) for file in files.values()]
    if not changes.get("ca", b"x"):
        paths[2] = ""
    given = paths[:2] if own_ca else paths
    certificate = Certificate(provided=Provided(*given))
    return Harbor(url, ca=paths[2] if own_ca else "", certificate=certificate)


def step(harbor: Harbor, state: State) -> HarborCertificate:
    return HarborCertificate(harbor, "harbor/hub", state, "plant-7", lambda: NOW)


@pytest.mark.parametrize("own_ca", [False, True])
def test_provided_files_are_used_as_they_are(tmp_path: Path, state: State, own_ca: bool) -> None:  # noqa: FBT001 - pytest gives it by name
    made = step(provided(tmp_path, own_ca=own_ca, chain=b"text\n" + GOOD["chain"]), state)
    made.preflight()
    assert made.name == "certificate:harbor/hub"
    assert made.is_needed()
    assert made.check()
    assert made.apply() == ""
    assert made.files() == TlsFiles(GOOD["chain"], KEY, GOOD["ca"])
    assert made.ca() == GOOD["ca"]
    assert made.ca_file() == str(tmp_path / "ca.crt")
    assert made.warnings() == ()
    assert not state.path("tls").exists()


def test_provided_files_may_be_links(tmp_path: Path, state: State) -> None:
    harbor = provided(tmp_path)
    (tmp_path / "tls.key").rename(tmp_path / "tls2.key")
    (tmp_path / "tls.key").symlink_to("tls2.key")
    step(harbor, state).preflight()


def test_all_that_is_wrong_is_told_before_anything_is_changed(tmp_path: Path, state: State) -> None:
    made = step(provided(tmp_path, "https://x.test", key=key_pem(key("x"))), state)
    assert not made.check()
    for call in (made.preflight, made.apply):
        with pytest.raises(PreflightFailed) as caught:
            call()
        told = caught.value.message
        assert "release harbor/hub: harbor.certificate.provided:\n  key: it does not" in told
        assert "\n  certificate: 'harbor' is for 'harbor.plant.test', and externalURL" in told


def test_without_ca_this_machine_is_asked(tmp_path: Path, state: State) -> None:
    made = step(provided(tmp_path, ca=b""), state)
    made.preflight()
    (warning,) = made.warnings()
    assert "this machine's trust store" in warning
    assert "it is empty" not in warning
    assert made.ca() == b""
    assert made.ca_file() == trust_store()


def test_a_file_that_is_gone_or_huge_is_refused(tmp_path: Path, state: State) -> None:
    harbor = provided(tmp_path)
    with (tmp_path / "tls.crt").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(InvalidInput, match=r"tls\.crt: more than"):
        step(harbor, state).preflight()
    (tmp_path / "tls.crt").unlink()
    with pytest.raises(InvalidInput, match=r"tls\.crt: can't be read: No such file"):
        step(harbor, state).check()


@pytest.mark.parametrize("certificate", [None, Certificate(secret="mine")])
def test_a_secret_is_left_alone(state: State, certificate: Certificate | None) -> None:
    made = step(Harbor(URL, ca="/ca.pem", certificate=certificate), state)
    made.preflight()
    assert not made.is_needed()
    assert made.check()
    assert made.apply() == ""
    assert made.files() is None
    assert made.ca_file() == "/ca.pem"


# cert-manager's, as far as this machine knows it


def managed(own_ca: str = "", **section: Any) -> Harbor:
    written = {"externalURL": URL, "ca": own_ca, "certificate": {"certManager": section}}
    return msgspec.convert(written, Harbor)


def test_without_the_cluster_only_cert_managers_authority_is_known(state: State) -> None:
    made = step(managed(selfSigned={}), state)
    made.preflight()
    assert made.is_needed()
    assert made.in_cluster
    assert made.sentence == f"Wait for cert-manager's certificate for {URL}"
    assert not made.check()
    assert made.files() is None
    assert made.ca() is None
    folder = state.subfolder("tls/harbor/hub/cert-manager")
    (folder / "ca.crt").write_bytes(GOOD["ca"])
    assert made.ca() == GOOD["ca"]
    assert made.ca_file() == str(folder / "ca.crt")
    # Everybody knows it.
    (folder / "ca.crt").write_bytes(b"")
    assert made.ca() == b""
    assert made.ca_file() == trust_store()


def test_what_a_person_gives_counts_before_what_came_along(tmp_path: Path, state: State) -> None:
    (tmp_path / "ca.pem").write_bytes(b"text\n" + GOOD["ca"])
    made = step(managed(str(tmp_path / "ca.pem"), issuer={"name": "plant"}), state)
    assert made.ca() == GOOD["ca"]
    assert made.ca_file() == str(tmp_path / "ca.pem")


CRDS = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: "certificates.cert-manager.io"
"""


def test_cert_manager_has_to_be_there_or_to_come_before() -> None:
    check_api("h/h", ["v1", "cert-manager.io/v1"], [])
    check_api("h/h", ["v1"], ["kind: Service\n", CRDS])
    for earlier in ([], [CRDS.replace("certificates", "issuers")]):
        with pytest.raises(PreflightFailed, match=r"does not serve cert-manager\.io/v1") as caught:
            check_api("h/h", ["v1", "cert-manager.io/v1alpha2"], earlier)
        assert "crds: {enabled: true}" in caught.value.hint


def test_nodes_are_told_of_a_later_certificate_alone(state: State) -> None:
    site = Site(
        "site/v1", "Site", "s", Cluster("k"), Seed(serve=Serve("0.0.0.0:5000", "10.0.0.5:5000")), ()
    )
    known: list[bytes | None] = [None]
    nodes = TellNodes(
        site, state, lambda: None, harbors=[("h.test", lambda: known[0])], later="h/hub"
    )
    assert nodes.name == "nodes:h/hub"
    assert nodes.sentence == "Tell containerd of h.test: lay out files for each node"
    assert not nodes.check()
    with pytest.raises(DeploymentFailed, match=r"h\.test: there is no certificate authority"):
        nodes.apply()
    known[0] = GOOD["ca"]
    nodes.apply()
    assert nodes.check()
    (folder,) = state.path("nodes").iterdir()
    assert folder.name == "h.test"
    assert (folder / "ca.crt").read_bytes() == GOOD["ca"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Harbor.test", "harbor.test"),
        ("https://harbor.test:443/", "harbor.test"),
        ("https://harbor.test:8443", "harbor.test:8443"),
        ("https://[FD00::1]:8443", "[fd00::1]:8443"),
        ("https://[fd00::1]", "[fd00::1]"),
    ],
)
def test_the_host_is_what_stands_before_a_repository(url: str, host: str) -> None:
    assert registry_host(url) == host


# Nodes


def where(certs: str = "") -> Site:
    seed = Seed(serve=Serve("0.0.0.0:5000", "10.0.0.5:5000"))
    return Site("site/v1", "Site", "s", Cluster("k"), seed, (), nodes=Nodes(certs))


def test_nodes_are_told_of_each_harbor_with_an_authority(tmp_path: Path, state: State) -> None:
    harbors: dict[str, bytes | None] = {
        "harbor.test": None,
        "[fd00::1]:8443": b"TWO",
        "public.test": b"",
        "10.0.0.5:5000": b"NOT THE SEED'S",
    }
    certs = tmp_path / "certs.d"
    certs.mkdir()
    told = TellNodes(
        where(str(certs)),
        state,
        lambda: b"SEED",
        harbors=[(host, lambda host=host: harbors[host]) for host in harbors],  # type: ignore[misc]
    )
    assert "10.0.0.5:5000, harbor.test, [fd00::1]:8443: in" in told.sentence
    assert not told.check()
    with pytest.raises(DeploymentFailed, match=r"harbor\.test: there is no certificate authority"):
        told.apply()
    harbors["harbor.test"] = b"ONE"
    assert not told.check()
    assert told.apply() == ""
    assert told.check()
    found = {str(p.relative_to(certs)): p.read_bytes() for p in certs.glob("*/*")}
    assert {name: data for name, data in found.items() if name.endswith("ca.crt")} == {
        "10.0.0.5:5000/ca.crt": b"SEED",
        "harbor.test/ca.crt": b"ONE",
        "[fd00::1]:8443/ca.crt": b"TWO",
    }
    assert found["[fd00::1]:8443/hosts.toml"].decode() == hosts_toml(
        "[fd00::1]:8443", tls=True, ca=True
    )
    assert len(found) == 6
    harbors["harbor.test"] = b"RENEWED"
    assert not told.check()
    told.apply()
    assert (certs / "harbor.test" / "ca.crt").read_bytes() == b"RENEWED"


def test_folders_are_laid_out_for_each_host(state: State) -> None:
    told = TellNodes(where(), state, lambda: b"A", harbors=[("h.test", lambda: b"B")])
    note = told.apply()
    assert f"copy the folders {state.folder}/nodes/10.0.0.5:5000, {state.folder}/nodes/h" in note
    assert told.check()
