"""Every kind of store that the contract holds for: add a Maker here and the suite runs on it too.

A maker opens a fresh store that holds the given images, filled by other means than the store's own
``push``, so that reading is tested against bytes that our code did not write.
"""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest

from installer.bundle.digest import Digest
from installer.oci.archive_store import open_archive
from installer.oci.bundle_store import BundleStore
from installer.oci.http import Patience
from installer.oci.registry import RegistryStore
from tests.bundles import damage as flip
from tests.bundles import make_bundle, open_bundle
from tests.integration import servers
from tests.programs import ProgramMissing
from tests.upstream.images import Content, artefact, write_layout
from tests.upstream.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from installer.oci.store import ReadableStore
    from tests.upstream.images import Image


QUICK = Patience(connect=5, read=5, attempts=3, backoff=0.01, longest=2)


@dataclass(frozen=True)
class Opened:
    """An open store, and how to damage a content of it behind its back (None: impossible).

    ``damage(repository, digest)`` flips a bit and keeps the size.
    """

    store: ReadableStore
    damage: Callable[[str, str], None] | None = None


@dataclass(frozen=True)
class Maker:
    """``open(folder, images)`` is a context; ``writable`` says that it is a WritableStore."""

    name: str
    open: Callable[[Path, Mapping[tuple[str, str], Image]], AbstractContextManager[Opened]]
    writable: bool
    marks: tuple[pytest.MarkDecorator, ...] = ()


def _flipped(data: bytes) -> bytes:
    """Flip a bit so that a manifest stays one: real registries look at what they serve."""
    digit = re.search(rb'"size":\s*\d*(\d)', data)
    at = digit.start(1) if digit else 0
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@contextmanager
def _in_memory(folder: Path, images: Mapping[tuple[str, str], Image]) -> Iterator[Opened]:
    del folder
    with Registry() as registry:
        for (repository, tag), image in images.items():
            registry.put(repository, tag, image)

        def damage(repository: str, digest: str) -> None:
            manifests = registry.repositories[repository].manifests
            if digest in manifests:
                old = manifests[digest]
                manifests[digest] = Content(old.media_type, _flipped(old.data))
            else:
                registry.blobs[digest] = _flipped(registry.blobs[digest])

        with RegistryStore(registry.host, patience=QUICK) as store:
            yield Opened(store, damage)


@contextmanager
def _docker_registry(folder: Path, images: Mapping[tuple[str, str], Image]) -> Iterator[Opened]:
    context = servers.docker_registry(folder / "docker-registry")
    try:
        registry = context.__enter__()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    try:
        for (repository, tag), image in images.items():
            _fill(f"{registry.url}/v2/{repository}", tag, image)

        def damage(repository: str, digest: str) -> None:
            del repository  # it keeps content once for all of them
            value = digest.removeprefix("sha256:")
            blobs = registry.storage / "docker/registry/v2/blobs/sha256"
            path = blobs / value[:2] / value / "data"
            path.write_bytes(_flipped(path.read_bytes()))

        with RegistryStore(registry.host, patience=QUICK) as store:
            yield Opened(store, damage)
    finally:
        context.__exit__(None, None, None)


@contextmanager
def _bundle(folder: Path, images: Mapping[tuple[str, str], Image]) -> Iterator[Opened]:
    references = {f"docker.io/{name}:{tag}": image for (name, tag), image in images.items()}
    with open_bundle(*make_bundle(folder / "bundle.tar", references)) as bundle:
        yield Opened(
            BundleStore(bundle), lambda _, digest: flip(folder / "bundle.tar", bundle, digest)
        )


@contextmanager
def _base_and_delta(folder: Path, images: Mapping[tuple[str, str], Image]) -> Iterator[Opened]:
    """Every second content is in the base alone, where nothing but the delta names it."""
    references = {f"docker.io/{name}:{tag}": image for (name, tag), image in images.items()}
    digests = sorted({c.digest for image in images.values() for c in image.everything})
    before = artefact(
        Content("text/plain", b"{}"), [c for i in images.values() for c in i.everything]
    )
    base, pem = make_bundle(folder / "base.tar", {"docker.io/other/thing:1": before})
    delta, _ = make_bundle(folder / "delta.tar", references, omit=digests[::2], serial=2)
    with open_bundle(base, pem) as first, open_bundle(delta, pem) as second:

        def damage(_: str, digest: str) -> None:
            for path, bundle in ((base, first), (delta, second)):
                if bundle.find(Digest.parse(digest).blob_path):
                    flip(path, bundle, digest)

        yield Opened(BundleStore(first, second), damage)


@contextmanager
def _layout(folder: Path, images: Mapping[tuple[str, str], Image]) -> Iterator[Opened]:
    named = {f"{repository}:{tag}": image for (repository, tag), image in images.items()}
    write_layout(folder / "layout", named)

    def damage(_: str, digest: str) -> None:
        path = folder / "layout" / "blobs" / "sha256" / digest.removeprefix("sha256:")
        path.write_bytes(_flipped(path.read_bytes()))

    yield Opened(open_archive(folder / "layout", folder), damage)


def _fill(base: str, tag: str, image: Image) -> None:
    """Upload with the standard library, so that nothing of ours is in the way."""

    def send(method: str, url: str, data: bytes, kind: str = "application/octet-stream") -> Any:
        request = urllib.request.Request(  # noqa: S310  # a server of our own on loopback
            url, data=data, method=method, headers={"Content-Type": kind}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return urljoin(url, answer.headers.get("Location", ""))

    for blob in image.blobs:
        place = send("POST", f"{base}/blobs/uploads/", b"")
        send("PUT", f"{place}&digest={blob.digest}", blob.data)
    for manifest in (*image.manifests, image.top):
        send("PUT", f"{base}/manifests/{manifest.digest}", manifest.data, manifest.media_type)
    send("PUT", f"{base}/manifests/{tag}", image.top.data, image.top.media_type)


def spaced(image: Image) -> Image:
    """Give an image's manifest other bytes of the same meaning, as other tools write them."""
    data = json.dumps(json.loads(image.top.data), indent=3, ensure_ascii=False).encode() + b"\n"
    return type(image)(
        Content(image.top.media_type, data), image.manifests, image.blobs, image.platform
    )


MAKERS = [
    Maker("registry", _in_memory, writable=True),
    Maker("docker-registry", _docker_registry, writable=True, marks=(pytest.mark.integration,)),
    Maker("bundle", _bundle, writable=False),
    Maker("layout", _layout, writable=False),
    Maker("base-and-delta", _base_and_delta, writable=False),
]
