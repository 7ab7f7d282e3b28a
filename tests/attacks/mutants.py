"""One good bundle, and mutants of it named by attack.

Each mutant is what somebody without the key could make of the file, or what a bad disk makes of
it. ``MUTANTS`` maps the attack's name to the function that makes it and to the error that must come
out. The good bundle is small, but of the real format: layout, signature area, blobs.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer import errors
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, header, layout, padding
from installer.bundle.manifest import Manifest, Member, encode
from installer.bundle.signature import encode_area
from installer.keys import generate

if TYPE_CHECKING:
    from collections.abc import Callable

    from installer.keys import SigningKey

AREA = 8 * 1024


@dataclass(frozen=True)
class Sample:
    """A good bundle in memory, with what an attacker can read off it and the key's owner."""

    data: bytes
    manifest: Manifest
    payload: bytes
    key: SigningKey
    contents: dict[str, bytes]

    def offset(self, path: str) -> int:
        """Offset of a member's header."""
        return layout(self.manifest, len(self.payload)).by_path()[path].header_offset


def sample(*, expires: str = "", serial: int = 7, key: SigningKey | None = None) -> Sample:
    """Make the good bundle."""
    key = key or generate(b"x")[0]
    blobs = [b"layer one " * 300, b'{"config": 1}', b"layer two " * 5000, b""]
    contents = {"README.txt": b"read me\n", "oci-layout": b"{}"}
    contents |= {Digest.of(blob).blob_path: blob for blob in blobs}
    manifest = Manifest(
        api_version="bundle/v1",
        kind="Bundle",
        name="harbor",
        channel="stable",
        serial=serial,
        created="2026-01-02T03:04:05Z",
        platforms=("linux/amd64",),
        signature_area=AREA,
        members=tuple(Member(p, len(d), Digest.of(d).hex) for p, d in contents.items()),
        expires=expires,
    )
    payload = encode(manifest)
    return Sample(assemble(manifest, payload, key, contents), manifest, payload, key, contents)


def assemble(
    manifest: Manifest, payload: bytes, key: SigningKey, contents: dict[str, bytes]
) -> bytes:
    """Write a bundle as the builder does."""
    places = layout(manifest, len(payload))
    image = bytearray(places.size)
    image[:AREA] = encode_area([key.sign(payload)], Digest.of(payload), AREA)
    for offset, data, _ in places.frames():
        image[offset : offset + len(data)] = data
    start = places.manifest_offset + BLOCK
    image[start : start + len(payload)] = payload
    for entry in places.entries:
        image[entry.offset : entry.end] = contents[entry.member.path]
    return bytes(image)


def _patched(data: bytes, offset: int, piece: bytes) -> bytes:
    return data[:offset] + piece + data[offset + len(piece) :]


def _with_header(good: Sample, path: str, **changes: object) -> bytes:
    """Give a member another header, with a right checksum."""
    offset = good.offset(path)
    info = tarfile.TarInfo.frombuf(good.data[offset : offset + BLOCK], "ascii", "strict")
    for name, value in changes.items():
        setattr(info, name, value)
    return _patched(good.data, offset, info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))


def _raw_size(good: Sample, path: str, field: bytes) -> bytes:
    offset = good.offset(path)
    block = bytearray(good.data[offset : offset + BLOCK])
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return _patched(good.data, offset, bytes(block))


def _end(good: Sample) -> int:
    return len(good.data) - 2 * BLOCK


def _member(path: str, data: bytes) -> bytes:
    return header(path, len(data)) + data + bytes(padding(len(data)))


def _swap_members(good: Sample) -> bytes:
    first, second = good.offset("README.txt"), good.offset("oci-layout")
    after = second + BLOCK + BLOCK
    return good.data[:first] + good.data[second:after] + good.data[first:second] + good.data[after:]


def _remove(good: Sample, path: str) -> bytes:
    offset = good.offset(path)
    size = BLOCK + len(good.contents[path])
    return good.data[:offset] + good.data[offset + size + -size % BLOCK :]


def _resigned_by_another(good: Sample) -> bytes:
    area = encode_area([generate(b"y")[0].sign(good.payload)], Digest.of(good.payload), AREA)
    return _patched(good.data, 0, area)


def _signature_of_other_bytes(good: Sample) -> bytes:
    area = encode_area([good.key.sign(b"other")], Digest.of(good.payload), AREA)
    return _patched(good.data, 0, area)


def _unsigned(good: Sample) -> bytes:
    return good.data[AREA:]


def _unsigned_with_padding(good: Sample) -> bytes:
    return _patched(good.data, 0, header("bundle.json.padding", AREA - BLOCK) + bytes(AREA - BLOCK))


def _manifest_changed(good: Sample) -> bytes:
    payload = good.payload.replace(b'"serial": 7', b'"serial": 8')
    return _patched(good.data, AREA + BLOCK, payload)


