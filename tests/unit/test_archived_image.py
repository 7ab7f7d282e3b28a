"""Images that lie here: layouts and archives of all kinds, and what must not be taken for one."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from bundler.cache import BlobCache
from bundler.sources.image import lock_image
from bundler.sources.upstream import Locked, Upstream
from installer.errors import AirgapError, Corrupt, InvalidInput, NotFound
from installer.oci.graph import ImageManifest, read_manifest
from installer.oci.hosts import RegistryHosts
from installer.oci.reference import Reference
from tests.upstream import images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from installer.bundle.manifest import Image

NAME = "corp.example/team/app:1"
APP = images.image([images.layer(5000, "app"), images.layer(100, "base")])
PLAIN = images.image([images.layer(5000, "plain", gzip=False)])
OTHER = images.image([images.layer(100, "other")])
ARM = images.image([images.layer(100, "arm")], platform="linux/arm64")


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "cache"), tmp_path) as upstream:
        yield upstream


def lock(upstream: Upstream, source: str, name: str = NAME) -> Locked[Image]:
    return lock_image(upstream, Reference.parse(name), ["linux/amd64"], source=source)


def packed(folder: Path, name: str) -> str:
    with tarfile.open(folder / name, "w") as tar:
        tar.add(folder / "layout", ".")
    return name


def everything(upstream: Upstream, locked: Locked[Image]) -> dict[str, bytes]:
    return {blob.digest: b"".join(upstream.open(blob)) for blob in locked.blobs}


@pytest.mark.parametrize("form", ["layout", "layout.tar"])
def test_an_oci_layout_keeps_its_bytes(tmp_path: Path, upstream: Upstream, form: str) -> None:
    index = images.index([APP, ARM])
    images.write_layout(tmp_path / "layout", {NAME: index, "other": OTHER})
    if form != "layout":
        packed(tmp_path, form)
    locked = lock(upstream, form)
    assert (locked.entry.digest, locked.entry.index) == (APP.digest, index.digest)
    assert [held.method for held in locked.entry.verified] == ["local"]
    content = {c.digest: c.data for c in (*APP.everything, index.top)}
    assert everything(upstream, locked) == content
    # Without the cache the places in the lock are enough.
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "new"), tmp_path) as fresh:
        assert everything(fresh, locked) == content


def test_the_only_image_needs_no_name(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {"whatever": APP})
    assert lock(upstream, "layout").entry.digest == APP.digest


def test_several_images_and_none_of_that_name(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {"a": APP, "b": OTHER})
    with pytest.raises(InvalidInput, match="2 images are in it, none of them named") as caught:
        lock(upstream, "layout")
    assert "a, b" in caught.value.hint


def test_another_architecture_is_refused(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {NAME: ARM})
    with pytest.raises(InvalidInput, match="not built for linux/amd64, only for linux/arm64"):
        lock(upstream, "layout")


@pytest.mark.parametrize("form", ["layout", "layout.tar"])
def test_an_index_that_lists_more_than_is_there(
    tmp_path: Path, upstream: Upstream, form: str
) -> None:
    images.write_layout(tmp_path / "layout", {NAME: images.index([APP, ARM])})
    (tmp_path / "layout/blobs/sha256" / ARM.digest.removeprefix("sha256:")).unlink()
    if form != "layout":
        packed(tmp_path, form)
    assert lock(upstream, form).entry.digest == APP.digest
    with pytest.raises(AirgapError, match=ARM.digest.removeprefix("sha256:")):
        lock_image(upstream, Reference.parse(NAME), ["all"], source=form)


def test_another_digest_than_the_pinned_one(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {NAME: APP})
    with pytest.raises(Corrupt, match=APP.digest):
        lock(upstream, "layout", f"{NAME}@{OTHER.digest}")


def test_damage_in_a_layout(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {NAME: APP})
    (tmp_path / "layout/blobs/sha256" / APP.digest.removeprefix("sha256:")).write_bytes(b"x")
    with pytest.raises(Corrupt):
        lock(upstream, "layout")


@pytest.mark.parametrize("image", [APP, PLAIN], ids=["gzip", "plain"])
def test_a_docker_archive(tmp_path: Path, upstream: Upstream, image: images.Image) -> None:
    images.write_docker_archive(tmp_path / "a.tar", {"other/x:1": OTHER, NAME: image})
    locked = lock(upstream, "a.tar")
    content = everything(upstream, locked)
    root = locked.entry.root
    manifest = read_manifest(content[str(root.digest)], root.media_type, "authored")
    assert isinstance(manifest, ImageManifest)
    assert str(manifest.config.digest) == image.blobs[0].digest
    assert content.keys() == {str(root.digest), *(str(d.digest) for d in manifest.children)}
    if image is APP:
        assert [str(d.digest) for d in manifest.layers] == [c.digest for c in image.blobs[1:]]
    assert lock(upstream, "a.tar").entry == locked.entry
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "new"), tmp_path) as fresh:
        assert everything(fresh, locked) == content
    images.write_docker_archive(tmp_path / "a.tar", {NAME: OTHER})
    cache = BlobCache(tmp_path / "newer")
    with (
        Upstream(RegistryHosts(), cache, tmp_path) as fresh,
        pytest.raises(Corrupt, match="or no longer"),
    ):
        everything(fresh, locked)


def tar(path: Path, members: Mapping[str, bytes | tuple[bytes, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                entry.type, entry.linkname = content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def old_docker(image: images.Image, **more: Any) -> dict[str, Any]:
    """The form of Docker before 25: a folder a layer, and links for layers that come again."""
    config, layer = image.blobs
    saved = {"Config": "c.json", "RepoTags": [NAME], "Layers": ["a/layer.tar"]} | more
    members = {"c.json": config.data, "a/layer.tar": layer.data}
    return members | {"manifest.json": json.dumps([saved]).encode()}


def test_links_in_an_old_docker_archive(tmp_path: Path, upstream: Upstream) -> None:
    members = old_docker(PLAIN, Layers=["b/layer.tar"])
    tar(tmp_path / "a.tar", members | {"b/layer.tar": (tarfile.SYMTYPE, "../a/layer.tar")})
    locked = lock(upstream, "a.tar")
    assert len(locked.blobs) == 3


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        (old_docker(PLAIN, Layers=[]), Corrupt, "another number of layers"),
        (old_docker(PLAIN, Layers=["../../etc/passwd"]), Corrupt, "which is missing"),
        (old_docker(PLAIN) | {"c.json": b"x"}, Corrupt, "c.json"),
        (old_docker(PLAIN) | {"a/layer.tar": b"x"}, Corrupt, "a layer is"),
        (old_docker(PLAIN) | {"manifest.json": b"{}"}, Corrupt, "manifest.json"),
        (old_docker(PLAIN) | {"manifest.json": b"[]"}, InvalidInput, "lists no image"),
        ({"README": b"nothing"}, InvalidInput, "neither an OCI image layout"),
        ({"index.json": b"{}"}, AirgapError, "index"),
        (
            old_docker(PLAIN) | {"a/layer.tar": (tarfile.SYMTYPE, "/etc/passwd")},
            Corrupt,
            "which is missing",
        ),
    ],
    ids=["layers", "outside", "config", "layer", "form", "empty", "none", "index", "link"],
)
def test_archives_that_are_none(
    tmp_path: Path,
    upstream: Upstream,
    members: dict[str, Any],
    error: type[AirgapError],
    message: str,
) -> None:
    tar(tmp_path / "a.tar", members)
    with pytest.raises(error, match=message):
        lock(upstream, "a.tar")


def test_files_that_are_no_archives(tmp_path: Path, upstream: Upstream) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(InvalidInput, match=r"a\.tar: not a tar"):
        lock(upstream, "a.tar")
    images.write_docker_archive(tmp_path / "b.tar", {NAME: APP})
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:3000])
    with pytest.raises((InvalidInput, Corrupt)):
        lock(upstream, "b.tar")


def test_a_layout_that_left_something_out(tmp_path: Path, upstream: Upstream) -> None:
    images.write_layout(tmp_path / "layout", {NAME: APP})
    gone = APP.blobs[1].digest.removeprefix("sha256:")
    (tmp_path / "layout/blobs/sha256" / gone).unlink()
    packed(tmp_path, "a.tar")
    with pytest.raises(NotFound, match="it is incomplete"):
        lock(upstream, "a.tar")
