"""Images that lie on this machine: an OCI layout or archive, a docker-archive, the Docker daemon.

What they are is read by ``installer.oci.archive_store``: a layout keeps its bytes, for the older
docker-archive layers are compressed and a manifest is written. A layout in a folder stays where it
is. What is in a tar, or comes as one from the daemon, is kept in the cache by digest; when it is no
longer there at build time, the tar is read again, and has to give the same bytes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bundler.lock import Blob
from installer.errors import InvalidInput, NotFound, TransferFailed
from installer.oci.archive_store import open_archive
from installer.oci.docker_engine import saved
from installer.oci.graph import ACCEPTED_TYPES, ImageIndex, read_manifest
from installer.oci.reference import Reference
from installer.oci.store import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bundler.cache import BlobCache
    from installer.oci.archive_store import ArchiveStore
    from installer.oci.graph import Descriptor

DAEMON = "docker://"
"""Scheme of an image in the local Docker daemon, followed by its name there."""
ARCHIVE = "archive:"
"""Before the path of an image archive whose blobs a lock names."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image on this machine: what its reference means, and where the lock finds its blobs."""

    root: Descriptor
    source: str
    is_folder: bool

    def blob(self, descriptor: Descriptor) -> Blob:
        """A blob with its place: a file of the folder, or the archive that has it inside."""
        place = self.source
        if self.is_folder:
            place = f"{place.rstrip('/')}/{descriptor.digest.blob_path}"
        return Blob(str(descriptor.digest), descriptor.size, descriptor.media_type, source=place)


def local_image(folder: Path, cache: BlobCache, reference: Reference, source: str) -> LocalImage:
    """Find an image in ``source``: a folder or a tar relative to ``folder``, or ``docker://NAME``.

    Raises InvalidInput when it is not there, or several could be meant; Corrupt for an archive that
    contradicts itself; TransferFailed when the daemon can't be asked.
    """
    if source.startswith(DAEMON):
        source = source if source != DAEMON else f"{DAEMON}{reference}"
        return LocalImage(_import(folder, cache, source, reference), source, is_folder=False)
    if not (folder / source).is_dir():
        source = f"{ARCHIVE}{source}"
        return LocalImage(_import(folder, cache, source, reference), source, is_folder=False)
    with tempfile.TemporaryDirectory(prefix="bundler-") as passing:
        store = open_archive(folder / source, Path(passing))
        return LocalImage(_choose(store, reference, source), source, is_folder=True)


def restore(folder: Path, cache: BlobCache, source: str) -> None:
    """Have everything that an archive, or the daemon's export of an image, has in the cache again.

    Raises what ``local_image`` does.
    """
    _import(folder, cache, source, None)


def _import(folder: Path, cache: BlobCache, source: str, reference: Reference | None) -> Descriptor:
    """Keep the blobs of the image that is meant; without a reference those of all images."""
    with tempfile.TemporaryDirectory(prefix="bundler-") as name:
        passing = Path(name)
        path = folder / source.removeprefix(ARCHIVE)
        if source.startswith(DAEMON):
            path = passing / "image.tar"
            _write(saved(source.removeprefix(DAEMON)), path)
        layers = passing / "layers"
        layers.mkdir()
        store = open_archive(path, layers)
        roots = [image.root for image in store.images]
        if reference is not None:
            roots = [_choose(store, reference, source)]
        for root in roots:
            _keep(cache, store, root, source)
        return roots[0]


def _keep(cache: BlobCache, store: ArchiveStore, root: Descriptor, source: str) -> None:
    """Copy into the cache what the archive has below a root."""
    waiting, seen = [root], set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.digest in seen or not store.exists("", descriptor):
            continue  # an index may name platforms that were left out
        seen.add(descriptor.digest)
        cache.put(
            store.stream("", descriptor),
            expected=descriptor.digest,
            what=f"{source}: {descriptor.digest}",
        )
        if descriptor.is_manifest:
            data = read_all(store, "", descriptor)
            manifest = read_manifest(data, descriptor.media_type, f"{source}: {descriptor.digest}")
            if not isinstance(manifest, ImageIndex):
                gone = [child for child in manifest.children if not store.exists("", child)]
                if gone:
                    raise NotFound(f"{source}: {gone[0].digest} is not in it: it is incomplete")
            waiting += manifest.children


def _choose(store: ArchiveStore, reference: Reference, source: str) -> Descriptor:
    """The image that the reference means, by its name or by its tag, or the only one."""
    images = [image for image in store.images if image.root.media_type in ACCEPTED_TYPES]
    exact = [i for i in images if str(reference) in {_normal(name) for name in i.names}]
    tagged = [i for i in images if (reference.tag or "latest") in i.names]
    for found in (exact, tagged, images):
        roots = {image.root.digest: image.root for image in found}
        if len(roots) == 1:
            return next(iter(roots.values()))
    names = sorted({name for image in images for name in image.names})
    more = " …" if len(names) > _SHOWN else ""
    raise InvalidInput(
        f"{source}: {len(images)} images are in it, none of them named {reference}",
        hint=f"the names in it are: {', '.join(names[:_SHOWN]) or 'none'}{more}",
    )


def _normal(name: str) -> str:
    """A name as a reference, "" for what is none."""
    try:
        return str(Reference.parse(name))
    except InvalidInput:
        return ""


def _write(chunks: Iterable[bytes], path: Path) -> None:
    try:
        with path.open("xb") as out:
            out.writelines(chunks)
    except OSError as error:
        raise TransferFailed(
            f"{path.parent}: {error.strerror}", hint="make room there, or set TMPDIR"
        ) from error
