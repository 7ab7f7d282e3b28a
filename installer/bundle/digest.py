"""A digest is a type that validates when it is parsed, so that a string can't pass for one.

Only sha256 is accepted: it is what every registry uses and what the bundle's paths are made of
(OCI image-spec 1.1, descriptor.md, "Registered algorithms").
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK = 256 * 1024
"""Bytes that are read, hashed and written at a time.

It stays in a core's cache between these steps, and is long enough for threads to run beside each
other (hashing releases the GIL). With 1 MiB the kernel took a quarter more of CPU time.
"""
_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, order=True, slots=True)
class Digest:
    """A sha256 digest; ``hex`` is 64 lower-case hexadecimal digits, ``str()`` adds ``sha256:``."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.match(self.hex):
            raise InvalidInput(f"not a sha256 digest: {self.hex[:80]!r}")

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def blob_path(self) -> str:
        """Path of a blob in an OCI image layout (OCI image-spec, image-layout.md)."""
        return f"blobs/sha256/{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<hex>``; raises InvalidInput for any other form or algorithm."""
        algorithm, colon, value = text.partition(":")
        if not colon or algorithm != "sha256":
            raise InvalidInput(
                f"not a sha256 digest: {text[:80]!r}", hint="write it as sha256:<64 hex digits>"
            )
        return cls(value)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """Digest of bytes in memory."""
        return cls(hashlib.sha256(data).hexdigest())


def verified(chunks: Iterable[bytes], digest: Digest, size: int, what: str) -> Iterator[bytes]:
    """Pass chunks on while hashing; raises Corrupt at the end, or as soon as there are too many.

    The last chunk is handed out before the digest is known: a caller that keeps the bytes must
    run the iterator to its end before it believes them.
    """
    hasher, seen = hashlib.sha256(), 0
    for chunk in chunks:
        seen += len(chunk)
        if seen > size:
            raise Corrupt(f"{what}: more than the expected {size} bytes")
        hasher.update(chunk)
        yield chunk
    if seen != size:
        raise Corrupt(f"{what}: {seen} bytes instead of {size}")
    if hasher.hexdigest() != digest.hex:
        raise Corrupt(f"{what}: digest is sha256:{hasher.hexdigest()}, expected {digest}")
