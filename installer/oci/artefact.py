"""An artefact that is made here: its bytes, and how they get into a store.

Charts, tools, signatures and the planted image are a manifest with a few small blobs. The oras
library authors such things as well, but writes its own idea of a manifest and reads whole blobs;
a manifest is one JSON document, and pushing is the store's (docs/adr/0013-signatures-of-images.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from installer.bundle.digest import Digest
from installer.oci.graph import OCI_MANIFEST, Descriptor, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from installer.oci.store import WritableStore


@dataclass(frozen=True, slots=True)
class Blob:
    """Small content with its descriptor."""

    descriptor: Descriptor
    data: bytes

    @classmethod
    def of(cls, media_type: str, data: bytes, annotations: dict[str, str] | None = None) -> Blob:
        """Wrap bytes; the annotations stand in the manifest that names them."""
        return cls(Descriptor(media_type, Digest.of(data), len(data), annotations or {}), data)


@dataclass(frozen=True, slots=True)
class Artefact:
    """A manifest and the blobs that it needs, config first."""

    root: Descriptor
    manifest: bytes
    blobs: tuple[Blob, ...]


def author(
    config: Blob,
    layers: Sequence[Descriptor],
    blobs: Iterable[Blob],
    *,
    artifact_type: str = "",
    subject: Descriptor | None = None,
    annotations: dict[str, str] | None = None,
) -> Artefact:
    """Write the manifest (image-spec, manifest.md); the same arguments give the same bytes.

    ``blobs`` are those of the layers that the store does not have yet.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    if artifact_type:
        document["artifactType"] = artifact_type
    document["config"] = plain(config.descriptor)
    document["layers"] = [_annotated(layer) for layer in layers]
    if subject is not None:
        document["subject"] = plain(subject)
    if annotations:
        document["annotations"] = annotations
    manifest = msgspec.json.encode(document)
    root = Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest))
    return Artefact(root, manifest, (config, *blobs))


def push(store: WritableStore, repository: str, artefact: Artefact, tag: str = "") -> None:
    """Store blobs, manifest and tag, in that order; raises what the store does."""
    for blob in artefact.blobs:
        store.push(repository, blob.descriptor, partial(_once, blob.data))
    if tag:
        store.tag(repository, artefact.root, artefact.manifest, tag)
    else:
        store.push(repository, artefact.root, partial(_once, artefact.manifest))


def _annotated(descriptor: Descriptor) -> dict[str, Any]:
    document = plain(descriptor)
    return document | ({"annotations": descriptor.annotations} if descriptor.annotations else {})


def _once(data: bytes) -> tuple[bytes, ...]:
    return (data,) if data else ()
