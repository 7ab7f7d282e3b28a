"""The tar is what Python's and GNU's tar read, and a pure function of the manifest."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, TRAILER, header, layout, padding
from installer.bundle.manifest import Manifest, Member

if TYPE_CHECKING:
    from pathlib import Path

PATHS = st.from_regex(
    r"[a-z0-9_][a-z0-9._-]{0,30}(/[a-z0-9_][a-z0-9._-]{0,30}){0,2}", fullmatch=True
)


def manifest_of(members: tuple[Member, ...], area: int = 64 * 1024) -> Manifest:
    return Manifest(
        api_version="bundle/v1",
        kind="Bundle",
        name="test",
        channel="stable",
        serial=1,
        created="2026-01-02T03:04:05Z",
        platforms=("linux/amd64",),
        signature_area=area,
        members=members,
    )


@given(PATHS, st.integers(0, 2**40), st.booleans())
def test_header_reads_as_written(path: str, size: int, executable: bool) -> None:  # noqa: FBT001 (hypothesis passes it)
    block = header(path, size, executable=executable)
    info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    assert len(block) == BLOCK
    assert (info.name, info.size, info.type) == (path, size, tarfile.REGTYPE)
    assert info.mode == (0o755 if executable else 0o644)
    assert (info.mtime, info.uid, info.gid, info.linkname) == (0, 0, 0, "")


@given(st.lists(st.tuples(PATHS, st.binary(max_size=2000)), unique_by=lambda x: x[0].casefold()))
def test_layout_matches_what_a_tar_reader_sees(contents: list[tuple[str, bytes]]) -> None:
    members = tuple(Member(p, len(d), Digest.of(d).hex) for p, d in contents)
    manifest = manifest_of(members, area=BLOCK * 2)
    payload = b"x" * 700
    places = layout(manifest, len(payload))
    image = bytearray(b"\xff" * places.size)
    image[: BLOCK * 2] = header("bundle.json.padding", BLOCK) + bytes(BLOCK)
    for offset, data, _ in places.frames():
        image[offset : offset + len(data)] = data
    start = places.manifest_offset + BLOCK
    image[start : start + len(payload)] = payload
    for entry, (_, data) in zip(places.entries, contents, strict=True):
        image[entry.offset : entry.end] = data
    with tarfile.open(fileobj=io.BytesIO(bytes(image))) as tar:
        found = {info.name: info for info in tar.getmembers()}
        assert list(found) == ["bundle.json.padding", "bundle.json", *(p for p, _ in contents)]
        for entry, (path, data) in zip(places.entries, contents, strict=True):
            assert found[path].offset_data == entry.offset
            stream = tar.extractfile(found[path])
            assert stream is not None
            assert stream.read() == data
    assert bytes(image[-len(TRAILER) :]) == TRAILER


@given(st.integers(0, 2**50))
def test_padding_fills_the_block(size: int) -> None:
    assert (size + padding(size)) % BLOCK == 0
    assert 0 <= padding(size) < BLOCK


def test_sizes_beyond_octal_are_read_by_gnu_tar(tmp_path: Path) -> None:
    size = 9 * 2**30
    file = tmp_path / "big.tar"
    with file.open("wb") as stream:
        stream.write(header("big", size))
        stream.seek(size, 1)
        stream.write(TRAILER)
    listed = subprocess.run(["tar", "tvf", file], check=True, capture_output=True, text=True).stdout
    assert str(size) in listed
