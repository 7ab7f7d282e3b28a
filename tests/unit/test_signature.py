"""The signature area: one form, both readers, no room for anything else."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from installer.bundle.digest import Digest
from installer.bundle.signature import PublicKey, decode_area, encode_area
from installer.bundle.trust import KeyTrust
from installer.errors import Corrupt, InvalidInput, Unsigned, WrongSignature
from installer.keys import generate, load

if TYPE_CHECKING:
    from pathlib import Path

PAYLOAD = b'{"a": 1}\n'
DIGEST = Digest.of(PAYLOAD)
AREA = 64 * 1024


def test_round_trip_with_several_signers() -> None:
    keys = [generate(b"x")[0] for _ in range(3)]
    signatures = tuple(key.sign(PAYLOAD) for key in keys)
    area = encode_area(signatures, DIGEST, AREA)
    assert len(area) == AREA
    assert decode_area(area, DIGEST) == signatures
    for key in keys:
        trust = KeyTrust(key.public, "release.pub")
        assert trust.signers(PAYLOAD, signatures) == (key.public.key_id,)


def test_another_key_does_not_hold() -> None:
    ours, theirs = generate(b"x")[0], generate(b"x")[0]
    with pytest.raises(WrongSignature, match=ours.public.key_id[:16]):
        KeyTrust(ours.public, "release.pub").signers(PAYLOAD, [theirs.sign(PAYLOAD)])


def test_every_flipped_bit_of_the_used_area_is_noticed() -> None:
    key = generate(b"x")[0]
    area = encode_area([key.sign(PAYLOAD)], DIGEST, AREA)
    trust = KeyTrust(key.public, "release.pub")
    for position in range(0, 2600, 7):
        for bit in (0, 5, 7):
            bad = bytearray(area)
            bad[position] ^= 1 << bit
            with pytest.raises((Corrupt, Unsigned, WrongSignature)):
                trust.signers(PAYLOAD, decode_area(bytes(bad), DIGEST))


def test_padding_must_be_zero() -> None:
    area = bytearray(encode_area([generate(b"x")[0].sign(PAYLOAD)], DIGEST, AREA))
    area[-1] = 1
    with pytest.raises(Corrupt):
        decode_area(bytes(area), DIGEST)


def test_too_many_signatures_for_the_room() -> None:
    signature = generate(b"x")[0].sign(PAYLOAD)
    with pytest.raises(InvalidInput, match="no room"):
        encode_area([signature] * 3, DIGEST, 4096)


def test_openssl_accepts_key_and_signature(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl: apt-get install openssl")
    key, pem = generate(b"secret")
    files = {"k": pem, "p": key.public_pem(), "s": key.sign(PAYLOAD).der, "d": PAYLOAD}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", "p", "-signature", "s", "d"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    read = subprocess.run(
        ["openssl", "pkey", "-in", "k", "-passin", "pass:secret", "-pubout"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    assert PublicKey.parse(read.stdout, "x") == PublicKey.parse(key.public_pem(), "y")


def test_wrong_passphrase_and_wrong_files_say_so(tmp_path: Path) -> None:
    key, pem = generate(b"right")
    path = tmp_path / "release.key"
    path.write_bytes(pem)
    assert load(path, b"right").public == key.public
    with pytest.raises(InvalidInput, match="wrong passphrase"):
        load(path, b"wrong")
    path.write_bytes(key.public_pem())
    with pytest.raises(InvalidInput, match="not a passphrase-encrypted"):
        load(path, b"right")
    with pytest.raises(InvalidInput, match="No such file"):
        load(tmp_path / "none", b"right")
    with pytest.raises(InvalidInput, match="not a public key"):
        PublicKey.parse(pem, "release.key")
