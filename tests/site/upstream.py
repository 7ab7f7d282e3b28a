"""The connected side's upstream, on loopback: a registry with Harbor's images, a chart repository.

The images are the stand-ins under the names and tags that the published charts ask for. Harbor
2.14's are pushed in Docker's media types, as they are on Docker Hub, 2.15's in OCI's, so that
both are carried and deployed. The charts are the published ones, as they are. One registry stands
for Docker Hub and for ghcr.io, where Trivy's database is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.site import images
from tests.site.registry import Registry
from tests.upstream.trivy import database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.upstream.images import Image as Artefact

HARBOR = {"1.18.4": "2.14.4", "1.19.1": "2.15.1"}
"""Version of the chart, and of Harbor (its images' tag without the v)."""
_FLAVOURS: dict[str, images.Flavour] = {"2.14.4": "docker", "2.15.1": "oci"}
BUSYBOX = "library/busybox:1.36"
TRIVY_DB = "aquasecurity/trivy-db:2"


def shared_charts() -> Path | None:
    """Folder of the published charts: ``AIRGAP_SHARED`` or ``../shared``; None without them."""
    checkout = Path(__file__).parents[2]
    folder = Path(os.environ.get("AIRGAP_SHARED") or checkout.parent / "shared") / "charts"
    return folder if all((folder / f"harbor-{v}.tgz").is_file() for v in HARBOR) else None


class Upstream:
    """A running upstream; a context manager.

    ``registry`` is a ``docker-registry`` (its ``host`` is 127.0.0.1:PORT), ``charts_url`` the chart
    repository, ``images`` the digest of every repository:tag, ``charts`` the sha256 (hex) of every
    chart's file by its name.
    """

    def __init__(self, folder: Path, charts: Path) -> None:
        """Start and fill it; takes seconds, or a minute when Go has to build the stand-ins."""
        self.registry = Registry(folder / "registry")
        try:
            self.images = dict(self._push_all())
            repository = folder / "charts"
            self.charts = write_repository(repository, sorted(charts.glob("*.tgz")))
            self._server = _ChartServer(repository)
        except BaseException:
            self.registry.close()
            raise
        self.charts_url = self._server.url

    def _push_all(self) -> list[tuple[str, str]]:
        content = {BUSYBOX: images.busybox(), TRIVY_DB: _pushable(database())}
        for version in HARBOR.values():
            for name in images.HARBOR:
                tag = f"v{version}"
                content[f"goharbor/{name}:{tag}"] = images.harbor(name, tag, _FLAVOURS[version])
        pushed = []
        for reference, image in content.items():
            repository, tag = reference.split(":")
            digest = images.push_image(self.registry.url, repository, tag, image)
            pushed.append((reference, digest))
        return pushed

    def push(self, reference: str, image: images.Image) -> str:
        """Put one more image there (``repository:tag``), and give its digest.

        The registry stands for every host that the connected side is told to find there.
        """
        repository, tag = reference.split(":")
        return images.push_image(self.registry.url, repository, tag, image)

    def close(self) -> None:
        self._server.close()
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pushable(artefact: Artefact) -> images.Image:
    """Give the shared maker's artefact as this tier pushes it; its layers are no file systems."""
    config, *layers = artefact.blobs
    return images.Image(
        artefact.top.data,
        artefact.top.media_type,
        config.data,
        tuple(images.Layer(layer.data, diff_id="") for layer in layers),
    )


def write_repository(folder: Path, charts: Sequence[Path]) -> dict[str, str]:
    """Write a static chart repository as ``helm repo index`` does; sha256 (hex) by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, list[dict[str, Any]]] = {}
    digests = {}
    for chart in charts:
        shutil.copyfile(chart, folder / chart.name)
        digests[chart.name] = hashlib.sha256(chart.read_bytes()).hexdigest()
        described = _chart_yaml(chart)
        described |= {
            "created": "2026-01-01T00:00:00Z",
            "digest": digests[chart.name],
            "urls": [chart.name],
        }
        entries.setdefault(described["name"], []).append(described)
    for versions in entries.values():
        versions.sort(key=lambda one: _version_key(one["version"]), reverse=True)
    index = {"apiVersion": "v1", "entries": entries, "generated": "2026-01-01T00:00:00Z"}
    (folder / "index.yaml").write_text(yaml.safe_dump(index))
    return digests


def _chart_yaml(chart: Path) -> dict[str, Any]:
    with tarfile.open(chart) as tar:
        for member in tar:
            if member.name.count("/") == 1 and member.name.endswith("/Chart.yaml"):
                file = tar.extractfile(member)
                if file is not None:
                    loaded: dict[str, Any] = yaml.safe_load(file)
                    return loaded
    raise ValueError(f"{chart} has no Chart.yaml")


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.removeprefix("v").split("."))


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the parent's name
        """Keep quiet."""


class _ChartServer(ThreadingHTTPServer):
    daemon_threads = False  # so that close waits for the last answer and no socket is left open

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
