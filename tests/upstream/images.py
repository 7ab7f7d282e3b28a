"""OCI images made on the fly, as plain bytes by digest; the same arguments give the same bytes.

An ``Image`` is whatever a tag can point to: an image, an index of several platforms, or an artefact
(chart, database, signature). It carries everything below it, so that it can be put into a registry,
an image layout or a docker-archive in one call.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

_EPOCH = "1970-01-01T00:00:00Z"
_WORDS = ("anchor", "berth", "cargo", "davit", "ebb", "fathom", "gangway", "harbour", "inlet")
_TEXT_BLOCK = 1 << 16


def sha256(data: bytes) -> str:
    """Digest as OCI writes it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Content:
    """Bytes with a media type; ``annotations`` go into the descriptor that points here."""

    media_type: str
    data: bytes = field(repr=False)
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @cached_property
    def digest(self) -> str:
        return sha256(self.data)

    def descriptor(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": len(self.data),
        }
        return described | ({"annotations": dict(self.annotations)} if self.annotations else {})


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored, and the digest of its tar before compression."""

    content: Content
    diff_id: str


@dataclass(frozen=True)
class Image:
    """A manifest or an index (``top``) with everything below it, manifests and blobs apart."""

    top: Content
    manifests: tuple[Content, ...]
    blobs: tuple[Content, ...]
    platform: str = ""

    @property
    def digest(self) -> str:
        return self.top.digest

    @property
    def size(self) -> int:
        """Bytes of everything below, each content once."""
        return sum(len(c.data) for c in {c.digest: c for c in self.everything}.values())

    @property
    def everything(self) -> tuple[Content, ...]:
        """All content, children before what points to them."""
        return (*self.blobs, *self.manifests, self.top)


def random_bytes(size: int, seed: str) -> bytes:
    """Incompressible bytes."""
    return hashlib.shake_128(seed.encode()).digest(size)


def text_bytes(size: int, seed: str) -> bytes:
    """Words in lines, which compress about as well as source code does."""
    picks = random_bytes(_TEXT_BLOCK, seed)
    block = " ".join(
        _WORDS[pick % len(_WORDS)] + ("\n" if pick > 220 else "") for pick in picks
    ).encode()
    numbered = (b"%d " % number + block for number in range(size // len(block) + 1))
    return b"".join(numbered)[:size]


def tar_layer(
    files: Mapping[str, bytes],
    *,
    executable: Iterable[str] = (),
    gzip: bool = True,
    level: int = 6,
    docker: bool = False,
) -> Layer:
    """Make a layer of these files (path below the root: content), owned by root, mtime 0.

    ``level`` is gzip's; 0 stores, which is what incompressible content deserves.
    """
    buffer = io.BytesIO()
    runnable = set(executable)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        parents = {str(parent) for path in files for parent in Path(path).parents} - {"."}
        for folder in sorted(parents):
            entry = tarfile.TarInfo(f"{folder}/")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = len(files[path])
            entry.mode = 0o755 if path in runnable else 0o644
            archive.addfile(entry, io.BytesIO(files[path]))
    plain = buffer.getvalue()
    base = DOCKER_LAYER if docker else OCI_LAYER
    if not gzip:
        return Layer(Content(base, plain), sha256(plain))
    suffix = ".gzip" if docker else "+gzip"
    return Layer(Content(base + suffix, gzipped(plain, level)), sha256(plain))


def gzipped(data: bytes, level: int = 6) -> bytes:
    """Compress without a name or a time in the header: same content, same bytes."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def layer(
    size: int, seed: str, *, text: bool = False, gzip: bool = True, docker: bool = False
) -> Layer:
    """Make a layer with about ``size`` bytes of content; the same seed gives a shared layer."""
    content = text_bytes(size, seed) if text else random_bytes(size, seed)
    path = f"usr/share/{seed.replace('/', '-')}/data"
    return tar_layer({path: content}, gzip=gzip, level=6 if text else 0, docker=docker)


