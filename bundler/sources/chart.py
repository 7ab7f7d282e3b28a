"""Helm charts from a chart repository, an OCI registry or a file; carried as OCI artefacts.

A chart from a registry keeps its manifest's bytes, and with them its signatures. For the others
the manifest is authored as ``helm push`` would, so that Helm can pull every chart at the site.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from bundler.cache import check_digest
from bundler.lock import Blob
from bundler.sources.accessories import find_accessories
from bundler.sources.accessories import wanted as chosen
from bundler.sources.upstream import Locked, authored, registry_blob
from bundler.sources.verification import pinned, verify_signed
from bundler.sources.web import is_url
from bundler.spec_document import Referrers
from installer.bundle.catalog import chart_tag
from installer.bundle.digest import Digest
from installer.bundle.manifest import Chart, Verification
from installer.documents import compose, nearest, plain
from installer.errors import Corrupt, InvalidInput, NotFound
from installer.helm.chart import MAX_ARCHIVE_BYTES, ChartArchive
from installer.oci.graph import (
    HELM_CHART,
    HELM_CONFIG,
    Descriptor,
    ImageManifest,
    read_manifest,
)
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bundler.cache import Cached
    from bundler.sources.accessories import Found
    from bundler.sources.upstream import Upstream
    from bundler.spec_document import Chart as ChartSource
    from installer.oci.cosign import SigningIdentity

OCI_SCHEME = "oci://"
_MAX_INDEX_BYTES = 64 * 1024 * 1024
_MAX_INDEX_NODES = 5_000_000
HELM_PROVENANCE = "application/vnd.cncf.helm.chart.provenance.v1.prov"
MAX_PROVENANCE_BYTES = 1024 * 1024
_SHOWN = 5
_RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:\+[\w.-]+)?\Z")


def lock_chart(
    upstream: Upstream,
    wanted: ChartSource,
    profiles: Mapping[str, dict[str, Any]],
    referrers: Referrers | None = None,
    signer: SigningIdentity | None = None,
) -> Locked[Chart]:
    """Resolve a chart; ``profiles`` are the values of each profile that the spec wants of it.

    ``referrers`` says what of the signatures and the like in its registry comes along; with
    ``signer`` a chart in a registry that it has not signed is refused as NotTrusted.

    Raises NotFound, TransferFailed, Corrupt, and InvalidInput when what is there is another chart.
    """
    what = f"chart {wanted.name}"
    accessories: tuple[Found, ...] = ()
    verified = pinned() if wanted.digest else ()
    if wanted.kind == "oci":
        reference, root, blobs, tgz = _from_registry(upstream, wanted, what)
        said = find_accessories(upstream, reference, [root.digest])
        accessories = chosen(said, referrers or Referrers())
        if signer is not None:
            verified += (verify_signed(upstream, reference, said, [root.digest], signer),)
        archive = ChartArchive.read(tgz.path, what)
    else:
        if wanted.kind == "repository":
            place, tgz = _from_repository(upstream, wanted, what)
        else:
            place, tgz = wanted.source, upstream.file(wanted.source, what)
            verified = verified or (Verification("local"),)
        archive = ChartArchive.read(tgz.path, what)
        layer = Blob(str(tgz.digest), tgz.size, HELM_CHART, source=place)
        root, blobs = authored(layer, config_type=HELM_CONFIG, config=archive.config.decode())
    _check(archive, wanted, what)
    check_digest(tgz.digest, wanted.digest, what)
    entry = Chart(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        name=archive.name,
        version=archive.version,
        app_version=archive.app_version,
        source=wanted.source,
        sha256=tgz.digest.hex,
        size=tgz.size,
        profiles=dict(sorted(profiles.items())),
        accessories=tuple(one.entry for one in accessories),
        verified=verified,
    )
    return Locked(entry, (*blobs, *(blob for one in accessories for blob in one.blobs)))


def provenance(upstream: Upstream, wanted: ChartSource, locked: Locked[Chart]) -> bytes:
    """The chart's provenance file, as Helm keeps it: a layer, or ``.prov`` beside the archive.

    Raises NotFound when there is none (helm.sh/docs/topics/provenance).
    """
    what = f"chart {wanted.name}: provenance file"
    hint = "pin it by `sha256:` instead, if its maker doesn't sign it"
    if wanted.kind == "oci":
        layers = [blob for blob in locked.blobs if blob.media_type == HELM_PROVENANCE]
        if not layers:
            raise NotFound(f"{what}: the chart was pushed without one", hint=hint)
        return upstream.document(layers[0])
    place = next(blob.source for blob in locked.blobs if blob.media_type == HELM_CHART) + ".prov"
    if wanted.kind == "repository":
        try:
            return upstream.web.read(place, MAX_PROVENANCE_BYTES)
        except NotFound as error:
            raise NotFound(f"{what}: {error.message}", hint=hint) from error
    path = upstream.folder / place
    if not path.is_file():
        raise NotFound(f"{what}: there is no {place}", hint=hint)
    return path.read_bytes()[:MAX_PROVENANCE_BYTES]


def newest_version(upstream: Upstream, wanted: ChartSource) -> str:
    """The highest version without a pre-release that the chart's source has; "" if it has none.

    A chart in a file has only its own. Raises NotFound, TransferFailed, Corrupt or InvalidInput.
    """
    what = f"chart {wanted.name}"
    if wanted.kind == "oci":
        place = Reference.parse(wanted.source.removeprefix(OCI_SCHEME))
        versions = [tag.replace("_", "+") for tag in upstream.store(place.host).tags(place.path)]
    elif wanted.kind == "repository":
        index = _read_index(upstream.web.read(_index_of(wanted), _MAX_INDEX_BYTES), what)
        versions = [
            str(entry.get("version"))
            for entry in _releases(index, wanted.name)
            if not entry.get("deprecated")
        ]
    else:
        return ""
    return max((text for text in versions if _RELEASE.match(text)), key=_order, default="")


def _order(version: str) -> tuple[int, ...]:
    match = _RELEASE.match(version)
    return tuple(map(int, match.groups())) if match else ()


def is_newer(version: str, than: str) -> bool:
    """Whether a release is higher than another version, of which a pre-release is not counted."""
    return _order(version) > _order(than.partition("-")[0])


def _index_of(wanted: ChartSource) -> str:
    return wanted.source.rstrip("/") + "/index.yaml"


def _from_repository(upstream: Upstream, wanted: ChartSource, what: str) -> tuple[str, Cached]:
    """Look a chart up in ``index.yaml``; its digest is checked when the index has one."""
    index = _read_index(upstream.web.read(_index_of(wanted), _MAX_INDEX_BYTES), what)
    found = _find_version(index, wanted, what)
    urls = found.get("urls")
    if not isinstance(urls, list) or not urls or not isinstance(urls[0], str):
        raise InvalidInput(f"{what}: {wanted.version} has no URL in the repository's index.yaml")
    try:
        place = urljoin(_index_of(wanted), urls[0])
    except ValueError:  # as for http://[::1
        place = ""
    if not is_url(place):
        raise InvalidInput(
            f"{what}: the repository's index.yaml names a {urlsplit(place).scheme} address",
            hint="for charts in a registry write the source as oci://host/path",
        )
    digest = str(found.get("digest") or "").removeprefix("sha256:")
    expected = upstream.pins.get(what) or (Digest(digest) if digest else None)
    return place, upstream.file(place, what, expected, limit=MAX_ARCHIVE_BYTES)


def _read_index(data: bytes, what: str) -> dict[str, Any]:
    name = f"{what}: index.yaml"
    try:
        nodes = compose(data.decode(), name)
    except UnicodeDecodeError as error:
        raise Corrupt(f"{name}: not UTF-8 text") from error
    index = plain(nodes[0], name, max_nodes=_MAX_INDEX_NODES, unique_keys=False) if nodes else None
    entries = index.get("entries") if isinstance(index, dict) else None
    if not isinstance(entries, dict):
        raise InvalidInput(f"{name}: not a chart repository's index")
    return entries


def _releases(entries: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The entries of a chart; what is no list of maps counts as none."""
    found = entries.get(name)
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _find_version(entries: dict[str, Any], wanted: ChartSource, what: str) -> dict[str, Any]:
    """The index's entry for exactly this version; raises NotFound that says what there is."""
    releases = _releases(entries, wanted.name)
    if not releases:
        meant = nearest(wanted.name, entries)
        raise NotFound(
            f"{what}: {wanted.source} has no chart of that name",
            hint=f"did you mean {meant!r}?" if meant else f"it has {len(entries)} others",
        )
    for release in releases:
        if str(release.get("version")) == wanted.version:
            return release
    versions = [str(release.get("version")) for release in releases]
    meant = nearest(wanted.version or "", versions)
    raise NotFound(
        f"{what}: {wanted.source} has no version {wanted.version}",
        hint=f"the nearest is {meant}" if meant else f"it has {', '.join(versions[:_SHOWN])} …",
    )


