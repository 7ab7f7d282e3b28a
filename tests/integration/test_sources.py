"""Sources as they are met: private registries, real cosign, Docker's daemon, Helm's provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from bundler.cache import BlobCache
from bundler.lock import read_lock
from bundler.sources.upstream import Upstream
from installer.helm.chart import ChartArchive
from installer.oci.hosts import RegistryHosts
from tests.integration import servers
from tests.integration.test_discovery import CHARTS
from tests.upstream.certificates import make_certificates
from tests.upstream.images import image, index, layer, write_docker_archive, write_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bundler.lock import Lock

APP = image([layer(50_000, "app")])
ARM = image([layer(50_000, "arm")], platform="linux/arm64")
BOTH = index([APP, ARM])
PASSPHRASE = "correct horse"
# Without a log, a clock and a certificate of somebody else's: as at an isolated site.
OLD = ("--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false")


class Builder:
    """A folder with a spec and a login; ``bundler`` runs as a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = {
            "apiVersion": "bundle/v1",
            "kind": "BundleSpec",
            "name": "sources",
        }
        self.registries: dict[str, Any] = {}
        self.env = {"AIRGAP_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)}

    def bundler(self, *arguments: str, code: int = 0) -> str:
        (self.folder / "bundle.yaml").write_text(yaml.safe_dump(self.spec))
        config = yaml.safe_dump({"registries": self.registries})
        (self.folder / "registries.yaml").write_text(config)
        command = "from bundler.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", command, *arguments],
            cwd=self.folder,
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert servers.PASSWORD not in done.stdout + done.stderr
        return done.stderr

    def lock(self, *options: str, code: int = 0) -> str:
        return self.bundler(
            "lock", "bundle.yaml", "--registry-config", "registries.yaml", *options, code=code
        )

    @property
    def locked(self) -> Lock:
        return read_lock(self.folder / "bundle.lock")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def program(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_images_that_cosign_signed_in_a_private_registry(
    builder: Builder,
    cosign: Path,
    skopeo: Callable[..., str],
    make_docker_registry: Callable[..., servers.DockerRegistry],
) -> None:
    folder = builder.folder
    certificates = make_certificates(folder / "pki")
    registry = make_docker_registry(certificates=certificates, login=True)
    write_layout(folder / "layout", {"app": BOTH})
    login = f"{servers.USER}:{servers.PASSWORD}"
    names = [f"{registry.host}/team/{name}:1" for name in ("old", "new", "bare")]
    for name in names:
        to = ("--dest-tls-verify=false", f"--dest-creds={login}", f"docker://{name}")
        skopeo("copy", "--all", f"oci:{folder}/layout:app", *to)
    auths = {"auths": {registry.host: {"auth": "cm9ib3Q6bGV0LW1lLWlu"}}}
    (folder / ".docker").mkdir()
    (folder / ".docker/config.json").write_text(json.dumps(auths))
    environment = {
        "COSIGN_PASSWORD": PASSPHRASE,
        "HOME": str(folder),
        "SSL_CERT_FILE": str(certificates.ca),
    }
    program(cosign, "generate-key-pair", cwd=folder, **environment)
    (folder / "none.json").write_text(
        '{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json"}'
    )
    sign = (cosign, "sign", "--yes", "--key=cosign.key")
    by_digest = [f"{name.rpartition(':')[0]}@{BOTH.digest}" for name in names]
    program(*sign, *OLD, by_digest[0], cwd=folder, **environment)
    program(*sign, "--signing-config=none.json", by_digest[1], cwd=folder, **environment)
    (folder / ".docker/config.json").rename(folder / "auth.json")

    builder.registries = {registry.host: {"ca": str(certificates.ca)}}
    builder.spec["verify"] = {
        "required": True,
        "images": [{"match": f"{registry.host}/team/*", "key": "cosign.pub"}],
    }
    builder.spec["images"] = names[:2]
    refused = builder.lock(code=6)
    assert "log in to this registry" in refused
    builder.lock("--authfile", "auth.json")
    forms = {i.reference: [(v.form, v.digest) for v in i.verified] for i in builder.locked.images}
    assert forms == {
        names[0]: [("simple-signing", BOTH.digest)],
        names[1]: [("sigstore-bundle", BOTH.digest)],
    }
    assert all(i.digest == APP.digest and i.index == BOTH.digest for i in builder.locked.images)
    kinds = {i.reference: [bool(a.tag) for a in i.accessories] for i in builder.locked.images}
    assert kinds == {names[0]: [True], names[1]: [False]}

    builder.spec["images"] = names
    assert f"{names[2]}: has no signature" in builder.lock("--authfile", "auth.json", code=3)
    builder.spec["images"] = names[:2]
    program("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-out", "o.key", cwd=folder)
    program("openssl", "ec", "-in", "o.key", "-pubout", "-out", "cosign.pub", cwd=folder)
    refused = builder.lock("--authfile", "auth.json", code=3)
    assert "2 of 2 failed" in refused
    assert "no signature of cosign.pub" in refused


def test_an_image_of_the_docker_daemon(builder: Builder, docker: servers.Docker) -> None:
    name = "corp.example/team/local:1"
    write_docker_archive(builder.folder / "a.tar", {name: APP})
    docker.run("load", "-i", builder.folder / "a.tar")
    try:
        builder.env["DOCKER_HOST"] = docker.host
        builder.spec["images"] = [{"reference": name, "source": "docker://"}]
        builder.lock()
        (locked,) = builder.locked.images
        assert [held.method for held in locked.verified] == ["local"]
        shutil.rmtree(builder.folder / "cache")
        with (
            pytest.MonkeyPatch.context() as patch,
            Upstream(
                RegistryHosts(), BlobCache(builder.folder / "cache"), builder.folder
            ) as upstream,
        ):
            patch.setenv("DOCKER_HOST", docker.host)
            config = APP.blobs[0]
            content = {b.digest: b"".join(upstream.open(b)) for b in builder.locked.blobs}
            assert content[config.digest] == config.data
            assert all(len(content[b.digest]) == b.size for b in builder.locked.blobs)
    finally:
        docker.run("rmi", name)
    builder.spec["images"] = [{"reference": "corp.example/team/none:1", "source": "docker://"}]
    assert "no image corp.example/team/none:1" in builder.lock(code=6)


@pytest.fixture
def gnupg(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is missing: apt-get install gnupg")
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    yield home
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


def test_a_chart_with_a_provenance_file(builder: Builder, helm: Path, gnupg: Path) -> None:
    folder = builder.folder
    gpg = ("gpg", "--homedir", gnupg, "--batch", "--pinentry-mode=loopback", "--passphrase=")
    for who in ("maker@corp.example", "other@corp.example"):
        program(*gpg, "--quick-generate-key", who, "rsa2048", "sign", "1d", cwd=folder)
        ring = who.partition("@")[0] + ".gpg"
        program(*gpg, "--output", ring, "--export", who, cwd=folder)
    archive = next(CHARTS.glob("csi-driver-nfs-*.tgz"))
    shutil.copyfile(archive, folder / archive.name)
    shutil.copyfile(helm, folder / "helm")
    found = ChartArchive.read(archive)
    lines = [f"name: {found.name}", f"version: {found.version}", "", "...", "files:"]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    lines += [f"  {archive.name}: sha256:{digest}", ""]
    (folder / "body").write_text("\n".join(lines))
    prov = f"{archive.name}.prov"
    sign = ("--local-user", "maker@corp.example", "--output", prov, "--clear-sign", "body")
    program(*gpg, *sign, cwd=folder)
    chart = {"name": found.name, "source": f"./{archive.name}", "verify": {"keyring": "maker.gpg"}}
    builder.spec |= {
        "charts": [chart],
        "tools": [{"name": "helm", "source": "./helm"}],
        "exclude": [{"image": "registry.k8s.io/*", "reason": "only the chart is looked at"}],
    }
    builder.lock()
    (locked,) = builder.locked.charts
    held = {one.method: one for one in locked.verified}
    assert held["provenance"].digest == f"sha256:{digest}"
    assert len(held["provenance"].key_id) == 40
    assert [e.reason for e in builder.locked.excluded] == ["only the chart is looked at"] * len(
        builder.locked.excluded
    )

    chart["verify"] = {"keyring": "other.gpg"}
    assert "its provenance does not hold" in builder.lock(code=3)
    chart["verify"] = {"keyring": "maker.gpg"}
    (folder / prov).write_text((folder / prov).read_text().replace(digest[:8], "00000000"))
    assert "its provenance does not hold" in builder.lock(code=3)
    (folder / prov).unlink()
    assert "there is no" in builder.lock(code=6)


HAPROXY = """\
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend with-certificates
    bind 127.0.0.1:{port} ssl crt {pem} verify required ca-file {ca}
    http-request set-header X-Forwarded-Proto https
    default_backend registry
backend registry
    server one {host}
"""


def test_a_registry_behind_client_certificates_and_a_mirror_that_lacks_it(
    builder: Builder,
    make_docker_registry: Callable[..., servers.DockerRegistry],
    skopeo: Callable[..., str],
) -> None:
    haproxy = shutil.which("haproxy") or pytest.skip("haproxy is missing: apt-get install haproxy")
    folder = builder.folder
    own = make_certificates(folder / "pki")
    empty, registry = make_docker_registry(), make_docker_registry()
    write_layout(folder / "layout", {"app": APP})
    to = ("--dest-tls-verify=false", f"docker://{registry.host}/team/app:1")
    skopeo("copy", f"oci:{folder}/layout:app", *to)
    pem = folder / "server-and-key.pem"
    pem.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    port = servers.free_port()
    (folder / "haproxy.cfg").write_text(
        HAPROXY.format(port=port, pem=pem, ca=own.ca, host=registry.host)
    )

    def answers() -> bool:
        shown = (str(own.certificate), str(own.key))
        with suppress(requests.exceptions.ConnectionError):
            url = f"https://127.0.0.1:{port}/v2/"
            return requests.get(url, verify=str(own.ca), cert=shown, timeout=5).ok
        return False

    with servers._running([haproxy, "-f", folder / "haproxy.cfg"], folder / "log", answers):
        there = [empty.url, f"https://127.0.0.1:{port}"]
        reach: dict[str, Any] = {"endpoints": there, "ca": str(own.ca)}
        builder.registries = {"registry.corp.example": reach}
        builder.spec["images"] = ["registry.corp.example/team/app:1"]
        builder.lock(code=6)
        reach |= {"cert": str(own.certificate), "key": str(own.key)}
        builder.lock()
    assert [i.digest for i in builder.locked.images] == [APP.digest]
