"""What the real ``bundler`` makes of the shipped specs: the lock says everything, and only that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests import programs
from tests.site import images
from tests.site.connected import BundlerFailed, sha256
from tests.site.upstream import BUSYBOX, HARBOR, TRIVY_DB
from tests.upstream.trivy import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.site.connected import Connected, Made

pytestmark = pytest.mark.site

both = pytest.mark.parametrize(("name", "chart"), list(zip(("old", "new"), HARBOR, strict=True)))
EVERYWHERE = {"default", "nodeport", "metrics"}
WANTED = {
    "harbor-core": ("Deployment/harbor-core", {"containers[core]"}),
    "harbor-portal": ("Deployment/harbor-portal", {"containers[portal]"}),
    "harbor-jobservice": ("Deployment/harbor-jobservice", {"containers[jobservice]"}),
    "registry-photon": ("Deployment/harbor-registry", {"containers[registry]"}),
    "harbor-registryctl": ("Deployment/harbor-registry", {"containers[registryctl]"}),
    "trivy-adapter-photon": ("StatefulSet/harbor-trivy", {"containers[trivy]"}),
    "harbor-db": (
        "StatefulSet/harbor-database",
        {"containers[database]", "initContainers[data-permissions-ensurer]"},
    ),
    "redis-photon": ("StatefulSet/harbor-redis", {"containers[redis]"}),
    "nginx-photon": ("Deployment/harbor-nginx", {"containers[nginx]"}),
    "harbor-exporter": ("Deployment/harbor-exporter", {"containers[exporter]"}),
}
"""Where the published charts name each image: object and containers."""
ONLY = {"nginx-photon": {"nodeport"}, "harbor-exporter": {"metrics"}}
"""Images that a default rendering does not show."""


@both
def test_the_lock_has_the_ten_images_and_what_was_added(
    connected: Connected, bundles: Mapping[str, Made], name: str, chart: str
) -> None:
    upstream, locked = connected.upstream.images, bundles[name].digests()
    wanted = [f"goharbor/{image}:v{HARBOR[chart]}" for image in images.HARBOR]
    assert locked == {f"docker.io/{image}": upstream[image] for image in (*wanted, BUSYBOX)}


@both
def test_every_image_says_what_wants_it(bundles: Mapping[str, Made], name: str, chart: str) -> None:
    found = {one["reference"]: one["origins"] for one in bundles[name].lock["images"]}
    own = {"object": "BundleSpec/harbor", "field": "images"}
    (added,) = found[f"docker.io/{BUSYBOX}"]
    assert {key: value for key, value in added.items() if value} == own
    for image, (wanting, containers) in WANTED.items():
        origins = found[f"docker.io/goharbor/{image}:v{HARBOR[chart]}"]
        profiles = ONLY.get(image, EVERYWHERE)
        assert {(one["chart"], one["profile"], one["object"], one["field"]) for one in origins} == {
            ("harbor", profile, wanting, f"spec.template.spec.{container}.image")
            for profile in profiles
            for container in containers
        }
        assert len(origins) == len(profiles) * len(containers)


@both
def test_chart_tools_and_database_are_what_upstream_has(
    connected: Connected, bundles: Mapping[str, Made], name: str, chart: str
) -> None:
    lock = bundles[name].lock
    (locked,) = lock["charts"]
    assert (locked["name"], locked["version"]) == ("harbor", chart)
    assert locked["appVersion"] == HARBOR[chart]
    assert locked["sha256"] == connected.upstream.charts[f"harbor-{chart}.tgz"]
    assert set(locked["profiles"]) == EVERYWHERE
    assert {tool["name"]: tool["sha256"] for tool in lock["tools"]} == {
        "helm": sha256(programs.helm()),
        "kubectl": sha256(programs.kubectl()),
    }
    (database,) = lock["databases"]
    assert database["reference"] == f"ghcr.io/{TRIVY_DB}"
    assert database["digest"] == connected.upstream.images[TRIVY_DB]
    assert database["updatedAt"] == f"{PUBLISHED:%Y-%m-%dT%H:%M:%SZ}"


def test_serials_grow_with_every_release(bundles: Mapping[str, Made]) -> None:
    serials = [bundles[name].lock["serial"] for name in ("old", "new", "lacking")]
    assert serials == sorted(set(serials))
    assert [one.built["serial"] for one in bundles.values()] == serials


def test_a_profile_that_is_left_out_leaves_its_images_out(bundles: Mapping[str, Made]) -> None:
    def names(bundle: str) -> set[str]:
        return {re.sub(r".*/|:.*", "", one) for one in bundles[bundle].digests()}

    assert names("new") - names("lacking") == set(ONLY)


@pytest.mark.usefixtures("bundles")
def test_harbor_has_no_images_for_another_architecture(connected: Connected) -> None:
    spec, lock = connected.folder / "arm.yaml", connected.folder / "arm.lock"
    written = (connected.folder / "bundle.yaml").read_text()
    spec.write_text(written.replace("linux/amd64", "linux/arm64"))
    with pytest.raises(BundlerFailed, match="exit 2") as failed:
        connected.run(
            "lock", str(spec), f"--lock={lock}", f"--registry-config={connected.registries}"
        )
    missing = "goharbor/harbor-core:v2.15.1: is not built for linux/arm64, only for linux/amd64"
    assert missing in str(failed.value)
    assert "chart harbor, profile default: Deployment/harbor-core" in str(failed.value)
    assert not lock.exists()
