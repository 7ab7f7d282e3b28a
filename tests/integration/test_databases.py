"""Real Trivy with databases that the seed registry serves: newer, spoilt, of the wrong schema."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from installer.bundle.trust import TrustAnchor
from installer.deploy import daemon
from installer.deploy.databases import ServeDatabases, check_site, remember_names
from installer.deploy.request import Request
from installer.deploy.seed import ServeBundle
from installer.errors import PreflightFailed
from installer.harbor.planted import CVE, PACKAGE, planted_image
from installer.oci.bundle_store import BundleStore
from installer.serve import BundleServer
from installer.site.harbor import Harbor
from installer.site.model import Cluster, Release, Seed, Serve, Site
from installer.site.state import State
from tests.bundles import make_bundle, open_bundle
from tests.upstream.images import image, layer
from tests.upstream.trivy import database, vulnerability_database

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALLER = (sys.executable, str(Path(sys.executable).with_name("installer")))
KNOWN = vulnerability_database({("alpine 3.10", PACKAGE): {CVE: "1.1.22-r3"}})
OTHER = vulnerability_database({("alpine 3.11", "other"): {"CVE-2026-0001": "1"}})
REFERENCE = "ghcr.io/aquasecurity/trivy-db:2"
WEEK = dt.timedelta(days=7)


def made(folder: Path, name: str, age: dt.timedelta, content: bytes, **more: Any) -> Any:
    updated = dt.datetime.now(dt.UTC).replace(microsecond=0) - age
    images = {"docker.io/team/app:1": image([layer(10, "app")])} if name == "harbor" else {}
    databases = {REFERENCE: database(updated=updated, content=content)}
    return make_bundle(folder / f"{name}.tar", images, databases=databases, name=name, **more)


class Scanner:
    """Trivy with a cache of its own, told as Harbor's adapter tells it."""

    def __init__(self, program: Path, folder: Path, registry: str) -> None:
        self.program = program
        self.folder = folder
        self.registry = registry
        image = planted_image()
        blobs = folder / "planted" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        (blobs / image.root.digest.hex).write_bytes(image.manifest)
        for blob in image.blobs:
            (blobs / blob.descriptor.digest.hex).write_bytes(blob.data)
        (folder / "planted" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        root = {"mediaType": image.root.media_type, "digest": str(image.root.digest)}
        index = {"schemaVersion": 2, "manifests": [root | {"size": image.root.size}]}
        (folder / "planted" / "index.json").write_text(json.dumps(index))

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "db"

    def metadata(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.cache / "metadata.json").read_bytes())
        return document

    def write_metadata(self, **changes: Any) -> None:
        (self.cache / "metadata.json").write_text(json.dumps(self.metadata() | changes))

    def finds(self) -> set[str]:
        where = [f"--input={self.folder}/planted", f"--cache-dir={self.cache.parent}"]
        source = [f"--db-repository={self.registry}/aquasecurity/trivy-db"]
        offline = ["--skip-java-db-update", "--offline-scan", "--quiet", "--scanners=vuln"]
        done = subprocess.run(
            [self.program, "image", *where, *source, *offline, "--format=json"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout).get("Results", [])
        return {hole["VulnerabilityID"] for r in results for hole in r.get("Vulnerabilities", [])}


@pytest.fixture
def scanner(trivy: Path, tmp_path: Path) -> Iterator[Scanner]:
    """A scanner whose registry serves an old bundle, and a newer one with only databases beside."""
    first, pem = made(tmp_path, "harbor", WEEK, OTHER, serial=900)
    second, _ = made(tmp_path, "databases", dt.timedelta(), KNOWN, serial=1)
    with (
        open_bundle(first, pem) as one,
        open_bundle(second, pem) as two,
        BundleServer(BundleStore(one, two), ("127.0.0.1", 0)) as running,
    ):
        yield Scanner(trivy, tmp_path, f"127.0.0.1:{running.address[1]}")


def test_the_newer_database_is_used_and_a_spoilt_one_is_fetched_again(scanner: Scanner) -> None:
    assert scanner.finds() == {CVE}
    good = scanner.metadata()
    (scanner.cache / "metadata.json").unlink()  # what a failed download leaves
    assert scanner.finds() == {CVE}
    scanner.write_metadata(Version=1)
    assert scanner.finds() == {CVE}
    assert scanner.metadata()["UpdatedAt"] == good["UpdatedAt"]
    scanner.write_metadata(
        NextUpdate="2020-01-01T00:00:00Z",
        DownloadedAt="2020-01-01T00:00:00Z",
        UpdatedAt="2020-01-01T00:00:00Z",
    )
    (scanner.cache / "trivy.db").write_bytes(OTHER)
    assert scanner.finds() == {CVE}  # an expired one


def test_an_empty_one_that_is_not_due_stays_until_it_is_taken_away(scanner: Scanner) -> None:
    assert scanner.finds() == {CVE}
    (scanner.cache / "trivy.db").write_bytes(OTHER)
    assert scanner.finds() == set()  # nothing but a planted finding tells
    shutil.rmtree(scanner.cache)
    assert scanner.finds() == {CVE}


def test_the_seed_serves_them_beside_and_goes_on_when_the_medium_is_gone(
    tmp_path: Path, trivy: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    serve = Serve(address, address, tls=False, service="none")
    harbor = Release("harbor", harbor=Harbor("http://harbor.invalid"))
    site = Site("site/v1", "Site", "s", Cluster("k"), Seed(serve=serve), (harbor,))
    state = State(tmp_path / "state")
    path, pem = made(tmp_path, "harbor", WEEK, OTHER)
    fresh, _ = made(tmp_path, "databases", dt.timedelta(), KNOWN)
    anchor = TrustAnchor(pem, "k.pub")
    with open_bundle(path, pem) as main, open_bundle(fresh, pem) as newer, state.held():
        request = Request(newer, site, state, anchor, INSTALLER)
        with pytest.raises(PreflightFailed, match="nothing was installed"):
            check_site(request)
        state.record(main.manifest)
        with pytest.raises(PreflightFailed, match="is told of none"):
            check_site(request)
        remember_names(state, main.manifest)
        with pytest.raises(PreflightFailed, match="not known which bundle"):
            check_site(request)
        first = ServeBundle(site, serve, state, main, command=INSTALLER, key=anchor)
        try:
            first.apply()
            check_site(request)
            with pytest.raises(PreflightFailed, match="another key"):
                check_site(replace(request, key=TrustAnchor(b"another", "k.pub")))
            shared = "sha256:" + hashlib.sha256(b"{}").hexdigest()
            thin, _ = made(tmp_path, "delta", dt.timedelta(), KNOWN, omit=[shared])
            with open_bundle(thin, pem) as delta:
                with pytest.raises(PreflightFailed, match="a delta, 1 blobs of which"):
                    check_site(replace(request, bundle=delta))
                delta.stand_on([open_bundle(path, pem)])
                check_site(replace(request, bundle=delta))
            step = ServeDatabases(request, serve)
            assert not step.check()
            assert "the medium can go" in step.apply()
            fresh.unlink()
            assert step.check()
            assert first.check()  # the next run of Harbor's own bundle leaves it as it is
            assert Scanner(trivy, tmp_path / "scanner", address).finds() == {CVE}
            daemon.stop(state.path("seed") / "serve.pid")
            assert not first.check()
            first.apply()
            assert step.check()
        finally:
            daemon.stop(state.path("seed") / "serve.pid")