def _from_registry(
    upstream: Upstream, wanted: ChartSource, what: str
) -> tuple[Reference, Descriptor, tuple[Blob, ...], Cached]:
    """Resolve a chart in a registry, where its version is a tag."""
    place = wanted.source.removeprefix(OCI_SCHEME)
    tag = chart_tag(wanted.version or "")
    reference = Reference.parse(f"{place}:{tag}")
    root = upstream.root(reference)
    blob = registry_blob(reference, root)
    manifest = read_manifest(upstream.document(blob), root.media_type, f"{what} {reference}")
    layers = [layer for layer in manifest.children if layer.media_type == HELM_CHART]
    if not isinstance(manifest, ImageManifest) or len(layers) != 1:
        raise InvalidInput(f"{what}: {reference} is no Helm chart")
    if layers[0].size > MAX_ARCHIVE_BYTES:
        raise InvalidInput(f"{what}: {reference} has {layers[0].size} bytes")
    blobs = (blob, *(registry_blob(reference, child) for child in manifest.children))
    return reference, root, blobs, upstream.cached(registry_blob(reference, layers[0]))


def _check(archive: ChartArchive, wanted: ChartSource, what: str) -> None:
    if archive.name != wanted.name:
        raise InvalidInput(
            f"{what}: {wanted.source} is the chart {archive.name!r}",
            hint="`name` has to be the chart's own name",
        )
    if wanted.version and archive.version != wanted.version:
        raise InvalidInput(f"{what}: is version {archive.version}, not {wanted.version}")
    if archive.type == "library":
        raise InvalidInput(f"{what}: is a library, which nothing can be installed from")
