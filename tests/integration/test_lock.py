"""``bundler lock`` as a process, with the published charts, real Helm and a real registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from bundler.lock import read_lock
from installer.oci.graph import HELM_CHART, HELM_CONFIG
from installer.oci.reference import Reference
from tests.integration.test_discovery import CHARTS, EXPECTED, HARBOR
from tests.upstream import images
from tests.upstream.charts import StaticServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.servers import DockerRegistry

PROFILES = {
    "default": {},
    "nodeport": {"values": {"expose": {"type": "nodePort", "tls": {"enabled": False}}}},
    "metrics": {"values": {"metrics": {"enabled": True}}},
}
RELEASES = {"1.18.4": "v2.14.4", "1.19.1": "v2.15.1"}
COMPANIONS = {
    name.rpartition("-")[0]: (name.rpartition("-")[2], *EXPECTED[name]) for name in EXPECTED
}


def harbor_images(version: str) -> list[str]:
    return [f"docker.io/goharbor/{name}:{RELEASES[version]}" for name in HARBOR]


def put(url: str, name: str, tag: str, image: images.Image) -> None:
    """Push with plain requests, so that none of the product's code is involved."""
    with requests.Session() as session:
        for blob in image.blobs:
            begun = session.post(f"{url}/v2/{name}/blobs/uploads/")
            done = session.put(
                begun.headers["Location"], params={"digest": blob.digest}, data=blob.data
            )
            done.raise_for_status()
        for manifest, version in [*((m, m.digest) for m in image.manifests), (image.top, tag)]:
            done = session.put(
                f"{url}/v2/{name}/manifests/{version}",
                data=manifest.data,
                headers={"Content-Type": manifest.media_type},
            )
            done.raise_for_status()


