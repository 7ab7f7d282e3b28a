from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from tests.integration import servers
from tests.programs import ProgramMissing
from tests.upstream import Upstream
from tests.upstream.certificates import make_certificates
from tests.upstream.images import (
    Image,
    image,
    index,
    layer,
    tar_layer,
    write_docker_archive,
    write_layout,
)
from tests.upstream.registry import Login, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.servers import Containerd, Docker, DockerRegistry

    MakeRegistry = Callable[..., DockerRegistry]
    Skopeo = Callable[..., str]


@pytest.fixture
def made() -> Image:
    return image([layer(200_000, "base"), layer(50_000, "words", text=True)])


@pytest.fixture
def layout(tmp_path: Path, made: Image) -> Path:
    write_layout(tmp_path / "layout", {"it": made})
    return tmp_path / "layout"


def digest_of(answer: requests.Response) -> str:
    answer.raise_for_status()
    return answer.headers["Docker-Content-Digest"]


ACCEPT = {
    "Accept": "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
}


class TestDockerRegistry:
    def test_skopeo_pushes_a_layout_and_the_digest_stays(
        self, docker_registry: DockerRegistry, skopeo: Skopeo, layout: Path, made: Image
    ) -> None:
        target = f"docker://{docker_registry.host}/demo/it:1"
        skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:it", target)
        url = f"{docker_registry.url}/v2/demo/it/manifests/1"
        assert digest_of(requests.get(url, headers=ACCEPT, timeout=5)) == made.digest
        stored = list(docker_registry.storage.rglob("data"))
        assert {made.digest.removeprefix("sha256:")} <= {path.parent.name for path in stored}

    def test_tls(
        self,
        make_docker_registry: MakeRegistry,
        skopeo: Skopeo,
        layout: Path,
        made: Image,
        tmp_path: Path,
    ) -> None:
        certificates = make_certificates(tmp_path / "pki")
        registry = make_docker_registry(certificates=certificates)
        trusted = tmp_path / "certs"
        trusted.mkdir()
        (trusted / "ca.crt").write_bytes(certificates.ca.read_bytes())
        target = f"docker://{registry.host}/demo/it:1"
        skopeo("copy", f"--dest-cert-dir={trusted}", f"oci:{layout}:it", target)
        url = f"{registry.url}/v2/demo/it/manifests/1"
        answer = requests.get(url, headers=ACCEPT, verify=str(certificates.ca), timeout=5)
        assert digest_of(answer) == made.digest
        with pytest.raises(RuntimeError, match="certificate"):
            skopeo("inspect", target)

    def test_login(self, make_docker_registry: MakeRegistry, skopeo: Skopeo, layout: Path) -> None:
        registry = make_docker_registry(login=True)
        assert requests.get(f"{registry.url}/v2/", timeout=5).status_code == 401
        assert requests.get(f"{registry.url}/v2/", auth=registry.login, timeout=5).ok
        copy = ("copy", "--dest-tls-verify=false", f"oci:{layout}:it")
        target = f"docker://{registry.host}/demo/it:1"
        with pytest.raises(RuntimeError, match=r"(?i)unauthorized|authentication required"):
            skopeo(*copy, target)
        skopeo(*copy, f"--dest-creds={servers.USER}:{servers.PASSWORD}", target)

    def test_two_at_once_and_gone_afterwards(self, tmp_path: Path) -> None:
        try:
            with (
                servers.docker_registry(tmp_path / "a") as one,
                servers.docker_registry(tmp_path / "b") as two,
            ):
                assert one.host != two.host
                assert all(requests.get(f"{r.url}/v2/", timeout=5).ok for r in (one, two))
        except ProgramMissing as missing:
            pytest.skip(str(missing))
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{one.url}/v2/", timeout=5)


