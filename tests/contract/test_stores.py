"""What every store promises (installer/oci/store.py), run on all of them (stores.MAKERS)."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest

from installer.bundle.digest import Digest
from installer.errors import Corrupt, NotFound
from installer.oci.graph import Descriptor, ImageIndex, ImageManifest, read_manifest
from installer.oci.store import WritableStore, read_all
from tests.contract.stores import MAKERS, Maker, Opened, spaced
from tests.upstream import images as made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ABSENT = Digest.of(b"nobody has this")
BIG = made.layer(2_500_000, "big")
AMD64 = spaced(made.image([BIG, made.layer(1000, "shared")]))
ARM64 = made.image([made.layer(1000, "shared")], platform="linux/arm64/v8")
INDEX = spaced(made.index([AMD64, ARM64]))
DOCKER = made.image([made.layer(2000, "docker", docker=True)], docker=True)
EMPTY = made.artefact(made.Content(made.OCI_EMPTY, b"{}"), [made.Content("text/plain", b"")])
HELD = {
    ("team/app", "v1"): INDEX,
    ("team/old", "2.0"): DOCKER,
    ("team/note", "latest"): EMPTY,
}


def describe(content: made.Content) -> Descriptor:
    return Descriptor(content.media_type, Digest.parse(content.digest), len(content.data))


@pytest.fixture(params=[pytest.param(m, id=m.name, marks=m.marks) for m in MAKERS])
def maker(request: pytest.FixtureRequest) -> Maker:
    return cast("Maker", request.param)


@pytest.fixture
def opened(maker: Maker, tmp_path: Path) -> Iterator[Opened]:
    with maker.open(tmp_path, HELD) as opened:
        yield opened


@pytest.fixture(params=[pytest.param(m, id=m.name, marks=m.marks) for m in MAKERS if m.writable])
def writable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritableStore]:
    with cast("Maker", request.param).open(tmp_path, HELD) as opened:
        yield cast("WritableStore", opened.store)


@pytest.mark.parametrize(("repository", "tag"), HELD)
def test_resolve_by_tag_and_by_digest(opened: Opened, repository: str, tag: str) -> None:
    top = HELD[repository, tag].top
    by_tag = opened.store.resolve(repository, tag)
    by_digest = opened.store.resolve(repository, top.digest)
    for found in (by_tag, by_digest):
        assert (found.media_type, str(found.digest), found.size) == (
            top.media_type,
            top.digest,
            len(top.data),
        )


@pytest.mark.parametrize(("repository", "tag"), HELD)
def test_every_content_has_its_exact_bytes(opened: Opened, repository: str, tag: str) -> None:
    for content in HELD[repository, tag].everything:
        assert read_all(opened.store, repository, describe(content)) == content.data
        assert opened.store.exists(repository, describe(content))


def test_the_graph_can_be_walked_from_a_tag(opened: Opened) -> None:
    root = opened.store.resolve("team/app", "v1")
    index = read_manifest(read_all(opened.store, "team/app", root), root.media_type, "index")
    assert isinstance(index, ImageIndex)
    assert [child.platform for child in index.manifests] == ["linux/amd64", "linux/arm64/v8"]
    for child in index.manifests:
        data = read_all(opened.store, "team/app", child)
        manifest = read_manifest(data, child.media_type, "manifest")
        assert isinstance(manifest, ImageManifest)
        for blob in manifest.children:
            assert len(read_all(opened.store, "team/app", blob)) == blob.size


def test_chunks_are_small(opened: Opened) -> None:
    sizes = [len(chunk) for chunk in opened.store.fetch("team/app", describe(BIG.content))]
    assert sum(sizes) == len(BIG.content.data)
    assert max(sizes) <= 4 << 20


@pytest.mark.parametrize("version", ["v9", str(ABSENT)])
def test_resolving_what_is_not_there(opened: Opened, version: str) -> None:
    with pytest.raises(NotFound, match="team/app"):
        opened.store.resolve("team/app", version)


@pytest.mark.parametrize("media_type", [LAYER, made.OCI_MANIFEST])
def test_fetching_what_is_not_there(opened: Opened, media_type: str) -> None:
    absent = Descriptor(media_type, ABSENT, 15)
    assert not opened.store.exists("team/app", absent)
    with pytest.raises(NotFound, match=ABSENT.hex):
        read_all(opened.store, "team/app", absent)


def test_start_in_the_middle(opened: Opened) -> None:
    data = BIG.content.data
    for start in (1, 1 << 20, 1_234_567, len(data) - 1):
        rest = b"".join(opened.store.stream("team/app", describe(BIG.content), start))
        assert hashlib.sha256(rest).digest() == hashlib.sha256(data[start:]).digest()


def test_start_at_the_end_gives_nothing(opened: Opened) -> None:
    size = len(BIG.content.data)
    assert b"".join(opened.store.stream("team/app", describe(BIG.content), size)) == b""


def test_a_wrong_size_is_corrupt(opened: Opened) -> None:
    right = describe(BIG.content)
    for size in (right.size - 1, right.size + 1):
        with pytest.raises(Corrupt, match=right.digest.hex):
            read_all(opened.store, "team/app", Descriptor(LAYER, right.digest, size))


@pytest.mark.parametrize("content", [BIG.content, ARM64.top], ids=["blob", "manifest"])
def test_damaged_bytes_are_corrupt(opened: Opened, content: made.Content) -> None:
    if opened.damage is None:
        pytest.skip("this store can't be damaged from outside")
    opened.damage("team/app", content.digest)
    with pytest.raises(Corrupt, match=r"team/app|sha256:"):
        read_all(opened.store, "team/app", describe(content))


def test_a_damaged_manifest_does_not_pass_for_the_right_one(opened: Opened) -> None:
    if opened.damage is None:
        pytest.skip("this store can't be damaged from outside")
    opened.damage("team/old", DOCKER.digest)
    with pytest.raises(Corrupt):
        opened.store.resolve("team/old", DOCKER.digest)
    # A tag may point to anything, but never to a digest that its bytes don't have.
    with suppress(Corrupt):
        assert str(opened.store.resolve("team/old", "2.0").digest) != DOCKER.digest


NEW = made.image([made.layer(3_000_000, "new"), BIG])


def push_all(store: WritableStore, repository: str, image: made.Image) -> None:
    for content in image.everything:
        halves = [content.data[:100], content.data[100:]]
        store.push(repository, describe(content), partial(list, halves))


def test_push_and_tag(writable: WritableStore) -> None:
    push_all(writable, "team/new", NEW)
    writable.tag("team/new", describe(NEW.top), NEW.top.data, "v2")
    found = writable.resolve("team/new", "v2")
    assert str(found.digest) == NEW.digest
    for content in NEW.everything:
        assert read_all(writable, "team/new", describe(content)) == content.data


def test_an_index_keeps_its_bytes(writable: WritableStore) -> None:
    push_all(writable, "team/copy", INDEX)
    writable.tag("team/copy", describe(INDEX.top), INDEX.top.data, "v1")
    assert read_all(writable, "team/copy", writable.resolve("team/copy", "v1")) == INDEX.top.data


def test_a_tag_can_move(writable: WritableStore) -> None:
    push_all(writable, "team/app", NEW)
    writable.tag("team/app", describe(NEW.top), NEW.top.data, "v1")
    assert str(writable.resolve("team/app", "v1").digest) == NEW.digest


def test_push_is_idempotent_and_skips_what_is_there(writable: WritableStore) -> None:
    def unwanted() -> list[bytes]:
        raise AssertionError("the content was asked for")

    blob = describe(BIG.content)
    writable.push("team/app", blob, unwanted)
    push_all(writable, "team/new", NEW)
    push_all(writable, "team/new", NEW)
    writable.push("team/new", blob, unwanted)


def test_push_of_nothing_at_all(writable: WritableStore) -> None:
    empty = Descriptor("text/plain", Digest.of(b""), 0)
    writable.push("team/new", empty, list)
    assert writable.exists("team/new", empty)
    assert read_all(writable, "team/new", empty) == b""


@pytest.mark.parametrize("broken", [b"wrong", b"right and more", b"r", b""])
def test_push_of_wrong_bytes_stores_nothing(writable: WritableStore, broken: bytes) -> None:
    wanted = Descriptor(LAYER, Digest.of(b"right"), 5)
    with pytest.raises(Corrupt, match=wanted.digest.hex):
        writable.push("team/new", wanted, lambda: [broken])
    assert not writable.exists("team/new", wanted)
    assert not writable.exists("team/new", Descriptor(LAYER, Digest.of(broken), len(broken)))
    writable.push("team/new", wanted, lambda: [b"ri", b"ght"])
    assert read_all(writable, "team/new", wanted) == b"right"


def test_push_of_a_wrong_manifest_stores_nothing(writable: WritableStore) -> None:
    push_all(writable, "team/new", NEW)
    other = Descriptor(made.OCI_MANIFEST, ABSENT, len(NEW.top.data))
    with pytest.raises(Corrupt, match=ABSENT.hex):
        writable.push("team/new", other, lambda: [NEW.top.data])
    with pytest.raises(Corrupt):
        writable.tag("team/new", other, NEW.top.data, "v3")
    assert not writable.exists("team/new", other)
    with pytest.raises(NotFound):
        writable.resolve("team/new", "v3")


def test_mount_needs_no_content(writable: WritableStore) -> None:
    def unwanted() -> list[bytes]:
        raise AssertionError("the content was asked for")

    blob = describe(BIG.content)
    writable.push("team/other", blob, unwanted, mount_from="team/app")
    assert read_all(writable, "team/other", blob) == BIG.content.data


def test_mount_of_what_is_not_there_uploads(writable: WritableStore) -> None:
    blob = Descriptor(LAYER, Digest.of(b"fresh"), 5)
    writable.push("team/other", blob, lambda: [b"fresh"], mount_from="team/app")
    assert read_all(writable, "team/other", blob) == b"fresh"
