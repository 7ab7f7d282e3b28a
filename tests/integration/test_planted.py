"""Real Trivy finds what is planted, and only if the database knows it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from installer.harbor.planted import CVE, PACKAGE, planted_image
from tests.upstream.trivy import vulnerability_database

if TYPE_CHECKING:
    from pathlib import Path

_KNOWN = {("alpine 3.10", PACKAGE): {CVE: "1.1.22-r3"}}


@pytest.mark.parametrize(("known", "found"), [(_KNOWN, {CVE}), ({("alpine 3.11", "x"): {}}, set())])
def test_trivy_finds_it(
    trivy: Path, tmp_path: Path, known: dict[tuple[str, str], dict[str, str]], found: set[str]
) -> None:
    image = planted_image()
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (blobs / image.root.digest.hex).write_bytes(image.manifest)
    for blob in image.blobs:
        (blobs / blob.descriptor.digest.hex).write_bytes(blob.data)
    (tmp_path / "layout" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    root = {
        "mediaType": image.root.media_type,
        "digest": str(image.root.digest),
        "size": image.root.size,
    }
    index = {"schemaVersion": 2, "manifests": [root]}
    (tmp_path / "layout" / "index.json").write_text(json.dumps(index))
    cache = tmp_path / "cache" / "db"
    cache.mkdir(parents=True)
    (cache / "trivy.db").write_bytes(vulnerability_database(known))
    stamp = "2026-01-01T00:00:00Z"
    metadata = {"Version": 2, "NextUpdate": stamp, "UpdatedAt": stamp, "DownloadedAt": stamp}
    (cache / "metadata.json").write_text(json.dumps(metadata))
    offline = ["--skip-db-update", "--skip-java-db-update", "--offline-scan", "--quiet"]
    where = [f"--input={tmp_path / 'layout'}", f"--cache-dir={cache.parent}"]
    done = subprocess.run(
        [trivy, "image", *where, *offline, "--scanners=vuln", "--format=json"],
        capture_output=True,
        check=True,
    )
    results = json.loads(done.stdout).get("Results", [])
    holes = [hole for result in results for hole in result.get("Vulnerabilities", [])]
    assert {hole["VulnerabilityID"] for hole in holes} == found
