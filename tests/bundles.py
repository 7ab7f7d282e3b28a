"""Small signed bundles for tests, made from the format alone: no registry, no network, no fetch.

What goes in are images of tests/upstream; what comes out is a file that every check of the product
accepts, and the PEM of the key that signed it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bundler.image_layout import OCI_LAYOUT, docker_manifest, index_json, readme
from bundler.lock import Blob, Lock, bundle_manifest
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.layout import layout
from installer.bundle.manifest import (
    SIGNATURE_AREA,
    Chart,
    Database,
    File,
    Member,
    Tool,
    encode,
)
from installer.bundle.manifest import Image as BundledImage
from installer.bundle.signature import PublicKey, Signature, canonical, encode_area
from installer.bundle.trust import KeyTrust
from tests.upstream import images as upstream

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle
    from installer.bundle.manifest import Manifest
    from tests.upstream.images import Image


@cache
def signing_key() -> ec.EllipticCurvePrivateKey:
    """The throw-away key of this test run."""
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey) -> Signature:
    public = PublicKey.of(key.public_key(), "test key")
    return Signature(public.key_id, canonical(key.sign(payload, ec.ECDSA(hashes.SHA256()))))


def make_bundle(
    path: Path,
    images: Mapping[str, Image],
    *,
    charts: Mapping[str, Image] | None = None,
    tools: Mapping[str, Image] | None = None,
    databases: Mapping[str, Image] | None = None,
    files: Mapping[str, Image] | None = None,
    profiles: Collection[str] = (),
    referrers: Sequence[Image] = (),
    omit: Collection[str] = (),
    name: str = "test",
    channel: str = "stable",
    serial: int = 1,
    created: str = "2026-01-31T12:00:00Z",
    expires: str = "",
    platforms: tuple[str, ...] = ("linux/amd64",),
    key: ec.EllipticCurvePrivateKey | None = None,
) -> tuple[Path, bytes]:
    """Write a signed bundle and give its path and the public key's PEM.

    ``images`` and ``databases`` are keyed by reference, ``charts`` by ``name:version``, ``tools``
    (for linux/amd64) and ``files`` by name. ``omit`` are digests that are left out and listed as
    required: that makes a delta.
    """
    key = key or signing_key()
    everything = [images, charts or {}, tools or {}, databases or {}, files or {}]
    contents = {
        content.digest: content
        for image in [*(image for group in everything for image in group.values()), *referrers]
        for content in image.everything
    }
    lock = Lock(
        api_version="bundle/v1",
        kind="BundleLock",
        name=name,
        channel=channel,
        serial=serial,
        created=created,
        spec_digest=str(Digest.of(b"")),
        platforms=platforms,
        expires=expires,
        blobs=tuple(
            Blob(c.digest, len(c.data), c.media_type, repository="test.invalid/all")
            for c in contents.values()
        ),
        images=tuple(
            BundledImage(**_content(image), reference=ref) for ref, image in images.items()
        ),
        charts=tuple(_chart(entry, image, profiles) for entry, image in (charts or {}).items()),
        tools=tuple(
            Tool(**_content(image), **_layer(image), name=n, platform="linux/amd64", source="test")
            for n, image in (tools or {}).items()
        ),
        databases=tuple(
            Database(
                **_content(image),
                kind="trivy-db",
                reference=ref,
                size=_layer_size(image),
                updated_at=_created(image),
            )
            for ref, image in (databases or {}).items()
        ),
        files=tuple(
            File(**_content(image), **_layer(image), name=n) for n, image in (files or {}).items()
        ),
    )
    documents = {
        Digest.parse(c.digest): c.data
        for c in contents.values()
        if c.media_type in (upstream.OCI_MANIFEST, upstream.OCI_INDEX)
        or c.media_type in (upstream.DOCKER_MANIFEST, upstream.DOCKER_LIST)
    }
    front = {
        "README.txt": readme(lock),
        "oci-layout": OCI_LAYOUT,
        "index.json": index_json(bundle_manifest(lock, (), SIGNATURE_AREA)),
        "manifest.json": docker_manifest(lock, documents),
    }
    listed = tuple(
        Member(file, len(data), Digest.of(data).hex) for file, data in sorted(front.items())
    )
    manifest = bundle_manifest(lock, listed, SIGNATURE_AREA)
    left_out = {Digest.parse(digest).blob_path for digest in omit}
    manifest = msgspec.structs.replace(
        manifest,
        members=tuple(m for m in manifest.members if m.path not in left_out),
        required=tuple(m for m in manifest.members if m.path in left_out),
    )
    blobs = {Digest.parse(digest).blob_path: content.data for digest, content in contents.items()}
    write_bundle(path, manifest, front | blobs, key)
    return path, public_pem(key)


def write_bundle(
    path: Path, manifest: Manifest, data: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey
) -> None:
    """Write the file of a manifest; ``data`` has the content of every member by its path."""
    payload = encode(manifest)
    places = layout(manifest, len(payload))
    area = encode_area([sign(payload, key)], Digest.of(payload), manifest.signature_area)
    with path.open("wb") as file:
        file.write(area)
        for offset, frame, _ in places.frames():
            file.seek(offset)
            file.write(frame)
        file.seek(places.manifest_offset + 512)
        file.write(payload)
        for entry in places.entries:
            file.seek(entry.offset)
            file.write(data[entry.member.path])


def open_bundle(path: Path, pem: bytes) -> VerifiedBundle:
    """Open and verify a bundle as the installer does."""
    trust = KeyTrust(PublicKey.parse(pem, "test.pub"), "test.pub")
    with UnverifiedBundle(path) as unverified:
        return unverified.verify(trust, datetime.now(UTC))


def damage(path: Path, bundle: VerifiedBundle, digest: str, *, at: int = 0) -> None:
    """Flip one bit of a blob in the file, ``at`` bytes into it."""
    entry = bundle.find(Digest.parse(digest).blob_path)
    assert entry is not None
    with path.open("r+b") as file:
        file.seek(entry.offset + at)
        byte = file.read(1)[0]
        file.seek(entry.offset + at)
        file.write(bytes([byte ^ 1]))


def _content(image: Image) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "media_type": image.top.media_type,
        "manifest_size": len(image.top.data),
    }


def _layer(image: Image) -> dict[str, Any]:
    return {"sha256": Digest.parse(image.blobs[-1].digest).hex, "size": _layer_size(image)}


def _created(image: Image) -> str:
    annotations = json.loads(image.top.data).get("annotations", {})
    return str(annotations.get("org.opencontainers.image.created", ""))


def _layer_size(image: Image) -> int:
    return len(image.blobs[-1].data)


def _chart(entry: str, image: Image, profiles: Collection[str] = ()) -> Chart:
    name, version = entry.split(":")
    return Chart(
        **_content(image),
        **_layer(image),
        name=name,
        version=version,
        app_version=version,
        source="test",
        profiles={profile: {} for profile in profiles},
    )


__all__ = [
    "damage",
    "make_bundle",
    "open_bundle",
    "public_pem",
    "sign",
    "signing_key",
    "write_bundle",
]
