"""The readers under attack: each takes any bytes, and only our own errors may come out.

A target may do more than read: what was accepted must be the same when it is written again, and an
answer of the server must be one. Seeds are made here, so that the corpus is never older than the
formats.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bundler.lock import encode_lock, read_lock
from bundler.sources.archives import read_member
from bundler.sources.chart import _find_version, _read_index
from bundler.spec import Spec
from bundler.spec_document import Chart as ChartSource
from bundler.trust_root import Change, TrustFolder
from installer.bundle.archive import UnverifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.layout import layout
from installer.bundle.manifest import Manifest, decode, encode
from installer.bundle.parts import Part, PartsIndex, decode_index, encode_index
from installer.bundle.receipt import decode_receipt, encode_receipt
from installer.bundle.signature import PublicKey, decode_area, encode_area
from installer.bundle.trust_root import read_trust_root
from installer.errors import AirgapError
from installer.helm.chart import ChartArchive
from installer.oci.auth import Authority
from installer.oci.bundle_store import BundleStore
from installer.oci.cosign import (
    SigningIdentity,
    verify_sigstore_bundle,
    verify_simple_signing,
)
from installer.oci.graph import ACCEPTED_TYPES, OCI_MANIFEST, Descriptor, read_manifest
from installer.oci.reference import Reference
from installer.oci.signing import sigstore_bundle, simple_signing
from installer.serve.check import ContentCheck
from installer.serve.connection import Connection
from installer.serve.registry import ReadOnlyRegistry
from installer.site.model import read_site
from installer.structs import decode_json
from tests.attacks.mutants import AREA, sample
from tests.attacks.signed import SIGNED
from tests.bundles import make_bundle, open_bundle
from tests.upstream import images as made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from installer.bundle.signature import Signature

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 6, 1, tzinfo=UTC)
_DATA = Digest.of(b"data")


@dataclass(frozen=True)
class Target:
    """A reader: ``read`` takes any bytes; ``seeds`` are what it normally gets, and near misses.

    ``longest`` is the length in bytes of the inputs that are tried.
    """

    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    longest: int = 4096


class Everyone:
    """Trusts whoever signed, so that what comes after the signature is reached."""

    def signers(self, payload: bytes, signatures: Sequence[Signature]) -> tuple[str, ...]:
        del payload
        return tuple(signature.key_id for signature in signatures)


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """A file in memory with these bytes."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def bundle(data: bytes) -> None:
    """The whole file, as ``installer verify`` takes it."""
    with _file(data) as path, UnverifiedBundle(path) as unverified:
        verified = unverified.verify(Everyone(), NOW)
        with verified:
            verified.verify_members(threads=1)


def manifest(data: bytes) -> None:
    """bundle.json whose signature held; what is read loosely must stand the strict reading."""
    try:
        loose = encode(decode_json(data, Manifest))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decode(data)
        return
    accepted = decode(loose)
    assert encode(accepted) == loose
    places = layout(accepted, len(loose))
    end = 0
    for offset, frame, _ in places.frames():
        assert offset >= end, "members overlap"
        end = offset + len(frame)
    assert end == places.size


def signature(data: bytes) -> None:
    """The signature area; what is accepted has one form only."""
    area = data.ljust(AREA, b"\0")[:AREA]
    assert encode_area(decode_area(area, _DATA), _DATA, AREA) == area


def public_key(data: bytes) -> None:
    """The file of ``--key``."""
    PublicKey.parse(data, "release.pub")


def trust_root(data: bytes) -> None:
    """The file of ``--trust-root``; what is accepted reads back the same."""
    found = read_trust_root(data, "root.json")
    assert read_trust_root(found.data, "root.json").version == found.version


def receipt(data: bytes) -> None:
    """What a site says that it has; what is accepted has one form only."""
    found = decode_receipt(data, "receipt.json")
    assert decode_receipt(encode_receipt(found), "receipt.json") == found


