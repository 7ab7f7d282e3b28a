"""What every source promises (bundler/sources), run on all kinds of them.

What is locked is complete, can be had again from any byte on, is the same each time, and is never
taken when it is not what it should be.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from bundler import spec_document as spec
from bundler.cache import BlobCache
from bundler.sources.chart import lock_chart
from bundler.sources.file import lock_file
from bundler.sources.image import lock_image
from bundler.sources.tool import lock_tool
from bundler.sources.trivy import lock_database
from bundler.sources.upstream import Locked, Upstream
from installer.errors import AirgapError, Corrupt, InvalidInput, NotFound, TransferFailed
from installer.oci.graph import read_manifest
from installer.oci.hosts import RegistryConfig, RegistryEntry, RegistryHosts
from installer.oci.http import Patience
from installer.oci.reference import Reference
from tests.upstream import charts, images, trivy
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.upstream.server import LoopbackServer

VERSION, TAG = "1.2.3", "v1.2.3"
CHART = charts.chart(VERSION, TAG)
PROGRAM = images.random_bytes(2_500_000, "program")
TAR = charts.archive({"README": b"x", "linux-amd64/helm": PROGRAM}, executable=True)
CHECKS_TYPE = "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip"
QUICK = Patience(connect=5, read=5, attempts=3, backoff=0.01, longest=1)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("linux-amd64/helm"), PROGRAM)
    return buffer.getvalue()


ZIP = zipped()


class World:
    """A registry, a chart repository and a folder; ``upstream`` opens a new way to them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.registry = stack.enter_context(Registry())
        self.web = stack.enter_context(charts.ChartRepository())
        two = [
            images.image([images.layer(1_500_000, "app"), images.layer(1000, "base")]),
            images.image([images.layer(3000, "arm")], platform="linux/arm64/v8"),
        ]
        checks = images.artefact(
            images.Content(images.OCI_EMPTY, b"{}"),
            [images.Content(CHECKS_TYPE, b"rego", {"org.opencontainers.image.title": "b.tgz"})],
        )
        docker = images.image([images.layer(9000, "old", docker=True)], docker=True)
        for name, tag, image in (
            ("team/app", "v1", images.index(two)),
            ("team/old", "v1", docker),
            ("charts/anchorage", VERSION, charts.chart_artefact(CHART, VERSION, TAG)),
            ("aquasecurity/trivy-db", "2", trivy.database(size=2_000_000)),
            ("aquasecurity/trivy-java-db", "1", trivy.database("trivy-java-db", size=100_000)),
            ("aquasecurity/trivy-checks", "1", checks),
        ):
            self.registry.put(name, tag, image)
        self.web.add(CHART, VERSION, TAG)
        self.web.files |= {"helm": PROGRAM, "helm.tar.gz": TAR, "helm.zip": ZIP}
        self.web.files["SHA256SUMS"] = (
            f"{sha256(ZIP)}  helm.zip\n{sha256(TAR)} *helm.tar.gz\n".encode()
        )
        folder.joinpath("spec").mkdir()
        for name, data in (("helm", PROGRAM), ("helm.tgz", TAR), ("chart.tgz", CHART)):
            folder.joinpath("spec", name).write_bytes(data)

    def upstream(self, cache: str = "cache") -> Upstream:
        entry = RegistryEntry(endpoints=(self.registry.url,))
        hosts = RegistryHosts(RegistryConfig({"registry.example": entry}))
        upstream = Upstream(
            hosts, BlobCache(self.folder / cache), self.folder / "spec", patience=QUICK
        )
        return self.stack.enter_context(upstream)

    def tool(self, source: str, **more: str) -> spec.Tool:
        return spec.Tool(name="helm", source=source.replace("WEB", self.web.url), **more)

    def chart(self, source: str, version: str | None = VERSION) -> spec.Chart:
        return spec.Chart(
            name="anchorage", source=source.replace("WEB", self.web.url), version=version
        )


@dataclass(frozen=True)
class Source:
    """How something is locked, and where its bytes come from (a path on a server, or a file)."""

    name: str
    lock: Callable[[World, Upstream], Locked[Any]]
    server: str = ""
    path: str = ""
    file: str = ""


def image(
    world: World, upstream: Upstream, text: str, platforms: tuple[str, ...] = ("linux/amd64",)
) -> Locked[Any]:
    del world
    return lock_image(upstream, Reference.parse(f"registry.example/{text}"), platforms)


def chart(
    world: World, upstream: Upstream, source: str, version: str | None = VERSION
) -> Locked[Any]:
    return lock_chart(upstream, world.chart(source, version), {"default": {}})


def tool(world: World, upstream: Upstream, source: str, **more: str) -> Locked[Any]:
    return lock_tool(upstream, "linux/amd64", world.tool(source, **more))


def database(world: World, upstream: Upstream, kind: Any, tag: str) -> Locked[Any]:
    del world
    source = f"registry.example/aquasecurity/{kind}:{tag}"
    return lock_database(upstream, spec.Database(kind=kind, source=source))


def file(world: World, upstream: Upstream, source: str) -> Locked[Any]:
    del world
    return lock_file(upstream, spec.ExtraFile(name="helm", source=source))


