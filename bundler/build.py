"""The pipeline from lock to bundle, readable top to bottom.

(1) the signing key is unlocked by the caller before anything is fetched;
(2) all manifests are read (they are small), since ``manifest.json`` is made from them;
(3) the manifest is authored and the file laid out: from here on every offset is known;
(4) the file is filled at its final offsets, each byte written once;
(5) the attestations are signed, which changes no size, then bundle.json, and both are written;
(6) the file is synced, and only then gets its final name: there is no half a bundle (target.py).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from bundler.attestation import PROVENANCE, SBOM, SUBJECT, signed, unsigned
from bundler.cache import read_chunks
from bundler.fetch import Filled, Job, Journal, Observer, Origin, RateLimit, fill, read_marks
from bundler.image_layout import OCI_LAYOUT, docker_manifest, index_json, readme
from bundler.lock import bundle_manifest
from bundler.provenance import provenance
from bundler.reuse import LocalBlobs
from bundler.sbom import MEMBER as SBOM_MEMBER
from bundler.sbom import sbom, sbom_statement
from bundler.sources.web import is_url
from bundler.target import Target, check_target, partial_of
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, Layout, layout
from installer.bundle.manifest import SIGNATURE_AREA, Manifest, Member, encode
from installer.bundle.signature import encode_area, member_names
from installer.errors import TransferFailed
from installer.oci.graph import MAX_MANIFEST_BYTES, ImageIndex, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bundler.delta import Held
    from bundler.installer_file import InstallerFile
    from bundler.lock import Blob, Lock
    from bundler.sources.upstream import Upstream
    from installer.keys import SigningKey
    from installer.oci.graph import Descriptor

_FIRST = member_names(1)[0].encode()
"""What every bundle begins with: the name of its first member."""
THREADS = 8
"""Connections at once: large blobs need fewer, small ones and far hosts are waited for most of the
time (docs/benchmarks.md)."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How to fetch: connections at once, of them to one host, bytes a second, and who is told.

    None is no limit of its own.
    """

    threads: int = THREADS
    per_host: int | None = None
    rate: int | None = None
    observer: Observer = field(default_factory=Observer)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written: the manifest's bytes, the places, and the small members' contents.

    ``statements`` are those of the attestations, by member, which stand unsigned in ``front``.
    """

    manifest: Manifest
    payload: bytes
    places: Layout
    front: dict[str, bytes]
    documents: dict[Digest, bytes]
    local: LocalBlobs
    installers: dict[str, Path]
    statements: dict[str, bytes]

    @property
    def alone(self) -> int:
        """Bytes that the contents would have if each were kept by itself, nothing shared."""
        return sum(self._size(content.root) for content in self.manifest.contents)

    def _size(self, root: Descriptor) -> int:
        found, waiting = {root.digest: root.size}, [root]
        while waiting:
            descriptor = waiting.pop()
            data = self.documents.get(descriptor.digest)
            if data is None:
                continue
            document = read_manifest(data, descriptor.media_type, str(descriptor.digest))
            if isinstance(document, ImageIndex):
                below = tuple(m for m in document.manifests if m.digest in self.documents)
            else:
                below = document.children
            waiting += [child for child in below if child.digest not in found]
            found |= {child.digest: child.size for child in below}
        return sum(found.values())


@dataclass(frozen=True, slots=True)
class Built:
    """A finished bundle: its size in bytes, the digest of bundle.json, and what filling took."""

    path: Path
    size: int
    digest: Digest
    manifest: Manifest
    filled: Filled


