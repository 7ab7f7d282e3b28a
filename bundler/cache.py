"""What ``lock`` had to read is kept by its digest, so that ``build`` doesn't download it again.

A folder of files named by their sha256, laid out as the blobs of an OCI image layout. Nothing in
it is believed: a blob is hashed each time it is asked for and thrown away when it differs, so the
folder may be shared between runs, cut off by a power failure, or deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.bundle.digest import CHUNK, Digest
from installer.errors import Corrupt, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Cached:
    """A file on disk with its digest and its size in bytes."""

    digest: Digest
    size: int
    path: Path


class BlobCache:
    """A content-addressed folder; several processes and threads may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, digest: Digest) -> Cached | None:
        """Find a blob and hash it; one that is damaged is removed and counts as missing."""
        path = self._path(digest)
        try:
            found = measure(path)
        except OSError:
            return None
        if found.digest != digest:
            with suppress(OSError):
                path.unlink()
            return None
        return found

    def put(
        self, chunks: Iterable[bytes], *, expected: Digest | None = None, what: str = "blob"
    ) -> Cached:
        """Keep the chunks under their digest: all of them, or nothing.

        ``what`` names the content in errors. Raises Corrupt when ``expected`` is another digest,
        TransferFailed when the folder can't be written to.
        """
        temporary: Path | None = None
        hasher, size = hashlib.sha256(), 0
        try:
            with self._disk():
                folder = self.folder / "blobs" / "sha256"
                folder.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
                temporary = Path(name)
            with os.fdopen(handle, "wb", buffering=0) as out:
                for chunk in chunks:
                    hasher.update(chunk)
                    size += len(chunk)
                    with self._disk():
                        _write_all(out.fileno(), chunk)
                with self._disk():
                    os.fsync(out.fileno())
            digest = Digest(hasher.hexdigest())
            check_digest(digest, expected, what)
            with self._disk():
                temporary.replace(self._path(digest))
        except BaseException:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise
        return Cached(digest, size, self._path(digest))

    def _path(self, digest: Digest) -> Path:
        return self.folder / digest.blob_path

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Tell a failing disk apart from whatever fails in the chunks' own source."""
        try:
            yield
        except OSError as error:
            raise TransferFailed(
                f"cache {self.folder}: {error.strerror}",
                hint="free some space, or choose another folder with AIRGAP_CACHE_DIR",
            ) from error


def check_digest(found: Digest, expected: Digest | None, what: str) -> None:
    """Raise Corrupt when there is an expected digest and another one was found."""
    if expected is not None and found != expected:
        raise Corrupt(
            f"{what}: digest is {found}, expected {expected}",
            hint="the source has changed, or something on the way changes it",
        )


def read_chunks(path: Path, start: int = 0) -> Iterator[bytes]:
    """Read a file in pieces from byte ``start`` on; raises TransferFailed."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise TransferFailed(f"{path}: {error.strerror}") from error


def measure(path: Path) -> Cached:
    """Hash a file where it lies; raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Cached(Digest(digest.hexdigest()), file.tell(), path)


def _write_all(handle: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(handle, rest) :]
