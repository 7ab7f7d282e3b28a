"""One or several verified bundles as a store: a base and its deltas look like one registry.

Blobs are found by digest in whichever bundle has them. Tags are the catalog's; where two bundles
have the same tag the one of the higher serial counts, as it does for the site; of a database the
newer one, whichever bundle brings it. Each repository is
known by its path, and besides by path with upstream host, so that two hosts with one path can be
told apart.

All manifests are read at the start, checked against their digests: they are small, and without
them nobody knows media types and referrers. Layers are not touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from installer.bundle.catalog import catalog
from installer.bundle.digest import Digest
from installer.bundle.manifest import Database
from installer.errors import Corrupt, InvalidInput, NotFound
from installer.oci.graph import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_MANIFEST_BYTES,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    read_manifest,
)
from installer.oci.store import read_all
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.catalog import Named
    from installer.bundle.layout import Entry
    from installer.bundle.manifest import Member


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose subject is another one: a signature, an SBOM, an attestation."""

    descriptor: Descriptor
    artifact_type: str


@dataclass(slots=True)
class _Repository:
    tags: dict[str, Descriptor] = field(default_factory=dict)


class _Kind(msgspec.Struct, rename="camel"):
    """As much of a document as tells a manifest from other JSON."""

    schema_version: int
    media_type: str = OCI_MANIFEST