class Builder:
    """A folder with a spec, in front of a registry and a chart repository."""

    def __init__(
        self, folder: Path, registry: DockerRegistry, web: StaticServer, helm: Path
    ) -> None:
        self.folder, self.registry, self.web, self.helm = folder, registry, web, helm
        self.images: dict[str, images.Image] = {}
        hosts = ("docker.io", "quay.io", "registry.k8s.io", "ghcr.io", "charts.example")
        config = {"registries": {host: {"endpoints": [registry.url]} for host in hosts}}
        settings = folder / "settings" / "harbor-airgap"
        settings.mkdir(parents=True)
        (settings / "registries.yaml").write_text(yaml.safe_dump(config))
        shutil.copyfile(helm, folder / "helm")
        self.spec: dict[str, Any] = {
            "apiVersion": "bundle/v1",
            "kind": "BundleSpec",
            "name": "harbor",
            "kubeVersion": "1.34.4",
            "profiles": dict(PROFILES),
            "tools": [{"name": "helm", "source": "./helm"}],
            "charts": [],
        }

    def publish(self, reference: str) -> None:
        made = images.image([images.layer(300, reference)])
        path, _, tag = reference.partition("/")[2].rpartition(":")
        put(self.registry.url, path, tag, made)
        self.images[reference] = made

    def harbor(self, version: str) -> None:
        self.spec["charts"].append(
            {
                "name": "harbor",
                "source": f"{self.web.url}/stable",
                "version": version,
                "profiles": list(PROFILES),
            }
        )

    def lock(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("lock", *options)

    def run(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "bundle.yaml").write_text(yaml.safe_dump(self.spec))
        command = "from bundler.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", command, verb, "bundle.yaml", *options],
            cwd=self.folder,
            env=os.environ
            | {
                "AIRGAP_CACHE_DIR": str(self.folder / "cache"),
                "XDG_CONFIG_HOME": str(self.folder / "settings"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def builder(tmp_path: Path, docker_registry: DockerRegistry, helm: Path) -> Iterator[Builder]:
    if not CHARTS.is_dir():
        pytest.skip(f"{CHARTS} is not there: set AIRGAP_SHARED to the folder with the charts")
    served = tmp_path / "served"
    served.mkdir()
    for path in CHARTS.glob("*.tgz"):
        shutil.copyfile(path, served / path.name)
    # Helm's own index: relative addresses, its digests.
    run_helm(helm, tmp_path, "repo", "index", str(served))
    (tmp_path / "builder").mkdir()
    with StaticServer() as web:
        web.files = {f"stable/{path.name}": path.read_bytes() for path in served.iterdir()}
        yield Builder(tmp_path / "builder", docker_registry, web, helm)


def run_helm(helm: Path, home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [helm, *arguments],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("version", RELEASES)
def test_harbors_ten_images(builder: Builder, version: str) -> None:
    for reference in harbor_images(version):
        builder.publish(reference)
    builder.harbor(version)
    done = builder.lock("--output", "json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["images"] == {name: image.digest for name, image in builder.images.items()}
    assert (said["changed"], said["changes"]) == (True, [])
    lock = read_lock(builder.folder / "bundle.lock")
    assert lock.charts[0].app_version == RELEASES[version].removeprefix("v")
    profiles = {
        image.reference.rpartition("/")[2].partition(":")[0]: {o.profile for o in image.origins}
        for image in lock.images
    }
    assert profiles["harbor-exporter"] == {"metrics"}
    assert profiles["nginx-photon"] == {"nodeport"}
    assert all(
        found == set(PROFILES)
        for name, found in profiles.items()
        if name not in ("harbor-exporter", "nginx-photon")
    )


def test_with_companions_from_a_registry_and_a_file(builder: Builder) -> None:
    expected = harbor_images("1.19.1")
    builder.harbor("1.19.1")
    for name, (version, values, found) in COMPANIONS.items():
        path = CHARTS / f"{name}-{version}.tgz"
        builder.spec["profiles"][name] = {"values": values}
        chart = {"name": name, "profiles": [name], "source": str(path)}
        if name == "cert-manager":
            target = f"oci://{builder.registry.host}/charts"
            run_helm(builder.helm, builder.folder, "push", str(path), target, "--plain-http")
            chart |= {"source": "oci://charts.example/charts/cert-manager", "version": version}
        builder.spec["charts"].append(chart)
        expected += found
    for reference in expected:
        builder.publish(reference)
    done = builder.lock()
    assert done.returncode == 0, done.stderr
    lock = read_lock(builder.folder / "bundle.lock")
    assert [image.reference for image in lock.images] == sorted(expected)
    for reference in expected:
        assert reference in done.stdout
    # The file stays as it is when nothing changed, and says what did.
    before = (builder.folder / "bundle.lock").read_bytes()
    again = builder.lock()
    assert "unchanged" in again.stdout
    assert (builder.folder / "bundle.lock").read_bytes() == before
    moved = expected[0]
    repository, _, tag = moved.partition("/")[2].rpartition(":")
    put(builder.registry.url, repository, tag, images.image([images.layer(300, "moved")]))
    changed = json.loads(builder.lock("--output", "json").stdout)
    place = Reference.parse(moved).repository
    assert [(c["change"], c["name"]) for c in changed["changes"]] == [("changed", place)]
    assert changed["serial"] > lock.serial


def test_what_upstream_has_by_now_is_told(builder: Builder) -> None:
    expected = sorted(harbor_images("1.18.4"))
    for reference in expected:
        builder.publish(reference)
    builder.harbor("1.18.4")
    assert builder.lock().returncode == 0
    before = (builder.folder / "bundle.lock").read_bytes()
    said = json.loads(builder.run("outdated", "--output=json").stdout)
    assert said == {
        "newer": [{"chart": "harbor", "version": "1.18.4", "newest": "1.19.1"}],
        "changes": [],
    }
    repository, _, tag = expected[0].partition("/")[2].rpartition(":")
    put(builder.registry.url, repository, tag, images.image([images.layer(300, "moved")]))
    table = builder.run("outdated")
    assert table.returncode == 0, table.stderr
    assert "1.19.1" in table.stdout
    assert repository in table.stdout
    assert (builder.folder / "bundle.lock").read_bytes() == before


def test_the_shipped_platform_has_all_images_of_its_three_charts(builder: Builder) -> None:
    shipped = resources.files("manifests") / "bundles" / "harbor-platform.yaml"
    builder.spec = yaml.safe_load(shipped.read_text())
    charts = {chart["name"]: chart for chart in builder.spec["charts"]}
    assert list(charts) == ["harbor", "cert-manager", "csi-driver-nfs"]
    for chart in charts.values():
        assert chart["source"].startswith("https://")
        chart["source"] = f"{builder.web.url}/stable"
    builder.spec["tools"] = [{"name": "helm", "source": "./helm"}]
    builder.spec["databases"] = []
    expected = harbor_images("1.19.1")
    for name in ("cert-manager", "csi-driver-nfs"):
        version, _, found = COMPANIONS[name]
        assert charts[name]["version"] == version
        expected += found
    for reference in expected:
        builder.publish(reference)
    done = builder.lock()
    assert done.returncode == 0, done.stderr
    lock = read_lock(builder.folder / "bundle.lock")
    assert [image.reference for image in lock.images] == sorted(expected)
    origins = {image.reference.rpartition("/")[2]: image.origins for image in lock.images}
    # No container of the chart's runs it: cert-manager is told of it in an argument.
    (solver,) = origins["cert-manager-acmesolver:v1.21.1"]
    assert (solver.chart, solver.profile) == ("cert-manager", "cert-manager")
    assert "args" in str(solver)
    profiles = {one.profile for one in origins["snapshot-controller:v8.6.0"]}
    assert profiles == {"nfs-snapshots"}
    assert {one.profile for one in origins["nfsplugin:v4.13.4"]} == {
        "csi-driver-nfs", "nfs-snapshots",
    }  # fmt: skip


def test_charts_are_packed_as_helm_pushes_them(builder: Builder) -> None:
    for reference in harbor_images("1.18.4"):
        builder.publish(reference)
    builder.harbor("1.18.4")
    done = builder.lock()
    assert done.returncode == 0, done.stderr
    target = f"oci://{builder.registry.host}/charts"
    path = str(CHARTS / "harbor-1.18.4.tgz")
    run_helm(builder.helm, builder.folder, "push", path, target, "--plain-http")
    pushed = requests.get(
        f"{builder.registry.url}/v2/charts/harbor/manifests/1.18.4",
        headers={"Accept": images.OCI_MANIFEST},
        timeout=10,
    ).json()
    lock = read_lock(builder.folder / "bundle.lock")
    blobs = {blob.digest: blob for blob in lock.blobs}
    manifest = json.loads(blobs[lock.charts[0].digest].text or "")
    assert manifest["config"] == pushed["config"]
    assert manifest["layers"] == pushed["layers"]
    assert manifest["config"]["mediaType"] == HELM_CONFIG
    assert manifest["layers"][0]["mediaType"] == HELM_CHART


def test_a_missing_image_is_told_with_chart_profile_and_field(builder: Builder) -> None:
    for reference in harbor_images("1.18.4"):
        if "exporter" not in reference:
            builder.publish(reference)
    builder.harbor("1.18.4")
    done = builder.lock()
    assert done.returncode == 6
    assert "docker.io/goharbor/harbor-exporter:v2.14.4" in done.stderr
    assert "for chart harbor, profile metrics: Deployment/harbor-exporter spec" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (builder.folder / "bundle.lock").exists()
    assert list(builder.folder.glob(".bundle*")) == []


def test_wrong_values_end_with_two(builder: Builder) -> None:
    builder.harbor("1.18.4")
    builder.spec["profiles"]["metrics"] = {"values": {"metrics": {"enabled": True}, "expose": 1}}
    done = builder.lock()
    assert done.returncode == 2, done.stderr
    assert "profile 'metrics'" in done.stderr
    assert "Traceback" not in done.stderr
