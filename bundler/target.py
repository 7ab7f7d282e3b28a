"""The unfinished bundle on the disk: one file, or parts for media with a limit on file sizes.

Everything is written at its final offset into files with ``.partial`` in their names, whose blocks
are all taken at the beginning, so that a full disk is found then. What is there of an earlier run
stays. The order at the end is what a power failure can't break:

(1) the data are on the disk (fsync of each file);
(2) of parts: the old index goes, the parts get their names, the folder is synced;
(3) the file, or the index of the parts, gets its final name by a rename;
(4) the folder is synced, and only then the journal goes, which the caller does.

Parts without their index are no bundle, so that here as well one rename makes it one. A run that
was stopped between (2) and (3) finds parts under their final names and takes them back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Self

from installer.bundle.digest import CHUNK
from installer.bundle.layout import BLOCK
from installer.bundle.parts import (
    Part,
    PartsIndex,
    decode_index,
    encode_index,
    index_name,
    part_name,
)
from installer.errors import InvalidInput, TransferFailed

if TYPE_CHECKING:
    from pathlib import Path

    from installer.bundle.digest import Digest

_MAX_PARTS = 9999
MIN_PART_SIZE = 1024 * 1024
"""Smaller parts would be a mistake in the unit."""


def part_limit(part_size: int) -> int:
    """Bytes that a part may have: whole tar blocks, and less than asked for.

    Less, because the largest file of FAT32 is one byte short of 4 GiB.
    """
    return (part_size - 1) // BLOCK * BLOCK


def partial_of(path: Path) -> Path:
    """Where a file is written until it is finished."""
    return path.with_name(path.name + ".partial")


class Target:
    """Files that together have ``size`` bytes; threads may write to it at once.

    ``part_size`` is None for one file. It is a context manager: leaving closes the files, which
    keeps them.
    """

    def __init__(self, out: Path, size: int, part_size: int | None = None) -> None:
        self.out = out
        self.size = size
        self._whole = part_size is None
        limit = part_limit(part_size) if part_size else size
        count = -(-size // limit)
        if count > _MAX_PARTS:
            raise InvalidInput(f"{count:,} parts are too many", hint="choose a larger --part-size")
        names = (
            [out.name] if self._whole else [part_name(out.name, n + 1, count) for n in range(count)]
        )
        self.paths = [out.with_name(name) for name in names]
        self._starts = [number * limit for number in range(count)]
        self._sizes = [min(limit, size - start) for start in self._starts]
        self._descriptors: list[int] = []
        self._open = ExitStack()

    @property
    def cut(self) -> str:
        """How the whole is cut into files: what an earlier run has left fits only the same cut."""
        return "one file" if self._whole else f"parts of {self._sizes[0]}"

    @property
    def index(self) -> Path:
        """The index of the parts, which are a bundle only with it."""
        return self.out.with_name(index_name(self.out.name))

    @property
    def result(self) -> Path:
        """What a person names afterwards: the file, or the index."""
        return self.out if self._whole else self.index

    def taken(self) -> int:
        """Bytes of the disk that an earlier run has taken."""
        total = 0
        for path in self.paths:
            with suppress(OSError):
                total += partial_of(path).stat().st_blocks * 512
        return total

    def open(self) -> None:
        """Open the files for this build alone; raises InvalidInput when another one has them."""
        if not self._whole:
            self._take_back()
        for path in self.paths:
            descriptor = _open_alone(partial_of(path))
            self._open.callback(os.close, descriptor)
            self._descriptors.append(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def reserve(self) -> None:
        """Take all blocks at once, so that a full disk is found here; raises TransferFailed.

        What an earlier run has filled stays as it is.
        """
        folder = self.out.parent
        disk = os.statvfs(folder)
        missing, free = self.size - self.taken(), disk.f_bavail * disk.f_frsize
        if missing > free:
            raise _no_room(folder, missing, free)
        for descriptor, size in zip(self._descriptors, self._sizes, strict=True):
            before = os.fstat(descriptor).st_size
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                    os.ftruncate(descriptor, size)  # this file system can't promise anything
                    continue
                os.ftruncate(descriptor, min(before, size))
                raise _no_room(folder, missing, free, error.strerror or "") from error
            os.ftruncate(descriptor, size)  # it may have been longer

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of it at this offset of the whole; raises OSError."""
        view = memoryview(data)
        while view:
            number, within, most = self._at(offset, len(view))
            count = os.pwrite(self._descriptors[number], view[:most], within)
            view = view[count:]
            offset += count

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a buffer from this offset on, as far as one file has it; gives how many bytes."""
        number, within, most = self._at(offset, len(view))
        return os.preadv(self._descriptors[number], [view[:most]], within)

    def flush(self) -> None:
        """Send what was written to the disk; raises OSError."""
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)

    def finish(self, bundle: Digest) -> None:
        """Steps (1) to (4) but for the journal; ``bundle`` is the digest of bundle.json."""
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        if not self._whole:
            self._name_parts(bundle)
        partial_of(self.result).replace(self.result)
        _sync_folder(self.out.parent)

    def _name_parts(self, bundle: Digest) -> None:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            digests = list(pool.map(_digest, self._descriptors))
        parts = zip(self.paths, self._sizes, digests, strict=True)
        index = PartsIndex(
            api_version="parts/v1",
            kind="BundleParts",
            name=self.out.name,
            size=self.size,
            bundle=str(bundle),
            parts=tuple(Part(path.name, size, digest) for path, size, digest in parts),
        )
        _write_synced(partial_of(self.index), encode_index(index))
        old = _parts_of(self.index)
        self.index.unlink(missing_ok=True)
        for path in self.paths:
            partial_of(path).replace(path)
        for name in old - {path.name for path in self.paths}:
            self.out.with_name(name).unlink(missing_ok=True)
        _sync_folder(self.out.parent)

    def _take_back(self) -> None:
        """Go on with parts that had their final names already when a run was stopped."""
        if self.index.exists() or not partial_of(self.index).exists():
            return
        for path in self.paths:
            if path.exists() and not partial_of(path).exists():
                path.replace(partial_of(path))

    def _at(self, offset: int, count: int) -> tuple[int, int, int]:
        number = bisect_right(self._starts, offset) - 1
        within = offset - self._starts[number]
        return number, within, min(count, self._sizes[number] - within)


def check_target(target: Target, first: bytes) -> None:
    """Refuse what can't be written or is no bundle of ours; raises InvalidInput.

    ``first`` is what every bundle begins with.
    """
    out = target.out
    if not out.parent.is_dir():
        raise InvalidInput(f"{out.parent}: no such folder", hint="is the disk mounted?")
    if target.result.exists() and not _is_ours(target, first):
        raise _taken(target.result)
    known = _parts_of(target.index) if target.result != out else set()
    stopped = partial_of(target.index).exists()
    for path in target.paths:
        foreign = path not in (out, target.result) and path.name not in known
        if foreign and not stopped and path.exists():
            raise _taken(path)


def _is_ours(target: Target, first: bytes) -> bool:
    if target.result != target.out:
        return bool(_parts_of(target.index))
    with suppress(OSError), target.out.open("rb") as stream:
        return target.out.is_file() and stream.read(len(first)) == first
    return False


def _taken(path: Path) -> InvalidInput:
    return InvalidInput(
        f"{path}: exists, and is not a bundle", hint="choose another --out: nothing is overwritten"
    )


def _no_room(folder: Path, missing: int, free: int, reason: str = "") -> TransferFailed:
    return TransferFailed(
        f"{folder}: {missing:,} bytes needed, {free:,} free" + (f": {reason}" if reason else ""),
        hint="make room or choose another disk with --out",
    )


def _parts_of(index: Path) -> set[str]:
    try:
        return {part.name for part in decode_index(index.read_bytes(), str(index)).parts}
    except (OSError, InvalidInput):
        return set()


def _open_alone(partial: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(partial, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The build that held the lock may have finished and renamed this very file.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), partial.stat(follow_symlinks=False)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InvalidInput(f"another build is writing {partial}") from None
        os.close(descriptor)


def _digest(descriptor: int) -> str:
    hasher, view, position = hashlib.sha256(), memoryview(bytearray(CHUNK)), 0
    while count := os.preadv(descriptor, [view], position):
        hasher.update(view[:count])
        position += count
    return hasher.hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o644), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make new names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
