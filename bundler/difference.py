"""What one lock or bundle has and another has not: for the review before a disk is carried.

Artefacts are compared by digest and told by name: an image whose repository is in both with one
tag each is one that changed, whatever its tags. Bytes are those of blobs, each counted once, so
that the sum is what has to be fetched, and what a site has to take in.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from bundler.lock import Lock
from installer.bundle.digest import Digest
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.manifest import Manifest

_BLOBS = "blobs/sha256/"


class Change(NamedTuple):
    """How an artefact differs: digests ``before`` and ``after``, "" where it is not.

    ``was`` and ``will`` are what people call these two: tag, version or date.
    """

    kind: str
    name: str
    before: str
    after: str
    was: str
    will: str

    @property
    def word(self) -> str:
        """``added``, ``removed`` or ``changed``."""
        if self.before and self.after:
            return "changed"
        return "added" if self.after else "removed"


class Bytes(NamedTuple):
    """Bytes of blobs that only the newer one has, that both have, that only the older one has."""

    new: int
    same: int
    gone: int


class _Artefact(NamedTuple):
    """``name`` stays from version to version; ``full`` tells it from others of that name."""

    kind: str
    name: str
    full: str
    digest: str
    version: str = ""


def changes(old: Lock | Manifest, new: Lock | Manifest) -> list[Change]:
    """What is added, removed or another one, by kind and name."""
    sides = [list(_artefacts(side)) for side in (old, new)]
    counted = [Counter((one.kind, one.name) for one in side) for side in sides]

    def called(one: _Artefact) -> tuple[str, str]:
        key = (one.kind, one.name)
        return key if all(count[key] <= 1 for count in counted) else (one.kind, one.full)

    before, after = ({called(one): one for one in side} for side in sides)
    found = []
    for kind, name in sorted({**before, **after}):
        was, will = (side.get((kind, name), _ABSENT) for side in (before, after))
        if was.digest != will.digest:
            found.append(Change(kind, name, was.digest, will.digest, was.version, will.version))
    return found


def blob_bytes(old: Lock | Manifest, new: Lock | Manifest) -> Bytes:
    """Bytes by where they are."""
    before, after = dict(_blobs(old)), dict(_blobs(new))
    return Bytes(
        sum(size for digest, size in after.items() if digest not in before),
        sum(size for digest, size in after.items() if digest in before),
        sum(size for digest, size in before.items() if digest not in after),
    )


_ABSENT = _Artefact("", "", "", "")


def _artefacts(contents: Lock | Manifest) -> Iterator[_Artefact]:
    for chart in contents.charts:
        full = f"{chart.name} {chart.version}"
        yield _Artefact("chart", chart.name, full, chart.digest, chart.version)
    for image in contents.images:
        of = Reference.parse(image.reference)
        yield _Artefact("image", of.repository, image.reference, image.digest, of.tag or "")
    for tool in contents.tools:
        name = f"{tool.name} {tool.platform}"
        yield _Artefact("tool", name, name, tool.digest)
    for database in contents.databases:
        name = database.reference
        yield _Artefact("database", name, name, database.digest, database.updated_at)
    for file in contents.files:
        yield _Artefact("file", file.name, file.name, file.digest)


def _blobs(contents: Lock | Manifest) -> Iterator[tuple[str, int]]:
    if isinstance(contents, Lock):
        for blob in contents.blobs:
            yield Digest.parse(blob.digest).hex, blob.size
        return
    for member in (*contents.members, *contents.required):
        if member.path.startswith(_BLOBS):
            yield member.sha256, member.size
