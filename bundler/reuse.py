"""Blobs that this machine has already: in earlier bundles, OCI archives and OCI layouts.

They are found by digest alone, never by a tag, and nothing of them is believed: whoever takes bytes
from here hashes them, and goes upstream when they differ. So an unfinished, damaged or foreign file
does no harm, and needs no check of its own first.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from installer.bundle.digest import CHUNK
from installer.bundle.parts import BundleFile
from installer.errors import AirgapError, InvalidInput
from installer.tar import UNREADABLE, CautiousHeader, members

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from installer.bundle.digest import Digest

_BLOBS = "blobs/sha256/"
_HEX = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob lies: a file, and the bytes in it."""

    path: Path
    offset: int
    size: int

    def read(self) -> Iterator[bytes]:
        """Its bytes in pieces, unchecked; fewer than there should be where the file ends early.

        Raises OSError.
        """
        with _opened(self.path) as file:
            position, end = self.offset, self.offset + self.size
            while position < end and (piece := file.read(min(CHUNK, end - position), position)):
                position += len(piece)
                yield piece


class LocalBlobs:
    """Blobs by digest, from any number of bundles, archives and folders."""

    def __init__(self, sources: Iterable[Path] = (), cache: Path | None = None) -> None:
        """Read the headers of files and the names in folders; raises InvalidInput.

        ``cache`` is a folder that may as well be empty.
        """
        self._places: dict[str, Place] = dict(_of_folder(cache)) if cache else {}
        for source in sources:
            found = dict(_of_folder(source) if source.is_dir() else _of_archive(source))
            if not found:
                raise InvalidInput(
                    f"{source}: there are no blobs in it",
                    hint="a bundle, an OCI archive (tar) or the folder of an OCI layout is needed",
                )
            self._places |= found

    def find(self, digest: Digest, size: int) -> Place | None:
        """Where a blob of this size (bytes) may be had; None if it is nowhere."""
        place = self._places.get(digest.hex)
        return place if place and place.size == size else None


def _of_folder(folder: Path) -> Iterator[tuple[str, Place]]:
    try:
        with os.scandir(folder / _BLOBS) as entries:
            for entry in entries:
                if len(entry.name) == _HEX and entry.is_file():
                    yield entry.name, Place(Path(entry.path), 0, entry.stat().st_size)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInput(f"{folder}: {error.strerror}") from error


def _opened(path: Path) -> BundleFile:
    """Open a file, or the parts of a bundle; raises OSError."""
    try:
        return BundleFile(path)
    except AirgapError as error:
        raise OSError(errno.EIO, error.message) from error


class _Readable(io.RawIOBase):
    """A file or parts, as tarfile wants to read them."""

    def __init__(self, file: BundleFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Read at most as much as the buffer takes."""
        count = self._file.read_into(memoryview(buffer).cast("B"), self._position)
        self._position += count
        return count


def _of_archive(path: Path) -> Iterator[tuple[str, Place]]:
    try:
        # Compressed ones have no places in them.
        with (
            BundleFile(path) as file,
            tarfile.open(fileobj=_Readable(file), mode="r:", tarinfo=CautiousHeader) as archive,
        ):
            for member in members(archive):
                name = member.name.removeprefix("./")
                if name.startswith(_BLOBS) and member.isreg() and not member.issparse():
                    where = Place(path, member.offset_data, member.size)
                    yield name.removeprefix(_BLOBS), where
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except UNREADABLE:
        return  # cut off, or no tar at all: what was found until there is hashed like all else
