"""Platforms from a real registry to a real client: one of an index, all of it, the wrong one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
import requests

from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer
from tests.bundles import open_bundle
from tests.integration.test_lock import put
from tests.integration.test_sources import Builder, program
from tests.upstream.images import image, index, layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle
    from tests.integration.servers import DockerRegistry

HOST = "registry.corp.example"
AMD64, ARM64, ARMV7, ARMV6, MIPS, ATTESTED = (
    image([layer(20_000, platform)], platform=platform)
    for platform in (
        "linux/amd64",
        "linux/arm64/v8",
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/mips64le",
        "unknown/unknown",
    )
)
EDGE = index([AMD64, ARM64, ARMV7, ARMV6, MIPS, ATTESTED])
CONTROL = index([AMD64, ARM64, ATTESTED], docker=True)
IMAGES = {"edge": EDGE, "control": CONTROL, "sensor": EDGE, "solo": ARMV7}


@pytest.fixture
def builder(tmp_path: Path, docker_registry: DockerRegistry) -> Builder:
    for name, published in IMAGES.items():
        put(docker_registry.url, f"team/{name}", "1", published)
    builder = Builder(tmp_path)
    builder.registries = {HOST: {"endpoints": [docker_registry.url]}}
    builder.spec["images"] = [
        f"{HOST}/team/control:1",
        {"reference": f"{HOST}/team/edge:1", "platforms": ["all"]},
        {"reference": f"{HOST}/team/sensor:1", "platforms": ["linux/arm/v6"]},
        f"{HOST}/team/solo:1",
    ]
    builder.spec["imagePlatforms"] = [{"match": "*/team/solo", "platforms": ["linux/arm/v7"]}]
    return builder


@pytest.fixture
def bundle(builder: Builder) -> Iterator[VerifiedBundle]:
    """Locked, built and verified by processes."""
    folder = builder.folder
    (folder / "pass").write_text("words\n")
    secret = ("--passphrase-file", "pass")
    builder.bundler("keygen", "--out", "release.key", *secret)
    config = ("--registry-config", "registries.yaml")
    out = ("--key", "release.key", *secret, "--out", "out.tar", "--no-installer")
    builder.bundler("build", "bundle.yaml", *out, *config)
    key = folder / "release.pub"
    command = (sys.executable, "-c", "from installer.cli import main; main()", "verify")
    said = program(*command, folder / "out.tar", "--key", key, "--output=json", cwd=folder)
    assert json.loads(said)["name"] == "sources"
    with open_bundle(folder / "out.tar", key.read_bytes()) as opened:
        yield opened


def test_each_image_comes_for_its_own_platforms(
    builder: Builder, bundle: VerifiedBundle, skopeo: Callable[..., str], tmp_path: Path
) -> None:
    found = {i.reference: (i.digest, i.index) for i in builder.locked.images}
    assert found == {
        f"{HOST}/team/control:1": (AMD64.digest, CONTROL.digest),
        f"{HOST}/team/edge:1": (EDGE.digest, ""),
        f"{HOST}/team/sensor:1": (ARMV6.digest, EDGE.digest),
        f"{HOST}/team/solo:1": (ARMV7.digest, ""),
    }
    assert builder.locked.platforms == bundle.manifest.platforms == ("linux/amd64",)
    for content in (CONTROL.top, *EDGE.everything):
        assert bundle.read(f"blobs/sha256/{content.digest[7:]}") == content.data

    with BundleServer(BundleStore(bundle), ("127.0.0.1", 0)) as seed:
        edge = f"docker://{seed.authority}/team/edge"

        def pulled(reference: str, *options: str) -> bytes:
            # Layers are hashed on the way; what stays is the manifest that was chosen.
            to = tmp_path / f"pulled-{len(list(tmp_path.iterdir()))}"
            skopeo(*options, "copy", "--src-tls-verify=false", reference, f"dir:{to}")
            return (to / "manifest.json").read_bytes()

        for chosen, options in (
            (AMD64, ("--override-arch=amd64",)),
            (ARM64, ("--override-arch=arm64", "--override-variant=v8")),
            (ARMV7, ("--override-arch=arm", "--override-variant=v7")),
            (ARMV6, ("--override-arch=arm", "--override-variant=v6")),
            (MIPS, ("--override-arch=mips64le",)),
        ):
            assert pulled(f"{edge}@{EDGE.digest}", *options) == chosen.top.data
            assert pulled(f"{edge}@{chosen.digest}", *options) == chosen.top.data
        with pytest.raises(RuntimeError, match="for architecture s390x"):
            pulled(f"{edge}:1", "--override-arch=s390x")
        sensor = f"docker://{seed.authority}/team/sensor:1"
        assert pulled(sensor, "--override-arch=arm") == ARMV6.top.data


def test_the_whole_index_goes_on_into_a_registry_that_looks_for_its_children(
    bundle: VerifiedBundle,
    skopeo: Callable[..., str],
    make_docker_registry: Callable[..., DockerRegistry],
) -> None:
    site = make_docker_registry()
    target = f"{site.url}/v2/team/edge/manifests/{EDGE.digest}"
    sent = {"data": EDGE.top.data, "headers": {"Content-Type": EDGE.top.media_type}}
    refused = requests.put(target, **sent, timeout=10)  # type: ignore[arg-type]
    assert refused.status_code == requests.codes.bad_request, "why an index is carried whole"
    unsafe = ("--src-tls-verify=false", "--dest-tls-verify=false")
    with BundleServer(BundleStore(bundle), ("127.0.0.1", 0)) as seed:
        places = [f"docker://{host}/team/edge:1" for host in (seed.authority, site.host)]
        skopeo("copy", "--all", "--preserve-digests", *unsafe, *places)
    accepted = {"Accept": EDGE.top.media_type}
    assert requests.get(target, headers=accepted, timeout=10).content == EDGE.top.data


def test_the_wrong_platform_is_refused_when_locking(builder: Builder) -> None:
    rules = builder.spec.pop("imagePlatforms")
    said = builder.lock(code=2)
    assert f"{HOST}/team/solo:1: is not built for linux/amd64, only for linux/arm/v7" in said
    assert "imagePlatforms" in said
    rules[0]["platforms"] = ["linux/amd64", "all"]
    builder.spec["imagePlatforms"] = rules
    assert "is not built for linux/amd64" in builder.lock(code=2)
    rules[0]["platforms"] = ["all"]
    builder.spec["platforms"] = ["linux/amd64", "linux/arm64"]
    builder.lock()
    digests = {image.reference: image.digest for image in builder.locked.images}
    assert digests[f"{HOST}/team/control:1"] == CONTROL.digest
    assert digests[f"{HOST}/team/solo:1"] == ARMV7.digest
    builder.spec["platforms"] = ["all"]
    assert "bundle.yaml" in (said := builder.lock(code=2))
    assert "[linux/amd64, all]" in said