def _pax_override(good: Sample) -> bytes:
    info = tarfile.TarInfo("README.txt")
    info.size = 8
    info.pax_headers = {"path": "etc/passwd", "size": "4"}
    pax = info.tobuf(tarfile.PAX_FORMAT)
    offset = good.offset("README.txt")
    return good.data[:offset] + pax[:-BLOCK] + good.data[offset:]


def _gnu_long_name(good: Sample) -> bytes:
    info = tarfile.TarInfo("x" * 150)
    record = info.tobuf(tarfile.GNU_FORMAT)[:-BLOCK]
    offset = good.offset("README.txt")
    return good.data[:offset] + record + good.data[offset:]


def _second_archive(good: Sample) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("evil"))
    return good.data + stream.getvalue()


LAYER = Digest.of(b"layer one " * 300).blob_path
C, W, U = errors.Corrupt, errors.WrongSignature, errors.Unsigned

MUTANTS: dict[str, tuple[Callable[[Sample], bytes], type[errors.AirgapError]]] = {
    "unsigned": (_unsigned, U),
    "unsigned, padding kept": (_unsigned_with_padding, U),
    "signed by another key": (_resigned_by_another, W),
    "signature of other bytes": (_signature_of_other_bytes, W),
    "manifest changed after signing": (_manifest_changed, C),
    "truncated to nothing": (lambda _: b"", C),
    "truncated inside the signatures": (lambda g: g.data[:700], C),
    "truncated inside the manifest": (lambda g: g.data[: AREA + 900], C),
    "truncated inside the last block": (lambda g: g.data[:-1], C),
    "extended by a byte": (lambda g: g.data + b"\0", C),
    "extended by zero blocks": (lambda g: g.data + bytes(10 * BLOCK), C),
    "second archive behind": (_second_archive, C),
    "member added": (
        lambda g: g.data[: _end(g)] + _member("etc/cron.d/x", b"evil") + g.data[_end(g) :],
        C,
    ),
    "member duplicated": (
        lambda g: g.data[: _end(g)] + _member("README.txt", b"read me\n") + g.data[_end(g) :],
        C,
    ),
    "member removed": (lambda g: _remove(g, "README.txt"), C),
    "members reordered": (_swap_members, C),
    "member renamed": (lambda g: _with_header(g, "README.txt", name="README.TXT"), C),
    "member turned into a symlink": (
        lambda g: _with_header(g, "README.txt", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        C,
    ),
    "member turned into a hard link": (
        lambda g: _with_header(g, "README.txt", type=tarfile.LNKTYPE, linkname="oci-layout"),
        C,
    ),
    "member turned into a device": (
        lambda g: _with_header(g, "README.txt", type=tarfile.CHRTYPE, devmajor=1), C
    ),
    "member turned into a folder": (
        lambda g: _with_header(g, "README.txt", type=tarfile.DIRTYPE), C
    ),
    "member made sparse": (lambda g: _with_header(g, LAYER, type=tarfile.GNUTYPE_SPARSE), C),
    "path climbs out": (lambda g: _with_header(g, "README.txt", name="../README.txt"), C),
    "path absolute": (lambda g: _with_header(g, "README.txt", name="/etc/motd"), C),
    "prefix field used": (lambda g: _patched(g.data, g.offset("README.txt") + 345, b"evil"), C),
    "mode made setuid": (lambda g: _with_header(g, "README.txt", mode=0o4755), C),
    "owner set": (lambda g: _with_header(g, "README.txt", uname="root"), C),
    "size in base 256": (lambda g: _raw_size(g, LAYER, b"\x80" + bytes(9) + b"\x0b\xb8"), C),
    "size negative": (lambda g: _raw_size(g, LAYER, b"\xff" * 12), C),
    "size enormous": (lambda g: _raw_size(g, LAYER, b"77777777777\0"), C),
    "size with spaces": (lambda g: _raw_size(g, LAYER, b"       5670 "), C),
    "pax override": (_pax_override, C),
    "GNU long name": (_gnu_long_name, C),
    "padding used": (lambda g: _patched(g.data, g.offset("README.txt") + BLOCK + 8, b"hidden"), C),
    "trailer used": (lambda g: _patched(g.data, len(g.data) - 4, b"evil"), C),
    "signature padding used": (lambda g: _patched(g.data, AREA - 4, b"evil"), C),
    "content changed": (lambda g: _patched(g.data, g.offset(LAYER) + BLOCK + 99, b"!"), C),
    "two contents swapped in size": (
        lambda g: _patched(g.data, g.offset("README.txt") + BLOCK, b"READ ME\n"), C
    ),
    "Sigstore form of another signature": (
        lambda g: g.data.replace(b'"signature":"M', b'"signature":"N', 1), C
    ),
    "not a tar": (lambda _: b"PK\x03\x04" + bytes(5000), C),
    "another tar": (lambda _: _member("evil", b"x") + bytes(2 * BLOCK), C),
}  # fmt: skip
