"""Archives of strangers: charts, tools, databases and OCI archives, with every trick of a tar.

None of them is unpacked to disk, so what counts is that nothing is written, no reader hangs or
grows, and that it ends in an error of ours, or in the content that a plain reader would see.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from bundler.reuse import LocalBlobs
from bundler.sources.archives import read_member
from bundler.sources.trivy import _KINDS, _inspect
from installer.errors import AirgapError, InvalidInput
from installer.helm.chart import ChartArchive
from installer.oci.archive_store import open_archive
from tests.attacks.witness import untouched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BLOCK = 512
CHART = "c/Chart.yaml"
HELM = "linux-amd64/helm"
BLOB = "blobs/sha256/" + "a" * 64
NAMES = (CHART, HELM, "metadata.json", BLOB)
TEXT = b"name: c\nversion: 1.0.0\n"


def _block(name: str, size: int = 0, kind: bytes = b"0", link: str = "", **raw: bytes) -> bytes:
    """A header with a right checksum; a size that doesn't fit is written in base 256."""
    block = bytearray(512)
    block[:100] = name.encode()[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    octal = 0 <= size <= 0o77777777777
    block[124:136] = b"%011o\0" % size if octal else (size % (1 << 96)).to_bytes(12, "big")
    if size > 0o77777777777:
        block[124] |= 0x80
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[157:257] = link.encode().ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    for at, piece in raw.items():
        start = int(at.removeprefix("at"))
        block[start : start + len(piece)] = piece
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _file(name: str, data: bytes = TEXT) -> bytes:
    return _block(name, len(data)) + data + bytes(-len(data) % BLOCK)


def _pax(**fields: str) -> bytes:
    make = tarfile.TarInfo._create_pax_generic_header  # type: ignore[attr-defined]
    return bytes(make(fields, tarfile.XHDTYPE, "utf-8"))


def _raw_pax(record: bytes) -> bytes:
    return _block("x", 20, b"x") + record.ljust(BLOCK, b"\0")


END = bytes(2 * BLOCK)
GOOD = b"".join(map(_file, NAMES))

TRICKS: dict[str, bytes] = {
    "size of minus one": _block("x", -1),
    "size back to itself": _block("x", -BLOCK),
    "size back to the start": _block("x", -2 * BLOCK),
    "size far behind the start": _block("x", -(1 << 40)),
    "size below every number": _block("x", -(1 << 90)),
    "size above every number": _block("x", 1 << 90),
    "size of a terabyte": _block("x", 1 << 40),
    "size back to itself by pax": _pax(size="-512") + _block("x"),
    "size of a terabyte by pax": _pax(size=str(1 << 40)) + _block("x"),
    "size that is no number by pax": _pax(size="many") + _block("x"),
    "pax record of a terabyte": _block("x", 1 << 40, b"x"),
    "pax record of a negative size": _block("x", -512, b"x"),
    "pax record that lies about its length": _raw_pax(b"999 path=/etc/passwd\n"),
    "pax record of length zero": _raw_pax(b"0 path=/etc/passwd\n"),
    "pax record without an end": _block("x", 512, b"x") + b"1" * BLOCK,
    "GNU long name of a terabyte": _block("x", 1 << 40, b"L"),
    "GNU long name of a negative size": _block("x", -512, b"L"),
    "GNU long link without a member": _block("x", 5, b"K") + b"/etc\0".ljust(BLOCK, b"\0"),
    "GNU sparse": _block("x", 512, b"S") + bytes(BLOCK),
    "GNU sparse that goes on without end": _block("x", 512, b"S", at482=b"\1") + b"\1" * 4 * BLOCK,
    "GNU sparse by pax": _pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    + _block("x", 512)
    + b"99999999999\n".ljust(BLOCK, b"1"),
    "GNU sparse by old pax": _pax(**{"GNU.sparse.map": "a,b"}) + _block("x"),
    "symbolic link": _block(HELM, 0, b"2", "/etc/passwd"),
    "hard link": _block(HELM, 0, b"1", "/etc/passwd"),
    "hard link to itself": _block(HELM, 0, b"1", HELM),
    "character device": _block(HELM, 0, b"3"),
    "block device": _block(HELM, 0, b"4"),
    "FIFO": _block(HELM, 0, b"6"),
    "folder of the same name": _block(HELM, 0, b"5"),
    "path that climbs out": _file("../../etc/cron.d/evil"),
    "path that climbs out in the middle": _file("c/../../evil"),
    "path absolute": _file("/etc/cron.d/evil"),
    "path with a backslash": _file("c\\..\\evil"),
    "path in Latin": _block("x", 0, at0=b"\xff\xfe"),
    "path empty": _file(""),
    "path by pax": _pax(path="../../evil") + _file("x"),
    "path by prefix": _block("evil", 0, at345=b"/etc/cron.d"),
    "second member of the same name": _file(CHART, b"name: evil\n") + _file(HELM, b"evil"),
    "second member in another case": _file(CHART.upper(), b"name: evil\n"),
    "checksum wrong": b"x" * BLOCK,
    "cut off": _block("x", 5000) + b"x",
    "second archive": END + _file(CHART, b"name: evil\n"),
    "trailing bytes": END + b"evil",
    "a thousand nested folders": _file("c/" + "a/" * 45 + "b"),
    "two million zeros": bytes(2_000_000),
}  # fmt: skip

READERS: dict[str, Callable[[Path, Path], object]] = {
    "chart": lambda _, packed: ChartArchive.read(packed, "chart"),
    "tool": lambda plain, _: b"".join(read_member(plain, HELM, "tool")),
    "tool, packed": lambda _, packed: b"".join(read_member(packed, "not-there", "tool")),
    "database": lambda _, packed: _inspect(packed, _KINDS["trivy-db"], "database"),
    "OCI archive": lambda plain, _: LocalBlobs([plain]),
    "image archive": lambda plain, _: open_archive(plain, plain.parent),
}


def _both(folder: Path, data: bytes) -> tuple[Path, Path]:
    (folder / "plain").write_bytes(data)
    (folder / "packed").write_bytes(gzip.compress(data, 1))
    return folder / "plain", folder / "packed"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("trick", TRICKS)
def test_tricks(trick: str, reader: str, tmp_path: Path) -> None:
    """Before, between and behind good members; what comes out is the good content or our error."""
    for data in (
        TRICKS[trick] + GOOD + END,
        _file(CHART) + TRICKS[trick] + GOOD + END,
        GOOD + TRICKS[trick] + END,
    ):
        files = _both(tmp_path, data)
        try:
            with untouched():
                found = READERS[reader](*files)
        except AirgapError:
            continue
        if isinstance(found, ChartArchive):
            assert (found.name, found.version) == ("c", "1.0.0")
        if isinstance(found, bytes):
            # Of two members the first is taken; the lock has its digest, as for every tool.
            assert found in (TEXT, b"evil")


def test_what_stands_first_is_read_as_what_stands_behind_it(tmp_path: Path) -> None:
    for data in (_file(HELM) + _file("x"), _file("x") + _file(HELM)):
        for file in _both(tmp_path, data + END):
            assert b"".join(read_member(file, HELM, "tool")) == TEXT


def test_links_and_devices_are_no_tool(tmp_path: Path) -> None:
    for trick in (
        "symbolic link",
        "hard link",
        "character device",
        "FIFO",
        "folder of the same name",
    ):
        plain, _ = _both(tmp_path, TRICKS[trick] + END)
        with pytest.raises(InvalidInput, match="is a link or a folder"):
            b"".join(read_member(plain, HELM, "tool"))


def test_an_extended_header_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    with gzip.open(packed, "wb", 1) as stream:
        stream.write(_block("x", 1 << 33, b"x"))
        stream.write(bytes(64 << 20))
    for read in (READERS["tool, packed"], READERS["database"]):
        with pytest.raises(InvalidInput, match="a header states 8589934592 bytes"):
            read(packed, packed)


@pytest.mark.parametrize(
    ("name", "mode"), [("link", 0o120777), ("folder/", 0o040755), ("device", 0o020644)]
)
def test_zip_members_that_are_no_files(tmp_path: Path, name: str, mode: int) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(entry, "/etc/passwd")
    with untouched(), pytest.raises(InvalidInput, match="is a link or a folder"):
        b"".join(read_member(tmp_path / "a.zip", name, "tool"))


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("helm", bytes(100_000))
    good = content.getvalue()
    for size in (1, 99_999, 100_001, 2**32 - 2):
        data = good.replace((100_000).to_bytes(4, "little"), size.to_bytes(4, "little"))
        (tmp_path / "a.zip").write_bytes(data)
        try:
            found = b"".join(read_member(tmp_path / "a.zip", "helm", "tool"))
        except InvalidInput:
            continue
        assert len(found) <= size
