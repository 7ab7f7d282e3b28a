"""One good bundle, and mutants of it named by attack.

Each mutant is what somebody without the key could make of the file, or what a bad disk makes of
it. ``MUTANTS`` maps the attack's name to the function that makes it and to the error that must come
out: its class, and words that only this attack gets. The good bundle is small, but of the real
format: layout, signature area, blobs. What the key's owner signs by mistake or malice is in
``signed``.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from installer import errors
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, header, layout, padding
from installer.bundle.manifest import NAME, Manifest, Member, encode
from installer.bundle.signature import Signature, encode_area
from installer.keys import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


class Attack(NamedTuple):
    """How a mutant is made of the good bundle, its error, and a pattern of the error's words."""

    make: Callable[[Sample], bytes]
    error: type[errors.AirgapError]
    words: str


def resigned(
    good: Sample,
    payload: bytes | None = None,
    *,
    ders: Sequence[bytes] | None = None,
    key: SigningKey | None = None,
) -> bytes:
    """The bundle with another bundle.json, or with these DER signatures, by the good key.

    Members stay as they are; the tar is built around whatever the payload is.
    """
    payload = good.payload if payload is None else payload
    key = key or good.key
    signatures = (
        [key.sign(payload)] if ders is None else [Signature(key.public.key_id, d) for d in ders]
    )
    area = encode_area(signatures, Digest.of(payload), AREA)
    front = layout(good.manifest, len(good.payload)).front
    return area + _member(NAME, payload) + good.data[front:]


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


def _before_end(good: Sample, record: bytes) -> bytes:
    return good.data[: _end(good)] + record + good.data[_end(good) :]


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


def _before(good: Sample, path: str, record: bytes) -> bytes:
    offset = good.offset(path)
    return good.data[:offset] + record + good.data[offset:]


def _in_place_of(good: Sample, path: str, record: bytes) -> bytes:
    """A record over a member's header and content, so that no offset moves."""
    return _patched(good.data, good.offset(path), record)


def _pax(**fields: str) -> bytes:
    info = tarfile.TarInfo("README.txt")
    info.size, info.pax_headers = 8, fields
    return info.tobuf(tarfile.PAX_FORMAT)[:-BLOCK]


def _global_pax() -> bytes:
    return tarfile.TarInfo.create_pax_global_header({"path": "etc/passwd"})


def _gnu_long(name: str = "", link: str = "") -> bytes:
    info = tarfile.TarInfo(name or "README.txt")
    info.linkname = link
    return info.tobuf(tarfile.GNU_FORMAT)[:-BLOCK]


def _case_clash(good: Sample) -> bytes:
    return _before_end(good, _member("readme.TXT", b"read me\n"))


def _der_only(good: Sample) -> bytes:
    """Another good signature in the DER member alone; its length differs from one to the next."""
    size = int(good.data[124:135], 8)
    der = next(d for d in (good.key.sign(b"%d" % n).der for n in range(1000)) if len(d) == size)
    return _patched(good.data, BLOCK, der.ljust(BLOCK, b"\0"))


def _signatures_swapped(good: Sample) -> bytes:
    first, second = good.key.sign(good.payload), generate(b"y")[0].sign(good.payload)
    area = encode_area([first, second], Digest.of(good.payload), AREA)
    return _patched(good.data, 0, area[2 * BLOCK :][: 2 * BLOCK] + area[: 2 * BLOCK])


def _archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("evil"))
    return stream.getvalue()


LAYER = Digest.of(b"layer one " * 300).blob_path
C, W, U = errors.Corrupt, errors.WrongSignature, errors.Unsigned


def _retyped(kind: bytes, **more: object) -> Callable[[Sample], bytes]:
    return lambda good: _with_header(good, "README.txt", type=kind, **more)


def _sized(path: str, field: bytes) -> Callable[[Sample], bytes]:
    return lambda good: _raw_size(good, path, field)


