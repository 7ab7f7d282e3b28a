"""A bundle on the disk as one run of bytes, whether it is one file or several parts.

Media with a limit on the size of files (FAT32, optical discs) take a bundle in parts: slices of the
one file, and an index beside them that names each with size and digest. Nobody joins them: reads go
to the part that has the byte. The index is not signed and decides nothing about content, which is
held to bundle.json whichever file it lies in; it says which files there must be, and lets an error
name the part that is damaged, missing or in the place of another.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from installer.bundle.digest import CHUNK, Digest
from installer.bundle.manifest import MAX_NUMBER
from installer.errors import Corrupt, InvalidInput, TransferFailed
from installer.structs import decode_json

if TYPE_CHECKING:
    from pathlib import Path

FileIdentity = tuple[int, int, int, int, int]
"""Device, inode, size (bytes), times of the last change of content and of inode (nanoseconds)."""
_MAX_INDEX = 4 * 1024 * 1024
_MAX_PARTS = 9999
_PART = re.compile(r"(?P<whole>.+)\.part[0-9]{2,4}\Z")
_INDEX = ".parts.json"
_NAME = re.compile(r"[^/\0\n]{1,255}\Z")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A slice of the bundle: name of the file beside the index, size (bytes), sha256 in hex."""

    name: str
    size: int
    sha256: str


class PartsIndex(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """The parts of a bundle in their order; ``bundle`` is the digest of its bundle.json."""

    api_version: Literal["parts/v1"]
    kind: Literal["BundleParts"]
    name: str
    size: int
    bundle: str
    parts: tuple[Part, ...]


def part_name(whole: str, number: int, count: int) -> str:
    """File name of a part, counted from 1."""
    return f"{whole}.part{number:0{max(2, len(str(count)))}}"


def index_name(whole: str) -> str:
    """File name of the index of a bundle's parts."""
    return whole + _INDEX


def encode_index(index: PartsIndex) -> bytes:
    """Write an index; a line a value, so that people can read it."""
    return msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n"


def decode_index(data: bytes, name: str) -> PartsIndex:
    """Read an index; ``name`` stands in errors. Raises InvalidInput."""
    hint = "give the .parts.json that `bundler build --part-size` wrote"
    try:
        index = decode_json(data, PartsIndex)
        _check(index)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: not an index of parts: {error.message}", hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{name}: not an index of parts: {error}", hint=hint) from error
    return index


def _check(index: PartsIndex) -> None:
    """What types can't say; raises InvalidInput."""
    Digest.parse(index.bundle)
    for part in index.parts:
        Digest(part.sha256)
        if not _NAME.match(part.name) or part.name in (".", ".."):
            raise InvalidInput(f"not a file's name: {part.name[:80]!r}")
    sizes = [part.size for part in index.parts]
    if not 0 < len(sizes) == len({part.name for part in index.parts}) <= _MAX_PARTS:
        raise InvalidInput("there are no parts, too many, or one of them twice")
    if min(sizes) <= 0 or not sum(sizes) == index.size <= MAX_NUMBER:
        raise InvalidInput("the sizes of the parts don't add up to that of the bundle")


def find_index(path: Path) -> Path | None:
    """Where the index is, when ``path`` is an index or a part by its name; else None.

    Raises InvalidInput for a part without its index.
    """
    if found := _PART.match(path.name):
        index = path.with_name(index_name(found["whole"]))
        if not index.is_file():
            raise InvalidInput(
                f"{path}: a part of a bundle, but {index.name} is not beside it",
                hint="copy it as well; without it join the parts: cat "
                f"{found['whole']}.part* > {found['whole']}",
            )
        return index
    return path if path.name.endswith(_INDEX) else None


@dataclass(frozen=True, slots=True)
class _Piece:
    """An open file: what it should be (None: it is not a part), and where it begins."""

    path: Path
    descriptor: int
    start: int
    size: int
    part: Part | None


