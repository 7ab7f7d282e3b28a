"""Container images: a reference becomes the digest of what is carried, and every blob below it.

What is carried are the bytes that upstream serves, because digests, signatures and pinned
references are of those. Of an index that is either one platform's manifest, or the index with all
that it lists, attestations included: registries refuse an index whose children are missing, and
one that was written without them would have another digest, so nothing lies between. Of the first
kind the index's own bytes come along as well: its digest is what was signed, and what says that
this manifest belongs to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from bundler.platforms import named, normal_platform
from bundler.sources.accessories import find_accessories, wanted
from bundler.sources.archived_image import local_image
from bundler.sources.upstream import Locked, registry_blob
from bundler.sources.verification import pinned, verify_signed
from bundler.spec_document import Referrers
from installer.bundle.manifest import Image, Verification
from installer.errors import Corrupt, InvalidInput
from installer.oci.graph import (
    MANIFEST_TYPES,
    OCI_CONFIG,
    Descriptor,
    ImageIndex,
    ImageManifest,
    read_manifest,
)
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bundler.lock import Blob
    from bundler.sources.upstream import Upstream
    from installer.bundle.manifest import Origin
    from installer.oci.cosign import SigningIdentity
    from installer.oci.reference import Reference

_CONFIG_TYPES = frozenset({OCI_CONFIG, "application/vnd.docker.container.image.v1+json"})
_MAX_DEPTH = 4
"""Indexes may list indexes; real ones don't go below two."""


class _Config(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    @property
    def platform(self) -> str:
        parts = (self.os or "?", self.architecture or "?", self.variant)
        return "/".join(part for part in parts if part)


class Home(Protocol):
    """Where an image lies: what its reference means there, and where its blobs are had."""

    @property
    def root(self) -> Descriptor:
        """The manifest or index."""
        ...

    def blob(self, descriptor: Descriptor) -> Blob:
        """A blob with its place."""
        ...


class RegistryImage:
    """An image in its registry, which is asked at once what the reference means."""

    def __init__(self, upstream: Upstream, reference: Reference) -> None:
        self.root = upstream.root(reference)
        self._reference = reference

    def blob(self, descriptor: Descriptor) -> Blob:
        """A blob from the reference's repository."""
        return registry_blob(self._reference, descriptor)


def lock_image(
    upstream: Upstream,
    reference: Reference,
    platforms: Sequence[str],
    origins: Iterable[Origin] = (),
    referrers: Referrers | None = None,
    signer: SigningIdentity | None = None,
    reason: str = "",
    source: str = "",
) -> Locked[Image]:
    """Resolve an image for the platforms (``linux/amd64``, at least one) that are asked for.

    Of an index the one platform's manifest is carried. With several platforms or ``all``, or when
    the reference is pinned to the index by digest, it is the whole index: that digest is what nodes
    ask for. ``all`` alone takes an image whatever it is built for. ``referrers`` says what of
    upstream's signatures and the like comes along (all of it, if not given). Raises NotFound,
    TransferFailed, Corrupt, and InvalidInput when the image isn't built for a platform. ``source``
    is where it lies if not in its registry (archived_image). With ``signer`` an image that it has
    not signed is refused as NotTrusted.
    """
    where = str(reference)
    home: Home = (
        local_image(upstream.folder, upstream.cache, reference, source)
        if source
        else RegistryImage(upstream, reference)
    )
    meant = root = home.root
    needed = named(platforms)
    manifests = dict.fromkeys(needed, root)
    data = upstream.document(home.blob(root))
    index = read_manifest(data, root.media_type, where)
    if isinstance(index, ImageIndex):
        manifests = {platform: pick(index, platform, where) for platform in needed}
        if len(needed) == len(platforms) == 1 and reference.digest is None:
            root = manifests[needed[0]]
    nodes = list(_walk(upstream, home, where, root))
    documents = {descriptor.digest: node for descriptor, node in nodes}
    for platform, manifest in manifests.items():
        node = documents[manifest.digest]
        if isinstance(node, ImageManifest):
            listed = isinstance(index, ImageIndex)
            _check_config(upstream, home, where, node.config, platform, listed=listed)
    below = [root, *(child for _, node in nodes for child in node.children)]
    blobs = {child.digest: home.blob(child) for child in (meant, *below)}
    subjects = dict.fromkeys((meant.digest, root.digest, *(d.digest for d in manifests.values())))
    said = () if source else find_accessories(upstream, reference, subjects)
    found = wanted(said, referrers or Referrers())
    if reference.digest not in (None, meant.digest, root.digest):
        raise Corrupt(f"{where}: {source} has {meant.digest}")
    verified = pinned() if reference.digest else ()
    if source:
        verified = (Verification("local"),)
    if signer is not None:
        signed = (meant.digest, root.digest)
        verified = (*verified, verify_signed(upstream, reference, said, signed, signer))
    entry = Image(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        reference=where,
        origins=tuple(sorted(set(origins))),
        reason=reason,
        index=str(meant.digest) if meant != root else "",
        accessories=tuple(one.entry for one in found),
        verified=verified,
    )
    return Locked(entry, (*blobs.values(), *(blob for one in found for blob in one.blobs)))


def pick(index: ImageIndex, platform: str, where: str) -> Descriptor:
    """The manifest of a platform; raises InvalidInput that names the platforms there are."""
    wanted = normal_platform(platform)
    for child in index.manifests:
        if child.platform and normal_platform(child.platform) == wanted:
            if child.media_type not in MANIFEST_TYPES:
                raise InvalidInput(f"{where}: {platform} is another index, not an image")
            return child
    # BuildKit lists attestations as platform unknown/unknown.
    there = sorted({c.platform or "?" for c in index.manifests} - {"unknown/unknown"})
    raise _wrong_platform(where, platform, ", ".join(there) or "nothing")


def _walk(
    upstream: Upstream, home: Home, where: str, descriptor: Descriptor, depth: int = 0
) -> Iterator[tuple[Descriptor, ImageManifest | ImageIndex]]:
    """Every manifest and index from this one down, with what is in it."""
    if depth > _MAX_DEPTH:
        raise Corrupt(f"{where}: indexes nested deeper than {_MAX_DEPTH}")
    data = upstream.document(home.blob(descriptor))
    node = read_manifest(data, descriptor.media_type, f"{where} {descriptor.digest}")
    yield descriptor, node
    for child in node.children:
        if child.is_manifest:
            yield from _walk(upstream, home, where, child, depth + 1)


def _check_config(
    upstream: Upstream,
    home: Home,
    where: str,
    config: Descriptor,
    platform: str,
    *,
    listed: bool,
) -> None:
    """Compare what the image says of itself; artefacts other than images have no platform.

    Of a variant an index has the last word (``listed``), and many builders write none into the
    config: then the image is taken for the one that is asked for.
    """
    if config.media_type not in _CONFIG_TYPES:
        return
    try:
        data = upstream.document(home.blob(config))
        found = decode_json(data, _Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{where}: its config can't be read: {error}") from error
    if listed or not found.variant:
        same = [found.os, found.architecture] == platform.split("/")[:2]
    else:
        same = normal_platform(found.platform) == normal_platform(platform)
    if not same:
        raise _wrong_platform(where, platform, found.platform)


def _wrong_platform(where: str, wanted: str, found: str) -> InvalidInput:
    return InvalidInput(
        f"{where}: is not built for {wanted}, only for {found}",
        hint="choose another tag, or write under imagePlatforms what this image is to be for",
    )
