"""Provenance and bill of materials: complete, valid, the same each time, whoever signs."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bundler.attestation import PAYLOAD_TYPE, signed, statement, unsigned
from bundler.lock import Blob, Lock
from bundler.provenance import provenance
from bundler.sbom import sbom, sbom_statement
from installer.bundle.digest import Digest
from installer.bundle.manifest import Chart, Database, File, Image, Tool
from installer.bundle.signature import Signature
from installer.keys import generate

HEX = [Digest.of(bytes([number])).hex for number in range(9)]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def content(number: int) -> dict[str, Any]:
    return {"digest": f"sha256:{HEX[number]}", "media_type": MANIFEST, "manifest_size": 1}


LOCK = Lock(
    api_version="bundle/v1",
    kind="BundleLock",
    name="harbor",
    channel="stable",
    serial=7,
    created="2026-01-02T03:04:05Z",
    spec_digest=f"sha256:{HEX[0]}",
    platforms=("linux/amd64",),
    blobs=(Blob(f"sha256:{HEX[1]}", 1, MANIFEST, repository="docker.io/goharbor/core"),),
    images=(
        Image(**content(1), reference="docker.io/goharbor/core:v2"),
        Image(**content(2), reference=f"quay.io/a/b@sha256:{HEX[2]}"),
    ),
    charts=(
        Chart(
            **content(3), name="harbor", version="1.18.4", app_version="2.14.4",
            source="https://helm.goharbor.io", sha256=HEX[7], size=1,
        ),
    ),
    tools=(
        Tool(
            **content(4), name="helm", platform="linux/amd64",
            source="https://get.helm.sh/helm-v4.3.1-linux-amd64.tar.gz", sha256=HEX[8], size=1,
        ),
        Tool(**content(4), name="kubectl", platform="linux/amd64", source="./kubectl",
             sha256=HEX[8], size=1),
    ),
    databases=(
        Database(**content(5), kind="trivy-db", reference="ghcr.io/aquasecurity/trivy-db:2",
                 size=1, updated_at="2026-01-01T00:00:00Z"),
    ),
    files=(File(**content(6), name="runbook.pdf", sha256=HEX[7], size=1),),
)  # fmt: skip
INDEX = Digest.of(b"index.json")


@dataclass(frozen=True)
class Part:
    kind: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Program:
    name: str
    digest: Digest
    components: tuple[Part, ...]


PROGRAM = Program(
    "installer-linux-amd64",
    INDEX,
    (Part("python", "Click", "8.2", HEX[0]), Part("library", "libc.so.6", "", HEX[1])),
)


def test_provenance_names_everything_with_its_source() -> None:
    document = json.loads(provenance(LOCK, INDEX))
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [{"name": "index.json", "digest": {"sha256": INDEX.hex}}]
    build, run = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
    assert build["externalParameters"]["spec"] == {"digest": {"sha256": HEX[0]}}
    found = {one["name"]: one for one in build["resolvedDependencies"]}
    assert len(found) == 1 + 2 + 1 + 2 + 1 + 1
    assert found["image docker.io/goharbor/core:v2"] == {
        "name": "image docker.io/goharbor/core:v2",
        "uri": "oci://docker.io/goharbor/core:v2",
        "digest": {"sha256": HEX[1]},
        "mediaType": MANIFEST,
    }
    assert found["chart harbor 1.18.4"]["uri"] == "https://helm.goharbor.io"
    assert found["chart harbor 1.18.4"]["digest"] == {"sha256": HEX[7]}
    assert "uri" not in found["file runbook.pdf"]
    assert run["builder"]["version"]["harbor-airgap"]
    assert run["builder"]["builderDependencies"][0]["digest"] == {"sha256": HEX[8]}
    assert provenance(LOCK, INDEX) == provenance(LOCK, INDEX)


@pytest.mark.parametrize("programs", [(), (PROGRAM,)])
def test_the_bill_of_materials_is_valid(programs: tuple[Program, ...]) -> None:
    text = sbom(LOCK, programs)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    assert sbom(LOCK, programs) == text
    document = json.loads(text)
    assert document["metadata"]["timestamp"].startswith("2026-01-02T03:04:05")
    found = {one["bom-ref"]: one for one in document["components"]}
    assert len(found) == 2 + 1 + 2 + 1 + 1 + len(programs)
    image = found["image/docker.io/goharbor/core@v2"]
    assert image["purl"].startswith(f"pkg:oci/core@sha256:{HEX[1]}?repository_url=docker.io")
    assert image["hashes"] == [{"alg": "SHA-256", "content": HEX[1]}]
    assert found["chart/harbor@1.18.4"]["type"] == "application"
    assert found["database/ghcr.io/aquasecurity/trivy-db@2026-01-01T00:00:00Z"]["type"] == "data"
    (all_of_it,) = [one for one in document["dependencies"] if one["ref"] == "bundle"]
    assert set(all_of_it["dependsOn"]) == set(found)
    for program in programs:
        (whole,) = [one for one in document["components"] if one["name"] == program.name]
        names = {part["name"]: part.get("purl") for part in whole["components"]}
        assert names == {"Click": "pkg:pypi/click@8.2", "libc.so.6": None}


def test_an_attestation_has_the_same_size_signed_or_not() -> None:
    payload = sbom_statement(sbom(LOCK), INDEX)
    size = len(unsigned(payload))
    keys = [generate(b"x")[0] for _ in range(5)]
    for number in range(60):  # signatures of 70, 71 and sometimes fewer bytes
        text = statement(INDEX, "t", {"number": number})
        assert len(signed(text, keys[number % 5])) == len(unsigned(text))
    key = keys[0]
    member = signed(payload, key)
    assert len(member) == size
    assert member == signed(payload, key)
    envelope = json.loads(member)["dsseEnvelope"]
    assert base64.b64decode(envelope["payload"]) == payload
    der = base64.b64decode(envelope["signatures"][0]["sig"])
    encoded = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
    assert key.public.holds(Signature(key.public.key_id, der), encoded)
