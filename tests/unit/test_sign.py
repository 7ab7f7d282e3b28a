"""A further signature: in place, checked before it is written, safe against interruption."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from bundler.cli import cli
from bundler.sign import opened
from installer.bundle import signature as form
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.manifest import parse_time
from installer.bundle.signature import Signature, canonical, read_signature, sigstore_bundle
from installer.bundle.trust import KeyTrust
from installer.errors import AirgapError, Corrupt, InvalidInput, WrongSignature
from installer.keys import generate
from tests.attacks.mutants import AREA, Sample, sample
from tests.unit.test_parts import split

if TYPE_CHECKING:
    from pathlib import Path

    from installer.keys import SigningKey

SECOND, SECOND_PEM = generate(b"second")
NOW = parse_time("2026-06-01T00:00:00Z")
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
def good(tmp_path: Path) -> Sample:
    made = sample()
    (tmp_path / "b.tar").write_bytes(made.data)
    (tmp_path / "second.key").write_bytes(SECOND_PEM)
    (tmp_path / "second.pub").write_bytes(SECOND.public_pem())
    (tmp_path / "word").write_text("second\n")
    return made


def holds(path: Path, key: SigningKey) -> bool:
    try:
        with UnverifiedBundle(path) as unverified:
            unverified.verify(KeyTrust(key.public, "a key"), NOW).close()
    except WrongSignature:
        return False
    return True


def run(*words: object) -> dict[str, object]:
    done = CliRunner().invoke(cli, [*map(str, words), "--output", "json"], catch_exceptions=False)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_second_signature_changes_the_area_alone(tmp_path: Path, good: Sample) -> None:
    path = tmp_path / "b.tar"
    inode = path.stat().st_ino
    assert not holds(path, SECOND)
    words = ("sign", path, "--key", tmp_path / "second.key", "--passphrase-file", tmp_path / "word")
    found = run(*words)
    assert found["added"] is True
    assert found["signers"] == [good.key.public.key_id, SECOND.public.key_id]
    assert holds(path, SECOND)
    assert holds(path, good.key)
    data = path.read_bytes()
    assert data[AREA:] == good.data[AREA:]
    assert path.stat().st_ino == inode
    assert run(*words)["added"] is False
    assert path.read_bytes() == data


def test_no_content_is_read(tmp_path: Path, good: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(good.contents) > 1
    contents = {good.offset(path) + 512: len(data) for path, data in good.contents.items() if data}
    read: list[tuple[int, int]] = []
    real = os.pread

    def watched(descriptor: int, size: int, offset: int) -> bytes:
        read.append((offset, offset + size))
        return real(descriptor, size, offset)

    monkeypatch.setattr("installer.bundle.parts.os.pread", watched)
    monkeypatch.setattr("bundler.sign._MAX_AREA", AREA)
    with opened(tmp_path / "b.tar") as bundle:
        assert bundle.add(SECOND.sign(bundle.payload), SECOND.public)
    assert read
    for start, size in contents.items():
        assert not any(begin < start + size and start < end for begin, end in read)


def test_a_signature_of_something_else_is_not_attached(tmp_path: Path, good: Sample) -> None:
    with opened(tmp_path / "b.tar") as bundle, pytest.raises(WrongSignature):
        bundle.add(SECOND.sign(b"something else"), SECOND.public)
    with opened(tmp_path / "b.tar") as bundle, pytest.raises(WrongSignature):
        bundle.add(good.key.sign(bundle.payload), SECOND.public)
    assert (tmp_path / "b.tar").read_bytes() == good.data


def test_sixteen_signers_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.attacks.mutants.AREA", 64 * 1024)
    path = tmp_path / "b.tar"
    path.write_bytes(sample().data)
    keys = [generate(b"x")[0] for _ in range(16)]
    for key in keys[:15]:
        with opened(path) as bundle:
            assert bundle.add(key.sign(bundle.payload), key.public)
    with opened(path) as bundle, pytest.raises(InvalidInput, match="no room"):
        bundle.add(keys[15].sign(bundle.payload), keys[15].public)
    assert all(holds(path, key) for key in keys[:15])


@pytest.mark.parametrize("cut", [1, 512, 900, 1024, 1500, 2048, 2049, 2600, 3500, 4000, 5000])
def test_what_an_interruption_leaves_is_written_over(
    tmp_path: Path, good: Sample, cut: int
) -> None:
    path = tmp_path / "b.tar"
    with opened(path) as bundle:
        bundle.add(SECOND.sign(bundle.payload), SECOND.public)
    signed = path.read_bytes()
    path.write_bytes(signed[:cut] + good.data[cut:])
    with opened(path) as bundle:
        assert bundle.signatures[0].key_id == good.key.public.key_id
        bundle.add(SECOND.sign(bundle.payload), SECOND.public)
    assert path.read_bytes() == signed


def test_a_bundle_that_is_not_finished_is_refused(tmp_path: Path, good: Sample) -> None:
    path = tmp_path / "b.tar"
    for data in (b"", good.data[:-1], good.data + b"\0", good.data[:AREA], b"x" * 5000):
        path.write_bytes(data)
        with pytest.raises(Corrupt), opened(path):
            pass
    changed = bytearray(good.data)
    changed[good.offset("oci-layout")] ^= 1
    path.write_bytes(changed)
    with pytest.raises(Corrupt, match="oci-layout"), opened(path):
        pass
    with pytest.raises(InvalidInput), opened(tmp_path / "none"):
        pass


def test_a_bundle_in_parts_is_joined_first(tmp_path: Path, good: Sample) -> None:
    index = split(tmp_path / "b.tar", tmp_path, len(good.data) // 2)
    before = {path: path.read_bytes() for path in tmp_path.glob("b.tar.*")}
    with pytest.raises(InvalidInput, match="is in parts"), opened(index):
        pass
    assert before == {path: path.read_bytes() for path in tmp_path.glob("b.tar.*")}


def test_only_one_writes(tmp_path: Path, good: Sample) -> None:
    assert good.data
    with (
        opened(tmp_path / "b.tar"),
        pytest.raises(InvalidInput, match="another bundler"),
        opened(tmp_path / "b.tar"),
    ):
        pass


def forms(signature: Signature, payload: bytes) -> dict[str, bytes]:
    """One signature as different programs write it."""
    r, s = decode_dss_signature(signature.der)
    raw = r.to_bytes(32) + s.to_bytes(32)
    return {
        "DER": signature.der,
        "high S": encode_dss_signature(r, ORDER - s),
        "raw": raw,
        "DER in base64": base64.b64encode(signature.der),
        "in base64 with line ends": base64.encodebytes(signature.der),
        "raw in base64": base64.b64encode(raw) + b"\n",
        "Sigstore bundle": sigstore_bundle(signature, Digest.of(payload)),
        "cosign's older bundle": json.dumps(
            {"base64Signature": base64.b64encode(signature.der).decode(), "rekorBundle": None}
        ).encode(),
    }


@pytest.mark.parametrize("name", list(forms(SECOND.sign(b""), b"")))
def test_forms_of_a_signature(tmp_path: Path, good: Sample, name: str) -> None:
    signature = SECOND.sign(good.payload)
    (tmp_path / "sig").write_bytes(forms(signature, good.payload)[name])
    assert read_signature((tmp_path / "sig").read_bytes(), "sig") == signature.der
    found = run(
        "attach-signature", tmp_path / "b.tar", tmp_path / "sig", "--key", tmp_path / "second.pub"
    )
    assert found["added"] is True
    assert holds(tmp_path / "b.tar", SECOND)


def test_the_high_half_is_refused_inside_a_bundle(good: Sample) -> None:
    der = good.key.sign(good.payload).der
    r, s = decode_dss_signature(der)
    other = encode_dss_signature(r, ORDER - s)
    assert canonical(other) == canonical(der) == der
    assert good.key.public.holds(Signature(good.key.public.key_id, other), good.payload)
    with pytest.raises(Corrupt, match="canonical"):
        form._check_der(other, "bundle.json.sig")


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 71, b"{}", b'{"messageSignature": {"signature": "AAAA"}}', b"[" * 9999, b"{" * 99,
     bytes(64), b"\xff" * 64, encode_dss_signature(0, 1), encode_dss_signature(1, ORDER)],
)  # fmt: skip
def test_what_is_no_signature(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="sig"):
        read_signature(data, "sig")


def test_the_same_bytes_get_the_same_signature() -> None:
    assert SECOND.sign(b"payload") == SECOND.sign(b"payload")
    assert SECOND.sign(b"payload") != SECOND.sign(b"payloae")


def test_errors_are_ours(tmp_path: Path, good: Sample) -> None:
    assert good.data
    with pytest.raises(AirgapError):
        run("attach-signature", tmp_path / "b.tar", tmp_path / "none",
            "--key", tmp_path / "second.pub")  # fmt: skip
