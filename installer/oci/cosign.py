"""Signatures of images as cosign writes them, checked with a public key and nothing else.

There are two forms. The older one (cosign 1 and 2, and 3 on request) is a manifest under the tag
``sha256-HEX.sig`` whose layers are *simple signing* payloads, each with its signature in an
annotation (cosign, specs/SIGNATURE_SPEC.md). The newer one (cosign 3) is a referrer with one layer,
a Sigstore bundle whose DSSE envelope holds an in-toto statement about the image's digest.

Both are checked in the same order: (1) the signature over the exact bytes, (2) only then these
bytes are parsed, (3) what they state is compared with the digest that was asked about. No clock, no
transparency log and no certificate takes part: on an isolated site none of them can be asked, and a
key that arrived out of band needs none. Everything here is pure; who reads registries and bundles
hands in bytes whose digest held.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from installer.bundle.digest import Digest
from installer.errors import Corrupt, InvalidInput, WrongSignature
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.oci.graph import Descriptor, ImageManifest

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
"""Media type of a layer that is a simple signing payload."""
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
"""Annotation of such a layer: the signature over its bytes, in base64."""
SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Artifact type and layer's media type of the newer form."""
IN_TOTO = "application/vnd.in-toto+json"
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
"""Predicate that says no more than "signed"; those of SBOMs and scans are no approval."""
TAG_SUFFIXES = (".sig", ".att", ".sbom")
"""What cosign appends to ``sha256-HEX`` for signatures, attestations and SBOMs of an image."""
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
"""More than a signature or a statement about one digest ever has."""
_PAYLOAD_TYPE = "cosign container image signature"
_BUNDLE_PREFIX = "application/vnd.dev.sigstore.bundle"
_CURVES: dict[str, tuple[hashes.HashAlgorithm, ...]] = {
    # Older cosign hashes with SHA-256 whatever the curve is, newer with the curve's own.
    "secp256r1": (hashes.SHA256(),),
    "secp384r1": (hashes.SHA384(), hashes.SHA256()),
    "secp521r1": (hashes.SHA512(), hashes.SHA256()),
}
_MIN_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """A public key that images may be signed with: ECDSA on a NIST curve, RSA or Ed25519.

    ``key_id`` is sha256 of the key's SPKI DER, in hexadecimal; ``name`` stands in errors.
    """

    key_id: str
    name: str
    _key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

    @classmethod
    def parse(cls, pem: bytes, name: str) -> SigningIdentity:
        """Read a public key in PEM form, as ``cosign.pub`` has it; raises InvalidInput."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(
                f"{name}: not a public key in PEM form",
                hint="give the cosign.pub of whoever signs, not the private key",
            ) from error
        if isinstance(key, ec.EllipticCurvePublicKey):
            known = key.curve.name in _CURVES
        elif isinstance(key, rsa.RSAPublicKey):
            known = key.key_size >= _MIN_RSA_BITS
        else:
            known = isinstance(key, ed25519.Ed25519PublicKey)
        if not known:
            raise InvalidInput(
                f"{name}: not a kind of key that signatures are checked with here",
                hint="ECDSA P-256, P-384 or P-521, RSA of at least 2048 bits, or Ed25519",
            )
        spki = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(Digest.of(spki).hex, name, key)  # type: ignore[arg-type]  # ``known`` says so

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature (DER for ECDSA, raw for the others) is over these bytes."""
        if isinstance(self._key, ec.EllipticCurvePublicKey):
            return any(
                self._held(signature, message, ec.ECDSA(algorithm))
                for algorithm in _CURVES[self._key.curve.name]
            )
        if isinstance(self._key, rsa.RSAPublicKey):
            return self._held(signature, message, padding.PKCS1v15(), hashes.SHA256())
        return self._held(signature, message)

    def _held(self, signature: bytes, message: bytes, *how: object) -> bool:
        try:
            self._key.verify(signature, message, *how)  # type: ignore[arg-type]  # each kind with its own
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """A signature that held: of which key, over which digest, in which of the two forms.

    ``identity`` is the reference that the signer named, "" where the form has none; it is told
    and never compared, as images are signed before they are mirrored.
    """

    key_id: str
    digest: Digest
    form: str
    identity: str = ""


def accessory_tag(digest: Digest, suffix: str) -> str:
    """Tag under which cosign keeps what it says of an image; ``suffix`` is ``.sig`` and so on."""
    return f"sha256-{digest.hex}{suffix}"


