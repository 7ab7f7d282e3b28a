"""One file out of an archive, as a stream: nothing is unpacked to disk, so nothing can escape.

The archive's own digest is in the spec and was checked before; what is refused here are members
that are no plain files, and archives that can't be read to the end of the member.
"""

from __future__ import annotations

import tarfile
import zipfile
from typing import TYPE_CHECKING

from installer.bundle.digest import CHUNK
from installer.errors import InvalidInput
from installer.tar import UNREADABLE, CautiousHeader, members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BROKEN = (*UNREADABLE, zipfile.BadZipFile)
_ZIP_MAGIC = b"PK\x03\x04"
_MAGICS = (_ZIP_MAGIC, b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SHOWN = 10


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, or compressed as archives are."""
    with path.open("rb") as file:
        return file.read(8).startswith(_MAGICS)


def read_member(archive: Path, member: str, what: str) -> Iterator[bytes]:
    """Chunks of one file in a tar (plain, gzip, bzip2, xz) or a zip; ``what`` names the archive.

    Raises InvalidInput when the archive is broken, the member is missing or no plain file.
    """
    try:
        with archive.open("rb") as file:
            zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        yield from (_from_zip if zipped else _from_tar)(archive, member, what)
    except _BROKEN as error:
        raise InvalidInput(
            f"{what}: can't be read as tar or zip: {error}",
            hint="leave `member` out when the source is the program itself",
        ) from error


def _from_tar(archive: Path, member: str, what: str) -> Iterator[bytes]:
    seen: list[str] = []
    with tarfile.open(archive, "r|*", tarinfo=CautiousHeader) as tar:
        for entry in members(tar):
            name = entry.name.removeprefix("./")
            if name != member.removeprefix("./"):
                seen += [name] if entry.isfile() else []
                continue
            content = tar.extractfile(entry) if entry.isfile() else None
            if content is None:
                raise InvalidInput(f"{what}: {member} is a link or a folder, not a plain file")
            while chunk := content.read(CHUNK):
                yield chunk
            return
    raise _missing(what, member, seen)


def _from_zip(archive: Path, member: str, what: str) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as packed:
        try:
            entry = packed.getinfo(member)
        except KeyError:
            raise _missing(what, member, packed.namelist()) from None
        unix_type = entry.external_attr >> 28
        if entry.is_dir() or unix_type not in {0, 0o10}:
            raise InvalidInput(f"{what}: {member} is a link or a folder, not a plain file")
        try:
            with packed.open(entry) as content:
                while chunk := content.read(CHUNK):
                    yield chunk
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or a rare compression
            raise InvalidInput(f"{what}: {member} can't be unpacked: {error}") from error


def _missing(what: str, member: str, seen: list[str]) -> InvalidInput:
    more = " …" if len(seen) > _SHOWN else ""
    return InvalidInput(
        f"{what}: no member {member!r}", hint=f"it has: {', '.join(seen[:_SHOWN])}{more}"
    )
