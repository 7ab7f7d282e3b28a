"""Objects of the published Harbor charts, rendered from two bundles with the Helm in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bundler.difference import changes
from bundler.rendered_difference import rendered_changes
from installer.errors import InvalidInput
from installer.helm.chart import ChartArchive
from tests.bundles import make_bundle, open_bundle, signing_key
from tests.integration.test_discovery import chart as chart_file
from tests.unit.test_cli import run
from tests.upstream import images

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from installer.bundle.archive import VerifiedBundle

HELM_CONFIG = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def carrying(
    path: Path, version: str, helm: Path | None, key: ec.EllipticCurvePrivateKey | None = None
) -> VerifiedBundle:
    data = chart_file(f"harbor-{version}").read_bytes()
    config = json.dumps(ChartArchive.read(data, "harbor").metadata, default=str).encode()
    chart = images.artefact(images.Content(HELM_CONFIG, config), [images.Content(HELM_CHART, data)])
    tools = {}
    if helm is not None:
        octets = images.Content("application/octet-stream", helm.read_bytes())
        tools["helm"] = images.artefact(images.Content(images.OCI_EMPTY, b"{}"), [octets])
    made, pem = make_bundle(
        path,
        {},
        charts={f"harbor:{version}": chart},
        tools=tools,
        profiles=["default"],
        key=key,
    )
    path.with_suffix(".pub").write_bytes(pem)
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


def test_the_command_says_which_objects_differ(tmp_path: Path, helm: Path) -> None:
    key = signing_key()
    carrying(tmp_path / "old.tar", "1.18.4", None, key).close()
    carrying(tmp_path / "new.tar", "1.19.1", helm, key).close()
    diff = ("diff", "old.tar", "new.tar", "--key", "new.pub")
    plain = run("bundler", *diff, "--output=json", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "objects" not in json.loads(plain.stdout)
    told = run("bundler", *diff, "--objects", "--output=json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    (one,) = json.loads(told.stdout)["objects"]
    assert (one["chart"], one["profile"]) == ("harbor", "default")
    shown = run("bundler", *diff, "--objects", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "objects of chart harbor, profile default" in shown.stdout
    assert f"others at each rendering, not compared: {', '.join(one['random'])}" in shown.stdout
    assert all(name in shown.stdout for name in one["changed"])
    back = run("bundler", "diff", "new.tar", "old.tar", "--key=new.pub", "--objects", cwd=tmp_path)
    assert back.returncode == 2
    assert "has no Helm" in back.stderr
