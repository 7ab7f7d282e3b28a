"""``bundle.json``: the one list of everything that is in the bundle, and the bytes that are signed.

There is exactly one way to write a given manifest, and reading refuses every other: what was
decoded is encoded again and must give the same bytes. That one rule refuses duplicate keys,
unknown escapes, NaN, a byte-order mark, other key orders, trailing bytes and whatever else two
JSON readers might see differently (docs/format.md, "bundle.json").
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from installer.bundle.digest import Digest
from installer.errors import Corrupt, InvalidInput
from installer.oci.graph import Descriptor
from installer.structs import decode_json

API_VERSION = "bundle/v1"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
"""Over 300,000 members fit; more is a bomb, refused before it is decoded."""

MAX_NUMBER = 2**53 - 1
"""What every JSON reader takes without loss (RFC 8259, section 6)."""

NAME = "bundle.json"
SIGNATURE_AREA = 64 * 1024
"""Bytes before the header of bundle.json: signatures and zeros, so that more signatures can be
added later without moving the gigabytes behind them."""

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*\Z")
_MAX_PATH = 100
_BLOBS = "blobs/sha256/"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Origin(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, order=True
):
    """Where a reference was found: chart, profile, ``Kind/name`` of the object, path of the field.

    ``chart`` and ``profile`` are empty for what the spec itself lists.
    """

    chart: str
    profile: str
    object: str
    field: str


class _Strict(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """Common to all entries: unknown keys are refused, defaults are left out."""


class Member(_Strict, frozen=True):
    """A file in the tar: path, size in bytes, sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str
    executable: bool = False

    @property
    def digest(self) -> Digest:
        """The digest as a type."""
        return Digest(self.sha256)


class Content(_Strict, frozen=True):
    """What is carried as OCI content: ``digest``, media type and size (bytes) of its manifest."""

    digest: str
    media_type: str
    manifest_size: int

    @property
    def root(self) -> Descriptor:
        """The descriptor of the manifest or index."""
        return Descriptor(self.media_type, Digest.parse(self.digest), self.manifest_size)


class Accessory(Content, frozen=True):
    """What upstream says of an image or a chart, taken along: a signature, an SBOM, a scan.

    ``subject`` is the digest that it is about. ``tag`` is the one that cosign keeps it under, ""
    for a referrer, which is found by its subject. ``artifact_type`` is "" for an index.
    """

    subject: str
    artifact_type: str = ""
    tag: str = ""


class Verification(_Strict, frozen=True):
    """How it is known that something is what its maker published, as the lock found it.

    ``method`` is ``cosign`` (a signature held, in this ``form``), ``provenance`` (Helm's), or how
    a person vouches: ``pinned`` by digest in the spec, ``local`` for a file of theirs, ``checksum``
    for one that was published beside the file. ``key`` is the name of the key's file, ``key_id``
    sha256 of its SPKI (cosign) or its fingerprint (provenance), ``digest`` what was signed.
    """

    method: Literal["cosign", "provenance", "pinned", "local", "checksum"]
    key: str = ""
    key_id: str = ""
    form: str = ""
    digest: str = ""


class Image(Content, frozen=True):
    """An image by its normalised reference; ``origins`` and ``reason`` say why it is here.

    ``index`` is the digest that the reference has upstream, where that is an index of which only
    one platform's manifest is carried; its bytes are a blob of the bundle.
    """

    reference: str
    origins: tuple[Origin, ...] = ()
    reason: str = ""
    index: str = ""
    accessories: tuple[Accessory, ...] = ()
    verified: tuple[Verification, ...] = ()


class Chart(Content, frozen=True):
    """A Helm chart as an OCI artefact; ``sha256`` and ``size`` (bytes) are of the .tgz itself.

    ``profiles`` are the values of each profile that was rendered, to install with.
    """

    name: str
    version: str
    app_version: str
    source: str
    sha256: str
    size: int
    profiles: dict[str, dict[str, Any]] = {}
    accessories: tuple[Accessory, ...] = ()
    verified: tuple[Verification, ...] = ()


class Tool(Content, frozen=True):
    """An executable as an OCI artefact; ``sha256`` and ``size`` (bytes) are of the executable."""

    name: str
    platform: str
    source: str
    sha256: str
    size: int
    verified: tuple[Verification, ...] = ()


class Database(Content, frozen=True):
    """A Trivy database with the dates (RFC 3339) and the schema version that it states itself.

    ``size`` (bytes) is of its one layer.
    """

    kind: Literal["trivy-db", "trivy-java-db", "trivy-checks"]
    reference: str
    size: int
    updated_at: str = ""
    next_update: str = ""
    schema: int = 0
    verified: tuple[Verification, ...] = ()


class File(Content, frozen=True):
    """Any other file as an OCI artefact; ``sha256`` and ``size`` (bytes) are of the file."""

    name: str
    sha256: str
    size: int
    verified: tuple[Verification, ...] = ()


