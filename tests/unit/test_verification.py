"""Upstream's signatures at lock time: what holds goes into the lock, anything else stops it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from bundler.cache import BlobCache
from bundler.lock import Lock
from bundler.sources.image import lock_image
from bundler.sources.upstream import Upstream
from bundler.sources.verification import check_required
from bundler.spec import Spec
from bundler.spec_document import Referrers
from installer.bundle.digest import Digest
from installer.bundle.manifest import File, Verification
from installer.errors import InvalidInput, NotTrusted, Unsigned, WrongSignature
from installer.oci.cosign import SIGNATURE_ANNOTATION, SIGSTORE_BUNDLE, SIMPLE_SIGNING
from installer.oci.hosts import RegistryHosts
from installer.oci.http import Patience
from installer.oci.reference import Reference
from tests.bundles import public_pem
from tests.unit.test_accessories import AMD64, EMPTY, INDEX, tag
from tests.unit.test_cosign import KEY, identity, sign, sigstore, simple, statement
from tests.upstream import images
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Patience(connect=2, read=2, attempts=2, backoff=0.01, longest=1)
OTHER = images.image([images.layer(100, "other")])


def legacy(about: images.Image) -> images.Image:
    payload = simple(Digest.parse(about.digest))
    annotation = {SIGNATURE_ANNOTATION: base64.b64encode(sign(payload)).decode()}
    return images.artefact(EMPTY, [images.Content(SIMPLE_SIGNING, payload, annotation)])


def bundled(about: images.Image, subject: images.Image) -> images.Image:
    bundle = images.Content(SIGSTORE_BUNDLE, sigstore(statement(Digest.parse(about.digest))))
    return images.artefact(EMPTY, [bundle], artifact_type=SIGSTORE_BUNDLE, subject=subject.top)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        registry.put("app", "1", INDEX)
        yield registry


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with Upstream(RegistryHosts(), BlobCache(tmp_path), tmp_path, patience=QUICK) as upstream:
        yield upstream


def lock(upstream: Upstream, registry: Registry, **more: Any) -> tuple[Verification, ...]:
    reference = Reference.parse(f"{registry.host}/app:1")
    more = {"signer": identity()} | more
    return lock_image(upstream, reference, ["linux/amd64"], **more).entry.verified


@pytest.mark.parametrize("signed", [INDEX, AMD64], ids=["index", "manifest"])
def test_simple_signing(registry: Registry, upstream: Upstream, signed: images.Image) -> None:
    registry.put("app", tag(signed, ".sig"), legacy(signed))
    assert lock(upstream, registry) == (
        Verification("cosign", "cosign.pub", identity().key_id, "simple-signing", signed.digest),
    )


def test_a_bundle_among_other_referrers(registry: Registry, upstream: Upstream) -> None:
    registry.put("app", None, bundled(OTHER, INDEX))
    registry.put("app", None, bundled(INDEX, INDEX))
    # What the filter leaves behind is looked at all the same.
    none = Referrers(artifact_types=(), cosign_tags=())
    (held,) = lock(upstream, registry, referrers=none)
    assert (held.form, held.digest) == ("sigstore-bundle", INDEX.digest)


def test_no_signature_at_all(registry: Registry, upstream: Upstream) -> None:
    assert lock(upstream, registry, signer=None) == ()
    with pytest.raises(Unsigned, match=r"app:1: has no signature, and cosign\.pub"):
        lock(upstream, registry)


def test_a_signature_of_another_image_in_its_place(registry: Registry, upstream: Upstream) -> None:
    registry.put("app", tag(INDEX, ".sig"), legacy(OTHER))
    registry.put("app", None, bundled(OTHER, INDEX))
    with pytest.raises(WrongSignature, match="2 signatures, none that holds"):
        lock(upstream, registry)


def test_a_pinned_image_says_so(registry: Registry, upstream: Upstream) -> None:
    reference = Reference.parse(f"{registry.host}/app@{AMD64.digest}")
    (held,) = lock_image(upstream, reference, ["linux/amd64"]).entry.verified
    assert held == Verification("pinned")


def test_everything_has_to_be_vouched_for() -> None:
    def made(method: Any) -> Lock:
        verified = (Verification(method),) if method else ()
        content: dict[str, Any] = {"digest": "", "media_type": "", "manifest_size": 0}
        file = File(**content, name="a.pdf", sha256="", size=0, verified=verified)
        return Lock(
            api_version="bundle/v1",
            kind="BundleLock",
            name="a",
            channel="stable",
            serial=1,
            created="",
            spec_digest="",
            platforms=("linux/amd64",),
            blobs=(),
            files=(file,),
        )

    for method in ("cosign", "provenance", "pinned", "local"):
        check_required(made(method))
    for method in ("", "checksum"):
        with pytest.raises(NotTrusted, match=r"1 things aren't:\n- file a\.pdf"):
            check_required(made(method))


SPEC = """\
apiVersion: bundle/v1
kind: BundleSpec
name: a
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("images: [{reference: a/b:1, verify: {key: none.pub}}]", "there is no file 'none.pub'"),
        ("images: [{reference: a/b:1, verify: {keyring: k.pub}}]", "a keyring is for charts"),
        ("images: [{reference: a/b:1, verify: {}}]", "one of them"),
        ("images: [{reference: a/b:1, verify: {key: bad.pub}}]", "not a public key"),
        ("images: [{reference: a/b:1, verfy: {key: k.pub}}]", "did you mean 'verify'"),
        ("images: [{reference: a/b:1}, a/b:1]", "is there twice"),
        ("verify: {images: [{match: a/*, key: none.pub}]}", "there is no file"),
        ("exclude: [{image: a/b, reason: ' '}]", "say why"),
        ("databases: [{kind: trivy-db, source: a/b:2, maxAge: soon}]", "maxAge is no age"),
        (
            "charts: [{name: a, source: 'https://a', version: 1.0.0, verify: {key: k.pub}}]",
            "signatures are of charts in registries",
        ),
        (
            "charts: [{name: a, source: 'https://a', version: 1.0.0, sha256: abc}]",
            "not a sha256 digest",
        ),
    ],
)
def test_specs_that_make_no_sense(tmp_path: Path, more: str, message: str) -> None:
    (tmp_path / "k.pub").write_bytes(public_pem(KEY))
    (tmp_path / "bad.pub").write_text("nothing")
    (tmp_path / "bundle.yaml").write_text(SPEC + more)
    with pytest.raises(InvalidInput, match=message) as caught:
        Spec.load(tmp_path / "bundle.yaml")
    assert "bundle.yaml:4" in caught.value.message


def test_who_has_to_have_signed(tmp_path: Path) -> None:
    for name in ("k.pub", "other.pub"):
        (tmp_path / name).write_bytes(public_pem(KEY))
    (tmp_path / "bundle.yaml").write_text(
        SPEC
        + "verify: {images: [{match: 'quay.io/*', key: k.pub}]}\n"
        + "images: [{reference: 'quay.io/a/b:1', verify: {key: other.pub}}, 'a/b:1']\n"
    )
    read = Spec.load(tmp_path / "bundle.yaml")
    names = [
        signer.name if signer else ""
        for text in ("quay.io/a/b:1", "quay.io/c/d:1", "docker.io/a/b:1")
        for signer in [read.signer(Reference.parse(text))]
    ]
    assert names == ["other.pub", "k.pub", ""]
    before = read.digest()
    (tmp_path / "k.pub").write_bytes(public_pem(KEY) + b"\n")
    assert Spec.load(tmp_path / "bundle.yaml").digest() != before
