"""``installer image`` with a real registry, real cosign and what other tools save images as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization

from tests import bundles
from tests.integration import servers
from tests.upstream.certificates import make_certificates
from tests.upstream.images import image, index, layer, write_docker_archive, write_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INSTALLER = Path(sys.executable).with_name("installer")
PASSPHRASE = "correct horse"


class Commands:
    """The installer and cosign, against one registry with TLS and a login."""

    def __init__(self, folder: Path, registry: servers.DockerRegistry) -> None:
        self.folder = folder
        self.registry = registry
        (folder / "passphrase").write_text(PASSPHRASE + "\n")
        (folder / "password").write_text(servers.PASSWORD + "\n")
        assert registry.certificates is not None
        self.ca = registry.certificates.ca
        config = {"auths": {registry.host: {"auth": "cm9ib3Q6bGV0LW1lLWlu"}}}
        (folder / "docker").mkdir()
        (folder / "docker" / "config.json").write_text(json.dumps(config))

    def run(
        self, *arguments: str | Path, code: int = 0, env: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        done = subprocess.run(
            [INSTALLER, "image", *arguments],
            cwd=self.folder,
            env=os.environ | dict(env or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert servers.PASSWORD not in done.stdout + done.stderr
        return done.stdout, done.stderr

    def reaching(
        self,
        verb: str,
        *arguments: str | Path,
        code: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        login = (f"--username={servers.USER}", "--password-file=password", f"--ca={self.ca}")
        return self.run(verb, *arguments, *login, code=code, env=env)

    def bundler(self, *arguments: str) -> None:
        program = INSTALLER.with_name("bundler")
        subprocess.run([program, *arguments], cwd=self.folder, check=True, capture_output=True)

    def name(self, path: str) -> str:
        return f"{self.registry.host}/{path}"

    def sign(self, path: str, key: str = "site.key") -> str:
        secret = "--passphrase-file=passphrase"
        return self.reaching("sign", self.name(path), f"--key={key}", secret)[1]

    def verify(self, path: str, key: str = "site.pub", code: int = 0) -> dict[str, object]:
        out, _ = self.reaching(
            "verify", self.name(path), f"--key={key}", "--output=json", code=code
        )
        return {} if code else json.loads(out)

    def cosign(self, program: Path, *arguments: str | Path, code: int = 0) -> str:
        environment = os.environ | {
            "COSIGN_PASSWORD": PASSPHRASE,
            "DOCKER_CONFIG": str(self.folder / "docker"),
            "HOME": str(self.folder),
            "SSL_CERT_FILE": str(self.ca),
        }
        done = subprocess.run(
            [program, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == bool(code), done.stderr
        return done.stdout


@pytest.fixture
def commands(
    tmp_path: Path, make_docker_registry: Callable[..., servers.DockerRegistry]
) -> Commands:
    certificates = make_certificates(tmp_path / "pki")
    registry = make_docker_registry(certificates=certificates, login=True)
    return Commands(tmp_path, registry)


APP, ARM, EVIL = (
    image([layer(50_000, seed)], platform=platform)
    for seed, platform in (("app", "linux/amd64"), ("arm", "linux/arm64"), ("evil", "linux/amd64"))
)


def test_signed_here_and_verified_by_cosign(
    commands: Commands, cosign: Path, tmp_path: Path
) -> None:
    write_layout(tmp_path / "app", {"app:1": APP})
    commands.reaching("push", "app", f"--to={commands.name('team/app:1')}")
    commands.run("keygen", "--out=site.key", "--passphrase-file=passphrase")
    commands.run("keygen", "--out=other.key", "--passphrase-file=passphrase")
    commands.verify("team/app:1", code=3)
    assert "1 signed" in commands.sign("team/app:1")
    assert "signed before" in commands.sign("team/app:1")
    assert "1 signed" in commands.sign("team/app:1", "other.key")
    assert commands.verify("team/app:1")["forms"] == ["simple-signing", "sigstore-bundle"]
    commands.verify("team/app:1", "other.pub")
    verify = (
        "verify",
        "--key=site.pub",
        "--insecure-ignore-tlog=true",
        commands.name("team/app:1"),
    )
    for form in ("true", "false"):
        said = json.loads(commands.cosign(cosign, *verify, f"--new-bundle-format={form}"))
        digest = said[0]["critical"]["image"]["docker-manifest-digest"]
        assert digest == APP.digest
    # Somebody else's image does not become ours by our key's signature lying beside it.
    write_layout(tmp_path / "evil", {"evil:1": EVIL})
    commands.reaching("push", "evil", f"--to={commands.name('team/app:2')}")
    commands.verify("team/app:2", code=3)


def test_signed_by_cosign_and_verified_here(
    commands: Commands, cosign: Path, tmp_path: Path
) -> None:
    write_layout(tmp_path / "app", {"app:1": APP})
    commands.reaching("push", "app", f"--to={commands.name('team/old:1')}")
    commands.reaching("push", "app", f"--to={commands.name('team/new:1')}")
    commands.run("keygen", "--out=site.key", "--passphrase-file=passphrase")
    commands.cosign(cosign, "generate-key-pair")
    (tmp_path / "none.json").write_text(
        '{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json"}'
    )
    old = ("--new-bundle-format=false", "--use-signing-config=false", "--tlog-upload=false")
    digest = APP.digest
    sign = ("sign", "--yes", "--key=cosign.key")
    commands.cosign(cosign, *sign, *old, commands.name(f"team/old@{digest}"))
    new = "--signing-config=none.json"
    commands.cosign(cosign, *sign, new, commands.name(f"team/new@{digest}"))
    assert commands.verify("team/old:1", "cosign.pub")["forms"] == ["simple-signing"]
    assert commands.verify("team/new:1", "cosign.pub")["forms"] == ["sigstore-bundle"]
    commands.verify("team/new:1", code=3)
    # What cosign wrote stays when the installer signs as well.
    commands.sign("team/old:1")
    commands.verify("team/old:1", "cosign.pub")


def test_every_platform_is_signed(commands: Commands, tmp_path: Path) -> None:
    both = index([APP, ARM])
    write_layout(tmp_path / "app", {"app:1": both})
    commands.reaching("push", "app", f"--to={commands.name('team/app:1')}")
    commands.run("keygen", "--out=site.key", "--passphrase-file=passphrase")
    assert "3 signed" in commands.sign("team/app:1")
    for one in (both, APP, ARM):
        commands.verify(f"team/app@{one.digest}")


def test_what_other_tools_save(
    commands: Commands, skopeo: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ca.crt").write_bytes(commands.ca.read_bytes())
    write_layout(tmp_path / "app", {"app": APP})
    for kind in ("oci-archive", "docker-archive"):
        skopeo("copy", f"oci:{tmp_path}/app:app", f"{kind}:{tmp_path / kind}:team/app:1")
    write_docker_archive(tmp_path / "compressed", {"docker.io/team/app:1": APP})
    digests = {}
    for kind in ("oci-archive", "docker-archive", "compressed"):
        commands.reaching("push", kind, f"--to={commands.name(f'team/{kind}:1')}")
        target = tmp_path / f"pulled-{kind}"
        login = (
            f"--src-creds={servers.USER}:{servers.PASSWORD}",
            f"--src-cert-dir={tmp_path}/certs",
        )
        skopeo("copy", *login, f"docker://{commands.name(f'team/{kind}:1')}", f"oci:{target}:x")
        config = json.loads(skopeo("inspect", "--config", f"oci:{target}:x"))
        assert config == json.loads(APP.blobs[0].data)
        digests[kind] = json.loads((target / "index.json").read_bytes())["manifests"][0]["digest"]
    assert digests["oci-archive"] == APP.digest


def test_from_a_bundle(commands: Commands, tmp_path: Path) -> None:
    path, pem = bundles.make_bundle(
        tmp_path / "b.tar", {"docker.io/library/app:1": APP, "quay.io/x/y:2": ARM}
    )
    (tmp_path / "release.pub").write_bytes(pem)
    everything = ("push", path, f"--project={commands.name('mirror')}")
    _, told = commands.reaching(*everything, code=2)
    assert "--key release.pub" in told
    out, _ = commands.reaching(*everything, "--key=release.pub", "--output=json")
    references = {one["reference"]: one["digest"] for one in json.loads(out)["images"]}
    assert references == {
        commands.name("mirror/app:1"): APP.digest,
        commands.name("mirror/x/y:2"): ARM.digest,
    }
    locked = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    pem = bundles.signing_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
    )
    (tmp_path / "release.key").write_bytes(pem)
    secret = "--passphrase-file=passphrase"
    for name, threshold in (("one", 1), ("two", 2)):
        folder = f"--folder={name}"
        keys = ("--key=release.pub", "--key=other.pub")[:threshold]
        if threshold == 2:
            commands.bundler("keygen", "--out=other.key", secret)
        commands.bundler("trust", "init", folder, *keys, f"--threshold={threshold}")
        for key in keys:
            signing = key.replace(".pub", ".key")
            commands.bundler("trust", "sign", folder, signing, secret)
        commands.bundler("trust", "export", folder, f"--out={name}.json")
    out, _ = commands.reaching(*everything, "--trust-root=one.json")
    assert out.count("@sha256:") == 2
    commands.reaching(*everything, "--trust-root=two.json", code=3)
    _, told = commands.reaching("push", "passphrase", *everything[2:], "--key=release.pub", code=2)
    assert "is no bundle" in told


def test_from_the_docker_engine(commands: Commands, docker: servers.Docker, tmp_path: Path) -> None:
    write_docker_archive(tmp_path / "app.tar", {"docker.io/team/app:1": APP})
    docker.run("load", "--input", tmp_path / "app.tar")
    try:
        target = f"--to={commands.name('team/app:1')}"
        out, _ = commands.reaching("push", "docker:team/app:1", target, env=docker.environment)
        assert out.startswith(commands.name("team/app:1@sha256:"))
        _, told = commands.reaching(
            "push", "docker:team/absent:1", target, env=docker.environment, code=6
        )
        assert "no image team/absent:1" in told
    finally:
        docker.run("image", "rm", "team/app:1")
    nobody = {"DOCKER_HOST": f"unix://{tmp_path}/absent.sock"}
    _, told = commands.reaching("push", "docker:team/app:1", target, env=nobody, code=2)
    assert "DOCKER_HOST" in told