class Manifest(_Strict, frozen=True):
    """Everything that is in a bundle.

    ``serial`` grows with every release of a channel, ``created`` and ``expires`` are RFC 3339 in
    UTC. ``members`` are all files of the tar but the signatures and bundle.json, in the tar's
    order. ``required`` are blobs that a delta leaves out because the site has them.
    """

    api_version: Literal["bundle/v1"]
    kind: Literal["Bundle"]
    name: str
    channel: str
    serial: int
    created: str
    platforms: tuple[str, ...]
    signature_area: int
    members: tuple[Member, ...]
    expires: str = ""
    charts: tuple[Chart, ...] = ()
    images: tuple[Image, ...] = ()
    tools: tuple[Tool, ...] = ()
    databases: tuple[Database, ...] = ()
    files: tuple[File, ...] = ()
    required: tuple[Member, ...] = ()

    @property
    def contents(self) -> tuple[Content, ...]:
        """Everything that has an OCI manifest of its own."""
        of_images = (a for image in self.images for a in image.accessories)
        of_charts = (a for chart in self.charts for a in chart.accessories)
        artefacts = (*self.charts, *self.tools, *self.databases, *self.files)
        return (*self.images, *artefacts, *of_images, *of_charts)

    @property
    def only_databases(self) -> bool:
        """Whether it brings newer databases to a site that is there, and nothing to install."""
        return bool(self.databases) and not (self.charts or self.images or self.tools)

    @property
    def history(self) -> str:
        """What its serial is compared within: bundles with only databases have their own."""
        return f"{self.channel}/{self.name}" if self.only_databases else self.channel

    def member(self, path: str) -> Member:
        """Find a member by path; raises Corrupt when the manifest has none."""
        for member in self.members:
            if member.path == path:
                return member
        raise Corrupt(f"{NAME}: no member {path!r}")


def encode(manifest: Manifest) -> bytes:
    """Write the canonical bytes: fields in the order of the types, one space of indentation."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read bytes whose signature held; raises Corrupt for what is not canonical or not coherent."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise Corrupt(f"{NAME}: {len(data)} bytes, over the limit of {MAX_MANIFEST_BYTES}")
    try:
        manifest = decode_json(data, Manifest)
        canonical = encode(manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(
            f"{NAME}: {error}", hint="a bundle of a later format needs a later installer"
        ) from error
    if canonical != data:
        raise Corrupt(f"{NAME}: not in canonical form", hint="see docs/format.md")
    try:
        _check(manifest)
    except InvalidInput as error:
        raise Corrupt(f"{NAME}: {error.message}") from error
    return manifest


def parse_time(text: str) -> datetime:
    """Read a time of the manifest (``2026-01-31T12:00:00Z``); raises Corrupt."""
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise Corrupt(f"{NAME}: not a time: {text[:40]!r}") from error
    if format_time(moment) != text:  # 2026-1-2, or digits of another script
        raise Corrupt(f"{NAME}: not a time in its one form: {text[:40]!r}")
    return moment


def format_time(moment: datetime) -> str:
    """Write a time as the manifest has it."""
    return moment.astimezone(UTC).strftime(_TIME)


def _check(manifest: Manifest) -> None:
    """What types can't say: safe and unique paths, blobs named by digest, references resolved."""
    seen: set[str] = set()
    for member in manifest.members:
        _check_name(member)
        folded = member.path.casefold()
        if folded in seen:
            raise InvalidInput(f"member {member.path} is there twice")
        seen.add(folded)
    for member in manifest.required:
        _check_name(member)
        if member.path in seen or not member.path.startswith(_BLOBS):
            raise InvalidInput(f"required {member.path} is no blob, or is in the bundle as well")
        seen.add(member.path)
    if (
        not 0 <= manifest.serial <= MAX_NUMBER
        or not 0 < manifest.signature_area <= MAX_MANIFEST_BYTES
    ):
        raise InvalidInput("serial or signatureArea out of range")
    parse_time(manifest.created)
    if manifest.expires:
        parse_time(manifest.expires)
    indexes = (image.index for image in manifest.images if image.index)
    for digest in (*(entry.digest for entry in manifest.contents), *indexes):
        if Digest.parse(digest).blob_path not in seen:
            raise InvalidInput(f"{digest} is listed but not among the members")


def check_path(path: str) -> None:
    """Refuse a path that two readers could place differently; raises InvalidInput."""
    if len(path) > _MAX_PATH or not _PATH.match(path):
        raise InvalidInput(f"unsafe member path {path[:120]!r}")
    if path.casefold().startswith(NAME):
        raise InvalidInput(f"member path {path!r} is reserved")


def _check_name(member: Member) -> None:
    """Refuse an unsafe path, an impossible size, and a blob that is not named by its digest."""
    blob_path = member.digest.blob_path
    if member.path != blob_path:  # which is a safe path
        check_path(member.path)
        if member.path.startswith("blobs/"):
            raise InvalidInput(f"member {member.path} has digest {member.digest}")
    if not 0 <= member.size <= MAX_NUMBER:
        raise InvalidInput(f"member {member.path}: size out of range")
