"""The pipeline from lock to bundle, readable top to bottom.

(1) the signing key is unlocked by the caller before anything is fetched;
(2) all manifests are read (they are small), since ``manifest.json`` is made from them;
(3) the manifest is authored and the file laid out: from here on every offset is known;
(4) the file is filled at its final offsets, each byte written once;
(5) bundle.json is signed and the signature area written;
(6) the file is synced, and only then gets its final name: there is no half a bundle.
"""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bundler.cache import read_chunks
from bundler.fetch import Filled, Job, Journal, fill, read_marks
from bundler.image_layout import OCI_LAYOUT, docker_manifest, index_json, readme
from bundler.lock import bundle_manifest
from bundler.reuse import LocalBlobs
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, Layout, layout
from installer.bundle.manifest import SIGNATURE_AREA, Manifest, Member, encode
from installer.bundle.signature import encode_area, member_names
from installer.errors import InvalidInput, TransferFailed
from installer.oci.graph import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bundler.installer_file import InstallerFile
    from bundler.lock import Blob, Lock
    from bundler.sources.upstream import Upstream
    from installer.keys import SigningKey

_FIRST = member_names(1)[0].encode()
"""What every bundle begins with: the name of its first member."""
THREADS = 4
"""Connections at once: four fill two cores, more only wait for each other (docs/benchmarks.md)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be written: the manifest's bytes, the places, and the small members' contents."""

    manifest: Manifest
    payload: bytes
    places: Layout
    front: dict[str, bytes]
    documents: dict[Digest, bytes]
    local: LocalBlobs
    installers: dict[str, Path]


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
) -> Plan:
    """Steps (2) and (3); raises TransferFailed or Corrupt when a manifest can't be had.

    ``local`` are blobs that this machine has, ``installers`` travel in the bundle.
    """
    local = local or LocalBlobs()
    documents = _read_manifests(lock, upstream, local)
    contents = {
        "README.txt": readme(lock, [installer.name for installer in installers]),
        "oci-layout": OCI_LAYOUT,
        "index.json": index_json(bundle_manifest(lock, (), SIGNATURE_AREA)),
        "manifest.json": docker_manifest(lock, documents),
    }
    first, *others = (Member(p, len(data), Digest.of(data).hex) for p, data in contents.items())
    programs = (Member(i.name, i.size, i.digest.hex, executable=True) for i in installers)
    manifest = bundle_manifest(lock, (first, *programs, *others), SIGNATURE_AREA)
    payload = encode(manifest)
    places = layout(manifest, len(payload))
    files = {installer.name: installer.path for installer in installers}
    return Plan(manifest, payload, places, contents, documents, local, files)


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


def budget(prepared: Plan, out: Path) -> Budget:
    """Say what a build to ``out`` would take; nothing is written, content is not read.

    Raises InvalidInput as ``check_out`` does.
    """
    check_out(out)
    partial = _partial(out)
    marks = read_marks(_journal(partial), str(Digest.of(prepared.payload))) or {}
    download = copied = resumed = 0
    for entry in prepared.places.entries:
        member = entry.member
        if member.path in prepared.front or member.digest in prepared.documents:
            continue  # was made, or had to be read for the plan
        mark = min(marks.get(member.sha256, 0), member.size)
        resumed += mark
        is_here = member.path in prepared.installers
        if not mark and (is_here or prepared.local.find(member.digest, member.size)):
            copied += member.size
        else:
            download += member.size - mark
    disk, taken = os.statvfs(out.parent), 0
    with suppress(FileNotFoundError):
        taken = partial.stat().st_blocks * 512
    room = disk.f_bavail * disk.f_frsize + taken
    return Budget(prepared.places.size, download, copied, resumed, room)


