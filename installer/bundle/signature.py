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
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
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
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIGSTORE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PADDING_NAME = f"{NAME}.padding"
MAX_DER = 72
MAX_SIGNERS = 16
MAX_SIGNATURE_FILE = 64 * 1024
"""Bytes of a file that someone hands us as a signature."""
_MAX_SIGSTORE = 4096
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group that P-256 signs in (SP 800-186, 3.2.1.3)."""
_RAW = 64
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
                f"{name}: not a public key in PEM form", hint=_how_to_convert(pem, name)
            ) from error
        return cls.of(key, name)

    @classmethod
    def of(cls, key: object, name: str) -> PublicKey:
        """Wrap a key of the cryptography library; raises InvalidInput for any but P-256."""
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise InvalidInput(
                f"{name}: not an ECDSA P-256 key",
                hint="openssl and cosign both check no other kind: make one with `bundler keygen`",
            )
        spki = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(Digest.of(spki).hex, key)

    @property
    def pem(self) -> bytes:
        """The key as PEM, always the same text for the same key."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def holds(self, signature: Signature, payload: bytes) -> bool:
        """Whether the signature is this key's, says so, and is over exactly these bytes."""
        if signature.key_id != self.key_id:
            return False
        try:
            self._key.verify(signature.der, payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


_CONVERSIONS = (
    (b"PRIVATE KEY", "that is a private key: give the release.pub that goes with it"),
    (b"BEGIN CERTIFICATE", "take it out: openssl x509 -pubkey -noout -in {name} > release.pub"),
    (b"ecdsa-sha2-", "convert it: ssh-keygen -e -m PKCS8 -f {name} > release.pub"),
    (b"\x30", "convert it: openssl pkey -pubin -inform DER -in {name} -out release.pub"),
)


def _how_to_convert(data: bytes, name: str) -> str:
    for mark, hint in _CONVERSIONS:
        if data.startswith(mark) or (len(mark) > 1 and mark in data):
            return hint.format(name=name)
    return "give the release.pub that `bundler keygen` wrote"


def canonical(der: bytes) -> bytes:
    """The one form that we write of a signature; raises ValueError for what is none.

    For each (r, s) that holds, (r, -s) holds as well (SEC 1, 4.1.6): the smaller s is ours, so that
    nobody without the key can make a second file that holds too.
    """
    r, s = decode_dss_signature(der)
    if not (0 < r < _ORDER and 0 < s < _ORDER):
        raise ValueError("out of range")
    return encode_dss_signature(r, min(s, _ORDER - s))


def read_signature(data: bytes, name: str) -> bytes:
    """The canonical DER of a signature made elsewhere; ``name`` stands in errors.

    Taken are DER (``openssl dgst -sign``), the 64 bytes r and s of PKCS#11's CKM_ECDSA, either of
    them in base64 (``cosign sign-blob --output-signature``), and a Sigstore bundle with a message
    signature (``cosign sign-blob --bundle``). Raises InvalidInput.
    """
    text = data.strip()
    if text.startswith(b"{"):
        text = _from_sigstore(text, name)
    for candidate in (data, _unbase64(text)):
        try:
            if len(candidate) == _RAW:
                half = _RAW // 2
                r, s = (int.from_bytes(part) for part in (candidate[:half], candidate[half:]))
                return canonical(encode_dss_signature(r, s))
            return canonical(candidate)
        except ValueError:
            continue
    raise InvalidInput(
        f"{name}: not a signature of P-256",
        hint="give what one of these writes: openssl dgst -sha256 -sign KEY -out FILE bundle.json; "
        "cosign sign-blob --key KEY --bundle FILE bundle.json",
    )


def _unbase64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError:
        return b""


def _from_sigstore(text: bytes, name: str) -> bytes:
    try:
        document = decode_json(text, _Sigstore)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{name}: not a Sigstore bundle: {error}") from error
    return (document.message_signature.signature or document.base64_signature).encode()


class _MessageSignature(msgspec.Struct, frozen=True):
    signature: str = ""


class _Sigstore(msgspec.Struct, frozen=True, rename="camel"):
    """As much of a Sigstore bundle as is taken, of v0.3 or of cosign's own older form."""

    message_signature: _MessageSignature = _MessageSignature()
    base64_signature: str = ""


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
    pieces = [_encode(number, one, payload_digest) for number, one in enumerate(signatures, 1)]
    used = sum(map(len, pieces))
    if len(signatures) > MAX_SIGNERS or used + BLOCK > size:
        raise InvalidInput(f"no room for {len(signatures)} signatures in {size} bytes")
    pieces += [header(PADDING_NAME, size - used - BLOCK), bytes(size - used - BLOCK)]
    return b"".join(pieces)


def decode_area(area: bytes, payload_digest: Digest) -> tuple[Signature, ...]:
    """Read the signature area; every byte of it must be what ``encode_area`` writes.

    Raises Unsigned when there is no signature, Corrupt for anything that does not belong there.
    """
    signatures = tuple(_signatures(area))
    if not signatures:
        raise Unsigned(
            "the bundle is not signed: its first member is not bundle.json.sig",
            hint="take a bundle that `bundler build` finished",
        )
    if len({signature.key_id for signature in signatures}) != len(signatures):
        raise Corrupt("two of the signatures state the same key")
    if encode_area(signatures, payload_digest, len(area)) != area:
        raise Corrupt("the signature members differ from the signatures that they state")
    return signatures


def whole_signatures(area: bytes, payload_digest: Digest) -> list[Signature]:
    """The signatures before the first one that is cut off or is not as we write it.

    For whoever adds one: what an interrupted addition left behind is written over by the next.
    """
    found: list[Signature] = []
    position = 0
    with suppress(Corrupt):
        for signature in _signatures(area):
            piece = _encode(len(found) + 1, signature, payload_digest)
            if area[position : position + len(piece)] != piece:
                break
            found.append(signature)
            position += len(piece)
    return found


def _encode(number: int, signature: Signature, payload_digest: Digest) -> bytes:
    pieces = []
    for name, data in zip(
        member_names(number),
        (signature.der, sigstore_bundle(signature, payload_digest)),
        strict=True,
    ):
        pieces += [header(name, len(data)), data, bytes(padding(len(data)))]
    return b"".join(pieces)


def _signatures(area: bytes) -> Iterator[Signature]:
    position = 0
    for number in range(1, MAX_SIGNERS + 1):
        der_name, sigstore_name = member_names(number)
        der, after = _member(area, position, der_name, MAX_DER)
        if der is None:
            return
        sigstore, position = _member(area, after, sigstore_name, _MAX_SIGSTORE)
        hint = _HINT.search(sigstore or b"")
        if hint is None:
            raise Corrupt(f"{sigstore_name}: missing, or without a key hint")
        _check_der(der, der_name)
        yield Signature(base64.b64decode(hint.group(1)).hex(), der)


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
        expected = canonical(der)
    except ValueError as error:
        raise Corrupt(f"{name}: not a DER signature") from error
    if expected != der:
        raise Corrupt(f"{name}: not in canonical DER form")
