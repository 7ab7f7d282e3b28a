"""Objects of the published Harbor charts, rendered from two bundles with the Helm in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bundler.difference import changes
from bundler.rendered_difference import rendered_changes
from installer.errors import InvalidInput
from installer.helm.chart import ChartArchive
from tests.bundles import make_bundle, open_bundle
from tests.integration.test_discovery import CHARTS
from tests.upstream import images

if TYPE_CHECKING:
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle

HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def carrying(path: Path, version: str, helm: Path | None) -> VerifiedBundle:
    data = (CHARTS / f"harbor-{version}.tgz").read_bytes()
    config = json.dumps(ChartArchive.read(data, "harbor").metadata, default=str).encode()
    chart = images.artefact(images.Content(HELM_CONFIG, config), [images.Content(HELM_CHART, data)])
    tools = {}
    if helm is not None:
        octets = images.Content("application/octet-stream", helm.read_bytes())
        tools["helm"] = images.artefact(images.Content(images.OCI_EMPTY, b"{}"), [octets])
    made, pem = make_bundle(
        path, {}, charts={f"harbor:{version}": chart}, tools=tools, profiles=["default"]
    )
    return open_bundle(made, pem)


def test_what_an_upgrade_of_harbor_changes(tmp_path: Path, helm: Path) -> None:
    old = carrying(tmp_path / "old.tar", "1.18.4", None)
    new = carrying(tmp_path / "new.tar", "1.19.1", helm)
    with old, new:
        found = [c for c in changes(old.manifest, new.manifest) if c.kind == "chart"]
        (one,) = rendered_changes(old, new, found)
        assert one.profile == "default"
        assert any(name.startswith("Deployment/") for name in one.changed)
        assert any(name.startswith("Secret/") for name in one.random)
        assert not set(one.changed) & set(one.random)
        with pytest.raises(InvalidInput, match="has no Helm"):
            rendered_changes(new, old, found)
