"""Images whose manifests lie, in a bundle that the right key signed: refused before one is served.

The digest of each manifest holds; what it says of others does not. So nothing of this is found by
hashing, and a registry or a container runtime may fall for it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from installer.bundle.digest import Digest
from installer.bundle.manifest import Image, Manifest, Member
from installer.errors import AirgapError, Corrupt, InvalidInput
from installer.oci.bundle_store import BundleStore
from tests.attacks.witness import untouched
from tests.bundles import open_bundle, public_pem, signing_key, write_bundle
from tests.upstream import images as made

if TYPE_CHECKING:
    from pathlib import Path

    from installer.bundle.archive import VerifiedBundle

OCI, INDEX, DOCKER = made.OCI_MANIFEST, made.OCI_INDEX, made.DOCKER_MANIFEST
CONFIG = made.Content(made.OCI_CONFIG, b'{"architecture":"amd64"}')
LAYER = made.Content(made.OCI_LAYER, b"layer " * 100)
GOOD = made.artefact(CONFIG, [LAYER])
PLAIN = json.loads(GOOD.top.data)
C, L = CONFIG.descriptor(), LAYER.descriptor()
TOP = GOOD.top.descriptor()
FAR = "a blob that is not in the bundle"


def _image(**changes: Any) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def _index(*children: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": INDEX, "manifests": children} | changes
    ).encode()


def _text(old: str, new: str) -> bytes:
    text = GOOD.top.data.decode()
    assert old in text
    return text.replace(old, new, 1).encode()


ATTACKS: dict[str, tuple[str, bytes, type[AirgapError], str]] = {
    "config larger than it says": (OCI, _image(config=C | {"size": 1}), Corrupt, "says 1$"),
    "layer larger than it says": (OCI, _image(layers=[L | {"size": 5}]), Corrupt, "says 5$"),
    "layer smaller than it says": (OCI, _image(layers=[L | {"size": 2**50}]), Corrupt, "says 11"),
    "layer of a negative size": (OCI, _image(layers=[L | {"size": -1}]), Corrupt, "impossible"),
    "layer beyond 64 bits": (OCI, _image(layers=[L | {"size": 2**70}]), Corrupt, "impossible"),
    "layer elsewhere": (
        OCI, _image(layers=[L | {"urls": ["https://evil.invalid/x"]}]), InvalidInput, "foreign URL"
    ),
    "layer elsewhere, of the type for it": (
        OCI,
        _image(layers=[L | {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "urls": ["file:///etc/shadow"],
        }]),
        InvalidInput,
        "foreign URL",
    ),
    "config elsewhere": (OCI, _image(config=C | {"urls": ["http://x"]}), InvalidInput, "foreign"),
    "layer of another algorithm": (
        OCI, _image(layers=[L | {"digest": "md5:" + "0" * 32}]), Corrupt, "not a sha256 digest"
    ),
    "digest that is a path": (
        OCI, _image(layers=[L | {"digest": "sha256:../../../etc/passwd"}]), Corrupt, "not a sha256"
    ),
    "manifest of another type than its descriptor": (
        OCI, _image(mediaType=DOCKER), Corrupt, "its descriptor says"
    ),
    "image that is an index as well": (OCI, _image(manifests=[TOP]), Corrupt, "or with manifests"),
    "index that is an image as well": (
        INDEX, _index(TOP, config=C, layers=[L]), Corrupt, "or with layers"
    ),
    "image for an index": (INDEX, _image(mediaType=INDEX), Corrupt, "without manifests"),
    "index that lies about a size": (INDEX, _index(TOP | {"size": 7}), Corrupt, "says 7$"),
    "index that lies about a type": (
        INDEX, _index(TOP | {"mediaType": DOCKER}), Corrupt, "its descriptor says"
    ),
    "index with one manifest under two types": (
        INDEX, _index(TOP | {"mediaType": INDEX}, TOP), Corrupt, "as one asks what points to it"
    ),
    "index with one manifest in two sizes": (
        INDEX, _index(TOP | {"size": 9}, TOP), Corrupt, "says 9$"
    ),
    "manifest for a layer": (INDEX, _index(L | {"mediaType": OCI}), Corrupt, "not an OCI manifest"),
    "layers in two cases": (
        OCI, _text('"layers":', '"Layers":[],"layers":'), Corrupt, "'Layers', which is written"
    ),
    "layers twice": (OCI, _text('"layers":', '"layers":[],"layers":'), Corrupt, "there twice"),
    "digest twice": (
        OCI, _text('"digest":', f'"digest":"{Digest.of(b"x")}","digest":'), Corrupt, "there twice"
    ),
    "digest in two cases": (
        OCI, _text('"digest":', f'"Digest":"{Digest.of(b"x")}","digest":'), Corrupt, "'Digest', wh"
    ),
    "urls in capitals": (
        OCI, _image(layers=[L | {"URLs": ["https://evil.invalid"]}]), Corrupt, "'URLs', which"
    ),
    "subject in capitals": (OCI, _image(Subject=TOP), Corrupt, "'Subject', which is written"),
    "platform in two cases": (
        INDEX,
        _index(TOP | {"platform": {"os": "linux", "OS": "windows", "architecture": "amd64"}}),
        Corrupt,
        "'OS', which is written",
    ),
    "schema of Docker's first version": (OCI, _image(schemaVersion=1), Corrupt, "version 1 inst"),
    "schema of the future": (OCI, _image(schemaVersion=3), Corrupt, "schema version 3"),
    "subject of a negative size": (OCI, _image(subject=TOP | {"size": -1}), Corrupt, "impossible"),
    "subject that is no digest": (OCI, _image(subject=TOP | {"digest": "x"}), Corrupt, "not a sha"),
    "nested without end": (OCI, b'{"schemaVersion":2,"a":' + b"[" * 100_000, Corrupt, "not an OCI"),
    "byte-order mark": (OCI, b"\xef\xbb\xbf" + GOOD.top.data, Corrupt, "not an OCI manifest"),
    "NaN": (OCI, _text('"schemaVersion":2', '"schemaVersion":NaN'), Corrupt, "not an OCI"),
    "invalid UTF-8": (OCI, GOOD.top.data.replace(b"oci", b"oc\xff", 1), Corrupt, "not an OCI"),
    "number of 5,000 digits": (OCI, _image(x=0).replace(b"0}", b"9" * 5000 + b"}"), Corrupt, "not"),
    "over four megabytes": (OCI, _image(annotations={"a": "b" * 2**22}), Corrupt, "4194304 are"),
    "unknown type": ("text/html", b"<html>", Corrupt, "which is no manifest"),
}  # fmt: skip


def _bundle(
    path: Path, tops: list[tuple[str, bytes]], contents: tuple[bytes, ...] = ()
) -> VerifiedBundle:
    """A bundle with these manifests as its images, and whatever they point to."""
    everything = [data for _, data in tops] + [GOOD.top.data, CONFIG.data, LAYER.data, *contents]
    data = {Digest.of(part).blob_path: part for part in everything}
    manifest = Manifest(
        api_version="bundle/v1",
        kind="Bundle",
        name="harbor",
        channel="stable",
        serial=1,
        created="2026-01-02T03:04:05Z",
        platforms=("linux/amd64",),
        signature_area=65536,
        members=tuple(Member(p, len(d), Digest.of(d).hex) for p, d in data.items()),
        images=tuple(
            Image(str(Digest.of(top)), media_type, len(top), f"docker.io/library/a:{number}")
            for number, (media_type, top) in enumerate(tops)
        ),
    )
    write_bundle(path, manifest, data, signing_key())
    return open_bundle(path, public_pem(signing_key()))


def test_the_good_image_is_taken(tmp_path: Path) -> None:
    with _bundle(tmp_path / "b.tar", [(OCI, GOOD.top.data), (INDEX, _index(TOP))]) as bundle:
        assert BundleStore(bundle).tags("library/a") == ("0", "1")


@pytest.mark.parametrize("attack", ATTACKS)
def test_refused(attack: str, tmp_path: Path) -> None:
    media_type, top, error, words = ATTACKS[attack]
    with _bundle(tmp_path / "b.tar", [(media_type, top)]) as bundle:
        assert bundle.verify_members(threads=1) == []
        with untouched(), pytest.raises(error, match=words) as caught:
            BundleStore(bundle)
        assert type(caught.value) is error


def test_the_same_blob_as_a_layer_and_as_a_manifest(tmp_path: Path) -> None:
    """What is only data to one reader must not be left unread for another."""
    bad = _image(mediaType=DOCKER)
    as_layer = _image(layers=[{"mediaType": "x/y", "digest": made.sha256(bad), "size": len(bad)}])
    for tops in ([(OCI, as_layer), (OCI, bad)], [(OCI, bad), (OCI, as_layer)]):
        with (
            _bundle(tmp_path / "b.tar", tops) as bundle,
            pytest.raises(Corrupt, match="its descriptor says"),
        ):
            BundleStore(bundle)


def test_a_chain_of_two_thousand_indexes_needs_no_stack(tmp_path: Path) -> None:
    chain = [_index(TOP)]
    for _ in range(2_000):
        below = {"mediaType": INDEX, "digest": made.sha256(chain[-1]), "size": len(chain[-1])}
        chain.append(_index(below, below))  # twice: a tree of 2 to the 2,000 leaves
    with _bundle(tmp_path / "b.tar", [(INDEX, chain[-1])], tuple(chain)) as bundle:
        store = BundleStore(bundle)
        assert str(store.resolve("library/a", "0").digest) == made.sha256(chain[-1])


def test_referrers_of_each_other_end(tmp_path: Path) -> None:
    """A circle can't be closed with digests: each refers to one before it, the first to nothing."""
    first = _image(subject=TOP | {"digest": str(Digest.of(FAR.encode()))})
    ring = [first]
    for _ in range(50):
        ring.append(_image(subject=TOP | {"digest": made.sha256(ring[-1]), "size": len(ring[-1])}))
    with _bundle(tmp_path / "b.tar", [(OCI, ring[-1])], tuple(ring)) as bundle:
        store = BundleStore(bundle)
        for below, above in pairwise(ring):
            (found,) = store.referrers(Digest.of(below))
            assert found.descriptor.digest == Digest.of(above)
