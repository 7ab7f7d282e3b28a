"""Trivy's databases: OCI artefacts with one layer, which say themselves how old they are.

Trivy fails in odd ways on a mirror that lost the layer's media type or title, and scans everything
as clean with an empty database. So each is looked into while it is locked, when it can still be
had again, instead of at a site that can't.
"""

from __future__ import annotations

import struct
import tarfile
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - msgspec resolves annotations at run time
from typing import IO, TYPE_CHECKING

import msgspec

from bundler.sources.accessories import find_accessories
from bundler.sources.upstream import Locked, registry_blob
from bundler.sources.verification import pinned, verify_signed
from installer.bundle.digest import CHUNK
from installer.bundle.manifest import Database, format_time
from installer.errors import InvalidInput
from installer.oci.graph import ImageManifest, read_manifest
from installer.structs import decode_json
from installer.tar import UNREADABLE, CautiousHeader, members

if TYPE_CHECKING:
    from pathlib import Path

    from bundler.sources.upstream import Upstream
    from bundler.spec_document import Database as DatabaseSource
    from installer.oci.cosign import SigningIdentity

_METADATA = "metadata.json"
_MAX_METADATA_BYTES = 64 * 1024
_TITLE = "org.opencontainers.image.title"

_PAGE_HEADER = struct.Struct("<QHHI")  # id, flags, count, overflow
_META = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root … transaction
_MAGIC = 0xED0CDAED


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a kind of database looks like; one without ``file`` is only rules, and undated."""

    layer_type: str
    file: str = ""
    schema: int = 0
    bbolt: bool = False


_KINDS = {
    "trivy-db": _Kind(
        "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip", "trivy.db", 2, bbolt=True
    ),
    "trivy-java-db": _Kind(
        "application/vnd.aquasec.trivy.javadb.layer.v1.tar+gzip", "trivy-java.db", 1
    ),
    "trivy-checks": _Kind("application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip"),
}


class Metadata(msgspec.Struct, frozen=True, rename="pascal"):
    """``metadata.json`` of a database: its schema's version and its dates."""

    version: int
    next_update: datetime
    updated_at: datetime


def lock_database(
    upstream: Upstream,
    wanted: DatabaseSource,
    now: datetime | None = None,
    signer: SigningIdentity | None = None,
) -> Locked[Database]:
    """Resolve a database, keep its layer in the cache and read what it says of itself.

    Its age is judged with ``now``, its signature with ``signer``, where these are given. Raises
    InvalidInput when it is no such database, of another schema, empty or too old, and NotTrusted.
    """
    kind = _KINDS[wanted.kind]
    reference = wanted.reference
    where = f"{wanted.kind} {reference}"
    root = upstream.root(reference)
    data = upstream.document(registry_blob(reference, root))
    manifest = read_manifest(data, root.media_type, where)
    if not isinstance(manifest, ImageManifest) or len(manifest.layers) != 1:
        raise InvalidInput(f"{where}: is not one manifest with exactly one layer")
    layer = manifest.layers[0]
    if layer.media_type != kind.layer_type:
        raise InvalidInput(f"{where}: its layer is {layer.media_type}, not {kind.layer_type}")
    if not layer.annotations.get(_TITLE):
        raise InvalidInput(
            f"{where}: its layer has no annotation {_TITLE}, without which Trivy can't use it",
            hint="mirror it with a tool that keeps manifests as they are: oras, crane, skopeo",
        )
    verified = pinned() if reference.digest else ()
    if signer is not None:
        said = find_accessories(upstream, reference, [root.digest])
        verified += (verify_signed(upstream, reference, said, [root.digest], signer),)
    kept = upstream.cached(registry_blob(reference, layer))
    metadata = _inspect(kept.path, kind, where) if kind.file else None
    if metadata and now:
        _check_age(metadata.updated_at, wanted, now, where)
    entry = Database(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        kind=wanted.kind,
        reference=str(reference),
        size=layer.size,
        updated_at=format_time(metadata.updated_at) if metadata else "",
        next_update=format_time(metadata.next_update) if metadata else "",
        schema=metadata.version if metadata else 0,
        verified=verified,
    )
    children = (root, *manifest.children)
    return Locked(entry, tuple(registry_blob(reference, child) for child in children))


def _check_age(updated: datetime, wanted: DatabaseSource, now: datetime, where: str) -> None:
    age = now - updated
    if age > wanted.oldest:
        hours = int(age.total_seconds() // 3600)
        raise InvalidInput(
            f"{where}: is {hours // 24} days and {hours % 24} hours old, of "
            f"{format_time(updated)}; more than {wanted.max_age} is too old",
            hint="take it from another mirror, or raise `maxAge` of this database in the spec",
        )


def _inspect(layer: Path, kind: _Kind, where: str) -> Metadata:
    """Read the layer once as a stream: it unpacks to gigabytes, of which a few kilobytes count."""
    metadata: Metadata | None = None
    filled = False
    try:
        with tarfile.open(layer, "r|gz", tarinfo=CautiousHeader) as tar:
            for entry in members(tar):
                content = tar.extractfile(entry) if entry.isfile() else None
                if content is None:
                    continue
                if entry.name.removeprefix("./") == _METADATA:
                    text = content.read(_MAX_METADATA_BYTES)
                    metadata = decode_json(text, Metadata)
                elif entry.name.removeprefix("./") == kind.file:
                    filled = entry.size > 0 and not (kind.bbolt and _is_empty_bbolt(content))
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{where}: {_METADATA} can't be read: {error}") from error
    except UNREADABLE as error:
        raise InvalidInput(f"{where}: its layer can't be read: {error}") from error
    if metadata is None:
        raise InvalidInput(f"{where}: has no {_METADATA}")
    if metadata.version != kind.schema:
        raise InvalidInput(
            f"{where}: has schema version {metadata.version}, Trivy wants {kind.schema}",
            hint=f"Trivy's own tag for that is {kind.schema}",
        )
    if not filled:
        raise InvalidInput(
            f"{where}: {kind.file} is missing or empty: every scan would come out clean",
            hint="lock again later, or take the database from another mirror",
        )
    return metadata


def _is_empty_bbolt(file: IO[bytes]) -> bool:
    """Whether a bbolt file has no bucket at all; raises ValueError when it is no such file.

    The newer of two meta pages names the root page, whose count is that of the buckets
    (go.etcd.io/bbolt, internal/common). The root always lies behind the meta pages, so the file
    is read in one direction.
    """
    position, newest = 0, (-1, 0)
    page_size = 0
    for number in range(2):
        _skip(file, number * page_size - position)
        head = file.read(_PAGE_HEADER.size + _META.size)
        position = number * page_size + len(head)
        if len(head) < _PAGE_HEADER.size + _META.size:
            raise ValueError("cut short")
        meta = _META.unpack_from(head, _PAGE_HEADER.size)
        magic, page_size, root, transaction = meta[0], meta[2], meta[4], meta[8]
        if magic != _MAGIC or page_size < len(head):
            raise ValueError("not a bbolt file")
        newest = max(newest, (transaction, root))
    _skip(file, newest[1] * page_size - position)
    head = file.read(_PAGE_HEADER.size)
    if len(head) < _PAGE_HEADER.size:
        raise ValueError("cut short")
    count: int = _PAGE_HEADER.unpack(head)[2]
    return count == 0


def _skip(file: IO[bytes], count: int) -> None:
    if count < 0:
        raise ValueError("pages overlap")
    while count and (chunk := file.read(min(count, CHUNK))):
        count -= len(chunk)