def parts(data: bytes) -> None:
    """The index of a bundle in parts."""
    found = decode_index(data, "b.parts.json")
    assert decode_index(encode_index(found), "b.parts.json") == found


class _Anyone(SigningIdentity):
    """Holds whatever was signed, so that what comes after the signature is reached."""

    def holds(self, signature: bytes, message: bytes) -> bool:
        del signature, message
        return True


@cache
def _anyone() -> SigningIdentity:
    return _Anyone.parse(sample().key.public_pem(), "cosign.pub")


def sigstore(data: bytes) -> None:
    """What upstream gives as a signature of an image, in both of cosign's forms."""
    with suppress(AirgapError):
        verify_simple_signing(data, b"", _anyone(), _DATA)
    verify_sigstore_bundle(data, _anyone(), _DATA)


def reference(data: bytes) -> None:
    """A name of an image; what is accepted reads back as itself."""
    parsed = Reference.parse(data.decode(errors="surrogateescape"))
    assert Reference.parse(str(parsed)) == parsed


def image_manifest(data: bytes) -> None:
    """A manifest or an index out of a registry or a bundle."""
    kind = ACCEPTED_TYPES[data[0] % len(ACCEPTED_TYPES)] if data else OCI_MANIFEST
    read_manifest(data[1:], kind, "fuzz")


def site(data: bytes) -> None:
    """site.yaml."""
    with _file(data) as path:
        read_site(path)


def spec(data: bytes) -> None:
    """bundle.yaml."""
    with _file(data) as path:
        Spec.load(path)


def lock(data: bytes) -> None:
    """bundle.lock; what is accepted has one form only."""
    with _file(data) as path:
        assert encode_lock(read_lock(path)) == data


def chart(data: bytes) -> None:
    """A packaged chart: the files in it, each behind a line with its path."""
    files = [part.partition(b"\n") for part in data.split(b"\n---- ")]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, _, text in files:
            member = tarfile.TarInfo("c/" + name.decode("latin-1")[:80])
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    archive = ChartArchive.read(gzip.compress(content.getvalue(), 1), "fuzz")
    _ = archive.config


def chart_archive(data: bytes) -> None:
    """The tar in a packaged chart."""
    ChartArchive.read(gzip.compress(data, 1), "fuzz")


def tool_archive(data: bytes) -> None:
    """A tar or zip that a tool is taken out of."""
    with _file(data) as path:
        for _ in read_member(path, "linux-amd64/helm", "fuzz"):
            pass


def index(data: bytes) -> None:
    """index.yaml of a chart repository."""
    wanted = ChartSource(name="harbor", source="https://charts.invalid", version="1.2.3")
    _find_version(_read_index(data, "chart harbor"), wanted, "chart harbor")


def challenge(data: bytes) -> None:
    """WWW-Authenticate of a registry."""
    authority = Authority(None, lambda _request: ("token", 60.0))
    authority.renew(data.decode("latin-1"), ("repository:a/b:pull",), None)


class _Paired(Connection):
    """On one end of a socket pair, which knows no Nagle."""

    disable_nagle_algorithm = False


@cache
def _registry() -> ReadOnlyRegistry:
    with tempfile.TemporaryDirectory() as folder:
        image = made.image([made.layer(100, "a")])
        path, pem = make_bundle(
            Path(folder) / "bundle.tar", {"docker.io/goharbor/app:v1": image, "quay.io/a/b": image}
        )
        opened = open_bundle(path, pem)  # stays open to the end of the process
    store = BundleStore(opened)
    return ReadOnlyRegistry(store, ContentCheck([opened]))


def server(data: bytes) -> None:
    """What a client may send to ``installer serve``: it is answered in HTTP, or not at all."""
    registry = _registry()
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            _Paired(registry, lambda **_: None, ours, ("fuzz", 0), None)
        answer = theirs.recv(1 << 20)
    assert not answer or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 400 ")), answer[:80]


