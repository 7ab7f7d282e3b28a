"""All of the upstream at once: registries, chart repository, and the two files that point at them.

    with Upstream(folder) as upstream:
        ...  # bundler build upstream.spec --registry-config upstream.registries

One server stands for docker.io, another for ghcr.io. The images are those of the chart, so that
what a bundle has to contain is known (``expected``).

``python -m tests.upstream FOLDER`` serves it until Ctrl-C.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests import programs
from tests.upstream import charts, trivy
from tests.upstream.images import (
    OCI_EMPTY,
    Content,
    Image,
    artefact,
    image,
    index,
    layer,
)
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

EXTRA_IMAGE = "docker.io/library/toolbox:1.36"
COSIGN_SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
SBOM = "application/spdx+json"
_MEGABYTE = 1_000_000
_SIZES = {  # megabytes of an image's own layers; the shared ones come on top
    "demo/core": (9, 3),
    "demo/jobservice": (6,),
    "demo/registry-photon": (7,),
    "demo/registryctl": (4,),
    "demo/trivy-adapter": (8, 2),
    "demo/db": (7,),
    "demo/nginx": (2,),
    "demo/exporter": (2,),
}
_SMALL = 0.02
_SHARED = 4


class Upstream:
    """Everything that a bundle is built from, on loopback, in a ``with`` statement.

    ``scale`` multiplies all sizes (1 is about 60 MB). ``helm`` copies Helm 4 beside the spec and
    names it as a tool; it raises programs.ProgramMissing if there is none. ``updated`` is the age
    of Trivy's database: by default it is an hour old.

    ``spec`` and ``registries`` are the paths of ``bundle.yaml`` and ``registries.yaml``;
    ``docker_io``, ``ghcr_io`` and ``chart_repository`` the servers, with their logs and faults;
    ``images`` what was published, by reference.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scale: float = 1,
        helm: bool = True,
        updated: dt.datetime | None = None,
        version: str = "1.2.3",
    ) -> None:
        self.folder = folder
        self.spec = folder / "bundle.yaml"
        self.registries = folder / "registries.yaml"
        self.docker_io = Registry()
        self.ghcr_io = Registry()
        self.chart_repository = charts.ChartRepository()
        self.images: dict[str, Image] = {}
        self.version = version
        self._scale = scale
        self._helm = helm
        hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        self._updated = updated or hour_ago.replace(microsecond=0)
        self._stack = ExitStack()

    def expected(self, *profiles: str) -> set[str]:
        """References that a bundle with these profiles (default: all) has to contain."""
        return charts.images_of(f"v{self.version}", profiles or charts.PROFILES) | {EXTRA_IMAGE}

    def publish(self, reference: str, item: Image) -> None:
        """Put an image where its reference says."""
        name, _, tag = reference.rpartition(":")
        host, _, path = name.partition("/")
        registry = {"docker.io": self.docker_io, "ghcr.io": self.ghcr_io}[host]
        registry.put(path, tag, item)
        self.images[reference] = item

    def release(self, version: str, *, changed: tuple[str, ...] = ()) -> None:
        """Publish the chart and its images under this version.

        Images keep their layers from version to version, but for those whose repository is in
        ``changed`` (``demo/core``): their last layer is a new one.
        """
        tag = f"v{version}"
        for component in charts.COMPONENTS:
            path = component.reference.partition("/")[2]
            seed = version if path in changed else ""
            self.publish(f"{component.reference}:{tag}", self._image(path, seed))
        self.chart_repository.add(charts.chart(version, tag), version, tag)
        self._sign(f"docker.io/demo/core:{tag}")

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for server in (self.docker_io, self.ghcr_io, self.chart_repository):
                started.enter_context(server)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.release(self.version)
            small = layer(self._bytes(_SMALL), "toolbox")
            self.publish(EXTRA_IMAGE, image([small], config={"Cmd": ["/bin/sh"]}))
            database = trivy.database(size=self._bytes(_SHARED), updated=self._updated)
            self.publish("ghcr.io/aquasecurity/trivy-db:2", database)
            self._write()
            self._stack = started.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _bytes(self, megabytes: float) -> int:
        return max(1, int(megabytes * _MEGABYTE * self._scale))

    def _image(self, path: str, seed: str) -> Image:
        """Make one of the chart's images; they differ in what real ones differ in."""
        docker = path == "demo/registryctl"
        if path not in _SIZES:
            return image([layer(self._bytes(_SMALL), path + seed)])
        base = layer(self._bytes(_SHARED), "base", docker=docker)
        *common, last = _SIZES[path]
        own = [layer(self._bytes(size), f"{path}-{size}", docker=docker) for size in common]
        own.append(
            layer(self._bytes(last), path + seed, text=path == "demo/trivy-adapter", docker=docker)
        )
        start = {"Entrypoint": [f"/{path}"], "Env": ["PATH=/usr/bin:/bin"]}
        made = image([base, *own], docker=docker, config=start)
        if path != "demo/nginx":
            return made
        # The other platform has nothing in common but its name.
        other = image([layer(self._bytes(last), f"{path}-arm64")], platform="linux/arm64/v8")
        return index([made, other])

    def _sign(self, reference: str) -> None:
        """Attach what others do: a cosign signature by its tag, an SBOM as a referrer."""
        subject = self.images[reference].top
        repository = reference.rpartition(":")[0]
        empty = Content(OCI_EMPTY, b"{}")
        payload = Content(COSIGN_SIGNATURE, b'{"critical":{"type":"demo"}}')
        tag = subject.digest.replace(":", "-") + ".sig"
        self.publish(f"{repository}:{tag}", artefact(empty, [payload]))
        sbom = artefact(
            empty,
            [Content(SBOM, b'{"spdxVersion":"SPDX-2.3"}')],
            artifact_type=SBOM,
            subject=subject,
        )
        self.docker_io.put(repository.partition("/")[2], None, sbom)

    def _write(self) -> None:
        hosts = {"docker.io": self.docker_io, "ghcr.io": self.ghcr_io}
        endpoints = {host: {"endpoints": [server.url]} for host, server in hosts.items()}
        self.registries.write_text(yaml.safe_dump({"registries": endpoints}), encoding="utf-8")
        runbook = self.folder / "runbook.txt"
        runbook.write_text("Carry it, check it, run it.\n", encoding="utf-8")
        spec: dict[str, Any] = {
            "apiVersion": "bundle/v1",
            "kind": "BundleSpec",
            "name": "demo",
            "channel": "stable",
            "platforms": ["linux/amd64"],
            "charts": [
                {
                    "name": charts.CHART_NAME,
                    "source": self.chart_repository.url,
                    "version": self.version,
                    "profiles": list(charts.PROFILES),
                }
            ],
            "profiles": {
                name: {"values": values} if values else {}
                for name, values in charts.PROFILES.items()
            },
            "images": [EXTRA_IMAGE],
            "tools": [],
            "databases": [{"kind": "trivy-db", "source": "ghcr.io/aquasecurity/trivy-db:2"}],
            "files": [{"name": runbook.name, "source": f"./{runbook.name}"}],
        }
        if self._helm:
            shutil.copyfile(programs.helm(4), self.folder / "helm")
            (self.folder / "helm").chmod(0o755)
            with (self.folder / "helm").open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            spec["tools"].append({"name": "helm", "source": "./helm", "sha256": digest})
        self.spec.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
