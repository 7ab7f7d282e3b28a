"""One more signature in a finished bundle; the gigabytes behind it are neither read nor moved.

Signatures stand in an area of fixed size before ``bundle.json`` (docs/format.md, "The signature
area"). What is signed is ``bundle.json``, which is read, and must be canonical and fit the file:
its size and every byte between contents. The contents are not hashed: whoever wants to know what
they sign runs ``installer verify`` before.

The signatures that are there keep their bytes and their place. So an interruption can damage none
of them, and the next addition writes over what it left behind.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.bundle.archive import read_exactly
from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, header, layout
from installer.bundle.manifest import MAX_MANIFEST_BYTES, NAME, Manifest, decode
from installer.bundle.parts import BundleFile, find_index
from installer.bundle.signature import Signature, encode_area, whole_signatures
from installer.errors import Corrupt, InvalidInput, TransferFailed, WrongSignature

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from installer.bundle.signature import PublicKey

_MAX_AREA = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SignableBundle:
    """A bundle that is open for a signature: ``payload`` are the bytes of bundle.json."""

    path: Path
    manifest: Manifest
    payload: bytes
    digest: Digest
    signatures: tuple[Signature, ...]
    _area: bytes
    _descriptor: int

    def add(self, signature: Signature, key: PublicKey) -> bool:
        """Write a signature, which must be of ``key`` over this bundle; False if it has one.

        Raises WrongSignature when it does not hold, InvalidInput when there is no room.
        """
        if not key.holds(signature, self.payload):
            raise WrongSignature(
                f"the signature is not one of key {key.key_id[:16]} over this bundle's {NAME} "
                f"({self.digest})",
                hint=f"sign exactly what this gives, with SHA-256: tar xOf {self.path} {NAME}",
            )
        kept = [
            one
            for one in self.signatures
            if one.key_id != key.key_id or key.holds(one, self.payload)
        ]
        new = [] if any(one.key_id == key.key_id for one in kept) else [signature]
        area = encode_area([*kept, *new], self.digest, self.manifest.signature_area)
        if area == self._area:
            return False
        try:
            os.pwrite(self._descriptor, area, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            raise TransferFailed(
                f"{self.path}: {error.strerror}",
                hint="run the same command again: the signatures that were there are whole",
            ) from error
        return True


@contextmanager
def opened(path: Path) -> Iterator[SignableBundle]:
    """Open a finished bundle for a signature, alone; raises Corrupt or InvalidInput."""
    if find_index(path) is not None:
        raise InvalidInput(
            f"{path}: is in parts, and a signature goes into one file",
            hint="join them, sign, and cut anew: cat BUNDLE.part* > BUNDLE",
        )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"another bundler is writing {path}") from None
        with BundleFile(path) as file:
            bundle = _read(path, file, descriptor)
        yield bundle
    finally:
        os.close(descriptor)


def _read(path: Path, file: BundleFile, descriptor: int) -> SignableBundle:
    size = file.size
    start, length = _find_manifest(path, file, size)
    payload = read_exactly(file, start + BLOCK, length, NAME)
    manifest = decode(payload)
    places = layout(manifest, length)
    if manifest.signature_area != start or places.size != size:
        raise Corrupt(
            f"{path}: {size} bytes with {NAME} at {start}, should be {places.size} with it at "
            f"{manifest.signature_area}",
            hint="a bundle can be signed once `bundler build` has finished it",
        )
    for offset, expected, what in places.frames():
        if read_exactly(file, offset, len(expected), what) != expected:
            raise Corrupt(f"the tar header or padding before {what!r} at byte {offset} differs")
    digest = Digest.of(payload)
    area = read_exactly(file, 0, start, "signatures")
    found = tuple(whole_signatures(area, digest))
    return SignableBundle(path, manifest, payload, digest, found, area, descriptor)


def _find_manifest(path: Path, file: BundleFile, size: int) -> tuple[int, int]:
    """Offset of bundle.json's header, and its size; looked for, since an area may be torn."""
    front = read_exactly(file, 0, min(size, _MAX_AREA + BLOCK), "signatures")
    for offset in range(0, len(front), BLOCK):
        block = front[offset : offset + BLOCK]
        if block.startswith(NAME.encode() + b"\0"):
            try:
                length = int(block[124:135], 8)
            except ValueError:
                continue
            if 0 <= length <= MAX_MANIFEST_BYTES and block == header(NAME, length):
                return offset, length
    raise Corrupt(
        f"{path}: not a bundle: there is no {NAME} at its front",
        hint="give the .tar that `bundler build` wrote",
    )
