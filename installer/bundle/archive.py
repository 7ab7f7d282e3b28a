"""The file itself: opened unverified, and nothing comes out of it before it is verified.

The order of checks, and the numbers stand beside the code:

(0) the file is opened once and the descriptor held, so that the path can't be swapped;
(1) the signature area and the bytes of bundle.json are read, by their places alone;
(2) a signature of a trusted key holds over exactly those bytes;
(3) only then they are decoded, in canonical form only;
(4) the bundle is not expired;
(5) the file has exactly the computed size, and every byte between contents is the computed one;
(6) each member's content is hashed before or while it is used, and all of it by ``verify_members``.

(1) to (5) take milliseconds whatever the size; only their result can hand out content.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from installer.bundle.digest import Digest
from installer.bundle.layout import BLOCK, Layout, header, layout, padding
from installer.bundle.manifest import MAX_MANIFEST_BYTES, NAME, Manifest, decode
from installer.bundle.signature import decode_area
from installer.bundle.trust import check_expiry
from installer.errors import Corrupt, InvalidInput, TransferFailed, Unsigned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from installer.bundle.layout import Entry
    from installer.bundle.trust import Trust

CHUNK = 1024 * 1024
Stamp = tuple[int, int, int]
"""Size of a file, and when its content and its inode changed last, in nanoseconds."""
_MAX_AREA = 1024 * 1024


def read_exactly(descriptor: int, offset: int, size: int, what: str) -> bytes:
    """Read ``size`` bytes at ``offset``; raises Corrupt when the file ends before."""
    pieces = []
    while size:
        try:
            piece = os.pread(descriptor, min(size, 64 * CHUNK), offset)
        except OSError as error:
            raise TransferFailed(
                f"{what}: {error.strerror}", hint="is the disk damaged?"
            ) from error
        if not piece:
            raise Corrupt(f"{what}: the file ends at byte {offset}, {size} bytes too early")
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces)


class UnverifiedBundle:
    """A file that claims to be a bundle. All it can do is become a VerifiedBundle, or be closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # (0)
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InvalidInput(f"{path}: not a regular file")
        self._size = status.st_size

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, trust: Trust, now: datetime) -> VerifiedBundle:
        """Checks (1) to (5); raises a NotTrusted or Corrupt.

        The descriptor moves to the result, which is closed by its user.
        """
        area_size = self._area_size()
        size = self._manifest_size(area_size)
        area = read_exactly(self._descriptor, 0, area_size, "signatures")  # (1)
        payload = read_exactly(self._descriptor, area_size + BLOCK, size, NAME)
        digest = Digest.of(payload)
        signatures = decode_area(area, digest)
        signers = trust.signers(payload, signatures)  # (2)
        manifest = decode(payload)  # (3)
        check_expiry(manifest, now)  # (4)
        places = layout(manifest, size)
        if manifest.signature_area != area_size:
            raise Corrupt(f"{NAME} stands at {area_size}, not at {manifest.signature_area}")
        if places.size != self._size:  # (5)
            verb = "cut off" if self._size < places.size else "extended"
            raise Corrupt(
                f"{self._path}: {self._size} bytes, should have {places.size}: it was {verb}",
                hint="copy it again from the medium",
            )
        for offset, expected, what in places.frames():
            if read_exactly(self._descriptor, offset, len(expected), what) != expected:
                raise Corrupt(f"the tar header or padding before {what!r} at byte {offset} differs")
        bundle = VerifiedBundle(self._path, self._descriptor, manifest, places, signers, digest)
        self._descriptor = -1
        return bundle

    def _area_size(self) -> int:
        """Skip members with our signature names; the first other header must be bundle.json's."""
        position = 0
        while position < min(_MAX_AREA, self._size):
            block = read_exactly(self._descriptor, position, BLOCK, "signatures")
            name = block[:100].rstrip(b"\0")
            if name == NAME.encode():
                break
            if not name.startswith(NAME.encode() + b"."):
                if position == 0:
                    raise Corrupt(
                        f"{self._path}: not a bundle: it starts with member {name[:60]!r}",
                        hint="give the .tar that `bundler build` wrote",
                    )
                raise Corrupt(f"unknown member {name[:60]!r} before {NAME}")
            size = _size_field(block)
            if not 0 <= size < _MAX_AREA:
                raise Corrupt(f"the tar header at byte {position} has no plain size")
            position += BLOCK + size + padding(size)
        if not self._size:
            raise Corrupt(f"{self._path}: empty", hint="copy it again from the medium")
        if position == 0:
            raise Unsigned(
                f"{self._path}: unsigned: there is no signature before {NAME}",
                hint="take a bundle that `bundler build` finished",
            )
        return position

    def _manifest_size(self, area_size: int) -> int:
        block = read_exactly(self._descriptor, area_size, BLOCK, NAME)
        size = _size_field(block)
        if not 0 <= size <= MAX_MANIFEST_BYTES or block != header(NAME, size):
            raise Corrupt(f"the tar header of {NAME} at byte {area_size} is not the expected one")
        return size


