"""Store, sign and scan with nothing but the installer, at a Harbor that is the site's.

The Harbor is the tests' double with a real docker-registry behind it; the commands are processes.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from installer.bundle.trust import TrustAnchor
from installer.deploy import daemon
from installer.deploy.databases import RenewDatabase, remember_names
from installer.deploy.deployment import hosting
from installer.deploy.request import Request
from installer.deploy.seed import ServeBundle
from installer.harbor.api import HarborClient
from installer.harbor.planted import CVE, PACKAGE, PACKAGE_VERSION, planted_image
from installer.site import credentials
from installer.site.model import read_site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.harbor_double import HarborDouble
from tests.harbor_double.recordings import NotShared
from tests.upstream.images import image, layer, write_layout
from tests.upstream.trivy import database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.servers import DockerRegistry

INSTALLER = Path(sys.executable).with_name("installer")
APP = image([layer(20_000, "app")])
FLAW = {
    "id": CVE,
    "package": PACKAGE,
    "version": PACKAGE_VERSION,
    "fix_version": "1.1.22-r3",
    "severity": "Critical",
    "status": "fixed",
    "description": "planted",
    "links": ["https://avd.aquasec.com/nvd/cve-2019-14697"],
}
REFERENCE = "ghcr.io/aquasecurity/trivy-db:2"
MADE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class InUse:
    """A site whose Harbor runs, as site.yaml and the state folder have it."""

    def __init__(self, folder: Path, harbor: HarborDouble) -> None:
        self.folder = folder
        self.harbor = harbor
        self.state = State(folder / "state")
        self.seed: dict[str, Any] = {"serve": {"listen": "127.0.0.1:1", "address": "127.0.0.1:1"}}
        self.write_site()
        with self.state.held():
            made = credentials.generate(admin_password=harbor.password)
            credentials.keep(self.state, "harbor/harbor", made)
        (folder / "pass").write_text("correct horse\n")

    def write_site(self, **harbor: Any) -> None:
        document = {
            "apiVersion": "site/v1",
            "kind": "Site",
            "name": "s",
            "cluster": {"kubeconfig": "kubeconfig"},
            "seed": self.seed,
            "releases": [{"chart": "harbor", "harbor": {"externalURL": self.harbor.url, **harbor}}],
        }
        (self.folder / "site.yaml").write_text(yaml.safe_dump(document))

    def run(self, *arguments: str | Path, code: int = 0) -> tuple[str, str]:
        site = ("--site=site.yaml", "--state=state")
        return self.bare(*arguments, *site, code=code)

    def bare(self, *arguments: str | Path, code: int = 0, verb: str = "image") -> tuple[str, str]:
        done = subprocess.run(
            [INSTALLER, verb, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert self.harbor.password not in done.stdout + done.stderr
        return done.stdout, done.stderr

    def client(self) -> HarborClient:
        return HarborClient(self.harbor.url, passwords=[self.harbor.password])

    def project(self, name: str, **metadata: str) -> None:
        with self.client() as client:
            document = {"project_name": name, "metadata": {"public": "false", **metadata}}
            client.post("/projects", document)

    def request(self, bundle: Any, pem: bytes) -> Request:
        anchor = TrustAnchor(pem, "k.pub")
        return Request(bundle, read_site(self.folder / "site.yaml"), self.state, anchor, ())


@pytest.fixture
def in_use(tmp_path: Path, docker_registry: DockerRegistry) -> Iterator[InUse]:
    with ExitStack() as stack:
        try:
            double = HarborDouble(docker_registry.host, flaws=[FLAW])
            harbor = stack.enter_context(double)
        except NotShared as missing:
            pytest.skip(str(missing))
        harbor.state.pace = 0.05
        harbor.state.database_updated = MADE.strftime("%Y-%m-%dT%H:%M:%SZ")
        yield InUse(tmp_path, harbor)


def write_planted(folder: Path) -> str:
    """Write the planted image as an OCI image layout and give its digest."""
    planted = planted_image()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / planted.root.digest.hex).write_bytes(planted.manifest)
    for blob in planted.blobs:
        (blobs / blob.descriptor.digest.hex).write_bytes(blob.data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    digest = str(planted.root.digest)
    root = {"mediaType": planted.root.media_type, "digest": digest, "size": planted.root.size}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [root]}))
    return digest


def test_pushed_and_scanned(in_use: InUse) -> None:
    digest = write_planted(in_use.folder / "old")
    in_use.project("team")
    out, _ = in_use.run("push", "old", "--to=team/deep/old:1")
    assert out.strip() == f"{in_use.harbor.host}/team/deep/old:1@{digest}"
    out, told = in_use.run("scan", "team/deep/old:1", "--output=json")
    report = json.loads(out)
    assert report["counts"] == {"critical": 1}
    assert report["vulnerabilities"][0]["id"] == CVE
    assert told == ""
    table, told = in_use.run("scan", "team/deep/old:1", "--severity=high", code=8)
    assert CVE in table
    assert "1 findings of severity high or worse" in told
    in_use.harbor.state.database_updated = ""
    _, told = in_use.run("scan", "team/deep/old:1", code=8)
    assert "the scan ended: Error" in told
    assert "vulnerability database" in told


def test_signed_under_content_trust(in_use: InUse) -> None:
    write_layout(in_use.folder / "app", {"app": APP})
    in_use.project("strict", enable_content_trust_cosign="true")
    in_use.run("push", "app", "--to=strict/app:1")
    in_use.run("push", "app", "--to=strict/app:2")  # what is there and kept back is left
    in_use.bare("keygen", "--out=images.key", "--passphrase-file=pass")
    key = "--key=images.pub"
    _, told = in_use.run("verify", "strict/app:1", key, code=3)
    assert "not signed" in told
    sign = ("sign", "strict/app:1", "--key=images.key", "--passphrase-file=pass")
    out, _ = in_use.run(*sign, "--output=json")
    assert json.loads(out)["signed"] == [APP.digest]
    assert json.loads(out)["withoutBundle"] == []
    out, _ = in_use.run("verify", "strict/app:2", key, "--output=json")
    # To this Harbor the newer form is something else than a signature, and kept back.
    assert json.loads(out)["forms"] == ["simple-signing"]
    with in_use.client() as client:
        path = f"/projects/strict/repositories/app/artifacts/{APP.digest}/accessories"
        kinds = {one["type"] for one in client.pages(path)}
    assert kinds == {"signature.cosign", "subject.accessory"}


def test_a_robot_and_a_wrong_password(in_use: InUse) -> None:
    write_layout(in_use.folder / "app", {"app": APP})
    in_use.project("team")
    actions = [{"resource": "repository", "action": one} for one in ("pull", "push")]
    robot = {
        "name": "ci",
        "level": "project",
        "duration": -1,
        "permissions": [{"kind": "project", "namespace": "team", "access": actions}],
    }
    with in_use.client() as client:
        made = client.post("/robots", robot).document
    secret = in_use.folder / "secret"
    secret.write_text(made["secret"])
    target = f"--to={in_use.harbor.host}/team/app:1"
    login = (f"--username={made['name']}", "--password-file=secret")
    in_use.bare("push", "app", target, "--plain-http", *login)
    secret.write_text("Wrong-Password-1")
    _, told = in_use.bare("push", "app", target, "--plain-http", *login, code=6)
    assert "log in" in told
    assert "Wrong-Password-1" not in told
    _, told = in_use.bare("push", "app", "--to=team/app:1", code=2)
    assert "in which Harbor?" in told


def test_a_new_database_is_proven_and_leaves_nothing_behind(in_use: InUse) -> None:
    path, pem = make_bundle(
        in_use.folder / "databases.tar",
        {},
        databases={REFERENCE: database(size=20_000, updated=MADE)},
    )
    with open_bundle(path, pem) as bundle, in_use.state.held():
        request = in_use.request(bundle, pem)
        step = RenewDatabase(request, request.site.releases[0])
        assert not step.check()
        assert "it works with the database of 2026-01-02T03:04:05Z" in step.apply()
        assert step.check()
        in_use.harbor.state.database_updated = "2026-01-01T00:00:00Z"
        assert not step.check()
    with in_use.client() as client:
        assert [one["name"] for one in client.pages("/projects")] == ["library"]


KUBECTL = """#!/bin/sh
echo "$*" >> calls
case "$*" in *"get pods"*) cat pods.json ;; esac
"""


def test_a_bundle_with_only_databases_goes_the_whole_way(in_use: InUse) -> None:
    folder, state = in_use.folder, in_use.state
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    seed = {"listen": address, "address": address, "tls": False, "service": "none"}
    in_use.seed = {"serve": seed}
    in_use.write_site()

    def made(name: str, serial: int, moment: datetime) -> tuple[Path, bytes]:
        content = {REFERENCE: database(size=20_000, updated=moment, seed=str(serial))}
        images = {"docker.io/team/app:1": APP} if name == "harbor" else {}
        path = folder / f"{name}-{serial}.tar"
        return make_bundle(path, images, databases=content, name=name, serial=serial)

    main, pem = made("harbor", 900, datetime(2026, 1, 1, tzinfo=UTC))
    newer, _ = made("trivy-databases", 2, MADE)
    older, _ = made("trivy-databases", 1, datetime(2026, 1, 1, tzinfo=UTC))
    (folder / "release.pub").write_bytes(pem)
    labels = {"release": "harbor", "component": "trivy"}
    pods = {"items": [{"metadata": {"name": "harbor-trivy-0", "labels": labels}}]}
    (folder / "pods.json").write_text(json.dumps(pods))

    def run(bundle: Path, *more: str, code: int = 0) -> tuple[str, str]:
        site = ("--key=release.pub", "--site=site.yaml", "--state=state")
        return in_use.bare(bundle, *site, *more, code=code, verb="run")

    site = read_site(folder / "site.yaml")
    assert site.seed.serve is not None
    anchor = TrustAnchor(pem, "k.pub")
    with open_bundle(main, pem) as bundle, state.held():
        command = (sys.executable, str(INSTALLER))
        ServeBundle(site, site.seed.serve, state, bundle, command=command, key=anchor).apply()
        state.record(bundle.manifest)
        remember_names(state, bundle.manifest)
        tool = state.subfolder("tools") / "kubectl"
        tool.write_text(KUBECTL)
        tool.chmod(0o700)
    try:
        out, _ = run(newer, "--plan")
        assert "3 to do" in out
        in_use.harbor.state.database_updated = "2026-01-01T00:00:00Z"
        _, told = run(newer, code=8)
        assert "the scanner has another database, also after its copy was taken away" in told
        wanted = "exec --namespace=harbor harbor-trivy-0 -c trivy -- rm -rf"
        assert wanted in (folder / "calls").read_text()
        in_use.harbor.state.database_updated = "2026-01-02T03:04:05Z"
        out, _ = run(newer, "--output=json")
        assert json.loads(out)["changed"] == ["scanner:harbor/harbor"]
        assert run(newer)[0].startswith("nothing to do")
        _, told = run(older, code=3)
        assert "already seen 2" in told
    finally:
        daemon.stop(state.path("seed") / "serve.pid")


def test_it_hosts_the_bundle(in_use: InUse) -> None:
    in_use.write_site(hostBundle={"project": "airgap"})
    path, pem = make_bundle(in_use.folder / "b.tar", {"docker.io/goharbor/app:v1": APP})
    with open_bundle(path, pem) as bundle:
        (step,) = hosting(in_use.request(bundle, pem))
        assert not step.check()
        step.apply()
        assert step.check()
    with in_use.client() as client:
        project = client.get("/projects/airgap")
        assert project["metadata"]["public"] == "true"
        found = client.get("/projects/airgap/repositories/goharbor%252Fapp/artifacts/v1")
    assert found["digest"] == APP.digest
