"""What all sources share: how upstream is reached, and what a resolved artefact is.

Each kind of artefact has a module with one function, ``lock_…(upstream, wanted) -> Locked``: it
reads what it must to know digests and sizes, and says for every blob where ``build`` gets it.
``Upstream.open`` is the other half: a blob of the lock as bytes.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from bundler.cache import Cached, check_digest, measure, read_chunks
from bundler.lock import Blob
from bundler.sources.archived_image import ARCHIVE, DAEMON, restore
from bundler.sources.archives import read_member
from bundler.sources.chart_folder import pack_chart
from bundler.sources.web import Web, is_url
from installer.bundle.digest import Digest, verified
from installer.bundle.manifest import Content
from installer.errors import Corrupt, InvalidInput
from installer.oci.graph import (
    MAX_MANIFEST_BYTES,
    OCI_EMPTY,
    OCI_MANIFEST,
    Descriptor,
    artefact_manifest,
)
from installer.oci.reference import Reference
from installer.oci.registry import RegistryStore
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from bundler.cache import BlobCache
    from installer.oci.auth import Credentials
    from installer.oci.hosts import RegistryHosts
    from installer.oci.http import Notice, Patience

OCTETS = "application/octet-stream"
MAX_FILE_BYTES = 4 << 30
"""Of a downloaded file whose size nobody has said yet, and of what is taken out of an archive."""
_EMPTY = "{}"

EntryT = TypeVar("EntryT", bound=Content)


@dataclass(frozen=True, slots=True)
class Locked(Generic[EntryT]):
    """An entry of the lock with all blobs below it, its own manifest among them."""

    entry: EntryT
    blobs: tuple[Blob, ...]


class Upstream:
    """Registries, web servers, the cache and the spec's folder behind one door, for many threads.

    ``folder`` is where relative paths start: the spec's. ``credentials`` finds the login for a
    registry host, ``notice`` is told of failures that are followed by another attempt. ``pins`` are
    digests to stay with (bundler.pins), none at first. It is a context manager; leaving closes all
    connections.
    """

    def __init__(
        self,
        hosts: RegistryHosts,
        cache: BlobCache,
        folder: Path,
        credentials: Callable[[str], Credentials | None] | None = None,
        *,
        patience: Patience | None = None,
        notice: Notice | None = None,
    ) -> None:
        self.cache = cache
        self.folder = folder
        self.pins: Mapping[str, Digest] = {}
        self._hosts = hosts
        self._credentials = credentials
        self._patience = patience
        self._notice = notice
        self._stores: dict[str, RegistryStore] = {}
        self._lock = threading.Lock()
        self._unpacking = threading.Lock()
        self._closing = ExitStack()
        self.web = Web(hosts, patience, notice, credentials)
        self._closing.callback(self.web.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def store(self, host: str) -> RegistryStore:
        """The registry of a host, one for all its repositories."""
        with self._lock:
            if host not in self._stores:
                store = RegistryStore(
                    host,
                    self._hosts,
                    self._credentials,
                    patience=self._patience,
                    notice=self._notice,
                )
                self._stores[host] = self._closing.enter_context(store)
            return self._stores[host]

    def root(self, reference: Reference) -> Descriptor:
        """Ask the registry what a reference is; raises NotFound, TransferFailed, Corrupt.

        One that is to stay as the last lock has it is asked for by digest.
        """
        pin = self.pins.get(str(reference))
        version = str(pin) if pin else reference.version
        return self.store(reference.host).resolve(reference.path, version)

    def document(self, blob: Blob) -> bytes:
        """Read a manifest or a config whole, checked; bounded before a byte of it is read."""
        if blob.size > MAX_MANIFEST_BYTES:
            raise Corrupt(
                f"{blob.repository}@{blob.digest}: {blob.size} bytes are too many for a document"
            )
        if blob.text is not None:
            return blob.text.encode()
        if not blob.repository:
            what = f"{blob.source}: {blob.digest}"
            return b"".join(verified(self.open(blob), blob.descriptor.digest, blob.size, what))
        reference = Reference.parse(blob.repository)
        return read_all(self.store(reference.host), reference.path, blob.descriptor)

    def file(
        self, source: str, what: str, expected: Digest | None = None, limit: int = MAX_FILE_BYTES
    ) -> Cached:
        """Have a source on disk: a path where it is, a URL in the cache; ``what`` is for errors.

        Raises InvalidInput for a missing path, Corrupt when it has another digest than expected
        or when more than ``limit`` bytes are sent.
        """
        if is_url(source):
            found = self.cache.get(expected) if expected else None
            chunks = bounded(self.web.download(source), limit, f"{what}: {source}")
            return found or self.cache.put(chunks, expected=expected, what=f"{what}: {source}")
        if (self.folder / source).is_dir():
            return self.cache.put([pack_chart(self.folder / source)], expected=expected, what=what)
        try:
            found = measure(self.folder / source)
        except OSError as error:
            raise InvalidInput(
                f"{what}: {self.folder / source}: {error.strerror}",
                hint="paths in bundle.yaml are relative to the folder that it is in",
            ) from error
        check_digest(found.digest, expected, f"{what}: {source}")
        return found

    def cached(self, blob: Blob) -> Cached:
        """Have a blob in the cache."""
        digest = blob.descriptor.digest
        what = f"{blob.repository or blob.source} {digest}"
        return self.cache.get(digest) or self.cache.put(self.open(blob), expected=digest, what=what)

    def open(self, blob: Blob, start: int = 0) -> Iterator[bytes]:
        """Chunks of a blob of the lock from byte ``start`` on, from the cache if it has it.

        The digest is for the caller to check. Raises NotFound, TransferFailed, InvalidInput.
        """
        digest = blob.descriptor.digest
        if blob.text is not None or start == blob.size:
            # Nothing is left at the end; servers would answer 416 to the question.
            return iter([(blob.text or "").encode()[start:]])
        if found := self.cache.get(digest):
            return read_chunks(found.path, start)
        if blob.repository:
            reference = Reference.parse(blob.repository)
            return self.store(reference.host).stream(reference.path, blob.descriptor, start)
        is_packed = blob.source.startswith((DAEMON, ARCHIVE)) or blob.member
        if is_packed or (self.folder / blob.source).is_dir():
            return read_chunks(self._unpacked(blob).path, start)
        if is_url(blob.source):
            return self.web.stream(blob.source, start)
        return read_chunks(self.folder / blob.source, start)

    def _unpacked(self, blob: Blob) -> Cached:
        """Have a file out of an archive, or of the daemon's export of an image, in the cache.

        Raises Corrupt when the archive has changed, or the daemon exports something else by now.
        """
        if blob.member:
            archive = self.file(blob.source, blob.source, Digest.parse(blob.archive))
            content = read_member(archive.path, blob.member, blob.source)
            return self.cache.put(
                bounded(content, blob.size, blob.source),
                expected=blob.descriptor.digest,
                what=f"{blob.source}: {blob.member}",
            )
        if (self.folder / blob.source).is_dir():
            return self.file(blob.source, blob.source, blob.descriptor.digest)
        with self._unpacking:  # several threads may miss blobs of one archive
            found = self.cache.get(blob.descriptor.digest)
            if found is None:
                restore(self.folder, self.cache, blob.source)
                found = self.cache.get(blob.descriptor.digest)
        if found is None:
            raise Corrupt(
                f"{blob.source}: {blob.digest} is not in it, or no longer",
                hint="lock again if it has changed; of an index that lists more than is there, "
                "ask for one platform",
            )
        return found


def bounded(chunks: Iterable[bytes], limit: int, what: str) -> Iterator[bytes]:
    """Pass chunks on; raises Corrupt at more than ``limit`` bytes: nobody may fill the disk."""
    seen = 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > limit:
            raise Corrupt(f"{what}: more than {limit} bytes", hint="is this the right address?")
        yield chunk


def registry_blob(reference: Reference, descriptor: Descriptor) -> Blob:
    """A blob that comes from the reference's repository."""
    return Blob(
        str(descriptor.digest),
        descriptor.size,
        descriptor.media_type,
        repository=reference.repository,
    )


def text_blob(media_type: str, text: str) -> Blob:
    """A blob that stands in the lock itself."""
    data = text.encode()
    return Blob(str(Digest.of(data)), len(data), media_type, text=text)


def authored(
    layer: Blob,
    *,
    artifact_type: str = "",
    title: str = "",
    config_type: str = OCI_EMPTY,
    config: str = _EMPTY,
) -> tuple[Descriptor, tuple[Blob, ...]]:
    """Wrap a file into an OCI artefact: its manifest's descriptor, and all blobs of it."""
    configured = text_blob(config_type, config)
    data = artefact_manifest(
        configured.descriptor, layer.descriptor, artifact_type=artifact_type, title=title
    )
    root = text_blob(OCI_MANIFEST, data.decode())
    return root.descriptor, (root, configured, layer)
