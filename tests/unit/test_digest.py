"""Digests: what is one, and that bytes are held against it."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.bundle.digest import Digest, verified
from installer.errors import Corrupt, InvalidInput

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(HEX)
def test_parse_and_str_go_round(value: str) -> None:
    digest = Digest.parse(f"sha256:{value}")
    assert digest == Digest(value)
    assert str(digest) == f"sha256:{value}"
    assert digest.blob_path == f"blobs/sha256/{value}"


@given(st.text())
def test_other_text_is_refused_and_never_a_crash(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "a" * 64 + "\n",
        "sha512:" + "a" * 128,
        " sha256:" + "a" * 64,
        "sha256:" + "../" * 21 + "a",
        "sha256:" + "١" * 64,  # noqa: RUF001  # digits, but not ours
    ],
)
def test_near_misses(text: str) -> None:
    with pytest.raises(InvalidInput):
        Digest.parse(text)


@given(st.binary(max_size=500))
def test_of_is_sha256(data: bytes) -> None:
    assert Digest.of(data).hex == hashlib.sha256(data).hexdigest()
    assert Digest.of(memoryview(data)) == Digest.of(bytearray(data))


@given(st.lists(st.binary(max_size=50)))
def test_right_bytes_pass_however_they_are_cut(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert b"".join(verified(chunks, Digest.of(whole), len(whole), "it")) == whole


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_other_bytes_do_not_pass(given: bytes, wanted: bytes) -> None:
    if given == wanted:
        return
    with pytest.raises(Corrupt, match="this blob"):
        list(verified([given], Digest.of(wanted), len(wanted), "this blob"))


def test_too_many_bytes_are_not_handed_out() -> None:
    chunks = verified([b"abc", b"def", b"ghi"], Digest.of(b"abc"), 3, "it")
    assert next(chunks) == b"abc"
    with pytest.raises(Corrupt, match="more than the expected 3 bytes"):
        next(chunks)
