from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from bundler import spec_document as spec
from bundler.cache import BlobCache
from bundler.platforms import normal_platform
from bundler.sources.archives import read_member
from bundler.sources.chart import is_newer, lock_chart
from bundler.sources.image import lock_image
from bundler.sources.tool import elf_platform, lock_tool
from bundler.sources.trivy import lock_database
from bundler.sources.upstream import Upstream
from installer.bundle.digest import Digest
from installer.errors import AirgapError, Corrupt, InvalidInput, NotFound, TransferFailed
from installer.oci.hosts import RegistryHosts
from installer.oci.http import Patience
from installer.oci.reference import Reference
from tests.upstream import charts, images, trivy
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUICK = Patience(connect=5, read=5, attempts=3, backoff=0.01, longest=1)
AMD64 = images.image([images.layer(5000, "amd64")])
ARM64 = images.image([images.layer(5000, "arm64")], platform="linux/arm64/v8")
ARMV7 = images.image([images.layer(5000, "armv7")], platform="linux/arm/v7")
ARMV6 = images.image([images.layer(5000, "armv6")], platform="linux/arm/v6")
ATTESTATION = images.image([images.layer(10, "attested")], platform="unknown/unknown")
TITLE = {"org.opencontainers.image.title": "db.tar.gz"}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture
def web() -> Iterator[charts.ChartRepository]:
    with charts.ChartRepository() as web:
        yield web


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with Upstream(RegistryHosts(), BlobCache(tmp_path / "cache"), tmp_path, patience=QUICK) as up:
        yield up


# Images


def reference(registry: Registry, rest: str) -> Reference:
    return Reference.parse(f"{registry.host}/{rest}")


def test_one_platform_of_an_index_is_its_manifest(registry: Registry, upstream: Upstream) -> None:
    index = images.index([AMD64, ARM64, ATTESTATION])
    registry.put("app", "1", index)
    for platform, expected in (("linux/amd64", AMD64), ("linux/arm64", ARM64)):
        locked = lock_image(upstream, reference(registry, "app:1"), [platform])
        assert (locked.entry.digest, locked.entry.index) == (expected.digest, index.digest)
        whole = {c.digest for c in expected.everything}
        assert {blob.digest for blob in locked.blobs} == whole | {index.digest}


def test_several_platforms_are_the_whole_index(registry: Registry, upstream: Upstream) -> None:
    index = images.index([AMD64, ARM64, ARMV7, ATTESTATION])
    registry.put("app", "1", index)
    locked = lock_image(upstream, reference(registry, "app:1"), ["linux/amd64", "linux/arm64"])
    assert locked.entry.digest == index.digest
    assert {blob.digest for blob in locked.blobs} == {c.digest for c in index.everything}


@pytest.mark.parametrize("platforms", [["all"], ["linux/arm64", "all"], ["all", "linux/arm64"]])
def test_all_is_the_whole_index(
    registry: Registry, upstream: Upstream, platforms: list[str]
) -> None:
    index = images.index([ARM64, ARMV7, ATTESTATION])
    registry.put("app", "1", index)
    locked = lock_image(upstream, reference(registry, "app:1"), platforms)
    assert (locked.entry.digest, locked.entry.index) == (index.digest, "")
    assert {blob.digest for blob in locked.blobs} == {c.digest for c in index.everything}


def test_all_takes_an_image_for_whatever_it_is_and_refuses_what_is_named_besides(
    registry: Registry, upstream: Upstream
) -> None:
    registry.put("app", "single", ARMV6)
    registry.put("app", "index", images.index([ARMV6]))
    locked = lock_image(upstream, reference(registry, "app:single"), ["all"])
    assert locked.entry.digest == ARMV6.digest
    for tag in ("single", "index"):
        with pytest.raises(InvalidInput, match="not built for linux/amd64, only for linux/arm"):
            lock_image(upstream, reference(registry, f"app:{tag}"), ["linux/amd64", "all"])


def test_a_pinned_index_stays_what_is_pinned(registry: Registry, upstream: Upstream) -> None:
    index = images.index([AMD64, ARM64])
    registry.put("app", "1", index)
    wanted = reference(registry, f"app:1@{index.digest}")
    assert lock_image(upstream, wanted, ["linux/amd64"]).entry.digest == index.digest
    with pytest.raises(InvalidInput, match="linux/s390x"):
        lock_image(upstream, wanted, ["linux/s390x"])


