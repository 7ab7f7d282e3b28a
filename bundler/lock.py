"""``bundle.lock``: everything that the spec means, by digest and size, and where each byte is from.

The lock is what a person reviews and a build repeats: same lock, same bundle, bit for bit. It is
JSON with a line a value, sorted, so that a diff between two locks reads as what changed. The
entries are those of the bundle's manifest; ``blobs`` adds the place that each blob is fetched from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from installer.bundle.digest import Digest
from installer.bundle.manifest import (
    Chart,
    Database,
    File,
    Image,
    Manifest,
    Member,
    Origin,
    Tool,
)
from installer.errors import InvalidInput
from installer.oci.graph import Descriptor
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from bundler.spec import Spec

_AGAIN = "write it again with: bundler lock bundle.yaml"


class Blob(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """A blob by digest, size (bytes) and media type, and exactly one place that it comes from.

    ``repository`` is a repository with its host on a registry (a manifest type is fetched as
    manifest); ``source`` is a URL or a path relative to the spec, of the file itself or, with
    ``member``, of a tar or zip archive with digest ``archive`` that has it inside; ``text`` is
    the content itself, for manifests and configs that the builder authors.
    """

    digest: str
    size: int
    media_type: str
    repository: str = ""
    source: str = ""
    member: str = ""
    archive: str = ""
    text: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that stores work with."""
        return Descriptor(self.media_type, Digest.parse(self.digest), self.size)


class Excluded(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """An image that charts name and the spec leaves out, with its reason."""

    reference: str
    reason: str
    origins: tuple[Origin, ...]


class Lock(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """All of a bundle, resolved.

    ``serial`` and ``created`` change only when anything else does: locking again without a
    change upstream gives the same file. ``spec_digest`` is of the spec that it was made from.
    """

    api_version: Literal["bundle/v1"]
    kind: Literal["BundleLock"]
    name: str
    channel: str
    serial: int
    created: str
    spec_digest: str
    platforms: tuple[str, ...]
    blobs: tuple[Blob, ...]
    expires: str = ""
    charts: tuple[Chart, ...] = ()
    images: tuple[Image, ...] = ()
    tools: tuple[Tool, ...] = ()
    databases: tuple[Database, ...] = ()
    files: tuple[File, ...] = ()
    excluded: tuple[Excluded, ...] = ()


def encode_lock(lock: Lock) -> bytes:
    """Write the lock, always the same bytes for the same content."""
    return msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n"


def read_lock(path: Path) -> Lock:
    """Read a lock; raises InvalidInput that says what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path}: {error.strerror}", hint="write it with: bundler lock bundle.yaml"
        ) from error
    try:
        lock = decode_json(data, Lock)
        Digest.parse(lock.spec_digest)
        for blob in lock.blobs:
            _check_blob(blob)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", hint=_AGAIN) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path}: not a bundle.lock: {error}", hint=_AGAIN) from error
    if encode_lock(lock) != data:
        raise InvalidInput(
            f"{path}: was edited by hand", hint="change bundle.yaml and run: bundler lock"
        )
    return lock


def is_lock(path: Path) -> bool:
    """Whether a file is a lock at all, of whatever version or state: it may be written anew."""
    try:
        data = decode_json(path.read_bytes(), dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return data.get("kind") == "BundleLock"


def _check_blob(blob: Blob) -> None:
    digest = blob.descriptor.digest
    places = [bool(blob.repository), bool(blob.source), blob.text is not None]
    if places.count(True) != 1 or blob.size < 0:
        raise InvalidInput(f"{digest} needs exactly one place, and a size")
    if blob.text is not None and Digest.of(blob.text.encode()) != digest:
        raise InvalidInput(f"the text of {digest} has another digest")
    if blob.member:
        Digest.parse(blob.archive)


def bundle_manifest(
    lock: Lock,
    front: tuple[Member, ...],
    signature_area: int,
    omitted: Collection[Digest] = (),
) -> Manifest:
    """The manifest of the lock's bundle; ``front`` are the members before the blobs.

    ``omitted`` are blobs that a delta leaves out and lists as required.

    Manifests and configs come before layers, each sorted by digest: a reader that streams has
    the small documents first, and the order depends on nothing but the lock.
    """
    blobs = sorted(lock.blobs, key=lambda b: ("json" not in b.media_type, b.digest))
    digests = [Digest.parse(blob.digest) for blob in blobs]
    members = [Member(d.blob_path, b.size, d.hex) for d, b in zip(digests, blobs, strict=True)]
    return Manifest(
        api_version="bundle/v1",
        kind="Bundle",
        name=lock.name,
        channel=lock.channel,
        serial=lock.serial,
        created=lock.created,
        platforms=lock.platforms,
        signature_area=signature_area,
        members=(*front, *(m for m in members if m.digest not in omitted)),
        expires=lock.expires,
        charts=lock.charts,
        images=lock.images,
        tools=lock.tools,
        databases=lock.databases,
        files=lock.files,
        required=tuple(m for m in members if m.digest in omitted),
    )


def check_lock_fits(lock: Lock, spec: Spec) -> None:
    """Refuse a lock that was made from another spec; raises InvalidInput."""
    if lock.spec_digest != str(spec.digest()):
        raise InvalidInput(
            "bundle.lock was made from another bundle.yaml than this one",
            hint=_AGAIN,
        )