def plan(
    lock: Lock,
    upstream: Upstream,
    local: LocalBlobs | None = None,
    installers: Sequence[InstallerFile] = (),
    held: Held | None = None,
) -> Plan:
    """Steps (2) and (3); raises TransferFailed or Corrupt when a manifest can't be had.

    ``local`` are blobs that this machine has, ``installers`` travel in the bundle, ``held``
    are blobs that a site has: with them the bundle becomes a delta.
    """
    local = local or LocalBlobs()
    documents = _read_manifests(lock, upstream, local)
    omitted = held.omitted(lock) if held else frozenset()
    listed = bundle_manifest(lock, (), SIGNATURE_AREA, omitted)
    contents = {
        "README.txt": readme(
            lock,
            [installer.name for installer in installers],
            listed.required,
            held.name if held else "",
        ),
        "oci-layout": OCI_LAYOUT,
        "index.json": index_json(listed),
        "manifest.json": docker_manifest(lock, documents),
        SBOM_MEMBER: sbom(lock, installers),
    }
    statements = _statements(lock, contents)
    contents |= {path: unsigned(statement) for path, statement in statements.items()}
    first, *others = (Member(p, len(data), Digest.of(data).hex) for p, data in contents.items())
    programs = (Member(i.name, i.size, i.digest.hex, executable=True) for i in installers)
    manifest = bundle_manifest(lock, (first, *programs, *others), SIGNATURE_AREA, omitted)
    payload = encode(manifest)
    places = layout(manifest, len(payload))
    files = {installer.name: installer.path for installer in installers}
    return Plan(manifest, payload, places, contents, documents, local, files, statements)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of a build before it begins: of the bundle, and how they will come about.

    ``room`` is what the disk has for it, what an unfinished run has taken included.
    """

    bundle: int
    download: int
    copied: int
    resumed: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.bundle <= self.room


def budget(prepared: Plan, out: Path, part_size: int | None = None) -> Budget:
    """Say what a build to ``out`` would take; nothing is written, content is not read.

    Raises InvalidInput as ``check_out`` does.
    """
    target = Target(out, prepared.places.size, part_size)
    check_target(target, _FIRST)
    marks = read_marks(_journal(target), _identity(prepared, target)) or {}
    download = copied = resumed = 0
    for entry in prepared.places.entries:
        member = entry.member
        if member.path in prepared.front:
            continue  # was made for the plan
        mark = min(marks.get(member.sha256, 0), member.size)
        resumed += mark
        is_here = member.path in prepared.installers
        if not mark and (is_here or prepared.local.find(member.digest, member.size)):
            copied += member.size
        elif member.digest not in prepared.documents:  # those had to be read for the plan
            download += member.size - mark
    disk = os.statvfs(out.parent)
    room = disk.f_bavail * disk.f_frsize + target.taken()
    return Budget(prepared.places.size, download, copied, resumed, room)


def build(
    lock: Lock,
    upstream: Upstream,
    key: SigningKey,
    out: Path,
    *,
    prepared: Plan | None = None,
    part_size: int | None = None,
    manner: Manner | None = None,
) -> Built:
    """Write the bundle to ``out``; what is left of an interrupted build of the same lock is used.

    With ``part_size`` (bytes) it is written as parts ``out.part01`` and so on, each smaller than
    that, and their index ``out.parts.json``. Raises TransferFailed, Corrupt or InvalidInput; then
    there is no file ``out``, and ``out.partial`` is what the next run goes on with.
    """
    prepared = prepared or plan(lock, upstream)
    target = Target(out, prepared.places.size, part_size)
    check_target(target, _FIRST)
    try:
        return _write(lock, prepared, upstream, key, target, manner or Manner())
    except OSError as error:
        raise TransferFailed(
            f"{error.filename or partial_of(out)}: {error.strerror}",
            hint="make room or choose another disk; the same command goes on where it stopped",
        ) from error


def check_out(out: Path, part_size: int | None = None) -> None:
    """Refuse a target that can't be written or is no bundle; raises InvalidInput."""
    check_target(Target(out, part_size or 1, part_size), _FIRST)


def _journal(target: Target) -> Path:
    partial = partial_of(target.out)
    return partial.with_name(partial.name + ".journal")


def _write(
    lock: Lock,
    prepared: Plan,
    upstream: Upstream,
    key: SigningKey,
    target: Target,
    manner: Manner,
) -> Built:
    places = prepared.places
    notes = _journal(target)
    with target:
        target.open()
        journal = Journal(notes, _identity(prepared, target))
        try:
            target.reserve()
            _write_frames(target, prepared)
            jobs = _jobs(lock, prepared, upstream)
            filled = fill(
                target,
                jobs,
                journal,
                threads=manner.threads,
                per_host=manner.per_host,
                limit=RateLimit(manner.rate) if manner.rate else None,
                observer=manner.observer,
            )
        finally:
            journal.close()
        manifest, payload, attestations = _attested(prepared, key)
        for path, data in attestations.items():
            target.write(data, places.by_path()[path].offset)
        target.write(payload, places.manifest_offset + BLOCK)
        digest = Digest.of(payload)
        target.write(encode_area([key.sign(payload)], digest, SIGNATURE_AREA), 0)
        target.finish(digest)
        notes.unlink(missing_ok=True)
    return Built(target.result, places.size, digest, manifest, filled)