def build(
    lock: Lock,
    upstream: Upstream,
    key: SigningKey,
    out: Path,
    *,
    prepared: Plan | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Built:
    """Write the bundle to ``out``; what is left of an interrupted build of the same lock is used.

    ``progress`` is told the bytes of each piece that is in place. Raises TransferFailed, Corrupt
    or InvalidInput; then there is no file ``out``, and ``out.partial`` is what the next run goes
    on with.
    """
    check_out(out)
    prepared = prepared or plan(lock, upstream)
    partial = _partial(out)
    try:
        return _write(lock, prepared, upstream, key, out, partial, progress)
    except OSError as error:
        raise TransferFailed(
            f"{error.filename or partial}: {error.strerror}",
            hint="make room or choose another disk; the same command goes on where it stopped",
        ) from error


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _journal(partial: Path) -> Path:
    return partial.with_name(partial.name + ".journal")


def check_out(out: Path) -> None:
    """Refuse a target that can't be written or is no bundle; raises InvalidInput."""
    if not out.parent.is_dir():
        raise InvalidInput(f"{out.parent}: no such folder", hint="is the disk mounted?")
    if not out.exists():
        return
    with suppress(OSError), out.open("rb") as stream:
        if out.is_file() and stream.read(len(_FIRST)) == _FIRST:
            return
    raise InvalidInput(
        f"{out}: exists, and is not a bundle", hint="choose another --out: nothing is overwritten"
    )


def _open_partial(partial: Path) -> int:
    """Open the unfinished file for this build alone; raises InvalidInput when another has it."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(partial, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The build that held the lock may have finished and renamed this very file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), partial.stat(follow_symlinks=False)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InvalidInput(f"another build is writing {partial}") from None
        os.close(descriptor)


def _write(
    lock: Lock,
    prepared: Plan,
    upstream: Upstream,
    key: SigningKey,
    out: Path,
    partial: Path,
    progress: Callable[[int], None],
) -> Built:
    places, digest = prepared.places, Digest.of(prepared.payload)
    notes = _journal(partial)
    descriptor = _open_partial(partial)
    try:
        journal = Journal(notes, str(digest))
        try:
            _reserve(descriptor, places.size, partial)
            _write_frames(descriptor, prepared)
            jobs = _jobs(lock, prepared, upstream)
            filled = fill(descriptor, jobs, journal, threads=THREADS, progress=progress)
        finally:
            journal.close()
        area = encode_area([key.sign(prepared.payload)], digest, SIGNATURE_AREA)
        os.pwrite(descriptor, area, 0)
        os.fsync(descriptor)
        partial.replace(out)
        _sync_folder(out.parent)
        notes.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return Built(out, places.size, digest, prepared.manifest, filled)


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


def _reserve(descriptor: int, size: int, partial: Path) -> None:
    """Take the final size at once, as far as the disk has room; a full disk is found here.

    The file stays sparse: what an earlier run has filled keeps its blocks and counts as there.
    """
    status, disk = os.fstat(descriptor), os.fstatvfs(descriptor)
    missing = size - status.st_blocks * 512
    free = disk.f_bavail * disk.f_frsize
    if missing > free:
        raise TransferFailed(
            f"{partial.parent}: {missing:,} bytes needed, {free:,} free",
            hint="make room or choose another disk with --out",
        )
    os.ftruncate(descriptor, size)


def _write_frames(descriptor: int, prepared: Plan) -> None:
    """Write everything between the contents, and bundle.json itself."""
    for offset, data, _ in prepared.places.frames():
        os.pwrite(descriptor, data, offset)
    os.pwrite(descriptor, prepared.payload, prepared.places.manifest_offset + BLOCK)


def _jobs(lock: Lock, prepared: Plan, upstream: Upstream) -> list[Job]:
    blobs = {Digest.parse(blob.digest).blob_path: blob for blob in lock.blobs}
    jobs = []
    for entry in prepared.places.entries:
        path = entry.member.path
        blob = blobs.get(path)
        known = (
            prepared.front.get(path)
            if blob is None
            else prepared.documents.get(entry.member.digest)
        )
        if known is not None:
            jobs.append(Job(entry, _from_memory(known), path))
        elif path in prepared.installers:
            jobs.append(Job(entry, _from_file(prepared.installers[path]), path))
        else:
            assert blob is not None  # noqa: S101 (a member is in front, an installer or a blob)
            place = prepared.local.find(entry.member.digest, entry.member.size)
            read = place.read if place else None
            jobs.append(Job(entry, _from_upstream(upstream, blob), _describe(blob), read))
    return jobs


def _from_memory(data: bytes) -> Callable[[int], Iterator[bytes]]:
    return lambda start: iter([data[start:]] if data[start:] else [])


def _from_file(path: Path) -> Callable[[int], Iterator[bytes]]:
    return lambda start: read_chunks(path, start)


def _from_upstream(upstream: Upstream, blob: Blob) -> Callable[[int], Iterator[bytes]]:
    return lambda start: upstream.open(blob, start)


def _describe(blob: Blob) -> str:
    place = blob.repository or blob.source or "authored"
    return f"{place}@{blob.digest[:19]}…"


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
