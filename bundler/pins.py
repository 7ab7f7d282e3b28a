"""What stays as the last lock has it, when only some entries are to be resolved again.

``bundler lock --update NAME`` takes what upstream has by now for what is named, and asks by the
last lock's digests for all else: a tag that has moved does no harm, and what upstream no longer has
under its digest is an error. Pure: names and digests, nothing is asked here.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from bundler.sources.chart import OCI_SCHEME
from installer.bundle.catalog import chart_tag
from installer.bundle.digest import Digest
from installer.documents import nearest
from installer.errors import InvalidInput
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bundler.lock import Lock

_SHOWN = 8


def pins(previous: Lock, update: Collection[str]) -> dict[str, Digest]:
    """Digests to stay with: of images, databases and charts in registries by reference.

    Charts from elsewhere are keyed ``chart NAME``, tools ``tool NAME SOURCE``, because there may be
    one for each platform: digests of the files behind their sources. ``update`` are names or
    patterns of what is resolved again; raises InvalidInput for one that fits nothing.
    """
    found: dict[str, Digest] = {}
    known: set[str] = set()
    used: set[str] = set()
    for names, key, digest in _entries(previous):
        known.update(names)
        fitting = {u for u in update if any(fnmatchcase(name, u) for name in names)}
        used |= fitting
        if not fitting:
            found[key] = digest
    for name in update:
        if name not in used:
            meant = nearest(name, known)
            more = ", ".join(sorted(known)[:_SHOWN])
            raise InvalidInput(
                f"--update {name}: the lock has nothing of that name",
                hint=f"did you mean {meant}?" if meant else f"it has {more} …",
            )
    return found


def _entries(lock: Lock) -> Iterator[tuple[tuple[str, ...], str, Digest]]:
    """Each entry: the names that it is called by, its key, and the digest to stay with."""
    for image in lock.images:
        reference = Reference.parse(image.reference)
        called = (image.reference, reference.repository, reference.path)
        yield called, image.reference, Digest.parse(image.index or image.digest)
    for database in lock.databases:
        of = database.reference
        yield (str(database.kind), of), of, Digest.parse(database.digest)
    for chart in lock.charts:
        if chart.source.startswith(OCI_SCHEME):
            place = f"{chart.source.removeprefix(OCI_SCHEME)}:{chart_tag(chart.version)}"
            yield (chart.name,), str(Reference.parse(place)), Digest.parse(chart.digest)
        else:
            yield (chart.name,), f"chart {chart.name}", Digest(chart.sha256)
    blobs = {blob.digest: blob for blob in lock.blobs}
    for tool in lock.tools:
        blob = blobs[f"sha256:{tool.sha256}"]
        place = f"tool {tool.name} {tool.source}"
        yield (tool.name,), place, Digest.parse(blob.archive or blob.digest)
