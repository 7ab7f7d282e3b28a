"""Images that lie on this machine: an OCI layout or archive, a docker-archive, the Docker daemon.

An OCI layout has manifests, and their bytes are kept. A docker-archive (``docker save`` before
version 25) has none: one is authored from its config and layers, always the same. A tar is read
once, as a stream; what is in it is kept in the cache by digest, so that no name of a member ever
becomes a path. The daemon's own export is such a tar, and is never written to disk as a whole.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from bundler.cache import CHUNK, Cached
from bundler.lock import Blob
from bundler.sources.upstream import DAEMON, text_blob
from installer.errors import Corrupt, InvalidInput, NotFound
from installer.oci.graph import (
    ACCEPTED_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    read_manifest,
)
from installer.oci.reference import Reference
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from bundler.sources.upstream import Upstream
    from installer.bundle.digest import Digest

T = TypeVar("T")
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = b"\x1f\x8b"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError)
_SHOWN = 5


class _Saved(msgspec.Struct, rename="pascal"):
    """An image in the ``manifest.json`` of a docker-archive."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _DiffIds(msgspec.Struct):
    """As much of an image's config as says which layers it has."""

    rootfs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image on this machine: what its reference means, and where each blob is."""

    root: Descriptor
    places: Mapping[Digest, Blob]
    """Every blob that was found; of a layout's folder only those that were asked for."""
    folder: str = ""
    """Of a layout in a folder: that folder, as the spec has it."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """Where ``build`` gets a blob; raises NotFound for one that the source left out."""
        known = self.places.get(descriptor.digest)
        if known is not None:
            return msgspec.structs.replace(
                known, size=descriptor.size, media_type=descriptor.media_type
            )
        if not self.folder:
            raise NotFound(f"{descriptor.digest} is not in the archive")
        place = f"{self.folder.rstrip('/')}/{descriptor.digest.blob_path}"
        return Blob(str(descriptor.digest), descriptor.size, descriptor.media_type, source=place)


def local_image(upstream: Upstream, reference: Reference, source: str) -> LocalImage:
    """Find an image in ``source``: a folder or a tar relative to the spec, or ``docker://NAME``.

    Raises InvalidInput when it is not there, or several could be meant; Corrupt for an archive that
    contradicts itself; TransferFailed when the daemon can't be asked.
    """
    if source.startswith(DAEMON):
        name = source.removeprefix(DAEMON) or str(reference)
        image_id, members = export_from_daemon(upstream, name)
        places = {c.digest: _kept(c, f"{DAEMON}{image_id}") for c in members.values()}
        return _of_members(members, places, reference, source)
    path = upstream.folder / source
    if path.is_dir():
        index = _read(path / "index.json", source)
        return LocalImage(_choose(index, reference, source), {}, source)
    archive = upstream.file(source, f"image {reference}")
    try:
        with archive.path.open("rb") as stream:
            members = import_archive(upstream, stream, source)
    except OSError as error:
        raise InvalidInput(f"{source}: {error.strerror}") from error
    places = {
        c.digest: Blob(
            str(c.digest), c.size, "", source=source, member=name, archive=str(archive.digest)
        )
        for name, c in members.items()
    }
    return _of_members(members, places, reference, source)


def export_from_daemon(upstream: Upstream, name: str) -> tuple[str, dict[str, Cached]]:
    """Have everything of an image in the cache; gives the daemon's id of it and the files.

    Raises NotFound and TransferFailed.
    """
    from bundler.sources.docker_daemon import DockerDaemon  # noqa: PLC0415 (slow to import)

    with DockerDaemon() as daemon:
        stream = cast("IO[bytes]", daemon.save(name))
        return daemon.image_id(name), import_archive(upstream, stream, f"{DAEMON}{name}")


def import_archive(upstream: Upstream, stream: IO[bytes], what: str) -> dict[str, Cached]:
    """Keep every file of a tar in the cache; gives them by their name in the tar.

    Links, which older Docker writes for layers that are there twice, stand for what they point to.
    Raises InvalidInput for what is no tar.
    """
    kept: dict[str, Cached] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for entry in tar:
                name = entry.name.removeprefix("./")
                if entry.isreg():
                    content = tar.extractfile(entry)
                    if content is not None:
                        kept[name] = upstream.cache.put(_chunks(content), what=f"{what}: {name}")
                elif entry.issym():
                    links[name] = _target(name, entry.linkname)
                elif entry.islnk():
                    links[name] = entry.linkname.removeprefix("./")
    except _BROKEN as error:
        raise InvalidInput(
            f"{what}: can't be read as an image archive: {error}",
            hint="give what `docker save` or `skopeo copy` wrote, or the folder of a layout",
        ) from error
    for name, target in links.items():
        if target in kept:
            kept.setdefault(name, kept[target])
    return kept


def _of_members(
    members: Mapping[str, Cached], places: Mapping[Digest, Blob], reference: Reference, source: str
) -> LocalImage:
    if "index.json" in members:
        index = _read(members["index.json"].path, source)
        return LocalImage(_choose(index, reference, source), places)
    if "manifest.json" not in members:
        raise InvalidInput(f"{source}: has neither index.json nor manifest.json: no image archive")
    saved = _choose_saved(members["manifest.json"], reference, source)
    manifest, typed = _author(saved, members, places, source)
    return LocalImage(manifest.descriptor, {**typed, manifest.descriptor.digest: manifest})


def _author(
    saved: _Saved, members: Mapping[str, Cached], places: Mapping[Digest, Blob], source: str
) -> tuple[Blob, dict[Digest, Blob]]:
    """Make the manifest that a docker-archive doesn't have; layers are compared with its config."""

    def member(name: str) -> Cached:
        try:
            return members[name.removeprefix("./")]
        except KeyError:
            raise Corrupt(f"{source}: {name[:200]} is listed in it, but not there") from None

    config = member(saved.config)
    layers = [member(name) for name in saved.layers]
    types = [OCI_LAYER + ("+gzip" if _is_gzip(layer.path) else "") for layer in layers]
    try:
        found = decode_json(config.path.read_bytes()[:MAX_MANIFEST_BYTES], _DiffIds)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{source}: the image's config can't be read: {error}") from error
    stated = found.rootfs.get("diff_ids", [])
    actual = [_diff_id(layer, media_type) for layer, media_type in zip(layers, types, strict=True)]
    if stated != actual:
        raise Corrupt(f"{source}: its layers are not those that its config states")

    def described(content: Cached, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": str(content.digest), "size": content.size}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(config, OCI_CONFIG),
        "layers": [described(*pair) for pair in zip(layers, types, strict=True)],
    }
    used = {content.digest: places[content.digest] for content in (config, *layers)}
    return text_blob(OCI_MANIFEST, msgspec.json.encode(document).decode()), used


