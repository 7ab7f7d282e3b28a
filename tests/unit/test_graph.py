"""Manifests and indexes: read strictly, written the same each time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, InvalidInput
from installer.oci import graph
from installer.oci.graph import Descriptor, ImageIndex, ImageManifest, read_manifest
from tests.upstream import images as made

CONFIG = {"mediaType": graph.OCI_CONFIG, "digest": str(Digest.of(b"c")), "size": 1}
LAYER = {"mediaType": "x/layer", "digest": str(Digest.of(b"l")), "size": 1}
MANIFEST = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
CHILD = {"mediaType": graph.OCI_MANIFEST, "digest": str(Digest.of(b"m")), "size": 9}
INDEX = {"schemaVersion": 2, "manifests": [CHILD]}


def read(document: Any, media_type: str = graph.OCI_MANIFEST) -> ImageManifest | ImageIndex:
    return read_manifest(json.dumps(document).encode(), media_type, "here")


@pytest.mark.parametrize("docker", [False, True])
def test_an_image_and_its_index(*, docker: bool) -> None:
    image = made.image(
        [made.layer(100, "a", docker=docker)], docker=docker, platform="linux/arm/v7"
    )
    manifest = read_manifest(image.top.data, image.top.media_type, "here")
    assert isinstance(manifest, ImageManifest)
    assert [str(child.digest) for child in manifest.children] == [b.digest for b in image.blobs]
    index = made.index([image], docker=docker)
    listed = read_manifest(index.top.data, index.top.media_type, "here")
    assert isinstance(listed, ImageIndex)
    (child,) = listed.children
    assert (str(child.digest), child.platform) == (image.digest, "linux/arm/v7")
    assert child.is_manifest


def test_an_artefact_says_its_type_or_its_configs() -> None:
    plain = read(MANIFEST)
    typed = read(MANIFEST | {"artifactType": "x/y", "subject": CHILD, "annotations": {"a": "b"}})
    assert isinstance(plain, ImageManifest)
    assert isinstance(typed, ImageManifest)
    assert (plain.artifact_type, typed.artifact_type) == (graph.OCI_CONFIG, "x/y")
    assert plain.subject is None
    assert typed.subject
    assert typed.annotations == {"a": "b"}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        INDEX,
        MANIFEST | INDEX,
        {"schemaVersion": 2, "config": CONFIG},
        {"schemaVersion": 2, "layers": [LAYER]},
        {"config": CONFIG, "layers": [LAYER]},
        MANIFEST | {"mediaType": graph.DOCKER_MANIFEST},
        MANIFEST | {"layers": [LAYER | {"size": -1}]},
        MANIFEST | {"layers": [LAYER | {"size": "1"}]},
        MANIFEST | {"layers": [LAYER | {"size": 1 << 70}]},
        MANIFEST | {"layers": [LAYER | {"digest": "sha512:" + "0" * 128}]},
        MANIFEST | {"layers": [LAYER | {"digest": "../../etc/passwd"}]},
        MANIFEST | {"layers": [{"digest": str(Digest.of(b"")), "size": 0}]},
    ],
)
def test_what_is_no_manifest(document: object) -> None:
    with pytest.raises(Corrupt, match=r"^here: "):
        read(document)


def test_an_index_with_layers_or_an_unknown_type() -> None:
    with pytest.raises(Corrupt, match="with layers"):
        read(INDEX | {"layers": []}, graph.OCI_INDEX)
    with pytest.raises(Corrupt, match="unknown manifest type"):
        read(MANIFEST, "text/html")


def test_foreign_layers_are_refused() -> None:
    with pytest.raises(InvalidInput, match="foreign"):
        read(MANIFEST | {"layers": [LAYER | {"urls": ["https://elsewhere"]}]})


def test_too_large() -> None:
    with pytest.raises(Corrupt, match="over"):
        read_manifest(b" " * (graph.MAX_MANIFEST_BYTES + 1), graph.OCI_MANIFEST, "here")


@given(st.binary() | st.just(b"[" * 100_000), st.sampled_from(graph.ACCEPTED_TYPES))
def test_other_bytes_are_an_error_and_never_a_crash(data: bytes, media_type: str) -> None:
    with pytest.raises(AirgapError):
        read_manifest(data, media_type, "here")


def test_authored_manifests_are_the_same_bytes_and_read_back() -> None:
    config = Descriptor(graph.HELM_CONFIG, Digest.of(b"{}"), 2, {"left": "out"})
    layer = Descriptor(graph.HELM_CHART, Digest.of(b"chart"), 5)
    once = graph.artefact_manifest(config, layer, artifact_type="x/y", title="harbor.tgz")
    assert once == graph.artefact_manifest(config, layer, artifact_type="x/y", title="harbor.tgz")
    manifest = read_manifest(once, graph.OCI_MANIFEST, "here")
    assert isinstance(manifest, ImageManifest)
    assert manifest.artifact_type == "x/y"
    assert [child.digest for child in manifest.children] == [config.digest, layer.digest]
    assert manifest.layers[0].annotations == {"org.opencontainers.image.title": "harbor.tgz"}
    bare = read_manifest(graph.artefact_manifest(config, layer), graph.OCI_MANIFEST, "here")
    assert isinstance(bare, ImageManifest)
    assert bare.artifact_type == graph.HELM_CONFIG
