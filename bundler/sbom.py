"""What a bundle consists of, as a CycloneDX 1.6 bill of materials.

Components are the charts, images, tools, databases and files of the lock, by digest, and the
installers that travel along with the packages in them. What is inside the images their own makers
have to say. Serial number and time come from the lock, so the same lock gives the same document.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

from bundler.attestation import statement
from bundler.provenance import PROJECT, version
from installer.bundle.digest import Digest
from installer.bundle.manifest import parse_time
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    from bundler.lock import Lock

MEMBER = "sbom.cdx.json"
PREDICATE_TYPE = "https://cyclonedx.org/bom"
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:harbor-airgap:bundle:v1")


class Part(Protocol):
    """A package inside an installer; ``kind`` is ``python`` for one of the package index."""

    @property
    def kind(self) -> str: ...  # noqa: D102 (see the class)
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


class Installer(Protocol):
    """An installer in the bundle, and what it is made of."""

    @property
    def name(self) -> str: ...  # noqa: D102 (see the class)
    @property
    def digest(self) -> Digest: ...  # noqa: D102
    @property
    def components(self) -> Sequence[Part]: ...  # noqa: D102


def sbom(lock: Lock, installers: Sequence[Installer] = ()) -> bytes:
    """The bill of materials of a lock's bundle."""
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415 (takes 0.2 s)
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.model.tool import ToolRepository  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415

    seed = f"{lock.name} {lock.channel} {lock.serial} {lock.spec_digest}"
    bundle = Component(
        name=lock.name,
        version=str(lock.serial),
        type=ComponentType.APPLICATION,
        bom_ref="bundle",
    )
    builder = Component(
        name=PROJECT, version=version(), type=ComponentType.APPLICATION, bom_ref="bundler"
    )
    bom = Bom(
        serial_number=uuid.uuid5(_SPACE, seed),
        metadata=BomMetaData(
            timestamp=parse_time(lock.created),
            component=bundle,
            tools=ToolRepository(components=[builder]),
        ),
    )
    contents = [*_contents(lock), *_installers(installers)]
    bom.components.update(contents)
    bom.register_dependency(bundle, contents)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text.encode() + b"\n"


def sbom_statement(document: bytes, subject: Digest) -> bytes:
    """The in-toto statement that has the bill of materials as its predicate."""
    import json  # noqa: PLC0415 (with the document that it reads)

    return statement(subject, PREDICATE_TYPE, json.loads(document))


def _contents(lock: Lock) -> Iterator[Component]:
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415 (takes 0.2 s)

    for image in lock.images:
        reference = Reference.parse(image.reference)
        of = Digest.parse(image.digest)
        purl = _oci(reference, of)
        version = reference.tag or ""
        yield _component(
            ComponentType.CONTAINER, "image", reference.repository, version, of.hex, purl
        )
    for chart in lock.charts:
        yield _component(
            ComponentType.APPLICATION, "chart", chart.name, chart.version, chart.sha256,
            _generic(chart.name, chart.version, chart.sha256, chart.source),
        )  # fmt: skip
    for tool in lock.tools:
        yield _component(
            ComponentType.APPLICATION, "tool", f"{tool.name}-{tool.platform}", "", tool.sha256,
            _generic(tool.name, "", tool.sha256, tool.source),
        )  # fmt: skip
    for database in lock.databases:
        reference, of = Reference.parse(database.reference), Digest.parse(database.digest)
        yield _component(
            ComponentType.DATA, "database", reference.repository,
            database.updated_at or reference.tag or "", of.hex, _oci(reference, of),
        )  # fmt: skip
    for file in lock.files:
        yield _component(ComponentType.FILE, "file", file.name, "", file.sha256, None)


def _installers(installers: Sequence[Installer]) -> Iterator[Component]:
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415 (takes 0.2 s)
    from packageurl import PackageURL  # noqa: PLC0415

    for installer in installers:
        whole = _component(
            ComponentType.APPLICATION, "installer", installer.name, version(),
            installer.digest.hex, None,
        )  # fmt: skip
        for part in sorted(installer.components, key=lambda p: (p.kind, p.name, p.sha256)):
            purl = None
            if part.kind == "python":
                purl = PackageURL("pypi", None, part.name.lower().replace("_", "-"), part.version)
            name = f"{installer.name}/{part.kind}"
            whole.components.add(
                _component(ComponentType.LIBRARY, name, part.name, part.version, part.sha256, purl)
            )
        yield whole


def _component(
    kind: ComponentType, word: str, name: str, version: str, sha256: str, purl: PackageURL | None
) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property  # noqa: PLC0415 (takes 0.2 s)
    from cyclonedx.model.component import Component  # noqa: PLC0415

    return Component(
        type=kind,
        name=name,
        version=version or None,
        bom_ref=f"{word}/{name}@{version or sha256}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        purl=purl,
        properties=[Property(name=f"{PROJECT}:kind", value=word)],
    )


def _oci(reference: Reference, digest: Digest) -> PackageURL:
    """An image's package URL (purl-spec, types/oci): the digest is its version."""
    from packageurl import PackageURL  # noqa: PLC0415 (takes 0.2 s with the rest)

    qualifiers = {"repository_url": reference.repository}
    if reference.tag:
        qualifiers["tag"] = reference.tag
    return PackageURL("oci", None, reference.repository.rsplit("/", 1)[-1], str(digest), qualifiers)


def _generic(name: str, version: str, sha256: str, source: str) -> PackageURL:
    """The package URL of a file that has no package type (purl-spec, types/generic)."""
    from packageurl import PackageURL  # noqa: PLC0415 (takes 0.2 s with the rest)

    qualifiers = {"checksum": f"sha256:{sha256}"}
    if "://" in source:
        qualifiers["download_url"] = source
    return PackageURL("generic", None, name, version or None, qualifiers)