def _choose(data: bytes, reference: Reference, source: str) -> Descriptor:
    """The image of an index.json that the reference means, or the only one."""
    index = read_manifest(data, OCI_INDEX, f"{source}: index.json")
    images = index.manifests if isinstance(index, ImageIndex) else ()
    images = tuple(d for d in images if d.media_type in ACCEPTED_TYPES)
    names = [[d.annotations.get(name, "") for name in _NAMES] for d in images]
    wanted = {str(reference), reference.tag or "latest"}
    fitting = [
        descriptor
        for descriptor, called in zip(images, names, strict=True)
        if _normal(called[0]) == str(reference)
    ] or [
        descriptor
        for descriptor, called in zip(images, names, strict=True)
        if wanted & {called[1], _normal(called[1])}
    ]
    return _one(fitting or images, [next(filter(None, n), "?") for n in names], reference, source)


def _choose_saved(content: Cached, reference: Reference, source: str) -> _Saved:
    try:
        images = decode_json(content.path.read_bytes()[:MAX_MANIFEST_BYTES], list[_Saved])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{source}: its manifest.json can't be read: {error}") from error
    names = [", ".join(image.repo_tags or ["?"]) for image in images]
    fitting = [
        image
        for image in images
        if str(reference) in {_normal(tag) for tag in image.repo_tags or ()}
    ]
    return _one(fitting or images, names, reference, source)


def _one(found: Iterable[T], names: list[str], reference: Reference, source: str) -> T:
    images = list(found)
    if len(images) == 1:
        return images[0]
    more = " …" if len(names) > _SHOWN else ""
    raise InvalidInput(
        f"{source}: {len(names)} images are in it, none of them named {reference}",
        hint=f"write the reference as one of them: {', '.join(names[:_SHOWN])}{more}"
        if names
        else "there is no image in it",
    )


def _normal(name: str) -> str:
    """A name as a reference, "" for what is none."""
    try:
        return str(Reference.parse(name)) if name else ""
    except InvalidInput:
        return ""


def _kept(content: Cached, source: str) -> Blob:
    return Blob(str(content.digest), content.size, "", source=source)


def _target(name: str, link: str) -> str:
    """Where a relative link leads, as a name in the tar."""
    parts: list[str] = []
    for part in (*PurePosixPath(name).parent.parts, *PurePosixPath(link).parts):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _read(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise InvalidInput(
            f"{source}: {path.name}: {error.strerror}", hint="it is to be an OCI image layout"
        ) from error


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _diff_id(layer: Cached, media_type: str) -> str:
    """Digest of a layer's uncompressed tar."""
    if media_type == OCI_LAYER:
        return str(layer.digest)
    hasher, unpacker = hashlib.sha256(), zlib.decompressobj(wbits=31)
    try:
        with layer.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(unpacker.decompress(chunk))
        hasher.update(unpacker.flush())
    except zlib.error as error:
        raise Corrupt(f"layer {layer.digest}: {error}") from error
    return f"sha256:{hasher.hexdigest()}"


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        yield chunk