def _size_field(block: bytes) -> int:
    """The octal size of a header that is not trusted yet; -1 when it is none."""
    try:
        return int(block[124:135], 8)
    except ValueError:
        return -1


class VerifiedBundle:
    """A bundle whose signature held: the only source of content on the isolated side.

    ``chunks`` and ``read`` hash what they hand out; ``stream`` and ``descriptor`` are for callers
    that do so themselves. Safe to use from several threads.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        manifest: Manifest,
        places: Layout,
        signers: tuple[str, ...],
        digest: Digest,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.layout = places
        self.signers = signers
        self.digest = digest
        """Digest of bundle.json: the identity of the bundle."""
        self._descriptor = descriptor
        self._entries = places.by_path()

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def descriptor(self) -> int:
        """The held file descriptor, for ``os.sendfile`` of what was hashed."""
        return self._descriptor

    def stamp(self) -> Stamp:
        """What tells whether the file was written to since; raises TransferFailed."""
        try:
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise TransferFailed(f"{self.path}: {error.strerror}") from error
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def find(self, path: str) -> Entry | None:
        """Place of a member, or None."""
        return self._entries.get(path)

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The member's bytes, hashed on the way: raises Corrupt at the end if they differ."""
        hasher = hashlib.sha256()
        for piece in self.stream(entry):
            hasher.update(piece)
            yield piece
        _check_digest(entry, hasher.hexdigest())

    def stream(self, entry: Entry, start: int = 0) -> Iterator[bytes]:
        """The member's bytes from ``start`` on in pieces of 1 MiB, for a caller that hashes them.

        Raises Corrupt when the file ends too early, TransferFailed when it can't be read.
        """
        position = entry.offset + start
        while position < entry.end:
            size = min(CHUNK, entry.end - position)
            piece = read_exactly(self._descriptor, position, size, entry.member.path)
            position += len(piece)
            yield piece

    def read(self, path: str) -> bytes:
        """A small member whole; raises Corrupt when it is missing or its digest differs."""
        entry = self._entries.get(path)
        if entry is None:
            raise Corrupt(f"the bundle has no member {path!r}")
        return b"".join(self.chunks(entry))

    def verify_members(
        self, *, threads: int, progress: Callable[[int], None] = lambda _: None
    ) -> list[Corrupt]:
        """Hash all members on ``threads`` threads (6); returns what differs, empty if all held.

        ``progress`` is told the bytes of each finished piece. Members are handed to the threads
        largest first, so that the last one does not run alone. Memory: 1 MiB a thread.
        """
        order = sorted(self.layout.entries, key=lambda e: -e.member.size)
        waiting = iter(order)
        found: list[Corrupt] = []
        stop, lock = threading.Event(), threading.Lock()

        def work() -> None:
            buffer = bytearray(CHUNK)
            while not stop.is_set():
                with lock:
                    entry = next(waiting, None)
                if entry is None:
                    return
                try:
                    _check_digest(entry, self._hash(entry, buffer, progress, stop))
                except Corrupt as error:
                    found.append(error)

        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
            except BaseException:
                stop.set()
                raise
        return sorted(found, key=str)

    def _hash(
        self,
        entry: Entry,
        buffer: bytearray,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> str:
        view = memoryview(buffer)
        hasher = hashlib.sha256()
        position, end = entry.offset, entry.end
        while position < end and not stop.is_set():
            try:
                count = os.preadv(self._descriptor, [view[: min(CHUNK, end - position)]], position)
            except OSError as error:
                raise Corrupt(
                    f"{entry.member.path}: {error.strerror} at byte {position}"
                ) from error
            if not count:
                break
            hasher.update(view[:count])
            position += count
            progress(count)
        return hasher.hexdigest()


def _check_digest(entry: Entry, found: str) -> None:
    member = entry.member
    if found != member.sha256:
        raise Corrupt(
            f"{member.path} ({member.size} bytes at byte {entry.offset}) has digest "
            f"sha256:{found}, signed is sha256:{member.sha256}",
            hint="the file was changed after signing or the medium is damaged: copy it again",
        )
