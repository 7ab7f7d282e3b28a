"""``installer inspect``: what is inside, from the signed manifest alone."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import TYPE_CHECKING

import click
import msgspec

from installer.bundle.digest import Digest
from installer.cli.console import output_option, print_json, print_table, size_text
from installer.cli.open import (
    TrustOptions,
    bundle_argument,
    delta_words,
    open_verified,
    required_facts,
    trust_options,
)
from installer.errors import InvalidInput
from installer.oci.graph import ImageIndex, read_manifest
from installer.oci.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Content, Manifest


@click.command("inspect")
@bundle_argument
@trust_options
@output_option
@click.option("--sbom", is_flag=True, help="Print its CycloneDX bill of materials instead.")
@click.option("--provenance", is_flag=True, help="Print its SLSA provenance instead.")
def command(
    bundle: Path, trusted: TrustOptions, output: str, *, sbom: bool, provenance: bool
) -> None:
    """Show what BUNDLE holds. The signature is checked first, the contents are not read."""
    if sbom and provenance:
        raise InvalidInput("--sbom and --provenance: one at a time")
    with open_verified(bundle, trusted) as verified:
        if sbom:
            click.echo(_read(verified, "sbom.cdx.json"), nl=False)
            return
        if provenance:
            envelope = json.loads(_read(verified, "provenance.sigstore.json"))
            print_json(json.loads(base64.b64decode(envelope["dsseEnvelope"]["payload"])))
            return
        if output == "json":
            document = msgspec.to_builtins(verified.manifest)
            document["digest"] = str(verified.digest)
            document["signers"] = list(verified.signers)
            document["bytes"] = verified.layout.size
            document["requiredBytes"] = required_facts(verified)["bytes"]
            print_json(document)
            return
        _show(verified)


def _read(verified: VerifiedBundle, member: str) -> bytes:
    if verified.find(member) is None:
        raise InvalidInput(f"{verified.path}: there is no {member} in it")
    return verified.read(member)


def _show(verified: VerifiedBundle) -> None:
    manifest = verified.manifest
    click.echo(
        f"{manifest.name}  serial {manifest.serial}  channel {manifest.channel}  "
        f"created {manifest.created}"
        + (f"  expires {manifest.expires}" if manifest.expires else "")
    )
    click.echo(
        f"{size_text(verified.layout.size)} in {len(manifest.members)} members for "
        f"{', '.join(manifest.platforms)}\n"
        f"bundle.json, signed by {', '.join(signer[:16] for signer in verified.signers)}:\n"
        f"  {verified.digest}\n"
    )
    if words := delta_words(verified):
        click.echo(f"{words}\n")
    rows = [
        ["chart", f"{c.name} {c.version} (app {c.app_version})", size_text(c.size), c.sha256[:12]]
        for c in manifest.charts
    ]
    rows += [
        ["installer", m.path, size_text(m.size), m.sha256[:12]]
        for m in manifest.members
        if m.executable
    ]
    for image in manifest.images:
        charts = sorted({origin.chart or "spec" for origin in image.origins})
        name = str(Reference.parse(image.reference)) + (
            f"  ({', '.join(charts)})" if charts else ""
        )
        size = size_text(_content_size(verified, image))
        rows.append(["image", name, size, Digest.parse(image.digest).hex[:12]])
    rows += [
        ["tool", f"{t.name} ({t.platform})", size_text(t.size), t.sha256[:12]]
        for t in manifest.tools
    ]
    for database in manifest.databases:
        dated = f"  of {database.updated_at}" if database.updated_at else ""
        digest = Digest.parse(database.digest).hex[:12]
        rows.append(["database", database.reference + dated, size_text(database.size), digest])
    rows += [["file", f.name, size_text(f.size), f.sha256[:12]] for f in manifest.files]
    print_table("", ["kind", "name", "size", "sha256"], rows)
    for sentence in _vouched(manifest):
        click.echo(sentence)


def _vouched(manifest: Manifest) -> Iterator[str]:
    """What upstream says of its own and comes along, and who vouched when the lock was made."""
    along = sum(len(one.accessories) for one in manifest.images)
    along += sum(len(one.accessories) for one in manifest.charts)
    if along:
        yield f"signatures, SBOMs and attestations of upstream in it: {along}"
    lists = (
        manifest.charts, manifest.images, manifest.tools, manifest.databases, manifest.files
    )  # fmt: skip
    verified = [one.verified for contents in lists for one in contents]
    methods = Counter(check.method for checks in verified for check in checks)
    nobody = sum(not checks for checks in verified)
    ways = ", ".join(f"{method} {count}" for method, count in sorted(methods.items()))
    yield f"vouched for when it was locked: {ways or 'nothing'}; by nobody: {nobody}"


def _content_size(verified: VerifiedBundle, content: Content) -> int:
    """Bytes of all that the content's manifest points to, as far as the bundle has it."""
    total, waiting, seen = 0, [content.root], set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.digest in seen:
            continue
        seen.add(descriptor.digest)
        total += descriptor.size
        if descriptor.is_manifest and verified.locate(descriptor.digest.blob_path):
            data = verified.read(descriptor.digest.blob_path)
            document = read_manifest(data, descriptor.media_type, str(descriptor.digest))
            if isinstance(document, ImageIndex):
                waiting += [m for m in document.manifests if verified.locate(m.digest.blob_path)]
            else:
                waiting += document.children
    return total