def image(
    layers: Sequence[Layer],
    *,
    platform: str = "linux/amd64",
    docker: bool = False,
    config: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Make an image; ``config`` is what a container starts with (``Entrypoint``, ``Env`` …).

    ``docker`` makes it a Docker schema 2 image; its layers have to be made with that as well.
    """
    system, architecture, *variant = platform.split("/")
    document = {
        "created": _EPOCH,
        "architecture": architecture,
        **({"variant": variant[0]} if variant else {}),
        "os": system,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [item.diff_id for item in layers]},
        "history": [{"created": _EPOCH, "created_by": "tests/upstream"} for _ in layers],
    }
    configured = Content(DOCKER_CONFIG if docker else OCI_CONFIG, _json(document))
    return _manifest(
        configured,
        [item.content for item in layers],
        media_type=DOCKER_MANIFEST if docker else OCI_MANIFEST,
        annotations=annotations,
        platform=platform,
    )


def index(images: Sequence[Image], *, docker: bool = False) -> Image:
    """Make an index (Docker: a manifest list) of images for several platforms."""
    entries = []
    for item in images:
        system, architecture, *variant = item.platform.split("/")
        wanted = {"architecture": architecture, "os": system}
        wanted |= {"variant": variant[0]} if variant else {}
        entries.append(item.top.descriptor() | {"platform": wanted})
    media_type = DOCKER_LIST if docker else OCI_INDEX
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    return Image(
        Content(media_type, _json(document)),
        tuple(content for item in images for content in (*item.manifests, item.top)),
        tuple(content for item in images for content in item.blobs),
    )


def artefact(
    config: Content,
    layers: Sequence[Content],
    *,
    artifact_type: str = "",
    subject: Content | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Image:
    """Make an artefact: a chart, a database, or with ``subject`` a referrer such as a signature."""
    return _manifest(
        config,
        layers,
        media_type=OCI_MANIFEST,
        artifact_type=artifact_type,
        subject=subject,
        annotations=annotations,
    )


def _manifest(
    config: Content,
    layers: Sequence[Content],
    *,
    media_type: str,
    artifact_type: str = "",
    subject: Content | None = None,
    annotations: Mapping[str, str] | None = None,
    platform: str = "",
) -> Image:
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
    if artifact_type:
        document["artifactType"] = artifact_type
    document["config"] = config.descriptor()
    document["layers"] = [item.descriptor() for item in layers]
    if subject is not None:
        document["subject"] = subject.descriptor()
    if annotations:
        document["annotations"] = dict(annotations)
    return Image(Content(media_type, _json(document)), (), (config, *layers), platform)


def write_layout(folder: Path, images: Mapping[str, Image]) -> None:
    """Write an OCI image layout; the keys become ``org.opencontainers.image.ref.name``."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries = []
    for name, item in images.items():
        for content in item.everything:
            (blobs / content.digest.removeprefix("sha256:")).write_bytes(content.data)
        named = {"annotations": {"org.opencontainers.image.ref.name": name}}
        entries.append(item.top.descriptor() | named)
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    (folder / "index.json").write_bytes(_json(document))


def write_docker_archive(path: Path, images: Mapping[str, Image]) -> None:
    """Write what ``docker load`` and ``ctr image import`` read; the keys are full references.

    Images only: no index, no artefact.
    """
    entries, members = [], {}
    for name, item in images.items():
        config, *layers = item.blobs
        stored = [f"{part.digest.removeprefix('sha256:')}.tar" for part in layers]
        described = f"{config.digest.removeprefix('sha256:')}.json"
        entries.append({"Config": described, "RepoTags": [name], "Layers": stored})
        members[described] = config.data
        members |= {name: part.data for name, part in zip(stored, layers, strict=True)}
    members["manifest.json"] = _json(entries)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
