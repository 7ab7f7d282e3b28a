"""One way to move images from any store to any other: along the graph, each blob once.

The order is that of the graph over all images together, not image by image: manifests are read,
blobs go first, then manifests from the leaves up, tags last. So a target never shows an image that
is not whole, whenever the copy stops. A blob that several repositories need is uploaded to the
first, and mounted into the others when that upload is complete. Manifests keep their bytes.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from installer.errors import AirgapError, Interrupted, NotFound
from installer.oci.graph import INDEX_TYPES, ImageIndex, read_manifest
from installer.oci.http import PolicyRefused
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from installer.bundle.digest import Digest
    from installer.oci.graph import Descriptor
    from installer.oci.store import ReadableStore, WritableStore

    Job = Callable[[], "Iterable[Job]"]
    Key = tuple[str, Digest]


@dataclass(frozen=True, slots=True)
class CopyItem:
    """An image or artefact: where it is, where it goes, its root, and the tags it gets there."""

    source_repository: str
    target_repository: str
    root: Descriptor
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What errors call it."""
        version = f":{self.tags[0]}" if self.tags else f"@{self.root.digest}"
        return self.target_repository + version


@dataclass(frozen=True, slots=True)
class CopySummary:
    """What a copy did. Blobs are counted for each repository; ``bytes_moved`` is blobs' content.

    ``manifests_absent`` are platforms of an index that the source does not carry.
    """

    blobs_moved: int = 0
    blobs_mounted: int = 0
    blobs_skipped: int = 0
    manifests_moved: int = 0
    manifests_skipped: int = 0
    manifests_absent: int = 0
    bytes_moved: int = 0


