"""Signatures of images: what holds, and each thing that must not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa

from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, InvalidInput, WrongSignature
from installer.oci.cosign import (
    SIGN_PREDICATE,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING,
    SigningIdentity,
    accessory_tag,
    simple_signatures,
    verify_sigstore_bundle,
    verify_simple_signing,
)
from installer.oci.graph import OCI_CONFIG, OCI_MANIFEST, Descriptor, ImageManifest

DIGEST = Digest.of(b"the image")
OTHER = Digest.of(b"another image")
KEY = ec.generate_private_key(ec.SECP256R1())


def identity(private: Any = KEY) -> SigningIdentity:
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SigningIdentity.parse(pem, "cosign.pub")


def sign(message: bytes, private: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return private.sign(message, ec.ECDSA(hashes.SHA256()))


def simple(digest: Digest = DIGEST, kind: str = "cosign container image signature") -> bytes:
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": "quay.io/team/app"},
                "image": {"docker-manifest-digest": str(digest)},
                "type": kind,
            },
            "optional": None,
        }
    ).encode()


def statement(digest: Digest = DIGEST, predicate: str = SIGN_PREDICATE) -> bytes:
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.hex}}],
            "predicateType": predicate,
            "predicate": {},
        }
    ).encode()


def sigstore(
    payload: bytes, kind: str = "application/vnd.in-toto+json", private: Any = KEY
) -> bytes:
    encoded = b" ".join(
        [b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload]
    )
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": kind,
                "signatures": [{"sig": base64.b64encode(sign(encoded, private)).decode()}],
            },
        }
    ).encode()


def test_simple_signing() -> None:
    payload = simple()
    found = verify_simple_signing(payload, sign(payload), identity(), DIGEST)
    assert (found.digest, found.form) == (DIGEST, "simple-signing")
    assert found.identity == "quay.io/team/app"
    assert found.key_id == identity().key_id


def test_a_sigstore_bundle() -> None:
    found = verify_sigstore_bundle(sigstore(statement()), identity(), DIGEST)
    assert (found.digest, found.form, found.identity) == (DIGEST, "sigstore-bundle", "")


@pytest.mark.parametrize(
    ("payload", "signed", "message"),
    [
        (simple(), simple() + b" ", "no signature of cosign.pub"),
        (simple(OTHER), None, str(OTHER)),
        (simple(kind="atomic container signature"), None, "'atomic container signature'"),
        (b"not json", None, "no statement"),
        (b'{"critical": {"type": 1}}', None, "no statement"),
        (b"[" * 100_000, None, "no statement"),
        (b"\xff", None, "no statement"),
    ],
    ids=["bytes", "image", "type", "text", "form", "depth", "encoding"],
)
def test_simple_signing_that_must_not_hold(
    payload: bytes, signed: bytes | None, message: str
) -> None:
    with pytest.raises(WrongSignature, match=message):
        verify_simple_signing(
            payload, sign(payload if signed is None else signed), identity(), DIGEST
        )


def test_a_signature_that_is_none() -> None:
    for signature in (b"", b"\x00", sign(simple())[:-1], bytes(64)):
        with pytest.raises(WrongSignature):
            verify_simple_signing(simple(), signature, identity(), DIGEST)


@pytest.mark.parametrize(
    ("bundle", "error", "message"),
    [
        (sigstore(statement(OTHER)), WrongSignature, "another image"),
        (sigstore(statement(predicate="https://spdx.dev/Document")), WrongSignature, "spdx.dev"),
        (sigstore(statement(), kind="text/plain"), WrongSignature, "text/plain"),
        (sigstore(b"{}"), WrongSignature, "no statement"),
        (
            sigstore(statement(), private=ec.generate_private_key(ec.SECP256R1())),
            WrongSignature,
            "no signature of cosign.pub",
        ),
        (sigstore(statement()).replace(b"v0.3", b"v0.3", 1)[:-2], Corrupt, "not a Sigstore bundle"),
        (b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}', Corrupt, "DSSE"),
        (sigstore(statement()).replace(b"sigstore.bundle", b"sigstore.other"), Corrupt, "DSSE"),
    ],
    ids=["subject", "predicate", "type", "statement", "key", "cut", "empty", "media type"],
)
def test_bundles_that_must_not_hold(bundle: bytes, error: type[AirgapError], message: str) -> None:
    with pytest.raises(error, match=message):
        verify_sigstore_bundle(bundle, identity(), DIGEST)


def test_a_bundle_whose_payload_was_exchanged() -> None:
    whole = json.loads(sigstore(statement(OTHER)))
    whole["dsseEnvelope"]["payload"] = base64.b64encode(statement()).decode()
    with pytest.raises(WrongSignature, match="no signature"):
        verify_sigstore_bundle(json.dumps(whole).encode(), identity(), DIGEST)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize("own", [True, False])
def test_other_curves_with_either_hash(curve: ec.EllipticCurve, *, own: bool) -> None:
    private = ec.generate_private_key(curve)
    algorithm: hashes.HashAlgorithm = hashes.SHA256()
    if own:
        algorithm = hashes.SHA384() if curve.key_size == 384 else hashes.SHA512()
    payload = simple()
    signature = private.sign(payload, ec.ECDSA(algorithm))
    verify_simple_signing(payload, signature, identity(private), DIGEST)


def test_rsa_and_ed25519() -> None:
    payload = simple()
    rsa_key = rsa.generate_private_key(65537, 2048)
    signature = rsa_key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
    verify_simple_signing(payload, signature, identity(rsa_key), DIGEST)
    with pytest.raises(WrongSignature):
        verify_simple_signing(payload + b" ", signature, identity(rsa_key), DIGEST)
    ed_key = ed25519.Ed25519PrivateKey.generate()
    verify_simple_signing(payload, ed_key.sign(payload), identity(ed_key), DIGEST)


@pytest.mark.parametrize(
    "private",
    [dsa.generate_private_key(2048), rsa.generate_private_key(65537, 1024)],  # noqa: S505 (refused)
)
def test_keys_that_are_not_taken(private: Any) -> None:
    with pytest.raises(InvalidInput, match="not a kind of key"):
        identity(private)


def test_a_private_key_is_no_public_key() -> None:
    with pytest.raises(InvalidInput, match="not a public key"):
        SigningIdentity.parse(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "cosign.key")


def test_signatures_of_a_manifest() -> None:
    def layer(media_type: str, **annotations: str) -> Descriptor:
        return Descriptor(media_type, DIGEST, 1, annotations)

    good = {SIGNATURE_ANNOTATION: base64.b64encode(b"der").decode()}
    layers = (
        layer(SIMPLE_SIGNING, **good),
        layer(SIMPLE_SIGNING, **{SIGNATURE_ANNOTATION: "no base64!"}),
        layer(SIMPLE_SIGNING),
        layer("text/plain", **good),
    )
    config = Descriptor(OCI_CONFIG, DIGEST, 1)
    manifest = ImageManifest(OCI_MANIFEST, config, layers, None, "")
    assert [(found, der) for found, der in simple_signatures(manifest)] == [(layers[0], b"der")]


def test_tags() -> None:
    assert accessory_tag(DIGEST, ".sig") == f"sha256-{DIGEST.hex}.sig"
