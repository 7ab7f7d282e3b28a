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

from installer.bundle.signature import PublicKey, Signature, canonical
from installer.cosign_key import COSIGN_MARKS, open_cosign_key
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAX_KEY_FILE = 64 * 1024
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")
"""PKCS#8 (RFC 5958), and the older form of openssl (RFC 1421)."""


@dataclass(frozen=True, slots=True, repr=False)
class SigningKey:
    """An unlocked private key."""

    public: PublicKey
    _key: ec.EllipticCurvePrivateKey

    def sign(self, payload: bytes) -> Signature:
        """Sign exactly these bytes; the same bytes get the same signature (RFC 6979)."""
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        return Signature(self.public.key_id, canonical(self._key.sign(payload, algorithm)))

    def public_pem(self) -> bytes:
        """The public key as PEM, which goes to the sites."""
        return self.public.pem


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
    """Unlock a key file; raises InvalidInput: the file is wrong, or the passphrase is.

    Read are encrypted PKCS#8 (``bundler keygen``, ``openssl genpkey``), openssl's older encrypted
    form, and cosign's. For all others the error says how to convert them.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_KEY_FILE)
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}",
            hint="`bundler keygen` makes one for bundles, `installer image keygen` for images",
        ) from error
    try:
        if any(mark in data for mark in COSIGN_MARKS):
            key = serialization.load_der_private_key(open_cosign_key(data, passphrase), None)
        elif any(mark in data for mark in _ENCRYPTED):
            key = serialization.load_pem_private_key(data, passphrase)
        else:
            raise InvalidInput(
                f"{path}: not a passphrase-encrypted key", hint=_how_to_convert(data, path)
            )
    except ValueError as error:
        raise InvalidInput(f"{path}: wrong passphrase, or a damaged key file") from error
    except UnsupportedAlgorithm as error:
        raise InvalidInput(
            f"{path}: encrypted in a way that is not supported: {error}", hint=_to_pkcs8(path)
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput(
            f"{path}: not an ECDSA P-256 key",
            hint="openssl and cosign both check no other kind: make one with `bundler keygen`",
        )
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


def _how_to_convert(data: bytes, path: Path) -> str:
    """Say what to do with a key file that is not read."""
    if b"PUBLIC KEY" in data or b"BEGIN CERTIFICATE" in data:
        return "that is the public one: give the private key"
    if b"OPENSSH PRIVATE KEY" in data:
        return f"convert a copy of it: ssh-keygen -p -m PKCS8 -f {path}"
    if data.startswith(b"\x30"):
        return (
            f"convert it, PKCS#12: openssl pkcs12 -in {path} -nocerts -out release.key; "
            f"DER: openssl pkcs8 -topk8 -inform DER -v2 aes-256-cbc -in {path} -out release.key"
        )
    if b"PRIVATE KEY" in data:
        return _to_pkcs8(path)
    return "make one with: bundler keygen; keys in an HSM sign with: bundler attach-signature"


def _to_pkcs8(path: Path) -> str:
    return f"convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} -out release.key"


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