class TestDocker:
    def test_load_and_pull(self, docker: Docker, made: Image, tmp_path: Path) -> None:
        write_docker_archive(tmp_path / "it.tar", {"demo/it:1": made})
        assert "Loaded image: demo/it:1" in docker.run("load", "--input", tmp_path / "it.tar")
        try:
            (known,) = json.loads(docker.run("image", "inspect", "demo/it:1"))
            assert known["Id"] == made.blobs[0].digest
            assert docker.run("image", "ls", "--quiet").count("\n") == 1
        finally:
            docker.run("image", "rm", "demo/it:1")

    def test_pull_by_digest_from_our_registry(self, docker: Docker, made: Image) -> None:
        other = image([layer(10, "arm")], platform="linux/arm64/v8")
        with Registry() as registry:
            registry.put("demo/it", "1", index([made, other]))
            reference = f"{registry.host}/demo/it:1"
            docker.run("pull", "--quiet", reference)
            (known,) = json.loads(docker.run("image", "inspect", reference))
            docker.run("image", "rm", reference)
        assert known["Id"] == made.blobs[0].digest

    def test_push_to_a_registry(
        self, docker: Docker, docker_registry: DockerRegistry, made: Image, tmp_path: Path
    ) -> None:
        reference = f"{docker_registry.host}/demo/it:1"
        write_docker_archive(tmp_path / "it.tar", {reference: made})
        docker.run("load", "--input", tmp_path / "it.tar")
        try:
            docker.run("push", "--quiet", reference)
        finally:
            docker.run("image", "rm", reference)
        listed = requests.get(f"{docker_registry.url}/v2/demo/it/tags/list", timeout=5)
        assert listed.json()["tags"] == ["1"]

    def test_a_container_runs(self, docker: Docker, tmp_path: Path) -> None:
        busybox = Path("/bin/busybox")
        if not busybox.exists():
            pytest.skip("busybox is missing: apt-get install busybox-static")
        content = tar_layer({"bin/busybox": busybox.read_bytes()}, executable=["bin/busybox"])
        runnable = image([content], config={"Entrypoint": ["/bin/busybox"]})
        write_docker_archive(tmp_path / "it.tar", {"demo/busybox:1": runnable})
        docker.run("load", "--input", tmp_path / "it.tar")
        try:
            said = docker.run("run", "--rm", "--network=none", "demo/busybox:1", "echo", "ahoy")
        finally:
            docker.run("image", "rm", "--force", "demo/busybox:1")
        assert said == "ahoy\n"


class TestContainerd:
    def test_import_of_a_layout(self, containerd: Containerd, made: Image, tmp_path: Path) -> None:
        write_layout(tmp_path / "layout", {"docker.io/demo/it:1": made})
        with tarfile.open(tmp_path / "it.tar", "w") as archive:
            for path in sorted((tmp_path / "layout").iterdir()):
                archive.add(path, path.name)
        containerd.ctr("image", "import", tmp_path / "it.tar")
        try:
            listed = containerd.ctr("image", "ls", "name==docker.io/demo/it:1")
            assert made.digest in listed
            assert len(containerd.ctr("content", "ls", "--quiet").split()) >= 4
        finally:
            containerd.ctr("image", "rm", "docker.io/demo/it:1")

    def test_pull_from_our_registry(self, containerd: Containerd) -> None:
        made = image([layer(30_000, "pulled"), layer(10_000, "as well")])
        with Registry() as registry:
            registry.put("demo/it", "1", made)
            reference = f"{registry.host}/demo/it:1"
            containerd.ctr("image", "pull", "--plain-http", reference)
            assert made.digest in containerd.ctr("image", "ls", f"name=={reference}")
            containerd.ctr("image", "rm", reference)
            assert registry.count("GET", "/blobs/") == 3