def test_variants_are_told_apart(registry: Registry, upstream: Upstream) -> None:
    registry.put("app", "1", images.index([ARMV6, ARMV7]))
    for platform, expected in (("linux/arm/v6", ARMV6), ("linux/arm/v7", ARMV7)):
        locked = lock_image(upstream, reference(registry, "app:1"), [platform])
        assert locked.entry.digest == expected.digest
    registry.put("app", "six", ARMV6)
    assert lock_image(upstream, reference(registry, "app:six"), ["linux/arm/v6"])
    with pytest.raises(InvalidInput, match="not built for linux/arm/v7, only for linux/arm/v6"):
        lock_image(upstream, reference(registry, "app:six"), ["linux/arm/v7"])
    registry.put("app", "none", images.image([images.layer(10, "old")], platform="linux/arm"))
    assert lock_image(upstream, reference(registry, "app:none"), ["linux/arm/v6"])
    assert normal_platform("linux/arm") == "linux/arm/v7"
    assert normal_platform("linux/arm64/v8") == "linux/arm64"


def test_a_missing_platform_names_wanted_and_found(registry: Registry, upstream: Upstream) -> None:
    registry.put("app", "index", images.index([AMD64, ATTESTATION]))
    registry.put("app", "single", AMD64)
    for tag in ("index", "single"):
        with pytest.raises(InvalidInput) as caught:
            lock_image(upstream, reference(registry, f"app:{tag}"), ["linux/amd64", "linux/arm64"])
        assert f"app:{tag}: is not built for linux/arm64, only for linux/amd64" in str(caught.value)


def test_an_index_that_lies_about_a_platform(registry: Registry, upstream: Upstream) -> None:
    liar = images.Image(AMD64.top, AMD64.manifests, AMD64.blobs, "linux/arm64")
    registry.put("app", "1", images.index([liar]))
    with pytest.raises(InvalidInput, match="only for linux/amd64"):
        lock_image(upstream, reference(registry, "app:1"), ["linux/arm64"])


def test_an_artefact_has_no_platform(registry: Registry, upstream: Upstream) -> None:
    config = images.Content(images.OCI_EMPTY, b"{}")
    registry.put("policy", "1", images.artefact(config, [images.Content("text/rego", b"x")]))
    locked = lock_image(upstream, reference(registry, "policy:1"), ["linux/arm64"])
    assert len(locked.blobs) == 3


def test_an_index_in_an_index(registry: Registry, upstream: Upstream) -> None:
    inner = images.index([ARMV6])
    below = (*inner.manifests, inner.top)
    outer = images.index([AMD64, ARM64, images.Image(inner.top, below, inner.blobs, "a/b")])
    registry.put("app", "1", outer)
    locked = lock_image(upstream, reference(registry, "app:1"), ["linux/amd64", "linux/arm64"])
    assert {blob.digest for blob in locked.blobs} == {c.digest for c in outer.everything}
    with pytest.raises(InvalidInput, match="a/b is another index"):
        lock_image(upstream, reference(registry, "app:1"), ["a/b"])


# Charts


def chart(source: str, version: str | None = "1.2.3", name: str = charts.CHART_NAME) -> spec.Chart:
    return spec.Chart(name=name, source=source, version=version)


def test_absolute_urls_and_missing_digests(web: charts.ChartRepository, upstream: Upstream) -> None:
    web.add(charts.chart(), "1.2.3", "v1.2.3")
    index = web.files["index.yaml"]
    expected = lock_chart(upstream, chart(web.url + "/"), {})
    moved = index.replace(b"- charts/", f"- {web.url}/elsewhere/".encode())
    lines = [line for line in moved.splitlines() if b"digest:" not in line]
    web.files["index.yaml"] = b"\n".join(lines)
    web.files["elsewhere/anchorage-1.2.3.tgz"] = web.files.pop("charts/anchorage-1.2.3.tgz")
    found = lock_chart(upstream, chart(web.url), {})
    assert found.entry.sha256 == expected.entry.sha256
    assert found.entry.digest == expected.entry.digest
    assert found.blobs[-1].source == f"{web.url}/elsewhere/anchorage-1.2.3.tgz"


def test_a_chart_that_differs_from_the_index(
    web: charts.ChartRepository, upstream: Upstream
) -> None:
    web.add(charts.chart(), "1.2.3", "v1.2.3")
    web.files["charts/anchorage-1.2.3.tgz"] = charts.chart(tag="v6.6.6")
    with pytest.raises(Corrupt, match=r"chart anchorage: .*digest is"):
        lock_chart(upstream, chart(web.url), {})


