"""Thousands of images that are made in a moment: a layout on the disk and the lock of a spec.

Ten blobs each: a manifest, a config and eight layers of 1 kB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from bundler.lock import Blob, Lock, encode_lock
from bundler.spec import Spec
from installer.bundle.manifest import Image
from tests.upstream.images import OCI_MANIFEST, image, layer

if TYPE_CHECKING:
    from pathlib import Path

_LAYERS = 8
_LAYER_BYTES = 1000


def synthetic(folder: Path, count: int) -> Path:
    """Write ``layout``, ``bundle.yaml`` and ``bundle.lock``; gives the spec."""
    spec = folder / "bundle.yaml"
    names = [f"registry.example/many/image-{number}:1" for number in range(count)]
    document = {"apiVersion": "bundle/v1", "kind": "BundleSpec", "name": "many", "images": names}
    spec.write_text(yaml.safe_dump(document))
    blobs = folder / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    listed: dict[str, Blob] = {}
    images = []
    for number, name in enumerate(names):
        made = image([layer(_LAYER_BYTES, f"many-{number}-{at}") for at in range(_LAYERS)])
        repository = name.rpartition(":")[0]
        for content in made.everything:
            (blobs / content.digest.removeprefix("sha256:")).write_bytes(content.data)
            listed[content.digest] = Blob(
                content.digest, len(content.data), content.media_type, repository=repository
            )
        images.append(Image(made.digest, OCI_MANIFEST, len(made.top.data), name))
    lock = Lock(
        api_version="bundle/v1",
        kind="BundleLock",
        name="many",
        channel="stable",
        serial=1,
        created="2026-01-01T00:00:00Z",
        spec_digest=str(Spec.load(spec).digest()),
        platforms=("linux/amd64",),
        blobs=tuple(listed[digest] for digest in sorted(listed)),
        images=tuple(images),
    )
    spec.with_name("bundle.lock").write_bytes(encode_lock(lock))
    return spec
