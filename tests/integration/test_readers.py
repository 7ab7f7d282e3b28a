"""Other people's tools read the bundle file in place, without a byte of our code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bundles import damage, make_bundle, open_bundle
from tests.integration.servers import run
from tests.upstream import images as made

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.servers import Containerd, Docker, DockerRegistry

SHARED = made.layer(200_000, "shared", text=True)
CORE = made.image([SHARED, made.layer(3000, "core")], config={"Cmd": ["/core"]})
JOBS = made.image([SHARED, made.layer(3000, "jobs")], config={"Cmd": ["/jobs"]})
ARM = made.image([SHARED], platform="linux/arm64")
MULTI = made.index([JOBS, ARM])
OLD = made.image([made.layer(2000, "old", docker=True)], docker=True)
CHART = made.artefact(
    made.Content("application/vnd.cncf.helm.config.v1+json", b'{"name":"harbor"}'),
    [made.Content("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"not read here")],
)
DATABASE = made.artefact(
    made.Content("application/vnd.aquasec.trivy.config.v1+json", b"{}"),
    [made.Content("application/vnd.aquasec.trivy.db.layer.v1.tar+gzip", b"not read here")],
)
IMAGES = {
    "docker.io/goharbor/core:v2": CORE,
    "quay.io/team/core:v2": OLD,
    "ghcr.io/team/multi:v1": MULTI,
}
RUNS_HERE = {
    "goharbor/core:v2": CORE,  # docker leaves out its own host
    "quay.io/team/core:v2": OLD,
    "ghcr.io/team/multi:v1": JOBS,  # of the bundle's platform
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("read") / "bundle.tar"
    return make_bundle(
        path,
        IMAGES,
        charts={"harbor:1.2.3": CHART},
        databases={"ghcr.io/aquasecurity/trivy-db:2": DATABASE},
    )


@pytest.fixture(scope="module")
def short_names(bundle: tuple[Path, bytes]) -> dict[str, str]:
    """Names that skopeo and oras take, by the full ones."""
    with tarfile.open(bundle[0]) as archive:
        member = archive.extractfile("index.json")
        assert member
        index = json.load(member)
    return {
        entry["annotations"]["io.containerd.image.name"]: entry["annotations"][
            "org.opencontainers.image.ref.name"
        ]
        for entry in index["manifests"]
        if "io.containerd.image.name" in entry["annotations"]
    }


def test_docker_load(bundle: tuple[Path, bytes], docker: Docker) -> None:
    told = docker.run("load", "--input", bundle[0])
    try:
        assert set(re.findall(r"Loaded image: (\S+)", told)) == set(RUNS_HERE)
        for name, image in RUNS_HERE.items():
            (found,) = json.loads(docker.run("image", "inspect", name))
            assert found["Id"] == image.blobs[0].digest
            config = json.loads(image.blobs[0].data)
            assert found["RootFS"]["Layers"] == config["rootfs"]["diff_ids"]
    finally:
        docker.run("image", "rm", "--force", *RUNS_HERE)


@pytest.mark.parametrize("options", [(), ("--all-platforms",)])
def test_containerd_import(
    bundle: tuple[Path, bytes], containerd: Containerd, options: tuple[str, ...]
) -> None:
    containerd.ctr("images", "import", "--no-unpack", *options, bundle[0])
    lines = [line.split() for line in containerd.ctr("images", "list").splitlines()[1:]]
    found = {line[0]: line[2] for line in lines}
    try:
        assert found == {name: image.digest for name, image in IMAGES.items()}
    finally:
        containerd.ctr("images", "remove", "--sync", *found)


# Of a layout, skopeo reads OCI's own media types only; a Docker schema 2 image it finds in the
# docker-archive that the bundle is as well (below).
@pytest.mark.parametrize("name", [name for name, image in IMAGES.items() if image is not OLD])
def test_skopeo_reads_the_layout(
    bundle: tuple[Path, bytes],
    short_names: dict[str, str],
    skopeo: Callable[..., str],
    tmp_path: Path,
    name: str,
) -> None:
    source = f"oci-archive:{bundle[0]}:{short_names[name]}"
    assert skopeo("inspect", "--raw", source) == IMAGES[name].top.data.decode()
    skopeo("copy", "--all", "--preserve-digests", source, f"dir:{tmp_path}/copy")
    for blob in IMAGES[name].blobs:
        copied = tmp_path / "copy" / blob.digest.removeprefix("sha256:")
        assert copied.read_bytes() == blob.data


@pytest.mark.parametrize("name", RUNS_HERE)
def test_skopeo_reads_the_docker_archive(
    bundle: tuple[Path, bytes], skopeo: Callable[..., str], name: str
) -> None:
    full = name if name.count("/") > 1 else f"docker.io/{name}"
    config = skopeo("inspect", "--config", "--raw", f"docker-archive:{bundle[0]}:{full}")
    assert config == RUNS_HERE[name].blobs[0].data.decode()


@pytest.mark.parametrize("name", IMAGES)
def test_oras_reads_the_layout(
    bundle: tuple[Path, bytes],
    short_names: dict[str, str],
    oras: Path,
    docker_registry: DockerRegistry,
    skopeo: Callable[..., str],
    name: str,
) -> None:
    source = f"{bundle[0]}:{short_names[name]}"
    assert run(oras, "manifest", "fetch", "--oci-layout", source) == IMAGES[name].top.data.decode()
    target = f"{docker_registry.host}/copied/image:v1"
    run(oras, "cp", "--from-oci-layout", source, "--to-plain-http", target)
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{target}")
    assert raw == IMAGES[name].top.data.decode()


@pytest.mark.parametrize("content", [CHART, DATABASE], ids=["chart", "database"])
def test_oras_reads_artefacts_by_digest(
    bundle: tuple[Path, bytes], oras: Path, content: made.Image
) -> None:
    source = f"{bundle[0]}@{content.digest}"
    assert run(oras, "manifest", "fetch", "--oci-layout", source) == content.top.data.decode()


@pytest.mark.skipif(shutil.which("podman") is None, reason="apt-get install podman")
def test_podman_load(bundle: tuple[Path, bytes], tmp_path: Path) -> None:
    podman = shutil.which("podman")
    assert podman
    with tempfile.TemporaryDirectory() as short:  # podman refuses one of over 50 characters
        own = ("--root", tmp_path / "root", "--runroot", short, "--storage-driver", "vfs")
        told = run(Path(podman), *own, "load", "--input", bundle[0])
    assert "docker.io/goharbor/core:v2" in told


def _commands(folder: Path) -> list[str]:
    """The commands of README.txt that need no installer."""
    lines = (folder / "README.txt").read_text(encoding="ascii").splitlines()
    return [line.strip() for line in lines if re.match(r"  (tar|openssl|diff) ", line)]


def test_the_readme_tells_how_to_check_it_by_hand(
    bundle: tuple[Path, bytes], openssl: Path, tmp_path: Path
) -> None:
    path, pem = bundle
    del openssl
    copy = tmp_path / "BUNDLE"
    shutil.copy(path, copy)
    (tmp_path / "release.pub").write_bytes(pem)
    run(_program("tar"), "-x", "-f", copy, "-C", tmp_path, "README.txt")
    script = tmp_path / "script"
    script.write_text("\n".join(["set -e", *_commands(tmp_path)]), encoding="ascii")

    def by_hand() -> str:
        done = subprocess.run(
            ["sh", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    assert len(_commands(tmp_path)) == 5
    assert by_hand() == "Verified OK\nevery file is as signed\n"
    with open_bundle(copy, pem) as opened:
        damage(copy, opened, SHARED.content.digest)
        told = by_hand()
        assert "every file is as signed" not in told
        assert f"< {SHARED.content.digest[7:]}  blobs/sha256/{SHARED.content.digest[7:]}" in told
        with copy.open("r+b") as file:
            file.seek(opened.layout.manifest_offset + 512 + 5)
            file.write(b"x")
    assert "Verified OK" not in by_hand()


def test_plain_tar_reads_every_member(bundle: tuple[Path, bytes], tmp_path: Path) -> None:
    path, pem = bundle
    run(_program("tar"), "-x", "-f", path, "-C", tmp_path)
    with open_bundle(path, pem) as opened:
        for member in opened.manifest.members:
            assert (tmp_path / member.path).read_bytes() == opened.read(member.path)


def _program(name: str) -> Path:
    found = shutil.which(name)
    assert found
    return Path(found)
