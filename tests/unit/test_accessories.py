"""Signatures, SBOMs and the like: found in every way there is, taken along, filtered."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bundler.cache import BlobCache
from bundler.sources.accessories import find_accessories, wanted
from bundler.sources.image import lock_image
from bundler.sources.upstream import Upstream
from bundler.spec_document import Referrers
from installer.bundle.digest import Digest
from installer.errors import Corrupt, InvalidInput, TransferFailed
from installer.oci.hosts import RegistryHosts
from installer.oci.http import Patience
from installer.oci.reference import Reference
from tests.upstream import images
from tests.upstream.registry import Registry
from tests.upstream.server import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Patience(connect=2, read=2, attempts=2, backoff=0.01, longest=1)
AMD64 = images.image([images.layer(2000, "amd64")])
ARM64 = images.image([images.layer(2000, "arm64")], platform="linux/arm64")
INDEX = images.index([AMD64, ARM64])
EMPTY = images.Content(images.OCI_EMPTY, b"{}")
SPDX, SIGSTORE = "application/spdx+json", "application/vnd.dev.sigstore.bundle.v0.3+json"


def referrer(subject: images.Image, kind: str = SPDX, text: str = "sbom") -> images.Image:
    layers = [images.Content("application/json", text.encode())]
    return images.artefact(EMPTY, layers, artifact_type=kind, subject=subject.top)


def plain(text: str) -> images.Image:
    return images.artefact(EMPTY, [images.Content("text/plain", text.encode())])


def listing(item: images.Image) -> images.Image:
    """A list of referrers as a client writes it for a registry without the API."""
    document = {"schemaVersion": 2, "manifests": [item.top.descriptor()]}
    return images.Image(images.Content(images.OCI_INDEX, json.dumps(document).encode()), (), ())


def tag(subject: images.Image, suffix: str) -> str:
    return subject.digest.replace(":", "-") + suffix


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        registry.put("app", "1", INDEX)
        yield registry


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with Upstream(RegistryHosts(), BlobCache(tmp_path), tmp_path, patience=QUICK) as upstream:
        yield upstream


@pytest.fixture
def app(registry: Registry) -> Reference:
    return Reference.parse(f"{registry.host}/app:1")


def test_all_ways_and_all_subjects(registry: Registry, upstream: Upstream, app: Reference) -> None:
    sbom, signature, attestation = referrer(AMD64), plain("signature"), plain("attestation")
    of_sbom = referrer(sbom, SIGSTORE, "signature of the sbom")
    registry.put("app", None, sbom)
    registry.put("app", None, of_sbom)
    registry.put("app", tag(INDEX, ".sig"), signature)
    registry.put("app", tag(AMD64, ".att"), attestation)
    registry.put("app", None, referrer(ARM64, text="of a platform that stays behind"))
    locked = lock_image(upstream, app, ["linux/amd64"])
    found = {(a.subject, a.tag, a.artifact_type): a.digest for a in locked.entry.accessories}
    assert found == {
        (AMD64.digest, "", SPDX): sbom.digest,
        (sbom.digest, "", SIGSTORE): of_sbom.digest,
        (INDEX.digest, tag(INDEX, ".sig"), images.OCI_EMPTY): signature.digest,
        (AMD64.digest, tag(AMD64, ".att"), images.OCI_EMPTY): attestation.digest,
    }
    carried = {blob.digest for blob in locked.blobs}
    for one in (sbom, signature, attestation, of_sbom, AMD64):
        assert carried >= {content.digest for content in one.everything}
    assert ARM64.digest not in carried


def test_the_tag_scheme_of_registries_without_the_api(
    registry: Registry, upstream: Upstream, app: Reference
) -> None:
    registry.faults.append(Fault("/referrers/", status=405))
    sbom = referrer(INDEX)
    registry.put("app", None, sbom)
    registry.put("app", tag(INDEX, ""), listing(sbom))
    (found,) = find_accessories(upstream, app, [Digest.parse(INDEX.digest)])
    assert (found.entry.digest, found.entry.tag) == (sbom.digest, "")


def test_what_is_about_something_else_is_left(
    registry: Registry, upstream: Upstream, app: Reference
) -> None:
    registry.faults.append(Fault("/referrers/", status=404))
    registry.put("app", tag(INDEX, ""), listing(other := referrer(ARM64)))
    registry.put("app", None, other)
    assert find_accessories(upstream, app, [Digest.parse(INDEX.digest)]) == ()


def test_a_list_that_names_what_is_not_there(
    registry: Registry, upstream: Upstream, app: Reference
) -> None:
    registry.faults.append(Fault("/referrers/", status=404))
    gone = referrer(INDEX)
    registry.put("app", None, gone)
    registry.put("app", tag(INDEX, ""), listing(gone))
    del registry.repositories["app"].manifests[gone.digest]
    with pytest.raises(InvalidInput, match=gone.digest):
        find_accessories(upstream, app, [Digest.parse(INDEX.digest)])


def test_a_registry_in_trouble_is_not_one_without_signatures(
    registry: Registry, upstream: Upstream, app: Reference
) -> None:
    registry.faults.append(Fault("/referrers/", status=503))
    with pytest.raises(TransferFailed, match="503"):
        lock_image(upstream, app, ["linux/amd64"])


def test_another_signature_than_the_digest_says(
    registry: Registry, upstream: Upstream, app: Reference
) -> None:
    sbom = referrer(INDEX)
    registry.put("app", None, sbom)
    manifests = registry.repositories["app"].manifests
    manifests[sbom.digest] = images.Content(sbom.top.media_type, sbom.top.data + b" ")
    # What the API lists is computed from what is there: the wrong bytes are found by their digest.
    registry.put("app", tag(INDEX, ""), listing(sbom))
    registry.faults.append(Fault("/referrers/", status=404))
    with pytest.raises(Corrupt):
        find_accessories(upstream, app, [Digest.parse(INDEX.digest)])


@pytest.mark.parametrize(
    ("chosen", "kinds", "tags"),
    [
        (Referrers(), {SPDX, SIGSTORE}, {".sig", ".att"}),
        (Referrers(artifact_types=()), set(), {".sig", ".att"}),
        (
            Referrers(artifact_types=("application/vnd.dev.sigstore.*",)),
            {SIGSTORE},
            {".sig", ".att"},
        ),
        (Referrers(cosign_tags=("sig",)), {SPDX, SIGSTORE}, {".sig"}),
        (Referrers(artifact_types=(), cosign_tags=()), set(), set()),
    ],
)
def test_the_filter(
    registry: Registry,
    upstream: Upstream,
    app: Reference,
    chosen: Referrers,
    kinds: set[str],
    tags: set[str],
) -> None:
    registry.put("app", None, referrer(INDEX))
    registry.put("app", None, referrer(INDEX, SIGSTORE))
    for suffix in (".sig", ".att"):
        registry.put("app", tag(INDEX, suffix), plain(suffix))
    found = wanted(find_accessories(upstream, app, [Digest.parse(INDEX.digest)]), chosen)
    assert {one.entry.artifact_type for one in found if not one.entry.tag} == kinds
    assert {one.entry.tag.removeprefix(tag(INDEX, "")) for one in found if one.entry.tag} == tags
