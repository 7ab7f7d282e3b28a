"""The file itself: opened unverified, and nothing comes out of it before it is verified.

The order of checks, and the numbers stand beside the code:

(0) the file, or each of its parts, is opened once and held, so that the path can't be swapped;
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
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from installer.bundle.digest import CHUNK, Digest
from installer.bundle.layout import BLOCK, Layout, difference, header, layout, padding
from installer.bundle.manifest import MAX_MANIFEST_BYTES, NAME, Manifest, decode
from installer.bundle.parts import BundleFile
from installer.bundle.signature import decode_area
from installer.bundle.trust import check_expiry
from installer.errors import Corrupt, TransferFailed, Unsigned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from pathlib import Path

    from installer.bundle.layout import Entry
    from installer.bundle.manifest import Member
    from installer.bundle.parts import FileIdentity
    from installer.bundle.trust import Trust

_MAX_AREA = 1024 * 1024


def read_exactly(file: BundleFile, offset: int, size: int, what: str) -> bytes:
    """Read ``size`` bytes at ``offset``; raises Corrupt when the file ends before."""
    data = b""
    while len(data) < size:
        try:
            piece = file.read(min(size - len(data), 256 * CHUNK), offset + len(data))
        except OSError as error:
            raise TransferFailed(
                f"{what}: {error.strerror}", hint="is the disk damaged?"
            ) from error
        if not piece:
            at, short = offset + len(data), size - len(data)
            raise Corrupt(f"{what}: the file ends at byte {at}, {short} bytes too early")
        data = data + piece if data else piece
    return data


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """The bytes of bundle.json over which trusted signatures held, not decoded yet.

    ``offset`` is that of its tar header in the file.
    """

    payload: bytes
    digest: Digest
    offset: int
    signers: tuple[str, ...]


class UnverifiedBundle:
    """A file that claims to be a bundle. All it can do is become a VerifiedBundle, or be closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file = BundleFile(path)  # (0)
        self._size = self.file.size
        self._moved = False

    def close(self) -> None:
        """Let go of the file."""
        if not self._moved:
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self, trust: Trust, now: datetime | None) -> VerifiedBundle:
        """Checks (1) to (5); raises a NotTrusted or Corrupt.

        ``now`` is None for a bundle of which only content is used that another one requires by
        digest: then it may have expired.
        The open file moves to the result, which is closed by its user.
        """
        signed = self.check_signature(trust)  # (1), (2)
        manifest = decode(signed.payload)  # (3)
        if now is not None:
            check_expiry(manifest, now)  # (4)
        places = self._check_frames(manifest, signed)  # (5)
        bundle = VerifiedBundle(
            self._path, self.file, manifest, places, signed.signers, signed.digest
        )
        self._moved = True
        return bundle

    def check_signature(self, trust: Trust) -> SignedBytes:
        """Checks (1) and (2) alone: the first bytes of the file that are known to be the signer's.

        Raises a NotTrusted or Corrupt. Time and memory depend on bundle.json's size only.
        """
        area_size = self._area_size()
        size = self._manifest_size(area_size)
        area = read_exactly(self.file, 0, area_size, "signatures")  # (1)
        payload = read_exactly(self.file, area_size + BLOCK, size, NAME)
        digest = Digest.of(payload)
        signatures = decode_area(area, digest)
        return SignedBytes(payload, digest, area_size, trust.signers(payload, signatures))  # (2)

    def _check_frames(self, manifest: Manifest, signed: SignedBytes) -> Layout:
        """Compare everything that is no content with what bundle.json dictates."""
        places = layout(manifest, len(signed.payload))
        if manifest.signature_area != signed.offset:
            raise Corrupt(f"{NAME} stands at {signed.offset}, not at {manifest.signature_area}")
        if places.size != self._size:
            verb = "cut off" if self._size < places.size else "extended"
            raise Corrupt(
                f"{self._path}: {self._size} bytes, should have {places.size}: it was {verb}",
                hint="copy it again from the medium",
            )
        for offset, expected, what in places.frames():
            found = read_exactly(self.file, offset, len(expected), what)
            if found != expected:
                raise Corrupt(
                    f"the tar before {what!r} at byte {offset} differs from what is signed: "
                    f"it has {difference(found, expected)}",
                    hint="the file was changed after signing or is damaged: copy it again",
                )
        return places

    def _area_size(self) -> int:
        """Skip members with our signature names; the first other header must be bundle.json's."""
        position = 0
        while position < min(_MAX_AREA, self._size):
            block = read_exactly(self.file, position, BLOCK, "signatures")
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
        if position >= _MAX_AREA:
            raise Corrupt(f"no {NAME} in the first {_MAX_AREA} bytes, where signatures may stand")
        return position

    def _manifest_size(self, area_size: int) -> int:
        block = read_exactly(self.file, area_size, BLOCK, NAME)
        size = _size_field(block)
        if size > MAX_MANIFEST_BYTES:
            raise Corrupt(f"{NAME} would have {size} bytes, over the limit of {MAX_MANIFEST_BYTES}")
        if size < 0 or block != header(NAME, size):
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

    ``chunks`` and ``read`` hash what they hand out; ``stream`` and ``file`` are for callers
    that do so themselves. Safe to use from several threads.
    """

    def __init__(
        self,
        path: Path,
        file: BundleFile,
        manifest: Manifest,
        places: Layout,
        signers: tuple[str, ...],
        digest: Digest,
    ) -> None:
        self.path = path
        self.file = file
        self.manifest = manifest
        self.layout = places
        self.signers = signers
        self.digest = digest
        """Digest of bundle.json: the identity of the bundle."""
        self.bases: tuple[VerifiedBundle, ...] = ()
        """Earlier bundles that have what this one, a delta, leaves out."""
        self._entries = places.by_path()

    def close(self) -> None:
        """Let go of the file, and of those of its bases."""
        for base in self.bases:
            base.close()
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stand_on(self, bases: Iterable[VerifiedBundle]) -> None:
        """Find required blobs in earlier bundles, which are closed together with this one."""
        self.bases = (*self.bases, *bases)

    @property
    def missing(self) -> tuple[Member, ...]:
        """Blobs that are required and in none of the bases."""
        return tuple(m for m in self.manifest.required if self.locate(m.path) is None)

    def locate(self, path: str) -> tuple[VerifiedBundle, Entry] | None:
        """The bundle that has a member, and its place there: this one, or a base for a blob."""
        for bundle in (self, *self.bases):
            entry = bundle.find(path)
            if entry is not None and (bundle is self or path.startswith("blobs/")):
                return bundle, entry
        return None

    def stamp(self) -> tuple[FileIdentity, ...]:
        """What tells whether the file was written to since; raises TransferFailed."""
        try:
            return self.file.identities()
        except OSError as error:
            raise TransferFailed(f"{self.path}: {error.strerror}") from error

    def find(self, path: str) -> Entry | None:
        """Place of a member, or None."""
        return self._entries.get(path)

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The member's bytes, hashed on the way: raises Corrupt at the end if they differ."""
        hasher = hashlib.sha256()
        for piece in self.stream(entry):
            hasher.update(piece)
            yield piece
        _check_digest(entry, hasher.hexdigest())  # (6)

    def stream(self, entry: Entry, start: int = 0) -> Iterator[bytes]:
        """The member's bytes from ``start`` on in pieces of CHUNK, for a caller that hashes them.

        Raises Corrupt when the file ends too early, TransferFailed when it can't be read.
        """
        position = entry.offset + start
        while position < entry.end:
            size = min(CHUNK, entry.end - position)
            piece = read_exactly(self.file, position, size, entry.member.path)
            position += len(piece)
            yield piece

    def read(self, path: str) -> bytes:
        """A small member whole; raises Corrupt when it is missing or its digest differs."""
        found = self.locate(path)
        if found is None:
            raise Corrupt(f"the bundle has no member {path!r}")
        bundle, entry = found
        return b"".join(bundle.chunks(entry))

    def verify_members(
        self, *, threads: int, progress: Callable[[int], None] = lambda _: None
    ) -> list[Corrupt]:
        """Hash all members on ``threads`` threads; returns what differs, empty if all held.

        Of the bases only what is required of them is hashed, as is what a delta stands on.
        ``progress`` is told the bytes of each finished piece. Members are handed to the threads
        largest first, so that the last one does not run alone. Memory: CHUNK a thread.
        """
        waiting = iter(sorted(self._all_entries(), key=lambda found: -found[1].member.size))
        found: list[Corrupt] = []
        stop, lock = threading.Event(), threading.Lock()

        def work() -> None:
            buffer = bytearray(CHUNK)
            while not stop.is_set():
                with lock:
                    bundle, entry = next(waiting, (self, None))
                if entry is None:
                    return
                try:
                    digest = bundle._hash(entry, buffer, progress, stop)  # noqa: SLF001 (of this class)
                    _check_digest(entry, digest)  # (6)
                except Corrupt as error:
                    found.append(error if bundle is self else _in_base(bundle, error))

        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(work) for _ in range(threads)]:
                    future.result()
            except BaseException:
                stop.set()
                raise
        return sorted(found, key=str)

    def _all_entries(self) -> list[tuple[VerifiedBundle, Entry]]:
        required = (self.locate(member.path) for member in self.manifest.required)
        return [*((self, e) for e in self.layout.entries), *filter(None, required)]

    @property
    def content_size(self) -> int:
        """Bytes that ``verify_members`` hashes."""
        return sum(entry.member.size for _, entry in self._all_entries())

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
                count = self.file.read_into(view[: min(CHUNK, end - position)], position)
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


def _in_base(base: VerifiedBundle, error: Corrupt) -> Corrupt:
    return Corrupt(f"{base.path}: {error.message}", hint=error.hint)


def _check_digest(entry: Entry, found: str) -> None:
    member = entry.member
    if found != member.sha256:
        raise Corrupt(
            f"{member.path} ({member.size} bytes at byte {entry.offset}) has digest "
            f"sha256:{found}, signed is sha256:{member.sha256}",
            hint="the file was changed after signing or the medium is damaged: copy it again",
        )
