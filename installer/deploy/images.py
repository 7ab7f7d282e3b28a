"""Which image of the bundle stands for one that a chart names, and what it is called at the site.

The mapping feeds the overlay, the second half judges its result: an image counts as carried only
when it is named with the seed registry's address and a digest of the bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.catalog import catalog
from installer.bundle.digest import Digest
from installer.bundle.manifest import Database, Image
from installer.errors import Corrupt, PreflightFailed
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Manifest
    from installer.helm.images import FoundImage

_SHOWN = 10


class SiteImages:
    """The images of a bundle under their names at a site; ``prefix`` is host:port[/path]."""

    def __init__(self, manifest: Manifest, prefix: str) -> None:
        self._host, _, path = prefix.partition("/")
        self._path = f"{path}/" if path else ""
        self._by_tag: dict[tuple[str, str], Reference] = {}
        self._by_digest: dict[tuple[str, Digest], Reference] = {}
        self._carried: set[tuple[str, Digest]] = set()
        for named in catalog(manifest):
            content = named.content
            if not isinstance(content, Image | Database):
                continue
            digest = Digest.parse(content.digest)
            target = Reference(self._host, self._path + named.repository, named.tag, digest)
            original = Reference.parse(content.reference)
            if named.tag is not None:
                self._by_tag[original.repository, named.tag] = target
            self._by_digest[original.repository, digest] = target
            if isinstance(content, Image):
                self._carried.add((target.path, digest))

    def target(self, reference: Reference) -> Reference | None:
        """What an image is called at the site, None for one that the bundle doesn't have."""
        if reference.digest is not None:
            return self._by_digest.get((reference.repository, reference.digest))
        return self._by_tag.get((reference.repository, reference.tag or "latest"))

    def named(self, path: str) -> Reference | None:
        """The image with the highest tag under this path at any upstream host, as at the site."""
        found = {
            tag: target
            for (repository, tag), target in self._by_tag.items()
            if repository.partition("/")[2] == path and self.carried(target)
        }
        return found[max(found)] if found else None

    def carried(self, reference: Reference) -> bool:
        """Whether a reference names an image of the bundle at the site, by its digest."""
        if reference.host != self._host or reference.digest is None:
            return False
        return (reference.path, reference.digest) in self._carried

    def check(self, found: Iterable[FoundImage], release: str) -> None:
        """Refuse rendered objects with any other image; raises PreflightFailed naming each."""
        missing = [image for image in found if not self.carried(image.reference)]
        if not missing:
            return
        lines = [f"{image.text} ({image.origin})" for image in missing[:_SHOWN]]
        if len(missing) > _SHOWN:
            lines.append(f"and {len(missing) - _SHOWN} more")
        raise PreflightFailed(
            f"release {release} needs images that the bundle doesn't have:\n  "
            + "\n  ".join(lines),
            hint="add the profile or the image to the bundle's spec and build it again, "
            "or leave out the values that ask for it; nothing was applied",
        )


def accepted_ids(bundle: VerifiedBundle) -> frozenset[str]:
    """Digests under which a node may report images of the bundle as running.

    A runtime names an image by the digest that was pulled, by that of its platform's manifest,
    or by that of its config. What the bundle does not carry itself is left out.
    """
    accepted: set[str] = set()
    waiting = [image.root for image in bundle.manifest.images]
    while waiting:
        descriptor = waiting.pop()
        accepted.add(descriptor.digest.hex)
        try:
            data = bundle.read(descriptor.digest.blob_path)
        except Corrupt:
            continue
        document = read_manifest(data, descriptor.media_type, str(descriptor.digest))
        if isinstance(document, ImageIndex):
            waiting += document.manifests
        else:
            accepted.add(document.config.digest.hex)
    return frozenset(accepted)
