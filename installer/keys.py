"""Signing keys: ECDSA P-256 in passphrase-encrypted PKCS#8, readable by openssl.

The builder signs bundles with one, a site its images with another. The private key exists in clear
only in memory. Its file is made with mode 0600 and is never overwritten: a lost release key means
a visit to every site.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from installer.bundle.signature import PublicKey, Signature
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """An unlocked private key."""

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey

    def sign(self, payload: bytes) -> Signature:
        """Sign exactly these bytes."""
        return Signature(self.public.key_id, self._key.sign(payload, ec.ECDSA(hashes.SHA256())))

    def public_pem(self) -> bytes:
        """The public key as PEM, which goes to the sites."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def generate(passphrase: bytes) -> tuple[SigningKey, bytes]:
    """Make a new key; gives it and its encrypted PKCS#8 PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    return SigningKey(PublicKey.of(key.public_key(), "new key"), key), pem


def load(path: Path, passphrase: bytes) -> SigningKey:
    """Unlock a key file; raises InvalidInput: the file is wrong, or the passphrase is."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}",
            hint="`bundler keygen` makes one for bundles, `installer image keygen` for images",
        ) from error
    if b"ENCRYPTED PRIVATE KEY" not in pem:
        raise InvalidInput(
            f"{path}: not a passphrase-encrypted PKCS#8 key",
            hint="convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in old.key -out new.key",
        )
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except ValueError as error:
        raise InvalidInput(f"{path}: wrong passphrase, or a damaged key file") from error
    except UnsupportedAlgorithm as error:
        raise InvalidInput(f"{path}: encrypted in a way that is not supported: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput(f"{path}: not an ECDSA P-256 key")
    return SigningKey(PublicKey.of(key.public_key(), str(path)), key)


def write_pair(private: Path, passphrase: Callable[[], bytes]) -> tuple[Path, SigningKey]:
    """Make a key pair: the private key, and its public one beside it with the ending ``.pub``.

    Gives the public key's path. ``passphrase`` is asked for only when both names are free. Raises
    InvalidInput, and then leaves neither.
    """
    public = private.with_suffix(".pub")
    if public == private:
        raise InvalidInput(
            f"--out {private}: .pub is for the public key", hint="let the private key end in .key"
        )
    for path in (private, public):
        if path.exists():
            raise InvalidInput(
                f"{path} exists", hint="keys are never overwritten: choose another --out"
            )
    key, pem = generate(passphrase())
    write_new(private, pem, 0o600)
    try:
        write_new(public, key.public_pem(), 0o644)
    except InvalidInput:
        private.unlink()
        raise
    return public, key


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file that must not exist yet; raises InvalidInput when it does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise InvalidInput(
            f"{path} exists", hint="keys are never overwritten: choose another name"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
