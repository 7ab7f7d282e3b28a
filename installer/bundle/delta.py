"""What a delta still lacks, for people: which blobs, how much, and which images need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from installer.bundle.catalog import catalog
from installer.errors import PreflightFailed
from installer.oci.graph import ImageIndex, read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.digest import Digest
    from installer.bundle.manifest import Member
    from installer.oci.graph import Descriptor

_SHOWN = 5


def refuse_gaps(bundle: VerifiedBundle, missing: Sequence[Member] | None = None) -> None:
    """Raise PreflightFailed when blobs that a delta requires can't be had.

    ``missing`` are those blobs, by default what neither the bundle nor its bases have.
    """
    missing = bundle.missing if missing is None else missing
    if not missing:
        return
    size = sum(member.size for member in missing)
    names = sorted(_users(bundle, {member.digest for member in missing}))
    shown = [str(member.digest) for member in missing]
    lines = [*_some(names, "needed by"), *_some(shown, "missing")]
    raise PreflightFailed(
        f"{bundle.path} is a delta, and {len(missing)} blobs ({size:,} bytes) that it requires are "
        "not here:\n  " + "\n  ".join(lines),
        hint="give the bundles that the site has: --base EARLIER.tar, as often as needed (the "
        "README.txt in the delta says which); or ask the sender for a full bundle",
    )


def _some(words: Sequence[str], before: str) -> list[str]:
    lines = [f"{before} {word}" for word in words[:_SHOWN]]
    return lines + ([f"… and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else [])


def _users(bundle: VerifiedBundle, missing: Collection[Digest]) -> set[str]:
    """Names of the contents that need one of these blobs, as far as documents are here."""
    return {
        f"{named.repository}:{named.tag}" if named.tag else named.repository
        for named in catalog(bundle.manifest)
        if any(d.digest in missing for d in descriptors(bundle, named.content.root))
    }


def descriptors(bundle: VerifiedBundle, root: Descriptor) -> tuple[Descriptor, ...]:
    """A content's root and all below it, as far as manifests are in the bundle or its bases."""
    found: dict[Digest, Descriptor] = {}
    waiting = [root]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.digest in found:
            continue
        found[descriptor.digest] = descriptor
        path = descriptor.digest.blob_path
        if descriptor.is_manifest and bundle.locate(path) is not None:
            document = read_manifest(bundle.read(path), descriptor.media_type, path)
            waiting += document.manifests if isinstance(document, ImageIndex) else document.children
    return tuple(found.values())