class BundleStore:
    """Read the content of verified bundles by repository and descriptor (a ReadableStore).

    What a delta stands on belongs to it. Raises Corrupt when a manifest in a bundle differs from
    its digest. The bundles stay the caller's to close.
    """

    def __init__(self, *bundles: VerifiedBundle) -> None:
        # As keys, since two deltas may stand on one bundle.
        everything = dict.fromkeys(b for bundle in bundles for b in (bundle, *bundle.bases))
        self.bundles = tuple(
            sorted(everything, key=lambda b: (b.manifest.serial, b.manifest.created), reverse=True)
        )
        self._repositories: dict[str, _Repository] = {}
        self._paths: set[str] = set()
        self._dated: dict[tuple[str, str], str] = {}
        self._hosts: set[str] = set()
        self._manifests: dict[Digest, Descriptor] = {}
        self._referrers: dict[Digest, list[Referrer]] = {}
        reached: set[str] = set()
        for bundle in self.bundles:
            for named in catalog(bundle.manifest):
                if not named.content.root.is_manifest:
                    raise Corrupt(
                        f"{bundle.path}: {named.repository} is of type "
                        f"{named.content.media_type[:100]!r}, which is no manifest"
                    )
                self._name(named)
                self._walk(named.content.root, reached)
        self._find_referrers(reached)

    def _name(self, named: Named) -> None:
        self._paths.add(named.repository)
        names = [named.repository]
        if named.upstream:
            names.append(named.upstream)
            self._hosts.add(named.upstream.partition("/")[0])
        for name in names:
            tags = self._repositories.setdefault(name, _Repository()).tags
            if named.tag is None:
                continue
            dated = named.content.updated_at if isinstance(named.content, Database) else ""
            if named.tag not in tags or dated > self._dated.get((name, named.tag), ""):
                tags[named.tag] = named.content.root
                self._dated[name, named.tag] = dated

    def _walk(self, root: Descriptor, reached: set[str]) -> None:
        """Note the manifests below a root, and everything that they point to."""
        waiting = [root]
        while waiting:
            descriptor = waiting.pop()
            path = descriptor.digest.blob_path
            reached.add(path)
            place = self.place(descriptor.digest)
            if place is None:
                continue
            bundle, entry = place
            if entry.member.size != descriptor.size:
                raise Corrupt(
                    f"{bundle.path}: {descriptor.digest} has {entry.member.size} bytes, "
                    f"what points to it says {descriptor.size}"
                )
            if not descriptor.is_manifest:
                continue
            known = self._manifests.get(descriptor.digest)
            if known is not None:
                if known.media_type != descriptor.media_type:
                    raise Corrupt(
                        f"{bundle.path}: {descriptor.digest} is {known.media_type} and "
                        f"{descriptor.media_type}, as one asks what points to it"
                    )
                continue
            if descriptor.size > MAX_MANIFEST_BYTES:
                raise Corrupt(
                    f"{bundle.path}: manifest {descriptor.digest} has {descriptor.size} bytes, "
                    f"at most {MAX_MANIFEST_BYTES} are read"
                )
            data = bundle.read(path)
            document = read_manifest(data, descriptor.media_type, f"{bundle.path}: {path}")
            plain = Descriptor(
                descriptor.media_type, descriptor.digest, descriptor.size, document.annotations
            )
            self._manifests[descriptor.digest] = plain
            if document.subject is not None:
                kind = "" if isinstance(document, ImageIndex) else document.artifact_type
                self._referrers.setdefault(document.subject.digest, []).append(
                    Referrer(plain, kind)
                )
            waiting += document.children

    def _find_referrers(self, reached: set[str]) -> None:
        """What nothing points to is a manifest that points to something: a referrer."""
        for bundle in self.bundles:
            for member in bundle.manifest.members:
                if not member.path.startswith("blobs/") or member.path in reached:
                    continue
                if media_type := _manifest_type(bundle, member):
                    self._walk(Descriptor(media_type, member.digest, member.size), reached)

    @property
    def repositories(self) -> tuple[str, ...]:
        """The repositories without host, sorted."""
        return tuple(sorted(self._paths))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The upstream hosts that images and databases are from, sorted."""
        return tuple(sorted(self._hosts))

    @property
    def missing(self) -> tuple[Member, ...]:
        """Blobs that a delta requires and none of the bundles has, sorted by path."""
        required = {m.path: m for bundle in self.bundles for m in bundle.manifest.required}
        return tuple(
            required[path] for path in sorted(required) if not self.place(required[path].digest)
        )

    def tags(self, repository: str) -> tuple[str, ...]:
        """Tags of a repository in lexical order (case-insensitive); raises NotFound."""
        return tuple(sorted(self._known(repository).tags, key=lambda t: (t.lower(), t)))

    def referrers(self, digest: Digest) -> tuple[Referrer, ...]:
        """Manifests whose subject is this digest, sorted by digest."""
        return tuple(sorted(self._referrers.get(digest, ()), key=lambda r: r.descriptor.digest))

    def of_host(self, repository: str, host: str) -> str:
        """Name of the repository as an upstream host's mirror is asked for it.

        A host that nothing in the bundles is from is a name of the site's own for this registry:
        then the repository is meant as it is.
        """
        if host in ("index.docker.io", "registry-1.docker.io"):
            host = "docker.io"
        return f"{host}/{repository}" if host in self._hosts else repository

    def place(self, digest: Digest) -> tuple[VerifiedBundle, Entry] | None:
        """The bundle that has a blob and where it stands there, or None."""
        path = digest.blob_path
        for bundle in self.bundles:
            entry = bundle.find(path)
            if entry is not None:
                return bundle, entry
        return None

    def resolve(self, repository: str, version: str) -> Descriptor:
        """Find the descriptor behind a tag or a digest; raises NotFound or Corrupt."""
        tags = self._known(repository).tags
        found = tags.get(version)
        if found is None and ":" in version:
            found = self._manifests.get(Digest.parse(version))
        if found is None or found.digest not in self._manifests:
            names = ", ".join(self._bundle_names())
            raise NotFound(
                f"{repository}: no {version[:140]!r} in {names}",
                hint="`installer inspect` lists what a bundle has",
            )
        descriptor = self._manifests[found.digest]
        read_all(self, repository, descriptor)  # the file may have changed since it was opened
        return descriptor

    def exists(self, repository: str, descriptor: Descriptor) -> bool:
        """Whether one of the bundles has the content; nothing is read."""
        return repository in self._repositories and self.place(descriptor.digest) is not None

    def fetch(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Chunks of the content, checked; raises NotFound or Corrupt."""
        bundle, entry = self._placed(repository, descriptor)
        return bundle.chunks(entry)

    def stream(self, repository: str, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Chunks from byte ``start`` on, for a caller that checks; raises NotFound or Corrupt."""
        bundle, entry = self._placed(repository, descriptor)
        return bundle.stream(entry, start)

    def _placed(self, repository: str, descriptor: Descriptor) -> tuple[VerifiedBundle, Entry]:
        self._known(repository)
        place = self.place(descriptor.digest)
        if place is None:
            raise NotFound(
                f"{repository}: no {descriptor.digest} in {', '.join(self._bundle_names())}"
            )
        bundle, entry = place
        if entry.member.size != descriptor.size:
            raise Corrupt(
                f"{bundle.path}: {descriptor.digest} has {entry.member.size} bytes, "
                f"what points to it says {descriptor.size}"
            )
        return place

    def _known(self, repository: str) -> _Repository:
        try:
            return self._repositories[repository]
        except KeyError:
            raise NotFound(
                f"no repository {repository[:300]!r} in {', '.join(self._bundle_names())}",
                hint="`installer inspect` lists what a bundle has",
            ) from None

    def _bundle_names(self) -> list[str]:
        return [bundle.path.name for bundle in self.bundles]


def _manifest_type(bundle: VerifiedBundle, member: Member) -> str:
    """Media type of a blob if it is a manifest or an index, else an empty string."""
    if not 0 < member.size <= MAX_MANIFEST_BYTES:
        return ""
    try:
        data = bundle.read(member.path)
        kind = decode_json(data, _Kind).media_type
        if kind not in INDEX_TYPES and kind not in MANIFEST_TYPES:
            return ""
        read_manifest(data, kind, member.path)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Corrupt, InvalidInput):
        return ""
    return kind