def copy(
    source: ReadableStore,
    target: WritableStore,
    items: Iterable[CopyItem],
    *,
    threads: int = 4,
    progress: Callable[[int], None] | None = None,
) -> CopySummary:
    """Copy images with everything below them; ``progress`` hears of bytes as they move.

    What the target has is skipped: below a manifest that is there nothing is missing, because a
    registry takes a manifest only after its blobs. The first error stops everything and names its
    artefact; running again goes on. Progress is called by one thread at a time.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="copy") as pool:
        return _Copy(source, target, pool, progress).run(tuple(items))


@dataclass(slots=True)
class _Manifest:
    item: CopyItem
    descriptor: Descriptor
    data: bytes
    present: bool
    below: tuple[Digest, ...] = ()


@dataclass(slots=True)
class _Blob:
    descriptor: Descriptor
    wanted: dict[str, CopyItem] = field(default_factory=dict)


class _Copy:
    """The state of one copy; jobs run in the pool and may name jobs that follow them."""

    def __init__(
        self,
        source: ReadableStore,
        target: WritableStore,
        pool: ThreadPoolExecutor,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._source = source
        self._target = target
        self._pool = pool
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._manifests: dict[Key, _Manifest] = {}
        self._walked: set[Key] = set()
        self._absent: set[Key] = set()
        self._blobs: dict[Digest, _Blob] = {}
        self._counts = dict.fromkeys(CopySummary.__slots__, 0)

    def run(self, items: tuple[CopyItem, ...]) -> CopySummary:
        self._all(partial(self._walk, item, item.root) for item in items)
        self._check_platforms()
        # The largest first: a big one that starts last would run alone.
        blobs = sorted(self._blobs.values(), key=lambda b: b.descriptor.size, reverse=True)
        self._all(partial(self._first, blob) for blob in blobs)
        for level in self._levels():
            self._all(partial(self._push, manifest) for manifest in level)
        self._all(partial(self._tag, item, tag) for item in items for tag in item.tags)
        return CopySummary(**self._counts | {"manifests_absent": len(self._absent)})

    def _all(self, jobs: Iterable[Job]) -> None:
        """Run jobs and those that they name; the first error ends all of them and is raised."""
        done: SimpleQueue[Future[Iterable[Job]]] = SimpleQueue()
        waiting = 0

        def submit(more: Iterable[Job]) -> int:
            futures = [self._pool.submit(job) for job in more]
            for future in futures:
                future.add_done_callback(done.put)
            return len(futures)

        try:
            waiting += submit(jobs)
            while waiting:
                waiting += submit(done.get().result()) - 1
        except BaseException:
            self._stopped.set()
            self._pool.shutdown(cancel_futures=True)
            raise

    def _count(self, what: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[what] += amount

    # What there is to do

    def _walk(self, item: CopyItem, descriptor: Descriptor) -> Iterable[Job]:
        """Read a manifest and note what it needs; its child manifests are walked next."""
        key = (item.target_repository, descriptor.digest)
        with self._lock:
            if key in self._walked:
                return ()
            self._walked.add(key)
        with _naming(item):
            return self._read(item, descriptor, key)

    def _read(self, item: CopyItem, descriptor: Descriptor, key: Key) -> Iterable[Job]:
        present = self._target.exists(item.target_repository, descriptor)
        if present and descriptor.media_type not in INDEX_TYPES:
            self._count("manifests_skipped")
            return ()
        try:
            data = read_all(self._source, item.source_repository, descriptor)
        except NotFound:
            if descriptor.digest == item.root.digest:
                raise
            # An index may name platforms that were left out (image-spec, image-layout.md).
            with self._lock:
                self._absent.add(key)
            return ()
        found = _Manifest(item, descriptor, data, present)
        with self._lock:
            self._manifests[key] = found
        manifest = read_manifest(data, descriptor.media_type, item.name)
        if isinstance(manifest, ImageIndex):
            # An index may outlive a manifest that somebody deleted, so that each is asked for.
            found.below = tuple(child.digest for child in manifest.manifests)
            return [partial(self._walk, item, child) for child in manifest.manifests]
        if not present:
            with self._lock:
                for child in manifest.children:
                    blob = self._blobs.setdefault(child.digest, _Blob(child))
                    blob.wanted.setdefault(item.target_repository, item)
        return ()

    def _check_platforms(self) -> None:
        for (repository, _), found in self._manifests.items():
            if found.below and all((repository, d) in self._absent for d in found.below):
                raise NotFound(f"{found.item.name}: the source has none of its platforms")

    def _levels(self) -> Iterator[list[_Manifest]]:
        """Manifests in the order in which a registry takes them: children first."""
        left = dict(self._manifests)
        while left:
            ready = {
                (repository, digest): manifest
                for (repository, digest), manifest in left.items()
                if not any((repository, child) in left for child in manifest.below)
            }
            yield list(ready.values())
            for key in ready:
                del left[key]

    # Doing it

    def _first(self, blob: _Blob) -> Iterable[Job]:
        # In the same order each time, so that a copy that goes on asks where the first one pushed.
        (repository, item), *others = sorted(blob.wanted.items())
        self._move(blob.descriptor, item, None)
        return [partial(self._mount, blob.descriptor, other, repository) for _, other in others]

    def _mount(self, descriptor: Descriptor, item: CopyItem, repository: str) -> Iterable[Job]:
        self._move(descriptor, item, repository)
        return ()

    def _move(self, descriptor: Descriptor, item: CopyItem, mount_from: str | None) -> None:
        transfer = _Transfer(self, descriptor, item.source_repository)
        with _naming(item):
            self._target.push(
                item.target_repository, descriptor, transfer.chunks, mount_from=mount_from
            )
        if transfer.begun:
            self._count("blobs_moved")
            self._count("bytes_moved", descriptor.size)
        else:
            self._count("blobs_mounted" if mount_from else "blobs_skipped")

    def _push(self, manifest: _Manifest) -> Iterable[Job]:
        if manifest.present:
            self._count("manifests_skipped")
            return ()
        item, data = manifest.item, manifest.data
        with _naming(item):
            self._target.push(item.target_repository, manifest.descriptor, lambda: [data])
        self._count("manifests_moved")
        return ()

    def _tag(self, item: CopyItem, tag: str) -> Iterable[Job]:
        root = self._manifests.get((item.target_repository, item.root.digest))
        with _naming(item):
            # A tag that is right is left alone: it may be immutable there.
            if (root is None or root.present) and self._points(item, tag):
                return ()
            data = root.data if root else read_all(self._source, item.source_repository, item.root)
            self._target.tag(item.target_repository, item.root, data, tag)
        return ()

    def _points(self, item: CopyItem, tag: str) -> bool:
        try:
            return self._target.resolve(item.target_repository, tag).digest == item.root.digest
        except (NotFound, PolicyRefused):
            return False

    def open(self, repository: str, descriptor: Descriptor) -> Iterator[bytes]:
        """Chunks from the source, until another transfer fails."""
        for chunk in self._source.stream(repository, descriptor):  # push checks
            if self._stopped.is_set():
                raise Interrupted("stopped because another transfer failed")
            yield chunk

    def moved(self, amount: int) -> None:
        """Tell the caller of bytes that moved."""
        if self._progress and amount > 0:
            with self._lock:
                self._progress(amount)


class _Transfer:
    """One blob on its way: knows whether the target wanted it, and counts repeated bytes once."""

    def __init__(self, copying: _Copy, descriptor: Descriptor, repository: str) -> None:
        self.begun = False
        self._copying = copying
        self._descriptor = descriptor
        self._repository = repository
        self._told = 0

    def chunks(self) -> Iterator[bytes]:
        """Content for one attempt."""
        self.begun = True
        position = 0
        for chunk in self._copying.open(self._repository, self._descriptor):
            yield chunk
            position += len(chunk)
            self._copying.moved(position - self._told)
            self._told = max(self._told, position)


@contextmanager
def _naming(item: CopyItem) -> Iterator[None]:
    """Say in errors which image they stopped."""
    try:
        yield
    except AirgapError as error:
        error.message = f"{item.name}: {error.message}"
        error.args = (error.message,)
        raise
