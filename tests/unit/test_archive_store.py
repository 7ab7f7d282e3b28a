"""Archives of other tools, and ones that somebody tampered with: read in place or refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from installer.errors import Corrupt, InvalidInput, NotFound
from installer.oci.archive_store import is_bundle, open_archive
from installer.oci.graph import Descriptor, ImageManifest, read_manifest
from installer.oci.store import read_all
from tests.bundles import make_bundle
from tests.upstream.images import image, layer, tar_layer, write_docker_archive, write_layout

if TYPE_CHECKING:
    from pathlib import Path

APP = image([layer(50_000, "app"), layer(1000, "more")])
PLAIN = [tar_layer({name: name.encode() * 1000}, gzip=False) for name in ("a", "b")]
SAVED = image([*PLAIN, PLAIN[0]])


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    """Write files, and for a text a symbolic link to that name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def saved(path: Path, *, config: bytes = b"", **members: Any) -> Path:
    """Write what `docker save` before 25 writes; ``members`` replace or add files."""
    entry = {"Config": "c.json", "RepoTags": ["team/app:1"], "Layers": ["a/layer.tar"] * 3}
    entry["Layers"] = ["a/layer.tar", "b/layer.tar", "again/layer.tar"]
    files: dict[str, Any] = {
        "manifest.json": json.dumps([entry]).encode(),
        "c.json": config or SAVED.blobs[0].data,
        "a/layer.tar": PLAIN[0].content.data,
        "b/layer.tar": PLAIN[1].content.data,
        "again/layer.tar": "../a/layer.tar",
    }
    return write_tar(path, files | {name.replace("_", "/"): data for name, data in members.items()})


def test_an_older_archive_gets_compressed_layers_and_keeps_its_config(tmp_path: Path) -> None:
    (tmp_path / "passing").mkdir()
    store = open_archive(saved(tmp_path / "s.tar"), tmp_path / "passing")
    (found,) = store.images
    assert found.names == ("team/app:1",)
    manifest = read_manifest(read_all(store, "x", found.root), found.root.media_type, "x")
    assert isinstance(manifest, ImageManifest)
    assert read_all(store, "x", manifest.config) == SAVED.blobs[0].data
    tars = [gzip.decompress(read_all(store, "x", one)) for one in manifest.layers]
    assert tars == [PLAIN[0].content.data, PLAIN[1].content.data, PLAIN[0].content.data]
    assert len(list((tmp_path / "passing").iterdir())) == 2  # each layer once
    (tmp_path / "other").mkdir()
    again = open_archive(saved(tmp_path / "t.tar"), tmp_path / "other")
    assert again.images[0].root == found.root


def test_layers_that_are_compressed_are_taken_as_they_are(tmp_path: Path) -> None:
    write_docker_archive(tmp_path / "s.tar", {"docker.io/team/app:1": APP})
    store = open_archive(tmp_path / "s.tar", tmp_path)
    for blob in APP.blobs:
        assert store.exists("x", Descriptor("x", _digest(blob.data), len(blob.data)))


def test_a_layer_of_several_gzip_members_is_one_layer(tmp_path: Path) -> None:
    tar = PLAIN[0].content.data
    packed = b"".join(gzip.compress(tar[at : at + 700], mtime=0) for at in range(0, len(tar), 700))
    store = open_archive(saved(tmp_path / "s.tar", **{"a_layer.tar": packed}), tmp_path)
    assert store.exists("x", Descriptor("x", _digest(packed), len(packed)))


def _digest(data: bytes) -> Any:
    from installer.bundle.digest import Digest  # noqa: PLC0415 (one use)

    return Digest(hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"a_layer.tar": b"another tar"}, Corrupt, "its image says"),
        ({"a_layer.tar": b"\x1f\x8bno gzip at all"}, Corrupt, "can't be unpacked"),
        ({"b_layer.tar": "../../etc/passwd"}, Corrupt, "is missing"),
        ({"b_layer.tar": "layer.tar"}, Corrupt, "is missing"),  # a link to itself
        ({"config": b"{}"}, Corrupt, "c.json"),
        ({"config": b'{"rootfs":{"diff_ids":[]}}'}, Corrupt, "another number of layers"),
        ({"manifest.json": b"[]"}, InvalidInput, "lists no image"),
        ({"manifest.json": b'[{"Config":"../c","Layers":[]}]'}, Corrupt, "is missing"),
        ({"manifest.json": b"{"}, Corrupt, "manifest.json"),
        ({"manifest.json": b"[" * 100_000}, Corrupt, "manifest.json"),
    ],
)
def test_an_archive_that_was_tampered_with(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    passing = tmp_path / "passing"
    passing.mkdir()
    with pytest.raises(error, match=words):
        open_archive(saved(tmp_path / "s.tar", **change), passing)


def test_what_is_no_archive_says_what_to_do(tmp_path: Path) -> None:
    packed = tmp_path / "s.tar.gz"
    packed.write_bytes(gzip.compress(saved(tmp_path / "s.tar").read_bytes()))
    with pytest.raises(InvalidInput) as refused:
        open_archive(packed, tmp_path)
    assert "gunzip" in refused.value.hint
    with pytest.raises(InvalidInput, match="neither an OCI image layout"):
        open_archive(write_tar(tmp_path / "n.tar", {"x": b"y"}), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="neither"):
        open_archive(tmp_path / "empty", tmp_path)


def test_a_layout_that_lacks_a_blob_or_has_other_bytes(tmp_path: Path) -> None:
    write_layout(tmp_path / "l", {"app": APP})
    blobs = tmp_path / "l" / "blobs" / "sha256"
    config, first, _ = APP.blobs
    (blobs / config.digest.removeprefix("sha256:")).unlink()
    (blobs / first.digest.removeprefix("sha256:")).write_bytes(bytes(len(first.data)))
    store = open_archive(tmp_path / "l", tmp_path)
    with pytest.raises(NotFound):
        read_all(store, "x", Descriptor("x", _digest(config.data), len(config.data)))
    with pytest.raises(Corrupt):
        read_all(store, "x", Descriptor("x", _digest(first.data), len(first.data)))


def test_a_bundle_is_told_from_an_archive_before_anything_of_it_is_read(tmp_path: Path) -> None:
    path, _ = make_bundle(tmp_path / "b.tar", {"docker.io/team/app:1": APP})
    assert is_bundle(path)
    assert not is_bundle(saved(tmp_path / "s.tar"))
    assert not is_bundle(tmp_path)
