"""What upstream says of an image: signatures, SBOMs and attestations, found and taken along.

They are found in two ways, and both are asked: as referrers, manifests whose ``subject`` is the
image (distribution-spec 1.1, the API or its tag scheme), and under the tags that cosign derives
from a digest. Each tag is asked for by its name, although one list of tags would be fewer requests:
a registry that passes on what it has not (Harbor's proxy cache) lists only what it has seen. Their
bytes are kept, so that whoever checks them at the site checks what was signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bundler.sources.upstream import registry_blob
from installer.bundle.manifest import Accessory
from installer.errors import Corrupt, InvalidInput, NotFound
from installer.oci.cosign import TAG_SUFFIXES, accessory_tag
from installer.oci.graph import ImageIndex, ImageManifest, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bundler.lock import Blob
    from bundler.sources.upstream import Upstream
    from bundler.spec_document import Referrers
    from installer.bundle.digest import Digest
    from installer.oci.graph import Descriptor
    from installer.oci.reference import Reference

_MAX_DEPTH = 3
"""A signature of an SBOM of an image; deeper ones are a mistake, or a trap."""


@dataclass(frozen=True, slots=True)
class Found:
    """An accessory with its own manifest, and every blob of it."""

    entry: Accessory
    manifest: ImageManifest | ImageIndex
    blobs: tuple[Blob, ...]


def find_accessories(
    upstream: Upstream, reference: Reference, subjects: Iterable[Digest]
) -> tuple[Found, ...]:
    """Everything that the reference's repository says of these digests, sorted.

    Raises TransferFailed, Corrupt, and InvalidInput for a list of referrers that names what is
    not there.
    """
    found: dict[tuple[str, str, str], Found] = {}
    waiting = [(subject, 0) for subject in subjects]
    seen: set[Digest] = set()
    while waiting:
        subject, depth = waiting.pop()
        if subject in seen or depth > _MAX_DEPTH:
            continue
        seen.add(subject)
        for one in _about(upstream, reference, subject):
            entry = one.entry
            found[entry.subject, entry.tag, entry.digest] = one
            waiting.append((entry.root.digest, depth + 1))
    return tuple(found[key] for key in sorted(found))


def wanted(found: Iterable[Found], filter_: Referrers) -> tuple[Found, ...]:
    """Those that the spec wants to have carried."""
    return tuple(
        one
        for one in found
        if (one.entry.tag and one.entry.tag.rpartition(".")[2] in filter_.cosign_tags)
        or (
            not one.entry.tag
            and any(fnmatchcase(one.entry.artifact_type, p) for p in filter_.artifact_types)
        )
    )


def _about(upstream: Upstream, reference: Reference, subject: Digest) -> Iterator[Found]:
    yield from _referrers(upstream, reference, subject)
    yield from _tagged(upstream, reference, subject)


def _referrers(upstream: Upstream, reference: Reference, subject: Digest) -> Iterator[Found]:
    for descriptor in upstream.store(reference.host).referrers(reference.path, subject):
        try:
            found = _read(upstream, reference, subject, descriptor)
        except NotFound as error:
            raise InvalidInput(
                f"{reference}: lists the referrer {descriptor.digest}, which is not there",
                hint="tell the registry's owner, or leave it out with `referrers:` in the spec",
            ) from error
        if found.manifest.subject is not None and found.manifest.subject.digest == subject:
            yield found


def _tagged(upstream: Upstream, reference: Reference, subject: Digest) -> Iterator[Found]:
    store = upstream.store(reference.host)
    for suffix in TAG_SUFFIXES:
        tag = accessory_tag(subject, suffix)
        if store.has_tag(reference.path, tag):
            yield _read(upstream, reference, subject, store.resolve(reference.path, tag), tag)


def _read(
    upstream: Upstream, reference: Reference, subject: Digest, root: Descriptor, tag: str = ""
) -> Found:
    """Read the manifests of an accessory, down to its blobs."""
    top = registry_blob(reference, root)
    manifest = read_manifest(upstream.document(top), root.media_type, f"{reference} {root.digest}")
    blobs, waiting = {root.digest: top}, [(child, 0) for child in manifest.children]
    while waiting:
        child, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise Corrupt(f"{reference}: {root.digest} is nested deeper than {_MAX_DEPTH}")
        blob = blobs[child.digest] = registry_blob(reference, child)
        if child.is_manifest:
            below = read_manifest(upstream.document(blob), child.media_type, str(child.digest))
            waiting += [(one, depth + 1) for one in below.children]
    entry = Accessory(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        subject=str(subject),
        artifact_type=manifest.artifact_type if isinstance(manifest, ImageManifest) else "",
        tag=tag,
    )
    return Found(entry, manifest, tuple(blobs.values()))
