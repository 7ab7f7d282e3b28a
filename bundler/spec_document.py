"""``bundle.yaml`` as it is written: its keys and their types, one struct for each kind of entry.

What they mean together is for ``bundler.spec``, which checks it. The docstrings are what an editor
shows (``bundler schema``): a key is told by the sentences that name it.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import msgspec

from bundler.platforms import Platform
from installer.bundle.digest import Digest
from installer.oci.reference import Reference

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

Platforms = Annotated[tuple[Platform, ...], msgspec.Meta(min_length=1)]
"""Platforms that an image has to be built for; ``all`` brings everything of an index along."""


def scheme_of(source: str) -> str:
    """The scheme of an address in lower case, "" for a path."""
    match = _SCHEME.match(source)
    return match[1].lower() if match else ""


class _Strict(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    pass


class Verify(_Strict, frozen=True):
    """Whose signature something has to have: exactly one of the two, each a path.

    ``key`` is a public key as ``cosign.pub``, for what lies in a registry; ``keyring`` a keyring of
    GnuPG for a chart's provenance file.
    """

    key: str | None = None
    keyring: str | None = None


class Chart(_Strict, frozen=True):
    """A chart: from a chart repository (https://…), a registry (oci://…) or a local path.

    The path is a ``.tgz``, or the folder of a chart with its dependencies in ``charts/``.
    """

    name: str
    source: str
    version: str | None = None
    """Exact version; None for a local file, which says it itself."""
    profiles: tuple[str, ...] = ("default",)
    """Profiles to render for discovery, and to choose from at the site."""
    sha256: str | None = None
    """Of the .tgz, 64 hexadecimal digits."""
    verify: Verify | None = None

    @property
    def digest(self) -> Digest | None:
        """``sha256`` as a digest."""
        return Digest(self.sha256.removeprefix("sha256:")) if self.sha256 else None

    @property
    def kind(self) -> Literal["repository", "oci", "file"]:
        """Where the chart comes from."""
        scheme = scheme_of(self.source)
        return "oci" if scheme == "oci" else "repository" if scheme else "file"


class Profile(_Strict, frozen=True):
    """A set of chart values: written here, or in a file beside the spec."""

    values: dict[str, Any] | None = None
    values_file: str | None = None


class Tool(_Strict, frozen=True):
    """A program that is carried: ``member`` is its path if the source is an archive."""

    name: str
    source: str
    member: str | None = None
    sha256: str | None = None
    """Of the source (the archive), 64 hexadecimal digits."""
    sha256_from: str | None = None
    """Address of the published checksum, for sources whose digest the lock is to pin."""

    @property
    def digest(self) -> Digest | None:
        """``sha256`` as a digest."""
        return Digest(self.sha256.removeprefix("sha256:")) if self.sha256 else None


class Database(_Strict, frozen=True):
    """A database of Trivy's, as it lies in a registry."""

    kind: Literal["trivy-db", "trivy-java-db", "trivy-checks"]
    source: str
    max_age: str = "14d"
    """Age above which it is refused: a number with h (hours) or d (days)."""
    verify: Verify | None = None

    @property
    def oldest(self) -> timedelta:
        """``maxAge`` as a duration."""
        unit = {"h": "hours", "d": "days"}[self.max_age[-1]]
        return timedelta(**{unit: int(self.max_age[:-1])})

    @property
    def reference(self) -> Reference:
        """``source`` as a reference."""
        return Reference.parse(self.source)


class ExtraFile(_Strict, frozen=True):
    """A file that travels with the bundle."""

    name: str
    source: str


class ImageSource(_Strict, frozen=True):
    """An image that no chart names: its reference, why it is there, who has to have signed it.

    ``source`` is where it lies if not in its registry: ``docker://NAME`` (NAME may be left out),
    or a path: an OCI layout, an OCI archive, or a docker-archive. ``platforms`` are those of this
    image, in place of the bundle's.
    """

    reference: str
    source: str = ""
    reason: str = ""
    platforms: Platforms = ()
    verify: Verify | None = None


class Exclude(_Strict, frozen=True):
    """Images of charts that stay out: a pattern, as ``docker.io/goharbor/trivy-*``, and why."""

    image: str
    reason: str


class ImageRule(_Strict, frozen=True):
    """Images of this pattern have to be signed with this key (a path)."""

    match: str
    key: str


class PlatformRule(_Strict, frozen=True):
    """Images of this pattern have these platforms, in place of the bundle's."""

    match: str
    platforms: Platforms


class Policy(_Strict, frozen=True):
    """Whose signatures images have to have; with ``required`` everything has to be vouched for."""

    required: bool = False
    images: tuple[ImageRule, ...] = ()


class Referrers(_Strict, frozen=True):
    """Which of upstream's signatures, SBOMs and attestations come along with images and charts.

    ``artifactTypes`` are patterns for referrers (``application/vnd.dev.sigstore.*``),
    ``cosignTags`` the endings of tags that cosign makes. By default it is everything.
    """

    artifact_types: tuple[str, ...] = ("*",)
    cosign_tags: tuple[Literal["sig", "att", "sbom"], ...] = ("sig", "att", "sbom")


class BundleSpec(_Strict, frozen=True):
    """``bundle.yaml`` as it is written; ``Spec`` is what it means.

    ``platforms`` are those of the site's nodes: every image has to be built for each of them. With
    ``all`` besides, ``platforms`` brings along everything of an index. ``imagePlatforms`` are
    images with other platforms than the bundle's; the first pattern that fits counts.
    """

    api_version: Literal["bundle/v1"]
    kind: Literal["BundleSpec"]
    name: str
    channel: str = "stable"
    platforms: Platforms = ("linux/amd64",)
    kube_version: str | None = None
    """Version of Kubernetes to render for; None is the Helm binary's default."""
    api_versions: tuple[str, ...] = ()
    """API versions that the cluster has besides Kubernetes' own, for charts that ask."""
    expires: date | None = None
    charts: tuple[Chart, ...] = ()
    profiles: dict[str, Profile | None] = {}
    referrers: Referrers = Referrers()
    verify: Policy = Policy()
    images: tuple[str | ImageSource, ...] = ()
    image_platforms: tuple[PlatformRule, ...] = ()
    exclude: tuple[Exclude, ...] = ()
    tools: tuple[Tool, ...] = ()
    databases: tuple[Database, ...] = ()
    files: tuple[ExtraFile, ...] = ()
