"""Images in a folder or a tar that somebody else's tool wrote, as a store to copy from.

Two forms are read. An OCI image layout, as a folder or as a tar (skopeo, oras, podman, docker 25
and later), is taken as it is, so that every digest stays. The older docker-archive has only the
layers' uncompressed tars: their digests must be those that the image's config states, then they are
compressed into a passing folder and a manifest is written for them. Where a tar is both, the layout
counts. Nothing is unpacked by name: content is read at its place in the tar, and hashed.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from installer.bundle.digest import CHUNK, Digest, verified
from installer.errors import Corrupt, InvalidInput, NotFound
from installer.oci.artefact import Blob, author
from installer.oci.graph import (
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    Descriptor,
    ImageIndex,
    read_manifest,
)
from installer.oci.store import read_all
from installer.structs import decode_json
from installer.tar import UNREADABLE, CautiousHeader, members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installer.oci.artefact import Artefact

T = TypeVar("T")

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_GZIP = b"\x1f\x8b"
_MAX_LINKS = 8
_MAX_JSON = MAX_MANIFEST_BYTES
_BUNDLE = "bundle.json"


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes in a file: from ``offset``, ``size`` of them."""

    file: Path
    offset: int
    size: int

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` on; raises Corrupt when the file ends before."""
        left = self.size - start
        with self.file.open("rb") as stream:
            stream.seek(self.offset + start)
            while left:
                chunk = stream.read(min(left, CHUNK))
                if not chunk:
                    raise Corrupt(f"{self.file}: ends {left} bytes too early")
                left -= len(chunk)
                yield chunk

    def read(self) -> bytes:
        """All of a small document; raises Corrupt when it is none."""
        if self.size > _MAX_JSON:
            raise Corrupt(f"{self.file}: a document of {self.size} bytes")
        return b"".join(self.chunks())


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image of the archive: its root, and the names that the archive gives it, maybe none."""

    root: Descriptor
    names: tuple[str, ...]


class ArchiveStore:
    """The images of an archive (a ReadableStore); the names of repositories don't matter to it."""

    def __init__(
        self, path: Path, images: tuple[FoundImage, ...], blobs: dict[str, Place | bytes]
    ) -> None:
        self.path = path
        self.images = images
        self._blobs = blobs

    @classmethod
    def of(cls, path: Path, artefact: Artefact, name: str) -> ArchiveStore:
        """A store with the one artefact that was made of a file."""
        blobs: dict[str, Place | bytes] = {artefact.root.digest.hex: artefact.manifest}
        blobs |= {blob.descriptor.digest.hex: blob.data for blob in artefact.blobs}
        return cls(path, (FoundImage(artefact.root, (name,)),), blobs)

    def resolve(self, repository: str, version: str) -> Descriptor:
        """Find an image by its digest or one of its names; raises NotFound or Corrupt."""
        for image in self.images:
            if version == str(image.root.digest) or f"{repository}:{version}" in image.names:
                read_all(self, repository, image.root)
                return image.root
        raise NotFound(f"{self.path}: no image {repository}:{version[:140]}")

    def exists(self, repository: str, descriptor: Descriptor) -> bool:
        """Whether the archive has the content; nothing is read."""
        del repository
        return descriptor.digest.hex in self._blobs

    def fetch(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Chunks of the content, checked; raises NotFound or Corrupt."""
        chunks = self.stream(repository, descriptor)
        where = f"{self.path}: {descriptor.digest}"
        return verified(chunks, descriptor.digest, descriptor.size, where)

    def stream(self, repository: str, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Chunks from byte ``start`` on, for a caller that checks; raises NotFound."""
        del repository
        found = self._blobs.get(descriptor.digest.hex)
        if found is None:
            raise NotFound(f"{self.path}: no {descriptor.digest}")
        if isinstance(found, bytes):
            return iter((found[start:],) if found[start:] else ())
        return found.chunks(start)


def is_bundle(path: Path) -> bool:
    """Whether a tar is one of our bundles, which is only read once its signature held."""
    try:
        with tarfile.open(path, "r:", tarinfo=CautiousHeader) as tar:
            first = tar.next()
            return first is not None and first.name.startswith(_BUNDLE)
    except UNREADABLE:
        return False


def open_archive(path: Path, passing: Path) -> ArchiveStore:
    """Read what images an OCI layout or a docker-archive has.

    ``passing`` is an empty folder for compressed layers, which has to stay as long as the store is
    used. Raises InvalidInput for what is no such thing, Corrupt for one that is damaged.
    """
    files = _folder(path) if path.is_dir() else _tar(path)
    if "index.json" in files:
        return _layout(path, files)
    if "manifest.json" in files:
        return _docker_archive(path, files, passing)
    raise InvalidInput(
        f"{path}: neither an OCI image layout nor a docker-archive",
        hint="`docker save`, `podman save`, `skopeo copy` and `oras copy` write one",
    )


def _folder(path: Path) -> dict[str, Place]:
    names = ["index.json", "oci-layout"]
    blobs = path / "blobs" / "sha256"
    if blobs.is_dir():
        names += [f"blobs/sha256/{one.name}" for one in blobs.iterdir()]
    places = ((name, path / name) for name in names)
    return {name: Place(at, 0, at.stat().st_size) for name, at in places if at.is_file()}


def _tar(path: Path) -> dict[str, Place]:
    try:
        with tarfile.open(path, "r:", tarinfo=CautiousHeader) as tar:
            listed = {posixpath.normpath(member.name): member for member in members(tar)}
    except UNREADABLE as error:
        raise InvalidInput(
            f"{path}: not a tar that is read in place: {error}",
            hint="unpack a compressed one first: gunzip, xz -d or zstd -d",
        ) from error
    files = {}
    for name, member in listed.items():
        found: tarfile.TarInfo | None = member
        for _ in range(_MAX_LINKS):  # `docker save` before 25 links layers that are alike
            if found is None or not (found.issym() or found.islnk()):
                break
            base = posixpath.dirname(found.name) if found.issym() else ""
            found = listed.get(posixpath.normpath(posixpath.join(base, found.linkname)))
        if found is not None and found.isreg():
            files[name] = Place(path, found.offset_data, found.size)
    return files


def _layout(path: Path, files: dict[str, Place]) -> ArchiveStore:
    index = read_manifest(files["index.json"].read(), OCI_INDEX, f"{path}: index.json")
    if not isinstance(index, ImageIndex) or not index.manifests:
        raise InvalidInput(f"{path}: index.json lists no image")
    images = []
    for root in index.manifests:
        names = (root.annotations.get(key, "") for key in _NAMES)
        images.append(FoundImage(root, tuple(name for name in names if name)))
    prefix = "blobs/sha256/"
    blobs: dict[str, Place | bytes] = {
        name.removeprefix(prefix): place for name, place in files.items() if name.startswith(prefix)
    }
    return ArchiveStore(path, tuple(images), blobs)


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str]


class _Config(msgspec.Struct):
    rootfs: _RootFs


def _docker_archive(path: Path, files: dict[str, Place], passing: Path) -> ArchiveStore:
    entries = _decoded(files["manifest.json"].read(), list[_Entry], f"{path}: manifest.json")
    blobs: dict[str, Place | bytes] = {}
    images = []
    layers: dict[str, Descriptor] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "compress") as pool:
        for entry in entries:
            config = Blob.of(OCI_CONFIG, _file(path, files, entry.config).read())
            stated = _decoded(config.data, _Config, f"{path}: {entry.config}").rootfs.diff_ids
            if len(stated) != len(entry.layers):
                raise Corrupt(f"{path}: {entry.config}: another number of layers than there are")
            wanted = dict(zip(stated, entry.layers, strict=True))
            new = [diff for diff in wanted if diff not in layers]
            places = [_file(path, files, wanted[diff]) for diff in new]
            made = pool.map(partial(_compressed, passing), new, places)
            for diff, (descriptor, place) in zip(new, made, strict=True):
                layers[diff] = descriptor
                blobs[descriptor.digest.hex] = place
            image = author(config, [layers[diff] for diff in stated], ())
            blobs[config.descriptor.digest.hex] = config.data
            blobs[image.root.digest.hex] = image.manifest
            images.append(FoundImage(image.root, tuple(entry.repo_tags or ())))
    if not images:
        raise InvalidInput(f"{path}: manifest.json lists no image")
    return ArchiveStore(path, tuple(images), blobs)


def _file(path: Path, files: dict[str, Place], name: str) -> Place:
    try:
        return files[posixpath.normpath(name)]
    except KeyError:
        raise Corrupt(f"{path}: manifest.json names {name[:200]!r}, which is missing") from None


def _decoded(data: bytes, kind: type[T], where: str) -> T:
    try:
        return decode_json(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{where}: {error}") from error


class _Unpacker:
    """Gzip of one or several members (eStargz has many), unpacked piece by piece."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def unpacked(self, chunk: bytes) -> Iterator[bytes]:
        """What the next bytes give; raises zlib.error."""
        while chunk:
            yield self._inflate.decompress(chunk, CHUNK)
            chunk = self._inflate.unconsumed_tail
            if self._inflate.eof:
                chunk = self._inflate.unused_data
                self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)


def _compressed(passing: Path, diff_id: str, place: Place) -> tuple[Descriptor, Place]:
    """Compress a layer, or take one that is; its uncompressed digest must be ``diff_id``."""
    head = next(place.chunks(), b"")[:2]
    target = passing / f"{hashlib.sha256(diff_id.encode()).hexdigest()}.tar.gz"
    plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
    unpacker = _Unpacker() if head == _GZIP else None
    deflate = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    with target.open("xb") as out:

        def write(data: bytes) -> None:
            nonlocal size
            packed.update(data)
            size += len(data)
            out.write(data)

        try:
            for chunk in place.chunks():
                if unpacker is None:
                    plain.update(chunk)
                    write(deflate.compress(chunk))
                else:
                    for data in unpacker.unpacked(chunk):
                        plain.update(data)
                    write(chunk)
        except zlib.error as error:
            raise Corrupt(f"{place.file}: a layer can't be unpacked: {error}") from error
        if unpacker is None:
            write(deflate.flush())
    if f"sha256:{plain.hexdigest()}" != diff_id:
        raise Corrupt(
            f"{place.file}: a layer is sha256:{plain.hexdigest()}, its image says {diff_id[:80]}",
            hint="save the image again",
        )
    digest = Digest(packed.hexdigest())
    return Descriptor(OCI_LAYER, digest, size), Place(target, 0, size)
