"""The upstream is what a connected host finds: real clients get the charts and images from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import requests

from tests import programs
from tests.site import images
from tests.site.upstream import BUSYBOX, HARBOR, TRIVY_DB, Upstream

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.site


def test_every_image_that_both_charts_name_is_there(upstream: Upstream) -> None:
    wanted = {
        f"goharbor/{name}:v{version}" for version in HARBOR.values() for name in images.HARBOR
    }
    assert set(upstream.images) == wanted | {BUSYBOX, TRIVY_DB}
    assert len(set(upstream.images.values())) == len(upstream.images)
    for reference, digest in upstream.images.items():
        repository, tag = reference.split(":")
        response = requests.get(
            f"{upstream.registry.url}/v2/{repository}/manifests/{tag}",
            headers={"Accept": ", ".join(m for m, _, _ in images._TYPES.values())},
            timeout=10,
        )
        assert f"sha256:{hashlib.sha256(response.content).hexdigest()}" == digest
        assert response.headers["Content-Type"] == json.loads(response.content)["mediaType"]


@pytest.mark.parametrize("version", HARBOR)
def test_helm_pulls_a_chart(upstream: Upstream, tmp_path: Path, version: str) -> None:
    command = [str(programs.helm(4)), "pull", "harbor", "--repo", upstream.charts_url]
    subprocess.run([*command, "--version", version], cwd=tmp_path, check=True, capture_output=True)
    name = f"harbor-{version}.tgz"
    got = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert got == upstream.charts[name]


def test_the_newest_chart_is_first(upstream: Upstream, tmp_path: Path) -> None:
    command = [str(programs.helm(4)), "pull", "harbor", "--repo", upstream.charts_url]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["harbor-1.19.1.tgz"]
