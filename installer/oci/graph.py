"""What OCI manifests point to: descriptors, and the edges from a manifest or an index.

Manifests are kept as the bytes that the registry sent; here they are only read. Nothing is read
before its digest held: the functions take bytes that a caller has checked.

The same bytes are read again by registries and container runtimes, most of them in Go, whose JSON
takes ``Layers`` for ``layers`` and the last of two keys. What they could understand differently is
refused, so that nobody can be shown other layers than those that were checked and carried.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from installer.bundle.digest import Digest
from installer.errors import Corrupt, InvalidInput
from installer.structs import decode_json

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPTED_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""What registries accept at least and usually at most (distribution-spec 1.1, "Push")."""
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size (bytes) of a blob or manifest, and what is said of it."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = field(default_factory=dict, hash=False)
    platform: str | None = None

    @property
    def is_manifest(self) -> bool:
        """Whether it is fetched from ``/manifests/`` rather than ``/blobs/``."""
        return self.media_type in INDEX_TYPES or self.media_type in MANIFEST_TYPES


class _Platform(msgspec.Struct):
    os: str
    architecture: str
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None
    urls: list[str] | None = None

    def typed(self, where: str) -> Descriptor:
        if not 0 <= self.size <= _MAX_SIZE:
            raise Corrupt(f"{where}: impossible size of {self.digest[:80]}")
        if self.urls:
            raise InvalidInput(
                f"{where}: layer {self.digest[:80]} lives at a foreign URL",
                hint="images with foreign layers (old Windows base images) can't be carried",
            )
        try:
            digest = Digest.parse(self.digest)
        except InvalidInput as error:
            raise Corrupt(f"{where}: {error.message}", hint="only sha256 is carried") from error
        platform = self.platform
        return Descriptor(
            self.media_type,
            digest,
            self.size,
            self.annotations or {},
            "/".join(p for p in (platform.os, platform.architecture, platform.variant) if p)
            if platform
            else None,
        )


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """An image manifest (or artefact): its config, its layers in order, what it refers to."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str
    annotations: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """Config and layers, in that order."""
        return (self.config, *self.layers)


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """An image index (Docker: manifest list): its manifests in order, each with its platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def children(self) -> tuple[Descriptor, ...]:
        """The manifests."""
        return self.manifests


def read_manifest(data: bytes, media_type: str, where: str) -> ImageManifest | ImageIndex:
    """Read the bytes of a manifest or an index whose digest was already checked.

    ``media_type`` is what the descriptor or the registry says; a document that claims another
    one is refused (OCI image-spec 1.1, manifest.md: they must match). ``where`` names the
    artefact in errors. Raises Corrupt for what is not such a document.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise Corrupt(f"{where}: manifest of {len(data)} bytes is over {MAX_MANIFEST_BYTES}")
    try:
        document = decode_json(data, _Document)
        _check_keys(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupt(f"{where}: not an OCI manifest: {error}") from error
    if document.schema_version != 2:  # noqa: PLR2004 - the only one there is (manifest.md)
        raise Corrupt(f"{where}: schema version {document.schema_version} instead of 2")
    if document.media_type and document.media_type != media_type:
        raise Corrupt(f"{where}: says {document.media_type}, its descriptor says {media_type}")
    subject = document.subject.typed(where) if document.subject else None
    annotations = document.annotations or {}
    if media_type in INDEX_TYPES:
        if document.manifests is None or document.layers is not None:
            raise Corrupt(f"{where}: {media_type} without manifests, or with layers")
        children = tuple(d.typed(where) for d in document.manifests)
        return ImageIndex(media_type, children, subject, annotations)
    if media_type not in MANIFEST_TYPES:
        raise Corrupt(f"{where}: unknown manifest type {media_type[:100]!r}")
    if document.config is None or document.layers is None or document.manifests is not None:
        raise Corrupt(f"{where}: {media_type} without config or layers, or with manifests")
    return ImageManifest(
        media_type,
        document.config.typed(where),
        tuple(d.typed(where) for d in document.layers),
        subject,
        document.artifact_type or document.config.media_type,
        annotations,
    )


def _check_keys(data: bytes) -> None:
    """Refuse a key that is there twice, or in another case; raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    document = json.loads(data, object_pairs_hook=unique)
    children = [document.get(key) for key in ("config", "subject")]
    for key in ("layers", "manifests"):
        children += document.get(key) or ()
    for part, known in (
        (document, _Document),
        *((child, _Descriptor) for child in children if child),
        *((child["platform"], _Platform) for child in children if child and child.get("platform")),
    ):
        names = {name.lower(): name for name in known.__struct_encode_fields__}
        for key in part:
            if names.get(key.lower(), key) != key:
                raise ValueError(f"the key {key[:40]!r}, which is written {names[key.lower()]!r}")


def artefact_manifest(
    config: Descriptor, layer: Descriptor, *, artifact_type: str = "", title: str = ""
) -> bytes:
    """Author the manifest of a one-layer artefact (chart, tool, file), always the same bytes."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if artifact_type:
        document["artifactType"] = artifact_type
    document["config"] = plain(config)
    titled = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
    document["layers"] = [plain(layer) | titled]
    return msgspec.json.encode(document)


def plain(descriptor: Descriptor) -> dict[str, Any]:
    """Write a descriptor as it stands in a document, without what is said of it."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