class TestUpstreamRegistry:
    """Our registry in memory is a peer that real clients and OCI's own suite take for one."""

    @pytest.mark.parametrize("login", [None, Login()], ids=["open", "bearer"])
    def test_oci_conformance(self, conformance: Path, login: Login | None, tmp_path: Path) -> None:
        with Registry(login=login) as registry:
            settings = {
                "OCI_REGISTRY": registry.host,
                "OCI_TLS": "disabled",
                "OCI_VERSION": "1.1",
                "OCI_RESULTS_DIR": str(tmp_path),
            }
            if login:
                settings |= {"OCI_USERNAME": login.user, "OCI_PASSWORD": login.password}
            done = subprocess.run(
                [conformance],
                env=settings,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stdout[-5000:]
        assert "OCI Conformance Result: Pass" in done.stdout

    @pytest.mark.parametrize("login", [None, Login(), Login(bearer=False)])
    def test_skopeo_both_ways(
        self, skopeo: Skopeo, layout: Path, made: Image, login: Login | None, tmp_path: Path
    ) -> None:
        with Registry(login=login) as registry:
            where = f"docker://{registry.host}/demo/it:1"
            creds = f"creds={servers.USER}:{servers.PASSWORD}"
            to = [f"--dest-{creds}"] if login else []
            back = [f"--src-{creds}"] if login else []
            skopeo("copy", "--dest-tls-verify=false", *to, f"oci:{layout}:it", where)
            target = f"oci:{tmp_path / 'again'}:it"
            skopeo("copy", "--src-tls-verify=false", *back, where, target)
        again = json.loads((tmp_path / "again" / "index.json").read_bytes())
        assert again["manifests"][0]["digest"] == made.digest

    def test_oras_copies_with_referrers(self, oras: Path, tmp_path: Path) -> None:
        environment = os.environ | {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}
        with Upstream(tmp_path / "up", scale=0.01, helm=False) as upstream, Registry() as site:
            source = f"{upstream.docker_io.host}/demo/core:v1.2.3"
            servers.run(
                *(oras, "copy", "--recursive", "--from-plain-http", "--to-plain-http", source),
                f"{site.host}/demo/core:v1.2.3",
                environment=environment,
            )
            core = upstream.images["docker.io/demo/core:v1.2.3"]
            found = requests.get(f"{site.url}/v2/demo/core/referrers/{core.digest}", timeout=5)
        assert [item["artifactType"] for item in found.json()["manifests"]] == [
            "application/spdx+json"
        ]

    def test_crane_checks_what_it_pulls(self, crane: Path, made: Image, tmp_path: Path) -> None:
        with Registry() as registry:
            registry.put("demo/it", "1", made)
            pull = ("pull", "--insecure", "--format=oci", f"{registry.host}/demo/it:1")
            servers.run(crane, *pull, tmp_path / "good")
            registry.fail("/blobs/", flip_at=100)
            with pytest.raises(RuntimeError, match="sha256"):
                servers.run(crane, *pull, tmp_path / "bad")

    def test_helm_reads_the_chart_repository_and_the_artefact(
        self, helm: Path, tmp_path: Path
    ) -> None:
        environment = os.environ | {
            f"HELM_{name}_HOME": str(tmp_path) for name in ("CACHE", "CONFIG", "DATA")
        }
        with Upstream(tmp_path / "up", scale=0.01, helm=False) as upstream:
            pull = ("pull", "anchorage", "--version=1.2.3", f"--destination={tmp_path}")
            servers.run(
                helm, *pull, f"--repo={upstream.chart_repository.url}", environment=environment
            )
            assert (tmp_path / "anchorage-1.2.3.tgz").read_bytes() == (
                upstream.chart_repository.files["charts/anchorage-1.2.3.tgz"]
            )
            oci = f"oci://{upstream.docker_io.host}/charts"
            chart = tmp_path / "anchorage-1.2.3.tgz"
            servers.run(helm, "push", "--plain-http", chart, oci, environment=environment)
            shown = servers.run(
                *(helm, "show", "chart", "--plain-http", f"{oci}/anchorage", "--version=1.2.3"),
                environment=environment,
            )
        assert "name: anchorage" in shown


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers._PACKAGES, "no-such-program", "some-package")
    with pytest.raises(ProgramMissing, match="apt-get install some-package"):
        servers.debian("no-such-program")


def test_a_server_that_does_not_start_tells_its_log(tmp_path: Path) -> None:
    command: list[str | Path] = ["/bin/sh", "-c", "echo no such luck; exit 3"]
    with (
        pytest.raises(RuntimeError, match="ended: no such luck"),
        servers._running(command, tmp_path / "log", lambda: False),
    ):
        pytest.fail("it never ran")
