"""A chart in a folder: the same bytes each time, Helm's own rules, nothing that does not travel."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from bundler.cache import BlobCache
from bundler.sources.chart import lock_chart
from bundler.sources.chart_folder import pack_chart
from bundler.sources.upstream import Upstream
from bundler.spec import Spec
from bundler.spec_document import Chart
from installer.errors import Corrupt, InvalidInput
from installer.oci.hosts import RegistryHosts
from tests.upstream import charts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(charts.chart()), mode="r:gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / charts.CHART_NAME


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        return [entry.name.partition("/")[2] for entry in archive]


def test_the_same_files_are_the_same_bytes(folder: Path) -> None:
    first = pack_chart(folder)
    os.utime(folder / "values.yaml", (1, 1))
    (folder / "values.yaml").chmod(0o600)
    assert pack_chart(folder) == first
    assert names(first)[0] == "Chart.yaml"
    with (folder / "values.yaml").open("a") as file:
        file.write("more: 1\n")
    assert pack_chart(folder) != first


def test_what_is_ignored(folder: Path) -> None:
    before = set(names(pack_chart(folder)))
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    for name in ("notes.swp", "templates/a.swp", "keep.txt", "ci.yaml"):
        (folder / name).write_text("x")
    (folder / ".helmignore").write_text("# comment\n.git/\n*.swp\n/ci.yaml\n.helmignore\n")
    assert set(names(pack_chart(folder))) == before | {"keep.txt"}


def test_it_is_locked_and_found_again(tmp_path: Path, folder: Path) -> None:
    wanted = Chart(name=charts.CHART_NAME, source=folder.name)
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "cache"), tmp_path) as upstream:
        locked = lock_chart(upstream, wanted, {"default": {}})
    assert [held.method for held in locked.entry.verified] == ["local"]
    (layer,) = [blob for blob in locked.blobs if blob.source]
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "new"), tmp_path) as upstream:
        assert b"".join(upstream.open(layer)) == pack_chart(folder)
    (folder / "values.yaml").write_text("other: 1\n")
    with (
        Upstream(RegistryHosts(), BlobCache(tmp_path / "newer"), tmp_path) as upstream,
        pytest.raises(Corrupt),
    ):
        upstream.open(layer)


def test_folders_that_are_no_charts(tmp_path: Path, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="is a link"):
        pack_chart(folder)
    (folder / "link").unlink()
    for text, message in (("name: a: b", "not YAML"), ("name: ../x", "usable name"), ("", "name")):
        (folder / "Chart.yaml").write_text(text)
        with pytest.raises(InvalidInput, match=message):
            pack_chart(folder)
    (folder / "Chart.yaml").unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        pack_chart(folder)
    text = "apiVersion: bundle/v1\nkind: BundleSpec\nname: a\n"
    (tmp_path / "bundle.yaml").write_text(f"{text}charts: [{{name: a, source: {folder.name}}}]\n")
    with pytest.raises(InvalidInput, match="there is no file"):
        Spec.load(tmp_path / "bundle.yaml")
