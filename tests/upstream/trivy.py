"""Trivy's databases as it publishes them: one layer with a title, holding a bbolt file.

``trivy.db`` is a real bbolt file (``bbolt check`` passes) of about the asked size, with one bucket
of made-up vulnerabilities: a check of its size or of its format has something to look at.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from dataclasses import dataclass

from tests.upstream.charts import archive
from tests.upstream.images import Content, Image, artefact, random_bytes

CONFIG_TYPE = "application/vnd.aquasec.trivy.config.v1+json"
PUBLISHED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

_PAGE = 4096
_PAGE_HEADER = struct.Struct("<QHHI")  # id, flags, count, overflow
_ELEMENT = struct.Struct("<IIII")  # flags, position, key size, value size
_META = struct.Struct("<IIIIQQQQQ")  # magic … transaction id; a checksum follows
_LEAF, _META_PAGE, _FREELIST = 0x02, 0x04, 0x10
_BUCKET = 0x01
_MAGIC, _VERSION = 0xED0CDAED, 2


@dataclass(frozen=True)
class Kind:
    """What differs between the databases: names, schema version, tag and hours between updates."""

    database: str
    archive: str
    layer_type: str
    version: int
    tag: str
    hours: int


KINDS = {
    "trivy-db": Kind(
        "trivy.db", "db.tar.gz", "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip", 2, "2", 24
    ),
    "trivy-java-db": Kind(
        "trivy-java.db",
        "javadb.tar.gz",
        "application/vnd.aquasec.trivy.javadb.layer.v1.tar+gzip",
        1,
        "1",
        72,
    ),
}


def database(
    kind: str = "trivy-db",
    *,
    size: int = 4 << 20,
    updated: dt.datetime = PUBLISHED,
    version: int | None = None,
    seed: str = "trivy",
) -> Image:
    """Make the artefact of a database of about ``size`` bytes that was made at ``updated``.

    ``version`` overrides the schema version, which Trivy refuses when it differs from its own.
    """
    facts = KINDS[kind]
    metadata = {
        "Version": facts.version if version is None else version,
        "NextUpdate": _stamp(updated + dt.timedelta(hours=facts.hours)),
        "UpdatedAt": _stamp(updated),
        "DownloadedAt": "0001-01-01T00:00:00Z",
    }
    files = {
        facts.database: bbolt("vulnerability", size, seed),
        "metadata.json": json.dumps(metadata).encode() + b"\n",
    }
    titled = {"org.opencontainers.image.title": facts.archive}
    layer = Content(facts.layer_type, archive(files, level=0), titled)
    created = {"org.opencontainers.image.created": _stamp(updated)}
    return artefact(
        Content(CONFIG_TYPE, b"{}"), [layer], artifact_type=CONFIG_TYPE, annotations=created
    )


def bbolt(bucket: str, size: int, seed: str) -> bytes:
    """Make a bbolt file with one bucket that fills about ``size`` bytes."""
    value_size = 1 << 10
    count = min(max(1, size // (value_size + 40)), 0xFFFF)
    keys = [f"CVE-2026-{number:06d}".encode() for number in range(count)]
    noise = random_bytes(count * value_size, seed)
    entries = [
        (0, key, noise[at * value_size : (at + 1) * value_size]) for at, key in enumerate(keys)
    ]
    content = _leaf(4, entries)
    # Pages: two metas, the list of free pages (empty), the root, and the bucket's only leaf.
    root = _leaf(3, [(_BUCKET, bucket.encode(), struct.pack("<QQ", 4, 0))])
    free = _PAGE_HEADER.pack(2, _FREELIST, 0, 0).ljust(_PAGE, b"\0")
    pages = 4 + len(content) // _PAGE
    metas = b"".join(_meta(number, pages) for number in range(2))
    return metas + free + root + content


def _leaf(number: int, entries: list[tuple[int, bytes, bytes]]) -> bytes:
    heads, data = [], []
    position = _ELEMENT.size * len(entries)
    for at, (flags, key, value) in enumerate(entries):
        # A position counts from its own element.
        heads.append(_ELEMENT.pack(flags, position - at * _ELEMENT.size, len(key), len(value)))
        data += [key, value]
        position += len(key) + len(value)
    pages = -(-(_PAGE_HEADER.size + position) // _PAGE)
    header = _PAGE_HEADER.pack(number, _LEAF, len(entries), pages - 1)
    return b"".join([header, *heads, *data]).ljust(pages * _PAGE, b"\0")


def _meta(number: int, pages: int) -> bytes:
    meta = _META.pack(_MAGIC, _VERSION, _PAGE, 0, 3, 0, 2, pages, number)
    checksum = 0xCBF29CE484222325  # FNV-1a, 64 bits
    for byte in meta:
        checksum = (checksum ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    header = _PAGE_HEADER.pack(number, _META_PAGE, 0, 0)
    return (header + meta + struct.pack("<Q", checksum)).ljust(_PAGE, b"\0")


def _stamp(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