HELM = "linux-amd64/helm"
SOURCES = [
    Source("image", partial(image, text="team/app:v1"), "registry", "team/app"),
    Source(
        "index",
        partial(image, text="team/app:v1", platforms=("linux/amd64", "linux/arm64")),
        "registry",
        "team/app",
    ),
    Source("docker image", partial(image, text="team/old:v1"), "registry", "team/old"),
    Source("chart repository", partial(chart, source="WEB"), "web", "charts/"),
    Source(
        "chart registry",
        partial(chart, source="oci://registry.example/charts/anchorage"),
        "registry",
        "charts/",
    ),
    Source("chart file", partial(chart, source="./chart.tgz", version=None), file="chart.tgz"),
    Source("tool", partial(tool, source="WEB/helm", sha256=sha256(PROGRAM)), "web", "helm"),
    Source(
        "tool in tar",
        partial(tool, source="WEB/helm.tar.gz", sha256=sha256(TAR), member=HELM),
        "web",
        "helm.tar.gz",
    ),
    Source(
        "tool in zip",
        partial(tool, source="WEB/helm.zip", sha256=sha256(ZIP), member=HELM),
        "web",
        "helm.zip",
    ),
    Source("tool file", partial(tool, source="./helm", sha256=sha256(PROGRAM)), file="helm"),
    Source("tool in local tar", partial(tool, source="./helm.tgz", member=HELM), file="helm.tgz"),
    Source("trivy-db", partial(database, kind="trivy-db", tag="2"), "registry", "trivy-db"),
    Source(
        "trivy-java-db",
        partial(database, kind="trivy-java-db", tag="1"),
        "registry",
        "trivy-java-db",
    ),
    Source(
        "trivy-checks", partial(database, kind="trivy-checks", tag="1"), "registry", "trivy-checks"
    ),
    Source("file", partial(file, source="./helm"), file="helm"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture(params=[pytest.param(s, id=s.name) for s in SOURCES])
def source(request: pytest.FixtureRequest) -> Source:
    return cast("Source", request.param)


def server(world: World, source: Source) -> LoopbackServer:
    found: LoopbackServer = getattr(world, source.server)
    return found


def test_the_same_twice(world: World, source: Source) -> None:
    first = source.lock(world, world.upstream("one"))
    assert source.lock(world, world.upstream("two")) == first


def test_everything_below_the_root_is_locked(world: World, source: Source) -> None:
    upstream = world.upstream()
    locked = source.lock(world, upstream)
    blobs = {blob.digest: blob for blob in locked.blobs}
    assert len(blobs) == len(locked.blobs)
    waiting, seen = [locked.entry.root], set()
    while waiting:
        descriptor = waiting.pop()
        blob = blobs[str(descriptor.digest)]
        assert (blob.size, blob.media_type) == (descriptor.size, descriptor.media_type)
        seen.add(blob.digest)
        if descriptor.is_manifest:
            document = read_manifest(upstream.document(blob), blob.media_type, blob.digest)
            waiting.extend(document.children)
    kept = getattr(locked.entry, "index", "")
    assert seen | ({kept} if kept else set()) == blobs.keys()


def test_every_blob_can_be_had_again_from_any_byte(world: World, source: Source) -> None:
    locked = source.lock(world, world.upstream("of the lock"))
    elsewhere = world.upstream("of the build")
    for blob in locked.blobs:
        whole = b"".join(elsewhere.open(blob))
        assert (sha256(whole), len(whole)) == (blob.digest.removeprefix("sha256:"), blob.size)
        for start in {1, blob.size // 2, blob.size - 1, blob.size}:
            assert b"".join(elsewhere.open(blob, start)) == whole[start:], (blob, start)


@pytest.mark.parametrize("source", [pytest.param(s, id=s.name) for s in SOURCES if s.server])
def test_what_was_read_is_not_downloaded_again(world: World, source: Source) -> None:
    locked = source.lock(world, world.upstream())
    before = server(world, source).bytes_sent
    again = world.upstream()
    assert source.lock(world, again) == locked
    if source.name not in ("image", "index", "docker image"):
        for blob in locked.blobs:
            if "json" not in blob.media_type:
                assert b"".join(again.open(blob))
    assert server(world, source).bytes_sent - before < 20_000


def test_what_is_not_there_is_named(world: World, source: Source) -> None:
    if source.server:
        server(world, source).fail(source.path, status=404)
        with pytest.raises(NotFound, match="404") as caught:
            source.lock(world, world.upstream())
        assert source.path.strip("/") in caught.value.message
    else:
        (world.folder / "spec" / source.file).unlink()
        with pytest.raises(InvalidInput, match=source.file):
            source.lock(world, world.upstream())


def test_changed_content_is_refused_and_not_kept(world: World, source: Source) -> None:
    if source.server:
        server(world, source).fail(source.path, flip_at=40)
        with pytest.raises(AirgapError) as caught:
            source.lock(world, world.upstream())
        assert isinstance(caught.value, Corrupt | TransferFailed)
        server(world, source).faults.clear()
        source.lock(world, world.upstream())
        return
    before = source.lock(world, world.upstream())
    path = world.folder / "spec" / source.file
    path.write_bytes(path.read_bytes() + b"x")
    try:
        after = source.lock(world, world.upstream())
    except AirgapError:
        return  # another digest than the spec's, or no chart any more
    assert after != before