def _images() -> list[bytes]:
    image = made.image([made.layer(100, "a")])
    tied = made.artefact(image.blobs[0], image.blobs[1:], artifact_type="a/b", subject=image.top)
    tops = [image.top, tied.top, made.index([image]).top, made.index([image], docker=True).top]
    return [bytes([ACCEPTED_TYPES.index(top.media_type)]) + top.data for top in tops]


def _requests() -> list[bytes]:
    digest = made.image([made.layer(100, "a")]).digest
    paths = (
        "/v2/", "/healthz", "/v2/_catalog?n=1&last=goharbor/app", "/v2/goharbor/app/tags/list?n=0",
        "/v2/goharbor/app/manifests/v1?ns=docker.io", f"/v2/goharbor/app/manifests/{digest}",
        f"/v2/goharbor/app/blobs/{digest}", f"/v2/goharbor/app/referrers/{digest}?artifactType=a",
        "/v2/../../etc/passwd", "/v2/%2e%2e/%2e%2e/etc/passwd", "//v2//", "http://[::1]/v2/",
    )  # fmt: skip
    fields = (
        "Host: a", "Range: bytes=0-1", "Range: bytes=-1", "Range: bytes=5-1,7-",
        "Content-Length: 3", "Transfer-Encoding: chunked", "Connection: close",
        "If-None-Match: *", "Accept: */*",
    )  # fmt: skip
    return [
        f"{method} {path} HTTP/{version}\r\n{field}\r\n\r\n".encode()
        for method, version in (("GET", "1.1"), ("HEAD", "1.0"), ("PUT", "1.1"))
        for path, field in zip(paths, fields * 2, strict=False)
    ]


def _charts() -> list[bytes]:
    full = (
        "Chart.yaml\napiVersion: v2\nname: c\nversion: 1.0.0\nappVersion: 1\nkubeVersion: '>=1'\n"
        "maintainers: [{name: a, email: b}]\nkeywords: [a]\nannotations: {a: b}\n"
        "type: application\n"
        "dependencies: [{name: sub, version: 1, alias: s, condition: s.on, import-values: [a]}]\n"
        "---- values.yaml\na: {b: 1}\n# c: 2\nglobal: {x: 1}\ns: {y: 2}\n"
        "---- charts/sub/Chart.yaml\nname: sub\nversion: 1\n"
        "---- charts/sub/values.yaml\nglobal: {x: 2}\ny: 1\n"
    )
    return [full.encode(), b"Chart.yaml\nname: c\nversion: 1\n---- requirements.yaml\na: b\n"]


