"""Copying between registries: the graph's order, each blob once, what is there is left alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from installer.bundle.digest import Digest
from installer.errors import Corrupt, NotFound, TransferFailed
from installer.oci.copy import CopyItem, CopySummary, copy
from installer.oci.graph import Descriptor
from installer.oci.http import Patience
from installer.oci.registry import RegistryStore
from tests.upstream import images as made
from tests.upstream.registry import Registry
from tests.upstream.server import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = Patience(connect=2, read=2, attempts=3, backoff=0.01, longest=2)
SHARED = made.layer(1_500_000, "shared")
ONE = made.image([SHARED, made.layer(40_000, "one")])
TWO = made.image([SHARED, made.layer(50_000, "two")])
ARM = made.image([made.layer(60_000, "arm")], platform="linux/arm64")
BOTH = made.index([ONE, ARM])


class Pair:
    """Two registries with a store each."""

    def __init__(self, source: Registry, target: Registry) -> None:
        self.source, self.target = source, target
        self.reader = RegistryStore(source.host, patience=QUICK)
        self.writer = RegistryStore(target.host, patience=QUICK)

    def copy(self, *items: CopyItem, threads: int = 4) -> CopySummary:
        return copy(self.reader, self.writer, items, threads=threads)

    def uploads(self) -> list[str]:
        return [line.target for line in self.target.log if line.method == "PUT"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Registry() as source, Registry() as target:
        source.put("up/one", "v1", ONE)
        source.put("up/two", "v1", TWO)
        source.put("up/both", "v1", BOTH)
        pair = Pair(source, target)
        with pair.reader, pair.writer:
            yield pair


def item(repository: str, image: made.Image, *tags: str) -> CopyItem:
    top = image.top
    root = Descriptor(top.media_type, Digest.parse(top.digest), len(top.data))
    return CopyItem(f"up/{repository}", f"site/{repository}", root, tags)


ALL = (item("one", ONE, "v1", "stable"), item("two", TWO, "v1"), item("both", BOTH, "v1"))


def test_everything_arrives_with_its_bytes(pair: Pair) -> None:
    heard: list[int] = []
    summary = copy(pair.reader, pair.writer, ALL, progress=heard.append)
    for wanted, image in zip(ALL, (ONE, TWO, BOTH), strict=True):
        there = pair.target.repositories[wanted.target_repository]
        assert there.tags == dict.fromkeys(wanted.tags, image.digest)
        for manifest in (*image.manifests, image.top):
            assert there.manifests[manifest.digest].data == manifest.data
        assert there.blobs == {blob.digest for blob in image.blobs}
    unique = {b.digest: len(b.data) for image in (ONE, TWO, BOTH) for b in image.blobs}
    needed = sum(len(image.blobs) for image in (ONE, TWO, BOTH))
    assert summary == CopySummary(
        blobs_moved=len(unique),
        blobs_mounted=needed - len(unique),
        manifests_moved=5,
        bytes_moved=sum(unique.values()),
    )
    assert sum(heard) == summary.bytes_moved


def test_each_blob_is_fetched_and_sent_once(pair: Pair) -> None:
    pair.copy(*ALL)
    digest = SHARED.content.digest
    fetched = [line for line in pair.source.log if digest in line.target]
    sent = [line for line in pair.target.log if line.method == "PUT" and digest[7:] in line.target]
    assert (len(fetched), len(sent)) == (1, 1)


def test_mounts_wait_for_the_upload(pair: Pair) -> None:
    pair.target.faults.append(Fault("uploads/.*digest", method="PUT", delay=0.3))
    summary = pair.copy(*ALL, threads=8)
    assert summary.blobs_mounted == 4
    assert summary.blobs_moved == 7


def test_blobs_then_manifests_from_the_leaves_then_tags(pair: Pair) -> None:
    pair.copy(*ALL)
    ranks = []
    for target in pair.uploads():
        version = target.rpartition("/")[2]
        rank = 0 if "/blobs/" in target else 1 if version != BOTH.digest else 2
        ranks.append(rank if rank != 1 or version.startswith("sha256:") else 3)
    assert all(before <= after for before, after in pairwise(ranks))
    assert ranks[-1] == 3


def test_again_moves_nothing(pair: Pair) -> None:
    pair.copy(*ALL)
    pair.target.log.clear()
    summary = pair.copy(*ALL)
    assert summary == CopySummary(manifests_skipped=5)
    assert pair.uploads() == []


def test_a_moved_tag_and_a_new_tag_are_set_without_moving_content(pair: Pair) -> None:
    pair.copy(item("one", ONE, "v1"))
    pair.source.put("up/one", "v2", TWO)
    pair.copy(item("one", TWO, "v1"))
    pair.target.log.clear()
    pair.copy(item("one", ONE), item("one", ONE, "v1", "new"))
    assert pair.target.repositories["site/one"].tags == {"v1": ONE.digest, "new": ONE.digest}
    assert {target.rpartition("/")[2] for target in pair.uploads()} == {"v1", "new"}


def test_a_partial_copy_goes_on(pair: Pair) -> None:
    pair.target.faults.append(Fault(ARM.blobs[1].digest[7:], method="PUT", status=400))
    with pytest.raises(TransferFailed, match="site/both:v1"):
        pair.copy(*ALL, threads=1)
    assert not any(r.tags for r in pair.target.repositories.values())
    pair.target.faults.clear()
    summary = pair.copy(*ALL)
    assert summary.blobs_skipped
    assert summary.bytes_moved < 200_000


def test_an_index_whose_child_was_deleted_is_mended(pair: Pair) -> None:
    pair.copy(*ALL)
    del pair.target.repositories["site/both"].manifests[ARM.digest]
    assert pair.copy(*ALL).manifests_moved == 1
    assert ARM.digest in pair.target.repositories["site/both"].manifests


@pytest.mark.parametrize("content", [SHARED.content, ONE.top], ids=["blob", "manifest"])
def test_a_damaged_source_stops_and_names_the_image(pair: Pair, content: made.Content) -> None:
    pair.source.faults.append(Fault(content.digest, flip_at=30))
    with pytest.raises(Corrupt, match=r"^site/one:v1: .*" + content.digest):
        pair.copy(item("one", ONE, "v1"))
    assert pair.target.blobs.keys().isdisjoint({content.digest})
    assert not any(r.tags or r.manifests for r in pair.target.repositories.values())


def test_a_missing_image_is_named(pair: Pair) -> None:
    absent = item("two", ARM, "v3")
    with pytest.raises(NotFound, match=r"^site/two:v3: "):
        pair.copy(*ALL, absent)
    assert pair.uploads() == []


def test_platforms_that_the_source_left_out(pair: Pair) -> None:
    del pair.source.repositories["up/both"].manifests[ARM.digest]
    pair.target._check_manifest = lambda *_: None  # type: ignore[method-assign]
    summary = pair.copy(item("both", BOTH, "v1"))
    assert summary.manifests_absent == 1
    assert pair.target.repositories["site/both"].tags == {"v1": BOTH.digest}
    del pair.source.repositories["up/both"].manifests[ONE.digest]
    with pytest.raises(NotFound, match="site/fresh:v2: the source has none of its platforms"):
        pair.copy(CopyItem("up/both", "site/fresh", ALL[2].root, ("v2",)))


def test_repeated_bytes_are_counted_once(pair: Pair) -> None:
    pair.target.faults.append(Fault(SHARED.content.digest[7:], method="PUT", status=503, times=1))
    heard: list[int] = []
    summary = copy(pair.reader, pair.writer, ALL[:1], progress=heard.append)
    assert sum(heard) == summary.bytes_moved
    assert min(heard) > 0
