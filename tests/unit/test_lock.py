from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from bundler.difference import blob_bytes, changes
from bundler.lock import Blob, Lock, bundle_manifest, encode_lock, read_lock
from installer.bundle.digest import Digest
from installer.bundle.manifest import (
    SIGNATURE_AREA,
    Chart,
    Database,
    File,
    Image,
    Member,
    Origin,
    Tool,
    decode,
    encode,
)
from installer.errors import InvalidInput
from installer.oci.graph import OCI_CONFIG, OCI_MANIFEST

if TYPE_CHECKING:
    from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REPOSITORY = "docker.io/library/x"


def digest(text: str) -> str:
    return str(Digest.of(text.encode()))


def image(name: str, content: str = "m") -> Image:
    return Image(
        digest=digest(content),
        media_type=OCI_MANIFEST,
        manifest_size=100,
        reference=name,
        origins=(Origin("c", "p", "Pod/x", "spec.image"),),
    )


def make(**more: Any) -> Lock:
    root: Any = {"digest": digest("m"), "media_type": OCI_MANIFEST, "manifest_size": 100}
    file: Any = root | {"sha256": "0" * 64, "size": 9}
    chart = Chart(
        **file,
        name="c",
        version="1.0.0",
        app_version="",
        source="./c.tgz",
        profiles={"p": {"a": [1, None], "password": "ünï"}},
    )
    database = Database(**root, kind="trivy-db", reference="ghcr.io/x/trivy-db:2", size=9)
    lock = Lock(
        api_version="bundle/v1",
        kind="BundleLock",
        name="harbor",
        channel="stable",
        serial=7,
        created="2026-01-01T00:00:00Z",
        spec_digest=digest("spec"),
        platforms=("linux/amd64",),
        blobs=(
            Blob(digest("a layer"), 5, LAYER, repository=REPOSITORY),
            Blob(digest("m"), 100, OCI_MANIFEST, repository=REPOSITORY),
            Blob(digest("{}"), 2, OCI_CONFIG, text="{}"),
        ),
        charts=(chart,),
        images=(image("docker.io/library/x:1"),),
        tools=(Tool(**file, name="helm", platform="linux/amd64", source="./helm"),),
        databases=(database,),
        files=(File(**file, name="a.txt"),),
    )
    return msgspec.structs.replace(lock, **more)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "bundle.lock"
    path.write_bytes(data)
    return path


def test_written_and_read_again(tmp_path: Path) -> None:
    lock = make()
    assert read_lock(written(tmp_path, encode_lock(lock))) == lock


def test_a_line_a_value() -> None:
    text = encode_lock(make()).decode()
    assert '\n      "size": 5,\n' in text
    assert text.endswith("}\n")
    assert encode_lock(make()) == encode_lock(make())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'"serial": 7', b'"serial": 8 ', "edited by hand"),
        (b'"serial": 7,', b'"serial": 7, "serial": 7,', "edited by hand"),
        (b'"serial": 7', b'"serial": "7"', "Expected `int`"),
        (b'"channel"', b'"chanel"', "chanel"),
        (b'"BundleLock"', b'"Bundle"', "Bundle"),
        (b'"text": "{}"', b'"text": "{ }"', "another digest"),
        (b'"text": "{}"', b'"text": "{}",\n      "source": "./x"', "exactly one place"),
        (b',\n      "text": "{}"', b"", "exactly one place"),
        (b'"size": 5', b'"size": -5', "exactly one place"),
        (b"sha256:", b"sha512:", "sha256"),
        (b"{", b"[", "not a bundle.lock"),
        (b'"harbor"', b'"harb\xffor"', "not a bundle.lock"),
    ],
)
def test_a_changed_lock_is_refused(
    tmp_path: Path, before: bytes, after: bytes, message: str
) -> None:
    data = encode_lock(make())
    assert before in data
    with pytest.raises(InvalidInput, match=message):
        read_lock(written(tmp_path, data.replace(before, after, 1)))


def test_a_missing_lock_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere") as caught:
        read_lock(tmp_path / "nowhere")
    assert "bundler lock" in caught.value.hint


def test_the_manifest_has_documents_first_and_every_blob() -> None:
    front = (Member("README.txt", 1, "0" * 64),)
    manifest = bundle_manifest(make(), front, SIGNATURE_AREA)
    assert decode(encode(manifest)) == manifest
    paths = [member.path for member in manifest.members]
    assert paths[0] == "README.txt"
    assert paths[-1] == Digest.parse(digest("a layer")).blob_path
    assert len(paths) == 1 + len(make().blobs)
    assert manifest.charts[0].profiles == make().charts[0].profiles


def test_changes_between_locks() -> None:
    old = make(
        images=(image("docker.io/x/a:1"), image("docker.io/x/b:1"), image("docker.io/x/c:1"))
    )
    new = make(
        images=(image("docker.io/x/b:1", "n"), image("docker.io/x/c:1"), image("docker.io/x/d:1"))
    )
    assert [tuple(change) for change in changes(old, new)] == [
        ("image", "docker.io/x/a", digest("m"), "", "1", ""),
        ("image", "docker.io/x/b", digest("m"), digest("n"), "1", "1"),
        ("image", "docker.io/x/d", "", digest("m"), "", "1"),
    ]
    assert changes(old, old) == []


def test_changes_in_everything_else() -> None:
    nothing = make(charts=(), images=(), tools=(), databases=(), files=())
    assert [(c.kind, c.name) for c in changes(nothing, make())] == [
        ("chart", "c"),
        ("database", "ghcr.io/x/trivy-db:2"),
        ("file", "a.txt"),
        ("image", "docker.io/library/x"),
        ("tool", "helm linux/amd64"),
    ]


def test_an_image_with_another_tag_is_one_that_changed() -> None:
    old = make(
        images=(image("docker.io/x/a:1"), image("docker.io/x/b:1"), image("docker.io/x/b:2"))
    )
    new = make(
        images=(image("docker.io/x/a:2", "n"), image("docker.io/x/b:2"), image("docker.io/x/b:3"))
    )
    assert [(c.word, c.name, c.was, c.will) for c in changes(old, new)] == [
        ("changed", "docker.io/x/a", "1", "2"),
        ("removed", "docker.io/x/b:1", "1", ""),
        ("added", "docker.io/x/b:3", "", "3"),
    ]


def test_bytes_are_counted_once_by_where_they_are() -> None:
    one, two, three = (
        Blob(digest(name), size, "x", text=name) for name, size in (("1", 1), ("2", 20), ("3", 300))
    )
    assert blob_bytes(make(blobs=(one, two)), make(blobs=(two, three))) == (300, 20, 1)
