"""Key files of others: read where they can be, and otherwise the error says how to convert them."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from nacl.secret import SecretBox

from installer.bundle.signature import PublicKey
from installer.errors import InvalidInput
from installer.keys import load

if TYPE_CHECKING:
    from pathlib import Path

KEY = ec.generate_private_key(ec.SECP256R1())
KEY_ID = PublicKey.of(KEY.public_key(), "").key_id
WORD = b"a passphrase"
LOCKED = forms.BestAvailableEncryption(WORD)
OPEN = forms.NoEncryption()
PEM, DER = forms.Encoding.PEM, forms.Encoding.DER
PKCS8, OLD = forms.PrivateFormat.PKCS8, forms.PrivateFormat.TraditionalOpenSSL


def cosign_form(
    der: bytes, *, mark: str = "SIGSTORE", n: int = 1024, r: int = 8, p: int = 1, length: int = 24
) -> bytes:
    salt, nonce = os.urandom(32), os.urandom(length)
    box = SecretBox(Scrypt(salt=salt, length=32, n=1024, r=8, p=1).derive(WORD))
    sealed = box.encrypt(der, nonce[:24].ljust(24)).ciphertext
    text = {name: base64.b64encode(data).decode() for name, data in
            {"salt": salt, "nonce": nonce, "sealed": sealed}.items()}  # fmt: skip
    document = {
        "kdf": {"name": "scrypt", "params": {"N": n, "r": r, "p": p}, "salt": text["salt"]},
        "cipher": {"name": "nacl/secretbox", "nonce": text["nonce"]},
        "ciphertext": text["sealed"],
    }
    body = base64.encodebytes(json.dumps(document).encode()).decode()
    return (
        f"-----BEGIN ENCRYPTED {mark} PRIVATE KEY-----\n{body}"
        f"-----END ENCRYPTED {mark} PRIVATE KEY-----\n"
    ).encode()


PLAIN_DER = KEY.private_bytes(DER, PKCS8, OPEN)
READ = {
    "encrypted PKCS#8": KEY.private_bytes(PEM, PKCS8, LOCKED),
    "openssl's older encrypted form": KEY.private_bytes(PEM, OLD, LOCKED),
    "cosign": cosign_form(PLAIN_DER),
    "an older cosign": cosign_form(PLAIN_DER, mark="COSIGN"),
}


@pytest.mark.parametrize("name", READ)
def test_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.key").write_bytes(READ[name])
    key = load(tmp_path / "a.key", WORD)
    assert key.public.key_id == KEY_ID
    assert key.public.holds(key.sign(b"payload"), b"payload")
    with pytest.raises(InvalidInput, match="wrong passphrase"):
        load(tmp_path / "a.key", b"another")


SSH = KEY.private_bytes(PEM, forms.PrivateFormat.OpenSSH, OPEN)
OTHER = ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, LOCKED)
P384 = ec.generate_private_key(ec.SECP384R1()).private_bytes(PEM, PKCS8, LOCKED)
PUBLIC = KEY.public_key().public_bytes(PEM, forms.PublicFormat.SubjectPublicKeyInfo)
REFUSED = {
    "PKCS#8 in clear": (KEY.private_bytes(PEM, PKCS8, OPEN), "openssl pkcs8 -topk8"),
    "SEC 1 in clear": (KEY.private_bytes(PEM, OLD, OPEN), "openssl pkcs8 -topk8"),
    "OpenSSH": (SSH, "ssh-keygen -p -m PKCS8"),
    "DER": (PLAIN_DER, "-inform DER"),
    "the public key": (PUBLIC, "give the private key"),
    "Ed25519": (OTHER, "bundler keygen"),
    "P-384": (P384, "bundler keygen"),
    "nothing": (b"", "bundler keygen"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    data, hint = REFUSED[name]
    (tmp_path / "a.key").write_bytes(data)
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path / "a.key", WORD)
    assert hint in caught.value.hint
    assert "a.key" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        cosign_form(PLAIN_DER, n=2**30),
        cosign_form(PLAIN_DER, p=10**6),
        cosign_form(PLAIN_DER, n=0),
        cosign_form(PLAIN_DER, n=1000),
        cosign_form(PLAIN_DER, length=12),
        cosign_form(b"no key"),
        cosign_form(PLAIN_DER).replace(b"\ne", b"\n!"),
        b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nW10=\n-----END-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ],
)
def test_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.key").write_bytes(data)
    with pytest.raises(InvalidInput, match=r"a\.key"):
        load(tmp_path / "a.key", WORD)


PUBLIC_FORMS = {
    "private": (KEY.private_bytes(PEM, PKCS8, LOCKED), "private key"),
    "DER": (KEY.public_key().public_bytes(DER, forms.PublicFormat.SubjectPublicKeyInfo),
            "openssl pkey -pubin"),
    "OpenSSH": (KEY.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH),
                "ssh-keygen -e"),
    "certificate": (b"-----BEGIN CERTIFICATE-----\n", "openssl x509"),
    "something": (b"something", "bundler keygen"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC_FORMS)
def test_public_keys_that_are_none(name: str) -> None:
    data, hint = PUBLIC_FORMS[name]
    with pytest.raises(InvalidInput) as caught:
        PublicKey.parse(data, "a.pub")
    assert hint in caught.value.hint
