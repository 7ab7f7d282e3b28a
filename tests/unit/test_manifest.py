"""bundle.json has one form only, and says only what holds together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.bundle.digest import Digest
from installer.bundle.manifest import Image, Member, check_path, decode, encode
from installer.errors import AirgapError, Corrupt, InvalidInput
from tests.unit.test_layout import PATHS, manifest_of

BLOB = Digest.of(b"blob")


def blob_member() -> Member:
    return Member(BLOB.blob_path, 4, BLOB.hex)


@given(st.lists(st.tuples(PATHS, st.integers(0, 2**53 - 1)), unique_by=lambda x: x[0].casefold()))
def test_round_trip(files: list[tuple[str, int]]) -> None:
    members = tuple(Member(p, n, BLOB.hex) for p, n in files if not p.startswith("blobs/"))
    if any(m.path.startswith("bundle.json") for m in members):
        return
    manifest = manifest_of(members)
    assert decode(encode(manifest)) == manifest


@given(st.binary(max_size=300))
def test_only_our_own_error_comes_out(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(data)


GOOD = encode(manifest_of((blob_member(), Member("README.txt", 1, BLOB.hex, executable=True))))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("byte-order mark", b"\xef\xbb\xbf" + GOOD),
        ("trailing space", GOOD + b" "),
        ("no last newline", GOOD[:-1]),
        ("compact form", json.dumps(json.loads(GOOD), separators=(",", ":")).encode() + b"\n"),
        ("duplicate key", GOOD.replace(b'"name"', b'"name": "other",\n "name"', 1)),
        ("unknown key", GOOD.replace(b'"name"', b'"nmae": 1,\n "name"', 1)),
        ("default written out", GOOD.replace(b'"members"', b'"expires": "",\n "members"', 1)),
        ("escaped letter", GOOD.replace(b'"test"', b'"t\\u0065st"')),
        (
            "other key order",
            json.dumps(json.loads(GOOD), indent=1, sort_keys=True).encode() + b"\n",
        ),
        ("float size", GOOD.replace(b'"size": 4', b'"size": 4.0')),
        ("NaN", GOOD.replace(b'"size": 4', b'"size": NaN')),
        ("huge number", GOOD.replace(b'"size": 4', b'"size": 1' + b"0" * 400)),
        ("negative size", GOOD.replace(b'"size": 4', b'"size": -4')),
        ("invalid UTF-8", GOOD.replace(b"test", b"t\xffst")),
        ("deep nesting", b"[" * 100_000),
        ("other kind", GOOD.replace(b'"Bundle"', b'"Bundel"')),
        ("bad time", GOOD.replace(b"2026-01-02T03", b"2026-13-02T03")),
    ],
)
def test_other_forms_are_refused(name: str, data: bytes) -> None:
    assert data != GOOD, name
    with pytest.raises(Corrupt):
        decode(data)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a\0b", "ä", "a b",
     "x" * 101, "bundle.json", "bundle.json.sig", "BUNDLE.JSON.2.sig", "a\n", "-rf"],
)  # fmt: skip
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        check_path(path)


@pytest.mark.parametrize(
    "members",
    [
        (Member("a", 0, BLOB.hex), Member("a", 0, BLOB.hex)),
        (Member("a", 0, BLOB.hex), Member("A", 0, BLOB.hex)),
        (Member("blobs/sha256/" + "0" * 64, 4, BLOB.hex),),
        (Member("a", 0, "xyz"),),
    ],
    ids=["duplicate", "case clash", "blob under another name", "no digest"],
)
def test_incoherent_members_are_refused(members: tuple[Member, ...]) -> None:
    with pytest.raises(AirgapError):
        decode(encode(manifest_of(members)))


def test_an_image_without_its_manifest_is_refused() -> None:
    manifest = manifest_of(())
    image = Image(str(BLOB), "application/vnd.oci.image.manifest.v1+json", 4, "docker.io/a/b:1")
    broken = type(manifest)(
        **{f: getattr(manifest, f) for f in manifest.__struct_fields__} | {"images": (image,)}
    )
    with pytest.raises(Corrupt, match="not among the members"):
        decode(encode(broken))
