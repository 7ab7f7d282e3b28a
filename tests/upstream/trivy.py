"""Trivy's databases as it publishes them: one layer with a title, holding a bbolt file.

``trivy.db`` is a real bbolt file (``bbolt check`` passes) of about the asked size, with one bucket
of made-up vulnerabilities: a check of its size or of its format has something to look at. What
``vulnerability_database`` makes is one that Trivy finds something with.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.upstream.charts import archive
from tests.upstream.images import Content, Image, artefact, random_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

Bucket = dict[str, "bytes | Bucket"]
"""What a bbolt bucket holds: values and buckets by key."""

CONFIG_TYPE = "application/vnd.aquasec.trivy.config.v1+json"
PUBLISHED = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
"""Today: what is older than some days is refused when it is locked."""

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
    content: bytes | None = None,
) -> Image:
    """Make the artefact of a database of about ``size`` bytes that was made at ``updated``.

    ``version`` overrides the schema version, which Trivy refuses when it differs from its own;
    ``content`` is the database file itself, noise of the asked size unless given.
    """
    facts = KINDS[kind]
    metadata = {
        "Version": facts.version if version is None else version,
        "NextUpdate": _stamp(updated + dt.timedelta(hours=facts.hours)),
        "UpdatedAt": _stamp(updated),
        "DownloadedAt": "0001-01-01T00:00:00Z",
    }
    files = {
        facts.database: bbolt("vulnerability", size, seed) if content is None else content,
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
    noise = random_bytes(count * value_size, seed)
    entries: Bucket = {
        f"CVE-2026-{at:06d}": noise[at * value_size : (at + 1) * value_size] for at in range(count)
    }
    return bbolt_file({bucket: entries})


def bbolt_file(root: Bucket) -> bytes:
    """Make a bbolt file of nested buckets: one leaf each, however many pages that takes."""
    pages: list[bytes] = []  # from page 3 on: two metas and the list of free pages come first

    def store(bucket: Bucket) -> int:
        at = len(pages)
        inner = {key: value for key, value in bucket.items() if not isinstance(value, bytes)}
        places = dict.fromkeys(inner, bytes(16))
        # How long a bucket is doesn't depend on where its inner ones stand.
        pages.extend(_split(_leaf(3 + at, _entries(bucket, places))))
        places = {key: struct.pack("<QQ", store(value), 0) for key, value in inner.items()}
        written = _split(_leaf(3 + at, _entries(bucket, places)))
        pages[at : at + len(written)] = written
        return 3 + at

    store(root)
    free = _PAGE_HEADER.pack(2, _FREELIST, 0, 0).ljust(_PAGE, b"\0")
    metas = (_meta(number, 3 + len(pages)) for number in range(2))
    return b"".join((*metas, free, *pages))


def _entries(bucket: Bucket, places: Mapping[str, bytes]) -> list[tuple[int, bytes, bytes]]:
    return [
        (0, key.encode(), value)
        if isinstance(value, bytes)
        else (_BUCKET, key.encode(), places[key])
        for key, value in sorted(bucket.items())
    ]


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + _PAGE] for at in range(0, len(data), _PAGE)]


def vulnerability_database(
    entries: Mapping[tuple[str, str], Mapping[str, str]], *, severity: int = 4
) -> bytes:
    """Make a ``trivy.db`` that Trivy works with, as trivy-db's schema 2 lays it out.

    ``entries``: by platform (``alpine 3.10``) and package the version with the fix for each CVE.
    ``severity``: 0 (unknown) to 4 (critical).
    """
    platforms: dict[str, Bucket] = {}
    known: Bucket = {}
    for (system, package), fixes in entries.items():
        platforms.setdefault(system, {})[package] = {
            cve: json.dumps({"FixedVersion": version}).encode() for cve, version in fixes.items()
        }
        for cve in fixes:
            about = {"Title": f"hole in {package}", "VendorSeverity": {"nvd": severity}}
            known[cve] = json.dumps(about).encode()
    sources: Bucket = {
        system: json.dumps({"ID": system.split()[0], "Name": system, "URL": ""}).encode()
        for system in platforms
    }
    return bbolt_file({**platforms, "vulnerability": known, "data-source": sources})


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
