"""What is measured with: ten images, a database and a chart, as Harbor's are in size and number.

An image has three to five layers, two of which all images share; content is incompressible, as
layers are once they are gzipped. 1,584 MB are unique at scale 1, and 2,069 MB when every image is
stored on its own. The chart is Harbor's own if the shared input data are there, else a small one.
"""

from __future__ import annotations

import http.client
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import yaml

from tests.upstream import charts, trivy
from tests.upstream.images import image, layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.upstream.images import Content, Image

SIZE = 1_584_000_000
"""Bytes that are unique at scale 1."""
_SHARED = (34_000_000, 20_000_000)
_OWN = 147_800_000  # of each image, in one to three layers
_DATABASE = 50 << 20
_IMAGES = 10
_TAG = "v1"
_HARBOR = "harbor-1.19.1.tgz"


@dataclass(frozen=True)
class Item:
    """Something that is carried, by its place in the upstream registry."""

    repository: str
    tag: str
    digests: frozenset[str]
    """Of everything below it, itself included."""

    @property
    def reference(self) -> str:
        """Repository and tag."""
        return f"{self.repository}:{self.tag}"

    @property
    def name(self) -> str:
        """What it is called in an image layout."""
        return self.repository.replace("/", "-")


@dataclass(frozen=True)
class Workload:
    """All of it: what was published, how much it is, and the chart as a file."""

    images: tuple[Item, ...]
    database: Item | None
    chart: Item | None
    chart_file: Path
    unique: int

    @property
    def items(self) -> tuple[Item, ...]:
        """Images, database and chart."""
        return (*self.images, *filter(None, (self.database, self.chart)))


def publish(url: str, folder: Path, scale: float, name: str = "bench") -> Workload:
    """Make the work load and push it into a registry as ``name``; ``folder`` takes the chart."""
    data, version = _chart()
    chart_file = folder / "chart.tgz"
    chart_file.write_bytes(data)
    sizes: dict[str, int] = {}
    registry = _Registry(url)

    def put(repository: str, tag: str, item: Image) -> Item:
        registry.put(repository, tag, item)
        sizes.update((content.digest, len(content.data)) for content in item.everything)
        return Item(repository, tag, frozenset(content.digest for content in item.everything))

    images = tuple(put(path, _TAG, made) for path, made in _images(scale, name))
    database = trivy.database(size=int(_DATABASE * scale))
    carried = put(f"{name}/trivy-db", "2", database)
    chart = put(f"{name}/chart", version, charts.chart_artefact(data, version, "v1.0.0"))
    registry.close()
    return Workload(images, carried, chart, chart_file, sum(sizes.values()))


def write_spec(workload: Workload, folder: Path, url: str) -> tuple[Path, Path]:
    """Write ``bundle.yaml`` and ``registries.yaml`` for it.

    The chart goes as a file: as a chart it would be rendered, which is not what is measured.
    """
    spec = folder / "bundle.yaml"
    document = {
        "apiVersion": "bundle/v1",
        "kind": "BundleSpec",
        "name": "bench",
        "images": [f"docker.io/{item.reference}" for item in workload.images],
        "databases": [
            {"kind": "trivy-db", "source": f"docker.io/{item.reference}"}
            for item in filter(None, [workload.database])
        ],
        "files": [{"name": workload.chart_file.name, "source": f"./{workload.chart_file.name}"}],
    }
    spec.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    registries = folder / "registries.yaml"
    hosts = {"registries": {"docker.io": {"endpoints": [url]}}}
    registries.write_text(yaml.safe_dump(hosts), encoding="utf-8")
    return spec, registries


def publish_small(url: str, folder: Path, count: int) -> Workload:
    """Many images of three layers of 20 kB each, where requests count rather than bytes."""
    (folder / "chart.tgz").write_bytes(charts.chart())
    registry, sizes, items = _Registry(url), dict[str, int](), []
    for number in range(count):
        made = image([layer(20_000, f"small-{number}-{at}") for at in range(3)])
        repository = f"small/image-{number}"
        registry.put(repository, _TAG, made)
        sizes.update((content.digest, len(content.data)) for content in made.everything)
        items.append(Item(repository, _TAG, frozenset(c.digest for c in made.everything)))
    registry.close()
    return Workload(tuple(items), None, None, folder / "chart.tgz", sum(sizes.values()))


def push_again(url: str, workload: Workload, scale: float) -> int:
    """Push the first image's tag again with one other layer; gives the bytes that are new."""
    shared = [layer(int(size * scale), f"shared-{at}") for at, size in enumerate(_SHARED)]
    changed = layer(int(26_200_000 * scale), "pushed again")
    own = layer(int(_OWN * scale), "image-0-0")
    made = image([*shared, own, changed])
    registry = _Registry(url)
    registry.put(workload.images[0].repository, _TAG, made)
    registry.close()
    return len(changed.content.data) + len(made.top.data) + len(made.blobs[0].data)


def _images(scale: float, name: str) -> Iterator[tuple[str, Image]]:
    salt = "" if name == "bench" else f"{name}-"
    shared = [layer(int(size * scale), f"{salt}shared-{at}") for at, size in enumerate(_SHARED)]
    for number in range(_IMAGES):
        count = 1 + number % 3
        size = int(_OWN * scale) // count
        own = [layer(size, f"{salt}image-{number}-{at}") for at in range(count)]
        yield f"{name}/image-{number}", image([*shared, *own])


def _chart() -> tuple[bytes, str]:
    shared = os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[2] / "../shared"
    path = Path(shared) / "charts" / _HARBOR
    if path.is_file():
        return path.read_bytes(), _HARBOR.removeprefix("harbor-").removesuffix(".tgz")
    return charts.chart(), "1.2.3"


class _Registry:
    """As much of a registry client as pushing needs, without any of the product's code."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def close(self) -> None:
        self._connection.close()

    def put(self, repository: str, tag: str, item: Image) -> None:
        for blob in item.blobs:
            if self._send("HEAD", f"/v2/{repository}/blobs/{blob.digest}", (200, 404)) == "":
                location = self._send("POST", f"/v2/{repository}/blobs/uploads/", (202,))
                place = urlsplit(location)
                query = urlencode({"digest": blob.digest})
                self._send("PUT", f"{place.path}?{place.query}&{query}", (201,), blob)
        self._send("PUT", f"/v2/{repository}/manifests/{tag}", (201,), item.top)

    def _send(
        self, method: str, path: str, accepted: tuple[int, ...], content: Content | None = None
    ) -> str:
        """Send a request and give Location, or the digest of what was asked for, or nothing."""
        body = content.data if content else b""
        headers = {"Content-Type": content.media_type} if content else {}
        self._connection.request(method, path, body or None, headers)
        answer = self._connection.getresponse()
        text = answer.read(1000)
        if answer.status not in accepted:
            raise RuntimeError(f"{method} {path}: HTTP {answer.status}: {text!r}")
        found = answer.getheader("Location") or answer.getheader("Docker-Content-Digest")
        return found or "" if answer.status != 404 else ""
