"""What a site has already: a delta leaves it out and lists it as required.

A delta is computed from what one file says, never from a history: an earlier bundle, or an earlier
delta with what that one required, or the receipt that a site sent. Blobs are compared by digest and
size, so that a tag which was pushed again is a change like any other. An earlier ``bundle.json`` is
read only after a signature over it held; a receipt is not signed and needs no trust, since a site
that lacks a blob which the signed delta requires refuses the delta and names it.

Documents (manifests, indexes, configs) and charts are always carried: they are small, and with them
an installer can plan, list and push a delta when only a registry has the rest. So is the installer
file: it is no blob, and a site that has the layers may be without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.bundle.archive import UnverifiedBundle
from installer.bundle.digest import Digest
from installer.bundle.manifest import MAX_MANIFEST_BYTES, NAME, decode
from installer.bundle.receipt import decode_receipt, held_blobs
from installer.bundle.signature import Signature
from installer.errors import InvalidInput, NotTrusted

if TYPE_CHECKING:
    from pathlib import Path

    from bundler.lock import Lock
    from installer.bundle.manifest import Manifest
    from installer.bundle.signature import PublicKey
    from installer.bundle.trust import Trust

_MAX_DER = 1024


@dataclass(frozen=True, slots=True)
class Held:
    """Blobs that a site has: digest and size in bytes; ``name`` says according to what."""

    name: str
    blobs: frozenset[tuple[Digest, int]]

    def omitted(self, lock: Lock) -> frozenset[Digest]:
        """Blobs of a lock that a delta for this site leaves out."""
        kept = {Digest(chart.sha256) for chart in lock.charts}
        described = (blob.descriptor for blob in lock.blobs if "json" not in blob.media_type)
        return frozenset(
            found.digest
            for found in described
            if found.digest not in kept and (found.digest, found.size) in self.blobs
        )


def read_held(path: Path, trust: Trust, key: PublicKey) -> Held:
    """Read a bundle, a ``bundle.json`` with its ``.sig`` beside it, or a receipt.

    ``key`` is whose signature the ``.sig`` has to be. An expired bundle will do: that a site may
    not install it any more does not change what is in it. Raises InvalidInput, a NotTrusted or
    Corrupt.
    """
    start = _read(path, 1)
    if start != b"{":
        with UnverifiedBundle(path) as unverified, unverified.verify(trust, None) as bundle:
            return _of_manifest(bundle.manifest)
    data = _read(path, MAX_MANIFEST_BYTES + 1)
    signature = path.with_name(path.name + ".sig")
    if signature.exists():
        der = _read(signature, _MAX_DER)
        if not key.holds(Signature(key.key_id, der), data):
            raise NotTrusted(
                f"{path}: {signature.name} is no signature over it of key {key.key_id[:16]}",
                hint="take both out of the earlier bundle: tar xf OLD.tar "
                f"{NAME} {NAME}.sig; --since-key names the key that signed it",
            )
        return _of_manifest(decode(data))
    try:
        receipt = decode_receipt(data, str(path))
    except InvalidInput as error:
        error.hint = (
            f"--since takes a bundle, a receipt of the site, or a {NAME} with {NAME}.sig beside it"
        )
        raise
    found = frozenset((blob.digest, blob.size) for blob in receipt.blobs)
    return Held(f"the receipt of site {receipt.site}", found)


def _of_manifest(manifest: Manifest) -> Held:
    found = frozenset((blob.digest, blob.size) for blob in held_blobs([manifest]))
    return Held(
        f"{manifest.name} serial {manifest.serial} of channel {manifest.channel}",
        found,
    )


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