def simple_signatures(manifest: ImageManifest) -> Iterator[tuple[Descriptor, bytes]]:
    """Each simple signing layer of a ``.sig`` manifest with the signature over its bytes.

    A layer whose annotation is no base64 is left out: it can't hold.
    """
    for layer in manifest.layers:
        text = layer.annotations.get(SIGNATURE_ANNOTATION, "")
        if layer.media_type != SIMPLE_SIGNING or not text:
            continue
        try:
            yield layer, base64.b64decode(text, validate=True)
        except binascii.Error:
            continue


def is_sigstore_bundle(media_type: str) -> bool:
    """Whether a layer is a Sigstore bundle, of any version."""
    return media_type.startswith(_BUNDLE_PREFIX)


class _Image(msgspec.Struct):
    digest: str = msgspec.field(name="docker-manifest-digest")


class _Identity(msgspec.Struct, frozen=True):
    reference: str = msgspec.field(name="docker-reference", default="")


class _Critical(msgspec.Struct):
    image: _Image
    type: str
    identity: _Identity = _Identity()


class _SimpleSigning(msgspec.Struct):
    critical: _Critical


def verify_simple_signing(
    payload: bytes, signature: bytes, key: SigningIdentity, digest: Digest
) -> VerifiedSignature:
    """Check a simple signing payload and the signature over it, about the image ``digest``.

    Raises WrongSignature when the key's signature is not over these bytes, or when it is but they
    are about another image.
    """
    if not key.holds(signature, payload):
        raise _not_signed(key)
    try:
        critical = decode_json(payload, _SimpleSigning).critical
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _other(key, "something that is no statement about an image") from error
    if critical.type != _PAYLOAD_TYPE:
        raise _other(key, f"a {critical.type[:80]!r}")
    if critical.image.digest != str(digest):
        raise _other(key, f"the image {critical.image.digest[:80]}")
    return VerifiedSignature(
        key.key_id, digest, "simple-signing", critical.identity.reference[:300]
    )


class _EnvelopeSignature(msgspec.Struct):
    sig: bytes


class _Envelope(msgspec.Struct, rename="camel"):
    payload: bytes
    payload_type: str
    signatures: list[_EnvelopeSignature]


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    dsse_envelope: _Envelope | None = None


class _Subject(msgspec.Struct):
    digest: dict[str, str] = {}


class _Statement(msgspec.Struct, rename="camel"):
    predicate_type: str
    subject: list[_Subject] = []


def verify_sigstore_bundle(
    bundle: bytes, key: SigningIdentity, digest: Digest
) -> VerifiedSignature:
    """Check a Sigstore bundle with a DSSE envelope, about the image ``digest``.

    Raises Corrupt for what is no such bundle, WrongSignature when the key did not sign it, or
    signed something else than this image.
    """
    try:
        read = decode_json(bundle, _Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not a Sigstore bundle: {error}") from error
    envelope = read.dsse_envelope
    if not is_sigstore_bundle(read.media_type) or envelope is None:
        raise Corrupt("not a Sigstore bundle with a DSSE envelope")
    message = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    if not any(key.holds(signature.sig, message) for signature in envelope.signatures):
        raise _not_signed(key)
    if envelope.payload_type != IN_TOTO:
        raise _other(key, f"a {envelope.payload_type[:80]!r}")
    try:
        statement = decode_json(envelope.payload, _Statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _other(key, "something that is no statement about an image") from error
    if statement.predicate_type != SIGN_PREDICATE:
        raise _other(key, f"a statement of another kind ({statement.predicate_type[:120]})")
    if all(subject.digest.get("sha256") != digest.hex for subject in statement.subject):
        raise _other(key, "another image")
    return VerifiedSignature(key.key_id, digest, "sigstore-bundle")


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Bytes that a DSSE signature is over (secure-systems-lab/dsse, protocol.md, PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _not_signed(key: SigningIdentity) -> WrongSignature:
    return WrongSignature(
        f"no signature of {key.name} (key id {key.key_id[:16]}) holds",
        hint="compare the key with the one that the image's maker publishes",
    )


def _other(key: SigningIdentity, what: str) -> WrongSignature:
    return WrongSignature(
        f"what {key.name} (key id {key.key_id[:16]}) signed is about {what}",
        hint="the signature was put to an image that it does not belong to",
    )
