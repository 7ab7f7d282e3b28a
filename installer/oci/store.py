"""One contract for everything that holds OCI content: a registry, a bundle, a cache.

As in oras-go, everything is a descriptor and a store is ``resolve``, ``fetch``, ``exists`` and
``push``; moving things is one ``copy``. Reading verifies: bytes that differ from their digest
raise Corrupt from every store, held by one contract suite (tests/contract). What goes from one
store into another is hashed once, by the one that takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from installer.oci.graph import Descriptor


class ReadableStore(Protocol):
    """Content by repository path (without a host) and descriptor."""

    def resolve(self, repository: str, version: str) -> Descriptor:
        """Find the descriptor behind a tag or a digest; raises NotFound."""
        ...

    def exists(self, repository: str, descriptor: Descriptor) -> bool:
        """Whether the store has the content, without moving it."""
        ...

    def fetch(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Chunks of the content, hashed on the way: Corrupt at the end when the digest differs.

        Raises NotFound.
        """
        ...

    def stream(self, repository: str, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Chunks from byte ``start`` on, unchecked: for callers that hash the whole themselves.

        Resuming needs that, and ``push``, which checks what it is given. Raises NotFound.
        """
        ...


class WritableStore(ReadableStore, Protocol):
    """A store that takes content: blobs first, manifests after what they point to."""

    def push(
        self,
        repository: str,
        descriptor: Descriptor,
        content: Callable[[], Iterable[bytes]],
        *,
        mount_from: str | None = None,
    ) -> None:
        """Store the content under its digest; does nothing when it is there already.

        ``content`` is called again for each attempt. ``mount_from`` names a repository of the
        same store that is known to have the blob (distribution-spec, cross-repository mount).
        Raises Corrupt when the bytes differ from the digest, and then nothing was stored.
        """
        ...

    def tag(self, repository: str, descriptor: Descriptor, manifest: bytes, tag: str) -> None:
        """Point the tag at a manifest."""
        ...


def read_all(store: ReadableStore, repository: str, descriptor: Descriptor) -> bytes:
    """Read small content (a manifest, a config) whole, checked."""
    return b"".join(store.fetch(repository, descriptor))
