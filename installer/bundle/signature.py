"""Signatures over the exact bytes of ``bundle.json``, in the two forms that others can check.

Each signer has two members in the signature area: ``bundle.json.sig`` is the DER signature for
``openssl dgst -sha256 -verify``, ``bundle.json.sigstore.json`` the same signature as a Sigstore
bundle v0.3 for ``cosign verify-blob``. A second signer's have ``.2`` in their names, and so on.
The second form is a pure function of the first, so only the first is trusted and the other is
compared. ECDSA P-256 with SHA-256 is the one algorithm that both tools accept.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, header, padding
from installer.bundle.manifest import NAME
from installer.errors import Corrupt, InvalidInput, Unsigned

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGSTORE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PADDING_NAME = f"{NAME}.padding"
MAX_DER = 72
MAX_SIGNERS = 16
_MAX_SIGSTORE = 4096
_HINT = re.compile(rb'"hint":"([A-Za-z0-9+/]{43}=)"')


@dataclass(frozen=True, slots=True)
class Signature:
    """One signer's signature: ``key_id`` is sha256 of the public key's SPKI DER, in hexadecimal."""

    key_id: str
    der: bytes


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A P-256 public key that can check signatures."""

    key_id: str
    _key: ec.EllipticCurvePublicKey

    @classmethod
    def parse(cls, pem: bytes, name: str) -> PublicKey:
        """Read a PEM public key; ``name`` stands in errors. Raises InvalidInput."""
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(
                f"{name}: not a public key in PEM form",
                hint="give the release.pub that `bundler keygen` wrote, not the private key",
            ) from error
        return cls.of(key, name)

    @classmethod
    def of(cls, key: object, name: str) -> PublicKey:
        """Wrap a key of the cryptography library; raises InvalidInput for any but P-256."""
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise InvalidInput(f"{name}: not an ECDSA P-256 key")
        spki = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(Digest.of(spki).hex, key)

    def holds(self, signature: Signature, payload: bytes) -> bool:
        """Whether the signature is this key's, says so, and is over exactly these bytes."""
        if signature.key_id != self.key_id:
            return False
        try:
            self._key.verify(signature.der, payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def sigstore_bundle(signature: Signature, payload_digest: Digest) -> bytes:
    """Write the Sigstore bundle v0.3 (protobuf-specs, bundle.proto) of a key-only signature."""
    document = {
        "mediaType": SIGSTORE_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": base64.b64encode(bytes.fromhex(signature.key_id)).decode()}
        },
        "messageSignature": {
            "messageDigest": {
                "algorithm": "SHA2_256",
                "digest": base64.b64encode(bytes.fromhex(payload_digest.hex)).decode(),
            },
            "signature": base64.b64encode(signature.der).decode(),
        },
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def member_names(number: int) -> tuple[str, str]:
    """Names of the DER and the Sigstore member of signer ``number``, counted from 1."""
    middle = "" if number == 1 else f".{number}"
    return f"{NAME}{middle}.sig", f"{NAME}{middle}.sigstore.json"


def encode_area(signatures: Sequence[Signature], payload_digest: Digest, size: int) -> bytes:
    """Lay out the signature area of exactly ``size`` bytes; raises InvalidInput if it is full."""
    pieces = []
    for number, signature in enumerate(signatures, start=1):
        der_name, sigstore_name = member_names(number)
        for name, data in (
            (der_name, signature.der),
            (sigstore_name, sigstore_bundle(signature, payload_digest)),
        ):
            pieces += [header(name, len(data)), data, bytes(padding(len(data)))]
    used = sum(map(len, pieces))
    if len(signatures) > MAX_SIGNERS or used + BLOCK > size:
        raise InvalidInput(f"no room for {len(signatures)} signatures in {size} bytes")
    pieces += [header(PADDING_NAME, size - used - BLOCK), bytes(size - used - BLOCK)]
    return b"".join(pieces)


def decode_area(area: bytes, payload_digest: Digest) -> tuple[Signature, ...]:
    """Read the signature area; every byte of it must be what ``encode_area`` writes.

    Raises Unsigned when there is no signature, Corrupt for anything that does not belong there.
    """
    signatures: list[Signature] = []
    position = 0
    while len(signatures) < MAX_SIGNERS:
        der_name, sigstore_name = member_names(len(signatures) + 1)
        der, after = _member(area, position, der_name, MAX_DER)
        if der is None:
            break
        sigstore, position = _member(area, after, sigstore_name, _MAX_SIGSTORE)
        hint = _HINT.search(sigstore or b"")
        if hint is None:
            raise Corrupt(f"{sigstore_name}: missing, or without a key hint")
        _check_der(der, der_name)
        signatures.append(Signature(base64.b64decode(hint.group(1)).hex(), der))
    if not signatures:
        raise Unsigned(
            "the bundle is not signed: its first member is not bundle.json.sig",
            hint="take a bundle that `bundler build` finished",
        )
    if encode_area(signatures, payload_digest, len(area)) != area:
        raise Corrupt("the signature members differ from the signatures that they state")
    return tuple(signatures)


def _member(area: bytes, position: int, name: str, most: int) -> tuple[bytes | None, int]:
    """Read one member if it has this name and at most this size, else None."""
    block = area[position : position + BLOCK]
    try:
        size = int(block[124:135], 8)
    except ValueError:
        return None, position
    if not 0 < size <= most or block != header(name, size):
        return None, position
    start = position + BLOCK
    return area[start : start + size], start + size + padding(size)


def _check_der(der: bytes, name: str) -> None:
    """Refuse any DER but the canonical one: two encodings of one signature are two files."""
    try:
        r, s = decode_dss_signature(der)
    except ValueError as error:
        raise Corrupt(f"{name}: not a DER signature") from error
    if encode_dss_signature(r, s) != der:
        raise Corrupt(f"{name}: not in canonical DER form")