def test_other_names_and_versions_are_named(
    web: charts.ChartRepository, upstream: Upstream
) -> None:
    web.add(charts.chart(), "1.2.3", "v1.2.3")
    with pytest.raises(NotFound, match=r"no version 1\.2\.4") as caught:
        lock_chart(upstream, chart(web.url, "1.2.4"), {})
    assert "1.2.3" in caught.value.hint
    with pytest.raises(NotFound, match="no chart of that name") as caught:
        lock_chart(upstream, chart(web.url, name="ancorage"), {})
    assert "'anchorage'" in caught.value.hint


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"<html>not here</html>", "not a chart repository"),
        (b"entries: []", "not a chart repository"),
        (b"entries: {anchorage: [{version: 1.2.3}]}", "has no URL"),
        (b"entries: {anchorage: [{version: 1.2.3, urls: ['oci://x/y']}]}", "oci address"),
        (b"entries: {anchorage: [{version: 1.2.3, urls: ['file:///etc/passwd']}]}", "file address"),
        (b"entries: &a {anchorage: *a}", "endlessly"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_index(
    web: charts.ChartRepository, upstream: Upstream, index: bytes, message: str
) -> None:
    web.files["index.yaml"] = index
    with pytest.raises(AirgapError, match=message) as caught:
        lock_chart(upstream, chart(web.url), {})
    assert "chart anchorage" in caught.value.message


def test_a_file_with_another_chart(tmp_path: Path, upstream: Upstream) -> None:
    (tmp_path / "c.tgz").write_bytes(charts.chart())
    with pytest.raises(InvalidInput, match="is the chart 'anchorage'"):
        lock_chart(upstream, chart("./c.tgz", None, "harbor"), {})
    (tmp_path / "c.tgz").write_bytes(b"no chart")
    with pytest.raises(InvalidInput, match="not a packaged chart"):
        lock_chart(upstream, chart("./c.tgz", None), {})


def test_a_registry_has_another_version_under_the_tag(
    registry: Registry, upstream: Upstream
) -> None:
    registry.put("charts/anchorage", "9.9.9", charts.chart_artefact(charts.chart(), "1", "1"))
    registry.put("charts/anchorage", "1.0.0", AMD64)
    source = f"oci://{registry.host}/charts/anchorage"
    with pytest.raises(InvalidInput, match=r"is version 1\.2\.3, not"):
        lock_chart(upstream, chart(source, "9.9.9"), {})
    with pytest.raises(InvalidInput, match="is no Helm chart"):
        lock_chart(upstream, chart(source, "1.0.0"), {})


# Tools


def archive(entry: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes) -> bytes:
    entry = tarfile.TarInfo("bin/helm")
    entry.type, entry.linkname = kind, "/etc/shadow"
    return archive(entry)


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        entry = zipfile.ZipInfo("bin/helm")
        entry.external_attr = 0o120777 << 16
        packed.writestr(entry, "/etc/shadow")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (special(tarfile.SYMTYPE), "link or a folder"),
        (special(tarfile.LNKTYPE), "link or a folder"),
        (special(tarfile.DIRTYPE), "link or a folder"),
        (special(tarfile.FIFOTYPE), "link or a folder"),
        (zip_link(), "link or a folder"),
        (charts.archive({"bin/other": b"x"}), "no member 'bin/helm'"),
        (charts.archive({"bin/helm": images.random_bytes(9000, "h")})[:-4000], "can't be read"),
        (b"\x1f\x8b" + b"x" * 100, "can't be read"),
        (b"PK\x03\x04" + b"x" * 100, "can't be read"),
        (b"just a program", "can't be read"),
        (b"", "can't be read"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "archive"
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=message):
        list(read_member(path, "bin/helm", "tool helm"))


def test_a_missing_member_lists_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(charts.archive({"./linux-amd64/helm": b"x", "LICENSE": b"y"}))
    with pytest.raises(InvalidInput) as caught:
        list(read_member(path, "helm", "tool helm"))
    assert caught.value.hint == "it has: linux-amd64/helm, LICENSE"
    assert list(read_member(path, "linux-amd64/helm", "tool helm")) == [b"x"]


def tool(source: str, **more: str) -> spec.Tool:
    return spec.Tool(name="helm", source=source, **more)


def test_an_archive_without_member_and_an_empty_program(tmp_path: Path, upstream: Upstream) -> None:
    (tmp_path / "helm.tgz").write_bytes(charts.archive({"helm": b""}))
    with pytest.raises(InvalidInput, match="is an archive") as caught:
        lock_tool(upstream, "linux/amd64", tool("./helm.tgz"))
    assert "member" in caught.value.hint
    with pytest.raises(InvalidInput, match="helm is empty"):
        lock_tool(upstream, "linux/amd64", tool("./helm.tgz", member="helm"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{digest}\n", True),
        ("{digest}  helm.tar.gz\n", True),
        ("{upper} *dist/helm.tar.gz\n", True),
        ("{zeros}  other\n{digest}  helm.tar.gz\n", True),
        ("{zeros}  helm.tar.gz\n{digest}  helm.tar.gz\n", False),
        ("{digest}  other.tar.gz\n", False),
        ("{digest}\n{zeros}\n", False),
        ("<html>", False),
        ("", False),
    ],
)
def test_published_checksums(
    web: charts.ChartRepository, upstream: Upstream, text: str, *, found: bool
) -> None:
    data = charts.archive({"helm": b"#!/bin/sh\n"})
    digest = images.sha256(data).removeprefix("sha256:")
    web.files["helm.tar.gz"] = data
    web.files["sum"] = text.format(digest=digest, upper=digest.upper(), zeros="0" * 64).encode()
    wanted = tool(f"{web.url}/helm.tar.gz", member="helm", sha256_from=f"{web.url}/sum")
    if found:
        assert lock_tool(upstream, "linux/arm64", wanted).entry.platform == "linux/arm64"
    else:
        with pytest.raises(InvalidInput, match=r"sha256 digests for helm"):
            lock_tool(upstream, "linux/arm64", wanted)


def test_a_pinned_tool_stays_with_its_own_digest(
    web: charts.ChartRepository, upstream: Upstream
) -> None:
    web.files |= {"amd64/helm": b"one", "arm64/helm": b"other"}
    wanted = [
        tool(f"{web.url}/{machine}/helm", sha256_from=f"{web.url}/none")
        for machine in ("amd64", "arm64")
    ]
    digests = [images.sha256(data) for data in (b"one", b"other")]
    upstream.pins = {
        f"tool helm {one.source}": Digest.parse(digest)
        for one, digest in zip(wanted, digests, strict=True)
    }
    for one, digest in zip(wanted, digests, strict=True):
        locked = lock_tool(upstream, "linux/amd64", one)
        assert f"sha256:{locked.entry.sha256}" == digest
    upstream.pins = {f"tool helm {wanted[1].source}": Digest.of(b"never there")}
    with pytest.raises(Corrupt, match="tool helm"):
        lock_tool(upstream, "linux/amd64", wanted[1])


def test_a_published_checksum_of_something_else(
    web: charts.ChartRepository, upstream: Upstream
) -> None:
    web.files |= {"helm": b"program", "sum": b"0" * 64}
    with pytest.raises(Corrupt, match=r"tool helm.*expected sha256:0000"):
        lock_tool(upstream, "", tool(f"{web.url}/helm", sha256_from=f"{web.url}/sum"))


@pytest.mark.parametrize(
    ("order", "machine", "platform"),
    [(1, 62, "linux/amd64"), (1, 183, "linux/arm64"), (2, 22, "linux/s390x"), (1, 9999, "")],
)
def test_platform_of_an_executable(tmp_path: Path, order: int, machine: int, platform: str) -> None:
    path = tmp_path / "program"
    head = b"\x7fELF\x02" + bytes([order]) + bytes(10)
    path.write_bytes(head + struct.pack(">HH" if order == 2 else "<HH", 2, machine))
    assert elf_platform(path) == platform
    path.write_bytes(head)
    assert elf_platform(path) == ""


# Databases


def database(registry: Registry, image: images.Image, kind: Any = "trivy-db") -> spec.Database:
    registry.put("db", "2", image)
    return spec.Database(kind=kind, source=f"{registry.host}/db:2")


def packed(files: dict[str, bytes], **more: Any) -> images.Image:
    kind = trivy.KINDS["trivy-db"]
    layer = images.Content(kind.layer_type, charts.archive(files), more.get("title", TITLE))
    layers = [layer] * more.get("layers", 1)
    return images.artefact(images.Content(trivy.CONFIG_TYPE, b"{}"), layers)


METADATA = (
    b'{"Version":2,"NextUpdate":"2026-01-02T03:04:05.123456789Z",'
    b'"UpdatedAt":"2026-01-01T04:04:05.9+01:00","DownloadedAt":"0001-01-01T00:00:00Z"}'
)
DB = trivy.bbolt("vulnerability", 20_000, "x")
FULL = {"trivy.db": DB, "metadata.json": METADATA}
EMPTY_ROOT = DB[: 3 * 4096 + 10] + b"\0\0" + DB[3 * 4096 + 12 :]


def test_what_a_database_says_of_itself(registry: Registry, upstream: Upstream) -> None:
    for files in (FULL, dict(reversed(FULL.items()))):
        entry = lock_database(upstream, database(registry, packed(files))).entry
        assert entry.schema == 2
        assert entry.updated_at == "2026-01-01T03:04:05Z"
        assert entry.next_update == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (packed(FULL | {"trivy.db": b""}), "missing or empty"),
        (packed(FULL | {"trivy.db": EMPTY_ROOT}), "missing or empty"),
        (packed({"metadata.json": METADATA}), "missing or empty"),
        (packed({"trivy.db": DB}), "no metadata.json"),
        (packed(FULL | {"trivy.db": b"SQLite format 3" + DB}), "not a bbolt file"),
        (packed(FULL | {"trivy.db": DB[:100]}), "cut short"),
        (packed(FULL | {"trivy.db": DB[:9000]}), "cut short"),
        (packed(FULL | {"metadata.json": b"{"}), "metadata.json can't be read"),
        (packed(FULL | {"metadata.json": b"{}"}), "metadata.json can't be read"),
        (packed(FULL, layers=2), "exactly one layer"),
        (packed(FULL, title={}), "image.title"),
        (AMD64, "its layer is application/vnd.oci.image.layer"),
        (images.index([AMD64]), "exactly one layer"),
        (trivy.database("trivy-java-db", size=9000), "javadb"),
        (trivy.database(size=9000, version=1), "schema version 1, Trivy wants 2"),
    ],
)
def test_databases_that_are_none(
    registry: Registry, upstream: Upstream, image: images.Image, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        lock_database(upstream, database(registry, image))
    assert "trivy-db" in caught.value.message


def test_a_layer_that_is_no_archive(registry: Registry, upstream: Upstream) -> None:
    content = images.Content(trivy.KINDS["trivy-db"].layer_type, b"\x1f\x8b\x08" + b"x" * 50, TITLE)
    image = images.artefact(images.Content(trivy.CONFIG_TYPE, b"{}"), [content])
    with pytest.raises(InvalidInput, match="layer can't be read"):
        lock_database(upstream, database(registry, image))


# The web


def test_a_download_goes_on_after_a_cut(web: charts.ChartRepository, upstream: Upstream) -> None:
    data = images.random_bytes(3_000_000, "download")
    web.files["file"] = data
    web.fail("/file", cut_after=1_000_000, times=1)
    assert b"".join(upstream.web.download(f"{web.url}/file")) == data
    assert web.bytes_sent == len(data)
    web.faults.clear()
    web.fail("/file", cut_after=1_000_000, times=1, no_range=True)
    web.fail("/file", no_range=True)
    assert b"".join(upstream.web.download(f"{web.url}/file")) == data


def test_a_download_that_never_ends_well(web: charts.ChartRepository, upstream: Upstream) -> None:
    web.files["file"] = b"x" * 10_000
    web.fail("/file", cut_after=0)
    with pytest.raises(TransferFailed, match="broke off"):
        list(upstream.web.download(f"{web.url}/file"))
    assert web.count("GET", "/file") == QUICK.attempts


def test_passwords_in_urls_are_refused_and_not_repeated(upstream: Upstream) -> None:
    with pytest.raises(InvalidInput, match=r"a URL at host\.example") as caught:
        upstream.file("https://user:hunter2@host.example/x", "tool x")
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_documents_are_bounded(web: charts.ChartRepository, upstream: Upstream) -> None:
    web.files["big"] = b"x" * 3000
    assert len(upstream.web.read(f"{web.url}/big", 3000)) == 3000
    with pytest.raises(Corrupt, match="over 2999 bytes"):
        upstream.web.read(f"{web.url}/big", 2999)


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [
        ("1.19.1", "1.18.4", True),
        ("1.10.0", "1.9.9", True),
        ("v1.2.3", "1.2.3", False),
        ("1.2.3+build", "1.2.3", False),
        ("1.2.3", "1.2.4-rc1", False),
        ("2.0.0", "x", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, than: str, *, newer: bool) -> None:
    assert is_newer(version, than) is newer