def _identity(prepared: Plan, target: Target) -> str:
    """What a journal is of: the same bundle, cut into the same files."""
    return f"{Digest.of(prepared.payload)} in {target.cut}"


def _statements(lock: Lock, contents: dict[str, bytes]) -> dict[str, bytes]:
    """What is attested, by the members that will say it."""
    subject = Digest.of(contents[SUBJECT])
    return {
        PROVENANCE: provenance(lock, subject),
        SBOM: sbom_statement(contents[SBOM_MEMBER], subject),
    }


def _attested(prepared: Plan, key: SigningKey) -> tuple[Manifest, bytes, dict[str, bytes]]:
    """The manifest and its bytes with signed attestations, and these by member.

    Sizes and places stay: an attestation is as long without a signature.
    """
    attestations = {path: signed(text, key) for path, text in prepared.statements.items()}
    members = tuple(
        msgspec.structs.replace(member, sha256=Digest.of(attestations[member.path]).hex)
        if member.path in attestations
        else member
        for member in prepared.manifest.members
    )
    manifest = msgspec.structs.replace(prepared.manifest, members=members)
    return manifest, encode(manifest), attestations


def _read_manifests(lock: Lock, upstream: Upstream, local: LocalBlobs) -> dict[Digest, bytes]:
    blobs = [blob for blob in lock.blobs if blob.descriptor.is_manifest]

    def read(blob: Blob) -> bytes:
        digest = blob.descriptor.digest
        if blob.size <= MAX_MANIFEST_BYTES and (place := local.find(digest, blob.size)):
            with suppress(OSError):
                data = b"".join(place.read())
                if Digest.of(data) == digest:
                    return data
        return upstream.document(blob)

    with ThreadPoolExecutor(THREADS) as pool:
        contents = pool.map(read, blobs)
        return {blob.descriptor.digest: data for blob, data in zip(blobs, contents, strict=True)}


def _write_frames(target: Target, prepared: Plan) -> None:
    """Write everything between the contents, and bundle.json itself."""
    for offset, data, _ in prepared.places.frames():
        target.write(data, offset)
    target.write(prepared.payload, prepared.places.manifest_offset + BLOCK)


def _jobs(lock: Lock, prepared: Plan, upstream: Upstream) -> list[Job]:
    blobs = {Digest.parse(blob.digest).blob_path: blob for blob in lock.blobs}
    jobs = []
    for entry in prepared.places.entries:
        path = entry.member.path
        blob = blobs.get(path)
        place = prepared.local.find(entry.member.digest, entry.member.size) if blob else None
        known = (
            prepared.front.get(path)
            if blob is None
            else prepared.documents.get(entry.member.digest)
        )
        if known is not None:
            origin = "copied" if place else _origin(blob)
            jobs.append(Job(entry, _from_memory(known), path, origin=origin))
        elif path in prepared.installers:
            source = _from_file(prepared.installers[path])
            jobs.append(Job(entry, source, path, origin="copied"))
        else:
            assert blob is not None  # noqa: S101 (in front, an installer or a blob)
            read = place.read if place else None
            source = _from_upstream(upstream, blob)
            jobs.append(Job(entry, source, _describe(blob), read, _host(blob), _origin(blob)))
    return jobs


def _origin(blob: Blob | None) -> Origin:
    """As what a member counts that comes from where the lock says; None is one of our own."""
    if blob is None or blob.text is not None:
        return "made"
    return "fetched" if _host(blob) else "copied"


def _from_memory(data: bytes) -> Callable[[int], Iterator[bytes]]:
    return lambda start: iter([data[start:]] if data[start:] else [])


def _from_file(path: Path) -> Callable[[int], Iterator[bytes]]:
    return lambda start: read_chunks(path, start)


def _from_upstream(upstream: Upstream, blob: Blob) -> Callable[[int], Iterator[bytes]]:
    return lambda start: upstream.open(blob, start)


def _host(blob: Blob) -> str:
    """Who is asked for a blob; empty for what is on this machine."""
    if is_url(blob.source):
        return urlsplit(blob.source).netloc
    return blob.repository.partition("/")[0]


def _describe(blob: Blob) -> str:
    place = blob.repository or blob.source or "authored"
    return f"{place}@{blob.digest[:19]}…"