class BundleFile:
    """An open bundle of one file or of parts; safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Open a file, or all parts that an index (or the index of a part) names.

        Raises InvalidInput for what can't be opened or is missing, Corrupt for a part of another
        size than the index says.
        """
        self.path = path
        self._pieces: tuple[_Piece, ...] = ()
        index_path = find_index(path)
        with ExitStack() as stack:
            if index_path is None:
                descriptor, size = _open(path, stack)
                self._pieces = (_Piece(path, descriptor, 0, size, None),)
            else:
                self._pieces = tuple(_open_parts(_read_index(index_path), index_path, stack))
            stack.pop_all()
        self._starts = [piece.start for piece in self._pieces]
        self.size = self._pieces[-1].start + self._pieces[-1].size

    def close(self) -> None:
        """Let go of all files."""
        for piece in self._pieces:
            os.close(piece.descriptor)
        self._pieces = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int, offset: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on, none at the end; raises OSError."""
        piece, within, most = self._at(offset, size)
        return os.pread(piece.descriptor, most, within)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a buffer from ``offset`` on, as far as one part has it; gives how many bytes."""
        piece, within, most = self._at(offset, len(view))
        return os.preadv(piece.descriptor, [view[:most]], within)

    def send(self, socket: int, offset: int, count: int) -> int:
        """Have the kernel send at most ``count`` bytes; gives how many it took."""
        piece, within, most = self._at(offset, count)
        return os.sendfile(socket, piece.descriptor, within, most)

    def identities(self) -> tuple[FileIdentity, ...]:
        """What tells these files from others, and that they were written to; raises OSError."""
        found = [os.fstat(piece.descriptor) for piece in self._pieces]
        return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)

    def differing_parts(self) -> tuple[str, ...]:
        """Hash all parts and say which ones are not what the index lists, a sentence each.

        Empty for a bundle of one file. For errors: it reads everything.
        """
        parts = [(piece, piece.part) for piece in self._pieces if piece.part is not None]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            digests = list(pool.map(_digest, (piece for piece, _ in parts)))
        names = {part.sha256: part.name for _, part in parts}
        told = []
        for (_, part), digest in zip(parts, digests, strict=True):
            if digest != part.sha256:
                other = names.get(digest)
                has = f"has the content of {other}" if other else f"has digest sha256:{digest}"
                told.append(f"{part.name} {has}, the index says sha256:{part.sha256}")
        return tuple(told)

    def _at(self, offset: int, count: int) -> tuple[_Piece, int, int]:
        if not self._pieces:
            raise OSError(errno.EBADF, "the bundle is closed")
        piece = self._pieces[bisect_right(self._starts, offset) - 1]
        within = offset - piece.start
        # The last one may have grown: what is behind its end is for the caller to notice.
        last = piece is self._pieces[-1]
        return piece, within, count if last else min(count, piece.size - within)


def _read_index(path: Path) -> PartsIndex:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_INDEX:
        raise InvalidInput(f"{path}: not an index of parts: over {_MAX_INDEX} bytes")
    return decode_index(data, str(path))


def _open_parts(index: PartsIndex, path: Path, stack: ExitStack) -> list[_Piece]:
    missing = [part.name for part in index.parts if not path.with_name(part.name).exists()]
    if missing:
        raise InvalidInput(
            f"{path}: missing beside it: {', '.join(missing)} (of {len(index.parts)} parts)",
            hint="copy all parts into one folder, or link them there",
        )
    pieces, start = [], 0
    for part in index.parts:
        file = path.with_name(part.name)
        descriptor, size = _open(file, stack)
        if size != part.size:
            verb = "cut off" if size < part.size else "extended"
            raise Corrupt(
                f"{file}: {size} bytes, should have {part.size}: it was {verb}",
                hint="copy it again from the medium",
            )
        pieces.append(_Piece(file, descriptor, start, size, part))
        start += size
    return pieces


def _open(path: Path, stack: ExitStack) -> tuple[int, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        status = os.fstat(descriptor)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{path}: not a regular file")
    return descriptor, status.st_size


def _digest(piece: _Piece) -> str:
    hasher, view, position = hashlib.sha256(), memoryview(bytearray(CHUNK)), 0
    while position < piece.size:
        try:
            count = os.preadv(piece.descriptor, [view], position)
        except OSError as error:
            raise TransferFailed(f"{piece.path}: {error.strerror} at byte {position}") from error
        if not count:
            break
        hasher.update(view[:count])
        position += count
    return hasher.hexdigest()
