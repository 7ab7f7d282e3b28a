"""Steps of a run against real programs: Helm on the published charts, the seed, a registry."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from installer.bundle.trust import TrustAnchor
from installer.cli.render import without_secrets
from installer.deploy import daemon
from installer.deploy.check import RunningImages
from installer.deploy.cluster import ClusterInfo
from installer.deploy.context import Context
from installer.deploy.push import PushBundle
from installer.deploy.release import HelmRelease, _htpasswd
from installer.deploy.seed import ServeBundle
from installer.deploy.tools import Toolbox
from installer.errors import InvalidInput, PreflightFailed
from installer.helm.images import find_images
from installer.site import credentials
from installer.site.harbor import Harbor
from installer.site.model import Cluster, Push, Release, Seed, Serve, Site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.integration.test_run_process import ApiServer
from tests.upstream.charts import chart_artefact
from tests.upstream.images import Content, Image, artefact, image, layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration import servers

SHARED = Path(os.environ.get("AIRGAP_SHARED") or Path(__file__).parents[3] / "shared")
INSTALLER = (sys.executable, str(Path(sys.executable).with_name("installer")))
HARBOR = {"1.18.4": "v2.14.4", "1.19.1": "v2.15.1"}
NAMES = (
    "nginx-photon",
    "harbor-portal",
    "harbor-core",
    "harbor-jobservice",
    "registry-photon",
    "harbor-registryctl",
    "trivy-adapter-photon",
    "harbor-db",
    "redis-photon",
    "harbor-exporter",
)
CLUSTER = ClusterInfo("v1.34.4", ("v1", "apps/v1", "networking.k8s.io/v1"))
VALUES = {"expose": {"type": "nodePort", "tls": {"enabled": False}}}


def tool(path: Path) -> Image:
    content = Content("application/x-executable", path.read_bytes())
    return artefact(Content("application/json", b"{}"), [content])


def images_of(tag: str, leave_out: str = "") -> dict[str, Image]:
    return {
        f"docker.io/goharbor/{name}:{tag}": image([layer(100, f"{name}{tag}")])
        for name in NAMES
        if name != leave_out
    }


@pytest.fixture
def make_context(tmp_path: Path, kubectl: Path) -> Iterator[Callable[..., Context]]:
    """Give contexts with a bundle of one published chart; the state is held."""
    opened = []
    state = State(tmp_path / "state")

    def make(version: str, helm: Path, *, leave_out: str = "", **release: Any) -> Context:
        tgz = SHARED / "charts" / f"harbor-{version}.tgz"
        if not tgz.is_file():
            pytest.skip("no published charts: set AIRGAP_SHARED to the folder that has charts/")
        tag = HARBOR[version]
        path, pem = make_bundle(
            tmp_path / f"{version}.tar",
            images_of(tag, leave_out),
            charts={f"harbor:{version}": chart_artefact(tgz.read_bytes(), version, tag)},
            tools={"helm": tool(helm), "kubectl": tool(kubectl)},
        )
        bundle = open_bundle(path, pem)
        opened.append(bundle)
        chosen = {
            "chart": "harbor",
            "values": VALUES,
            "harbor": Harbor("http://10.0.0.5:30002"),
            **release,
        }
        site = Site(
            "site/v1", "Site", "s", Cluster(str(tmp_path / "none.conf")),
            Seed(serve=Serve("0.0.0.0:5000", "10.0.0.5:5000")), (Release(**chosen),),
        )  # fmt: skip
        box = Toolbox(bundle, tmp_path / "tools")
        box.apply()
        return Context(bundle, site, state, box, tmp_path / "work")

    (tmp_path / "work").mkdir()
    with state.held():
        yield make
    for bundle in opened:
        bundle.close()


def release_of(context: Context) -> HelmRelease:
    return HelmRelease(context, CLUSTER, context.site.releases[0])


# Values and rendering


@pytest.mark.parametrize("version", HARBOR)
@pytest.mark.parametrize("helm_name", ["helm", "helm3"])
def test_every_image_is_rendered_from_the_seed_and_nothing_is_random(
    make_context: Callable[..., Context],
    version: str,
    helm_name: str,
    request: pytest.FixtureRequest,
) -> None:
    context = make_context(version, request.getfixturevalue(helm_name))
    step = release_of(context)
    secrets = step._make_secrets(context.helm)
    values = step.values(secrets)
    rendering = step._render(context.helm, values, secrets)
    first, found = rendering.objects, find_images(rendering.objects)
    assert len({image.text for image in found}) == 9  # all but the exporter
    assert {image.text for image in rendering.images} == {image.text for image in found}
    assert all(re.match(r"10\.0\.0\.5:5000/goharbor/\S+@sha256:", image.text) for image in found)
    assert step._render(context.helm, values, secrets) == rendering
    assert step.has_workloads()
    for published in ("not-a-secure-key", "Harbor12345", "changeit", "harbor_registry_password"):
        assert published not in first
    assert "SCANNER_TRIVY_OFFLINE_SCAN" in first
    assert release_of(context)._kept() == secrets


@pytest.mark.parametrize("helm_name", ["helm", "helm3"])
def test_the_htpasswd_line_is_bcrypt_and_made_once(
    make_context: Callable[..., Context], helm_name: str, request: pytest.FixtureRequest
) -> None:
    context = make_context("1.18.4", request.getfixturevalue(helm_name))
    secrets = release_of(context)._make_secrets(context.helm)
    assert secrets is not None
    assert re.match(rf"{credentials.REGISTRY_USER}:\$2[aby]\$1\d\$\S{{53}}\Z",
                    secrets.registry_htpasswd)  # fmt: skip
    again = _htpasswd(context.helm, context.workspace / "htpasswd", secrets)
    assert again != secrets.registry_htpasswd  # the salt is new each time: so it must be kept


def test_an_image_that_the_bundle_lacks_is_named_with_its_object(
    make_context: Callable[..., Context], helm: Path
) -> None:
    step = release_of(make_context("1.18.4", helm, leave_out="nginx-photon"))
    with pytest.raises(PreflightFailed) as caught:
        step.rendered()
    assert "goharbor/nginx-photon:v2.14.4" in caught.value.message
    assert re.search(r"Deployment/harbor-nginx \S*image", caught.value.message)


def test_an_image_that_a_person_adds_must_be_in_the_bundle_as_well(
    make_context: Callable[..., Context], helm: Path
) -> None:
    extra = {"core": {"initContainers": [{"name": "x", "image": "busybox:1.36"}]}}
    step = release_of(make_context("1.19.1", helm, values=VALUES | extra))
    with pytest.raises(PreflightFailed, match=r"busybox:1\.36"):
        step.rendered()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"expose": {"tsl": {"enabled": False}}},
            "expose.tsl: harbor 1.19.1 has no such value, did you mean ",
        ),
        ({"global": {"imageRegistry": "x"}}, "global"),
        ({"secretKey": "0123456789abcdef"}, "secretKey: the installer fills it"),
        ({"externalURL": "https://x"}, "externalURL: the installer fills it"),
        (
            {"database": {"type": "external", "external": {"host": "db"}}},
            "database.external.password is the chart's published default",
        ),
    ],
)
def test_values_that_would_be_ignored_or_unsafe_are_refused(
    make_context: Callable[..., Context], helm: Path, values: dict[str, Any], words: str
) -> None:
    step = release_of(make_context("1.19.1", helm, values=values))
    with pytest.raises(InvalidInput) as caught:
        step.values(credentials.generate())
    assert words in caught.value.message


def test_helms_words_about_values_show_no_secret(
    make_context: Callable[..., Context], helm: Path
) -> None:
    secret = "Geheim-Passwort-1"
    values = VALUES | {"redis": {"external": {"password": secret}}, "logLevel": {"a": secret}}
    step = release_of(context := make_context("1.18.4", helm, values=values))
    values = step.values(credentials.generate())
    values["expose"] = {"type": {"wrong": secret}}
    with pytest.raises(InvalidInput) as caught:
        step._render(context.helm, values, None)
    assert secret not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("version", HARBOR)
def test_what_is_printed_of_a_real_harbor_has_no_secret(
    make_context: Callable[..., Context], helm: Path, version: str
) -> None:
    word, login = "Geheim p@ss/1", "Proxy-Wort-1"
    values = VALUES | {
        "redis": {"type": "external", "external": {"addr": "redis:6379", "password": word}},
        "proxy": {"httpProxy": f"http://ops:{login}@proxy:3128"},
        "core": {"extraEnvVars": [{"name": "SOME_TOKEN", "value": "Geheim-3"}]},
    }
    step = release_of(make_context(version, helm, values=values))
    found = step.rendered()
    clear = re.sub(r"(?ms)^kind: Secret$.*?^---$", "", found.objects)
    for secret in ("Geheim+p%40ss%2F1", login, "Geheim-3"):
        assert secret in clear  # the chart puts it elsewhere as well
    shown = "".join(without_secrets(found.objects, found.secrets))
    hidden = [word, login, "Geheim-3", "Geheim", *step._passing.texts()]
    assert not [secret for secret in hidden if secret and secret in shown]
    assert not [s for s in hidden if s and base64.b64encode(s.encode()).decode() in shown]
    names = [document["metadata"]["name"] for document in yaml.safe_load_all(shown)]
    assert len(names) == found.objects.count("# Source:")


def test_a_namespace_whose_pods_are_gone_is_not_as_it_should_be(
    make_context: Callable[..., Context], helm: Path, tmp_path: Path
) -> None:
    context = make_context("1.19.1", helm)
    server = ApiServer()
    server.pods = []
    with server:
        (tmp_path / "none.conf").write_text(server.kubeconfig())
        releases = [release_of(context)]
        step = RunningImages("app", context.bundle, context.kubectl, releases)
        assert step.problems() == ["there is no pod"]


# The seed, served


@contextmanager
def free_address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    yield address


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[Callable[..., ServeBundle]]:
    state = State(tmp_path / "state")
    opened = []

    with free_address() as address:

        def make(serial: int, *, tls: bool = True, name: str = "") -> ServeBundle:
            path, pem = make_bundle(
                tmp_path / (name or f"{serial}.tar"), images_of("v1"), serial=serial
            )
            bundle = open_bundle(path, pem)
            opened.append(bundle)
            serve = Serve(address, address, tls=tls, service="none")
            site = Site("site/v1", "Site", "s", Cluster("k"), Seed(serve=serve), ())
            return ServeBundle(
                site, serve, state, bundle, command=INSTALLER, key=TrustAnchor(pem, "k.pub")
            )

        with state.held():
            yield make
    daemon.stop(state.path("seed") / "serve.pid")
    for bundle in opened:
        bundle.close()


def pid_of(step: ServeBundle) -> int:
    process = daemon.running(step._pid_file)
    assert process is not None
    return process.pid


@pytest.mark.parametrize("tls", [True, False])
def test_the_seed_runs_on_and_a_second_run_leaves_it_alone(
    seed: Callable[..., ServeBundle], *, tls: bool
) -> None:
    step = seed(1, tls=tls)
    assert not step.check()
    assert "leave it there" in step.apply()
    assert step.check()
    pid = pid_of(step)
    assert os.getsid(pid) == pid
    assert seed(1, tls=tls).check()
    url = f"{'https' if tls else 'http'}://{step._serve.address}/v2/goharbor/harbor-core/tags/list"
    verify = str(step._folder / "ca.crt") if tls else True
    assert requests.get(url, verify=verify, timeout=5).json()["tags"] == ["v1"]
    assert (step.ca() is not None) == tls


def test_another_bundle_takes_its_place(seed: Callable[..., ServeBundle]) -> None:
    first = seed(1)
    first.apply()
    pid, ca = pid_of(first), first.ca()
    second = seed(2)
    assert not second.check()
    second.apply()
    assert second.check()
    assert pid_of(second) != pid
    assert second.ca() == ca
    assert not first.check()


def test_a_port_is_free_for_the_seed_of_this_site_only(seed: Callable[..., ServeBundle]) -> None:
    step = seed(1)
    step.preflight()
    step.apply()
    step.preflight()
    seed(2).preflight()
    daemon.stop(step._pid_file)
    host, port = step._serve.listen.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(PreflightFailed, match="already in use"),
    ):
        step.preflight()


def test_a_seed_that_was_killed_is_started_again(seed: Callable[..., ServeBundle]) -> None:
    step = seed(1)
    step.apply()
    os.kill(pid_of(step), signal.SIGKILL)
    daemon.stop(step._pid_file)
    assert not step.check()
    step.apply()
    assert step.check()


def test_no_secret_is_in_the_process_list(seed: Callable[..., ServeBundle]) -> None:
    step = seed(1)
    step.apply()
    words = Path(f"/proc/{pid_of(step)}/cmdline").read_text().split("\0")
    assert "PRIVATE" not in " ".join(words)
    assert (step._folder / "tls.key").stat().st_mode & 0o777 == 0o600


# The seed, pushed


@pytest.mark.parametrize("prefix", ["", "/air/gap"])
def test_a_registry_takes_everything_and_a_second_run_pushes_nothing(
    tmp_path: Path, docker_registry: servers.DockerRegistry, prefix: str
) -> None:
    path, pem = make_bundle(
        tmp_path / "b.tar", images_of("v1"),
        files={"runbook": artefact(Content("application/json", b"{}"), [Content("a/b", b"x")])},
    )  # fmt: skip
    push = Push(docker_registry.host + prefix, plain_http=True)
    with open_bundle(path, pem) as bundle:
        step = PushBundle(push, bundle)
        assert not step.check()
        assert "blobs" in step.apply()
        assert step.check()
        assert step.apply().startswith("0 blobs and 0 manifests pushed")
    url = f"http://{docker_registry.host}/v2{prefix}/goharbor/harbor-core/tags/list"
    assert requests.get(url, timeout=5).json()["tags"] == ["v1"]


def test_a_registry_that_is_away_is_not_done_and_says_so_when_applied(tmp_path: Path) -> None:
    path, pem = make_bundle(tmp_path / "b.tar", {})
    with free_address() as address, open_bundle(path, pem) as bundle:
        assert PushBundle(Push(address, plain_http=True), bundle).check()  # nothing to have
    path, pem = make_bundle(tmp_path / "c.tar", {"x/y:1": image([layer(10, "a")])})
    with open_bundle(path, pem) as bundle:
        assert not PushBundle(Push(address, plain_http=True), bundle).check()