MUTANTS: dict[str, Attack] = {
    "unsigned": Attack(_unsigned, U, "there is no signature before"),
    "unsigned, padding kept": Attack(_unsigned_with_padding, U, "first member is not"),
    "signed by another key": Attack(_resigned_by_another, W, "no signature of release.pub"),
    "signature of other bytes": Attack(_signature_of_other_bytes, W, "holds for this bundle"),
    "signature members in another order": Attack(_signatures_swapped, U, "first member is not"),
    "manifest changed after signing": Attack(_manifest_changed, C, "signature members differ"),
    "truncated to nothing": Attack(lambda _: b"", C, "empty"),
    "truncated inside the signatures": Attack(lambda g: g.data[:700], C, "the file ends at byte"),
    "truncated inside the manifest": Attack(
        lambda g: g.data[: AREA + 900], C, "bundle.json: the file ends at byte"
    ),
    "truncated inside the last block": Attack(lambda g: g.data[:-1], C, "it was cut off"),
    "extended by a byte": Attack(lambda g: g.data + b"\0", C, "it was extended"),
    "extended by zero blocks": Attack(lambda g: g.data + bytes(10 * BLOCK), C, "it was extended"),
    "second archive behind": Attack(lambda g: g.data + _archive(), C, "it was extended"),
    "second archive in front": Attack(
        lambda g: _archive() + g.data, C, "starts with member b'evil'"
    ),
    "second archive in place of the trailer": Attack(
        lambda g: _patched(g.data, _end(g), _archive()[: 2 * BLOCK]), C, "'end of archive'"
    ),
    "member added": Attack(
        lambda g: _before_end(g, _member("etc/cron.d/x", b"evil")), C, "it was extended"
    ),
    "member duplicated": Attack(
        lambda g: _before_end(g, _member("README.txt", b"read me\n")), C, "it was extended"
    ),
    "member in another case added": Attack(_case_clash, C, "it was extended"),
    "member removed": Attack(lambda g: _remove(g, "README.txt"), C, "it was cut off"),
    "members reordered": Attack(_swap_members, C, "before 'README.txt'.* path b'oci-layout'"),
    "member renamed": Attack(
        lambda g: _with_header(g, "README.txt", name="README.TXT"), C, "path b'README.TXT'"
    ),
    "member turned into a symbolic link": Attack(
        _retyped(tarfile.SYMTYPE, linkname="/etc/shadow"), C, "a symbolic link"
    ),
    "member turned into a hard link": Attack(
        _retyped(tarfile.LNKTYPE, linkname="oci-layout"), C, "a hard link"
    ),
    "link target without a link": Attack(
        lambda g: _with_header(g, "README.txt", linkname="/etc/shadow"), C, "link target b'/etc"
    ),
    "member turned into a character device": Attack(
        _retyped(tarfile.CHRTYPE, devmajor=1), C, "a character device"
    ),
    "member turned into a block device": Attack(
        _retyped(tarfile.BLKTYPE, devmajor=8), C, "a block device"
    ),
    "device number without a device": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 329, b"0000010"), C, "device b'0000010"
    ),
    "member turned into a FIFO": Attack(_retyped(tarfile.FIFOTYPE), C, "a FIFO"),
    "member turned into a folder": Attack(_retyped(tarfile.DIRTYPE), C, "a folder"),
    "member of a type that readers skip": Attack(_retyped(b"V"), C, "type b'V'"),
    "member of the type from before POSIX": Attack(_retyped(tarfile.AREGTYPE), C, "type b'.x00'"),
    "member made contiguous": Attack(_retyped(tarfile.CONTTYPE), C, "type b'7'"),
    "member made sparse": Attack(
        lambda g: _with_header(g, LAYER, type=tarfile.GNUTYPE_SPARSE), C, "a GNU sparse file"
    ),
    "sparse member by pax": Attack(
        lambda g: _in_place_of(
            g, LAYER, _pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
        ),
        C,
        "a pax record",
    ),
    "path climbs out": Attack(
        lambda g: _with_header(g, "README.txt", name="../README.txt"), C, "path b'../README.txt'"
    ),
    "path absolute": Attack(
        lambda g: _with_header(g, "README.txt", name="/etc/motd"), C, "path b'/etc/motd'"
    ),
    "path hidden behind a zero": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 50, b"evil"), C, "path b'README.txt.x00"
    ),
    "prefix field used": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 345, b"evil"), C, "path prefix b'evil'"
    ),
    "bytes behind the prefix used": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 505, b"evil"), C, "unused bytes"
    ),
    "mode made setuid": Attack(
        lambda g: _with_header(g, "README.txt", mode=0o4755), C, "mode b'0004755'"
    ),
    "owner set": Attack(
        lambda g: _with_header(g, "README.txt", uname="root"), C, "user name b'root'"
    ),
    "owner number set": Attack(
        lambda g: _with_header(g, "README.txt", uid=33), C, "owner b'0000041'"
    ),
    "group set": Attack(
        lambda g: _with_header(g, "README.txt", gname="wheel"), C, "group name b'wh"
    ),
    "time set": Attack(lambda g: _with_header(g, "README.txt", mtime=9), C, "time b'00000000011'"),
    "checksum wrong": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 148, b"000000"), C, "checksum b'000000"
    ),
    "format of GNU": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + 257, b"ustar  \0"),
        C,
        "format b'ustar  '",
    ),
    "size in base 256": Attack(_sized(LAYER, b"\x80" + bytes(9) + b"\x0b\xb8"), C, r"size b'.x80"),
    "size in base 256, negative": Attack(_sized(LAYER, b"\xff" * 12), C, r"size b'.xff"),
    "size negative in octal": Attack(_sized(LAYER, b"-0000005670\0"), C, "size b'-0000005670'"),
    "size enormous": Attack(_sized(LAYER, b"77777777777\0"), C, "size b'77777777777'"),
    "size with spaces": Attack(_sized(LAYER, b"       5670 "), C, "size b'       5670 '"),
    "size of the manifest negative": Attack(
        lambda g: _patched(g.data, AREA + 124, b"-0000000001"), C, "tar header of bundle.json at"
    ),
    "size of the manifest enormous": Attack(
        lambda g: _patched(g.data, AREA, header(NAME, 0o77777777777)), C, "over the limit of"
    ),
    "size of a signature negative": Attack(
        lambda g: _patched(g.data, 124, b"-0000000777"), C, "at byte 0 has no plain size"
    ),
    "size of a signature enormous": Attack(
        lambda g: _patched(g.data, 124, b"77777777777"), C, "at byte 0 has no plain size"
    ),
    "signature area without end": Attack(
        lambda g: (header("bundle.json.sig", 0) * 2100) + g.data[AREA:],
        C,
        "no bundle.json in the first",
    ),
    "pax record inserted": Attack(
        lambda g: _before(g, "README.txt", _pax(path="etc/passwd", size="4")), C, "it was extended"
    ),
    "pax record in place of a member": Attack(
        lambda g: _in_place_of(g, LAYER, _pax(path="etc/passwd", size="4")), C, "a pax record"
    ),
    "global pax record in place of a member": Attack(
        lambda g: _in_place_of(g, LAYER, _global_pax()), C, "a global pax record"
    ),
    "pax record between the signatures": Attack(
        lambda g: _patched(g.data, 4 * BLOCK, _pax(path="bundle.json")), C, "unknown member"
    ),
    "GNU long name inserted": Attack(
        lambda g: _before(g, "README.txt", _gnu_long("x" * 150)), C, "it was extended"
    ),
    "GNU long name in place of a member": Attack(
        lambda g: _in_place_of(g, LAYER, _gnu_long("x" * 150)), C, "a GNU long name"
    ),
    "GNU long link in place of a member": Attack(
        lambda g: _in_place_of(g, LAYER, _gnu_long(link="x" * 150)), C, "a GNU long link"
    ),
    "padding used": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + BLOCK + 8, b"hidden"),
        C,
        "before 'oci-layout'.* padding that is not zero",
    ),
    "padding of the manifest used": Attack(
        lambda g: _patched(g.data, AREA + BLOCK + len(g.payload), b"evil"),
        C,
        "before 'README.txt'.* padding that is not zero",
    ),
    "trailer used": Attack(
        lambda g: _patched(g.data, len(g.data) - 4, b"evil"), C, "'end of archive'"
    ),
    "signature padding used": Attack(
        lambda g: _patched(g.data, AREA - 4, b"evil"), C, "signature members differ"
    ),
    "DER of another signature than the Sigstore form": Attack(
        _der_only, C, "signature members differ"
    ),
    "Sigstore form of another signature": Attack(
        lambda g: g.data.replace(b'"signature":"M', b'"signature":"N', 1),
        C,
        "signature members differ",
    ),
    "key hint of another key": Attack(
        lambda g: g.data.replace(b'"hint":"', b'"hint":"A', 1).replace(b'="}', b'"}', 1),
        C,
        "key hint",
    ),
    "content changed": Attack(
        lambda g: _patched(g.data, g.offset(LAYER) + BLOCK + 99, b"!"),
        C,
        "blobs/sha256/.* signed is",
    ),
    "content of the same size": Attack(
        lambda g: _patched(g.data, g.offset("README.txt") + BLOCK, b"READ ME\n"), C, "README.txt"
    ),
    "not a tar": Attack(lambda _: b"PK\x03\x04" + bytes(5000), C, "not a bundle: it starts with"),
    "another tar": Attack(lambda _: _member("evil", b"x") + bytes(2 * BLOCK), C, "member b'evil'"),
    "compressed": Attack(lambda g: gzip.compress(g.data), C, "not a bundle: it starts with"),
}
"""By the attack's name."""
