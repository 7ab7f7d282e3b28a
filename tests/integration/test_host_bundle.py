"""Harbor hosts what the bundle carries: a real registry is filled, and real Helm pulls from it.

What Harbor's API is asked for is one project; here something answers that notes it.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.bundle.trust import TrustAnchor
from installer.deploy.deployment import hosting
from installer.deploy.harbor_access import HarborAccess
from installer.deploy.request import Request
from installer.site.harbor import Harbor, HostBundle
from installer.site.model import Cluster, Release, Seed, Site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.integration.servers import run
from tests.upstream.charts import CHART_NAME, chart, chart_artefact
from tests.upstream.images import image, layer
from tests.upstream.trivy import database

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.integration.servers import DockerRegistry

CHART = chart("1.2.3", "v1.2.3")


class Projects:
    """As much of Harbor's API as makes a project."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def exists(self, path: str, query: dict[str, str]) -> bool:
        assert path == "/projects"
        return any(query["project_name"] == one["project_name"] for one in self.made)

    def post(self, path: str, document: Any) -> None:
        assert path == "/projects"
        self.made.append(document)


def test_images_charts_and_databases_are_in_the_project(
    docker_registry: DockerRegistry,
    helm: Path,
    skopeo: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    projects = Projects()
    access = HarborAccess(docker_registry.url)
    monkeypatch.setattr("installer.deploy.host_bundle.access_to", lambda *_: access)
    monkeypatch.setattr(HarborAccess, "client", lambda _: nullcontext(projects))
    app = image([layer(20_000, "app")])
    path, pem = make_bundle(
        tmp_path / "b.tar",
        {"docker.io/goharbor/app:v1": app},
        charts={"harbor:1.2.3": chart_artefact(CHART, "1.2.3", "v1.2.3")},
        databases={"ghcr.io/aquasecurity/trivy-db:2": database(size=20_000)},
    )
    harbor = Harbor(docker_registry.url, host_bundle=HostBundle("airgap", public=False))
    site = Site("site/v1", "Site", "s", Cluster("k"), Seed(), (Release("harbor", harbor=harbor),))
    with open_bundle(path, pem) as bundle:
        (step,) = hosting(
            Request(bundle, site, State(tmp_path / "state"), TrustAnchor(pem, "k.pub"), ())
        )
        assert not step.check()
        assert "helm pull oci://" in step.apply()
        assert step.check()
        step.apply()
    assert projects.made == [{"project_name": "airgap", "metadata": {"public": "false"}}]
    where = f"{docker_registry.host}/airgap"
    for name in ("goharbor/app:v1", "aquasecurity/trivy-db:2"):
        skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{where}/{name}")
    chart_at = f"oci://{where}/charts/harbor"
    run(helm, "pull", chart_at, "--version=1.2.3", "--plain-http", f"--destination={tmp_path}")
    assert (tmp_path / "harbor-1.2.3.tgz").read_bytes() == CHART


def test_nothing_is_hosted_unless_asked_for(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "b.tar", {})
    harbor = Harbor("https://harbor.invalid")
    site = Site("site/v1", "Site", "s", Cluster("k"), Seed(), (Release("harbor", harbor=harbor),))
    with open_bundle(path, pem) as bundle:
        assert (
            hosting(Request(bundle, site, State(tmp_path / "state"), TrustAnchor(pem, "k.pub"), ()))
            == []
        )


def test_a_chart_of_ones_own_is_pushed_and_pulled_by_helm(
    docker_registry: DockerRegistry, helm: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.tgz").write_bytes(CHART)
    installer = Path(sys.executable).with_name("installer")
    where = f"{docker_registry.host}/team"
    run(installer, "image", "push", tmp_path / "own.tgz", f"--project={where}", "--plain-http")
    (tmp_path / "pulled").mkdir()
    pull = ("pull", f"oci://{where}/{CHART_NAME}", "--version=1.2.3", "--plain-http")
    run(helm, *pull, f"--destination={tmp_path}/pulled")
    assert (tmp_path / "pulled" / f"{CHART_NAME}-1.2.3.tgz").read_bytes() == CHART