def _archives() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as tar:
            for name in ("c/Chart.yaml", "linux-amd64/helm", "c/" + "long/" * 30):
                member = tarfile.TarInfo(name)
                member.size = 27
                tar.addfile(member, io.BytesIO(b"name: c\nversion: 1\n# 345678"))
            if form == tarfile.GNU_FORMAT:
                link = tarfile.TarInfo("c/link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(link)
        found.append(content.getvalue())
    return found


def _locks() -> list[bytes]:
    blob = {"digest": str(_DATA), "size": 4, "mediaType": "a/b", "text": "data"}
    document = {
        "apiVersion": "bundle/v1", "kind": "BundleLock", "name": "a", "channel": "b", "serial": 1,
        "created": "2026-01-01T00:00:00Z", "specDigest": str(_DATA), "platforms": ["linux/amd64"],
        "blobs": [blob],
    }  # fmt: skip
    return [msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"]


def _roots() -> list[bytes]:
    """One version of a trust root, and a chain of two."""
    key, found = sample().key, []
    with tempfile.TemporaryDirectory() as name:
        folder = TrustFolder(Path(name))
        folder.create([key.public], [key.public], Change(NOW, thresholds={}))
        for _ in range(2):
            folder.sign(key.sign(folder.payload), key.public)
            complete = folder.complete
            assert complete is not None
            found.append(complete.data)
            folder.change(Change(NOW, thresholds={}))
    return found


def _receipts() -> list[bytes]:
    time, digest = "2026-01-01T00:00:00Z", "a" * 64
    document = {
        "apiVersion": "receipt/v1", "kind": "Receipt", "site": "plant", "created": time,
        "blobs": [{"sha256": digest, "size": 1}],
        "bundles": [
            {"name": "a", "channel": "b", "serial": 2, "sha256": digest, "accepted": time,
             "signers": [digest]},
        ],
        "downgrades": [
            {"time": time, "channel": "b", "serial": 1, "highest": 2, "sha256": digest,
             "reason": "c"},
        ],
    }  # fmt: skip
    return [msgspec.json.encode(document)]


def _parts() -> list[bytes]:
    part = Part("b.tar.part01", 4, _DATA.hex)
    index = PartsIndex(
        api_version="parts/v1",
        kind="BundleParts",
        name="b.tar",
        size=4,
        bundle=str(_DATA),
        parts=(part,),
    )
    return [encode_index(index)]


def _signatures() -> list[bytes]:
    image = Descriptor(OCI_MANIFEST, _DATA, 4)
    both = sigstore_bundle(sample().key, image), simple_signing(sample().key, "a.invalid/b", _DATA)
    return [blob.data for one in both for blob in one.blobs]


_INDEX = b"""apiVersion: v1
entries:
  harbor:
  - {version: 1.2.3, urls: [harbor-1.2.3.tgz], digest: abc, deprecated: false}
  - version: 1.2.2
"""
_CHALLENGES = [
    b'Bearer realm="https://auth.invalid/token",service="a",scope="repository:a/b:pull,push"',
    b'Basic realm="a", charset="UTF-8"',
    b'Negotiate, Bearer realm="a\\"b", Digest nonce=1',
]


def _good() -> bytes:
    return sample().data


TARGETS: dict[str, Target] = {
    "bundle": Target(
        bundle,
        lambda: [_good()] + [a.make(sample()) for n, a in SIGNED.items() if "without end" not in n],
        80_000,
    ),
    "manifest": Target(
        manifest, lambda: [sample().payload, sample(expires="2027-01-01T00:00:00Z").payload]
    ),
    "signature": Target(
        signature,
        lambda: [encode_area([sample().key.sign(b"data")] * n, _DATA, AREA) for n in (1, 2)],
        AREA,
    ),
    "public-key": Target(public_key, lambda: [sample().key.public_pem()]),
    "trust-root": Target(trust_root, _roots),
    "receipt": Target(receipt, _receipts),
    "parts": Target(parts, _parts),
    "sigstore": Target(sigstore, _signatures),
    "reference": Target(
        reference,
        lambda: [
            b"docker.io/goharbor/harbor-core:v2.14.4",
            f"localhost:5000/a@{_DATA}".encode(),
            b"[::1]:5000/a_b/c__d:1",
            b"UP/x",
        ],
        400,
    ),
    "image-manifest": Target(image_manifest, _images),
    "site": Target(
        site,
        lambda: [p.read_bytes() for p in sorted((ROOT / "manifests/sites").glob("*.yaml"))],
        16_384,
    ),
    "spec": Target(
        spec, lambda: [p.read_bytes() for p in sorted((ROOT / "manifests/bundles").glob("*.yaml"))]
    ),
    "lock": Target(lock, _locks),
    "chart": Target(chart, _charts),
    "chart-archive": Target(chart_archive, _archives, 16_384),
    "tool-archive": Target(tool_archive, _archives, 16_384),
    "index": Target(index, lambda: [_INDEX]),
    "challenge": Target(challenge, lambda: list(_CHALLENGES), 400),
    "server": Target(server, _requests),
}


def run(target: Target, data: bytes) -> None:
    """Read; an error of ours is what an attack should get, any other goes on."""
    with suppress(AirgapError):
        target.read(data)
