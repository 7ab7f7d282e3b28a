"""A private key as ``cosign generate-key-pair`` writes it.

A PEM block with JSON in it: scrypt (RFC 7914) makes a key of the passphrase, and NaCl's secretbox
has the PKCS#8 DER (github.com/secure-systems-lab/go-securesystemslib, encrypted/encrypted.go). The
parameters come out of the file, so they are bounded before anything is computed.
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec

from installer.structs import decode_json

COSIGN_MARKS = (b"BEGIN ENCRYPTED SIGSTORE PRIVATE KEY", b"BEGIN ENCRYPTED COSIGN PRIVATE KEY")
_KEY_BYTES = 32
_MAX_SCRYPT_BYTES = 512 * 1024 * 1024
"""Scrypt takes 128 * N * r bytes of memory; cosign's own parameters take 64 MiB."""


class _Scrypt(msgspec.Struct, frozen=True):
    n: int = msgspec.field(name="N")
    r: int
    p: int


class _Kdf(msgspec.Struct, frozen=True):
    name: Literal["scrypt"]
    params: _Scrypt
    salt: str


class _Cipher(msgspec.Struct, frozen=True):
    name: Literal["nacl/secretbox"]
    nonce: str


class _Encrypted(msgspec.Struct, frozen=True):
    kdf: _Kdf
    cipher: _Cipher
    ciphertext: str


def open_cosign_key(pem: bytes, passphrase: bytes) -> bytes:
    """The PKCS#8 DER inside; raises ValueError for a wrong passphrase or a damaged file."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt  # noqa: PLC0415 (rarely needed)
    from nacl.exceptions import CryptoError  # noqa: PLC0415
    from nacl.secret import SecretBox  # noqa: PLC0415

    lines = [line.strip() for line in pem.splitlines()]
    body = b"".join(line for line in lines if line and not line.startswith(b"-"))
    try:
        found = decode_json(base64.b64decode(body, validate=True), _Encrypted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("not a key of cosign") from error
    scrypt = found.kdf.params
    if not (scrypt.n > 1 and scrypt.r > 0 and 0 < scrypt.p <= 16):  # noqa: PLR2004 (cosign has 1)
        raise ValueError("scrypt's parameters are out of range")
    if 128 * scrypt.n * scrypt.r > _MAX_SCRYPT_BYTES:
        raise ValueError("scrypt would take too much memory")
    salt, nonce, sealed = (
        base64.b64decode(text, validate=True)
        for text in (found.kdf.salt, found.cipher.nonce, found.ciphertext)
    )
    kdf = Scrypt(salt=salt, length=_KEY_BYTES, n=scrypt.n, r=scrypt.r, p=scrypt.p)
    try:
        return SecretBox(kdf.derive(passphrase)).decrypt(sealed, nonce)
    except CryptoError as error:
        raise ValueError("wrong passphrase") from error
