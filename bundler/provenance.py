"""Where everything in a bundle came from, as SLSA provenance v1 (slsa.dev/spec/v1.0/provenance).

It says what a person asked for (the spec's digest), what that was resolved to and from where (every
content by digest and source), and by which version of what: our own, and the Helm that rendered the
charts. Nothing in it is of this run or this machine, so the same lock gives the same provenance.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from bundler.attestation import statement
from bundler.lock import encode_lock
from installer.bundle.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bundler.lock import Lock
    from installer.bundle.manifest import Content

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:harbor-airgap:bundle:v1"
BUILDER = "urn:harbor-airgap:bundler"
PROJECT = "harbor-airgap"


def version() -> str:
    """The version of this program."""
    return importlib.metadata.version(PROJECT)


def provenance(lock: Lock, subject: Digest) -> bytes:
    """The statement about a lock's bundle; ``subject`` is the digest of its ``index.json``."""
    whole = Digest.of(encode_lock(lock))
    helm = [
        {"name": f"helm ({tool.platform})", "uri": tool.source, "digest": {"sha256": tool.sha256}}
        for tool in lock.tools
        if tool.name == "helm"
    ]
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "name": lock.name,
                "channel": lock.channel,
                "platforms": list(lock.platforms),
                "spec": {"digest": {"sha256": Digest.parse(lock.spec_digest).hex}},
            },
            "internalParameters": {"serial": lock.serial, "created": lock.created},
            "resolvedDependencies": [
                {"name": "bundle.lock", "digest": {"sha256": whole.hex}},
                *_resolved(lock),
            ],
        },
        "runDetails": {
            "builder": {
                "id": BUILDER,
                "version": {PROJECT: version()},
                "builderDependencies": helm,
            },
            "metadata": {"invocationId": str(whole)},
        },
    }
    return statement(subject, PREDICATE_TYPE, predicate)


def _resolved(lock: Lock) -> Iterator[dict[str, Any]]:
    """Each content with the place that it is from; sha256 of the file itself where it is one."""
    for image in lock.images:
        yield _content(f"image {image.reference}", f"oci://{image.reference}", image)
    for chart in lock.charts:
        name = f"chart {chart.name} {chart.version}"
        yield _content(name, chart.source, chart, chart.sha256)
    for tool in lock.tools:
        yield _content(f"tool {tool.name} ({tool.platform})", tool.source, tool, tool.sha256)
    for database in lock.databases:
        uri = f"oci://{database.reference}"
        yield _content(f"database {database.reference}", uri, database)
    for file in lock.files:
        yield _content(f"file {file.name}", "", file, file.sha256)


def _content(name: str, source: str, content: Content, sha256: str = "") -> dict[str, Any]:
    manifest = Digest.parse(content.digest).hex
    found: dict[str, Any] = {"name": name}
    if source:
        found["uri"] = source
    found["digest"] = {"sha256": sha256 or manifest}
    found["mediaType"] = content.media_type if not sha256 else "application/octet-stream"
    if sha256:
        found["annotations"] = {"manifest": f"sha256:{manifest}"}
    return found
