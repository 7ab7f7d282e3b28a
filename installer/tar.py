"""Tars of strangers, read member by member: what Python's reader would trip over is refused.

``tarfile`` believes sizes. A negative one leads it back to where it was, for ever (CVE-2025-8194);
one of an extended header is read into memory whole, however large, as are the names of all members
that were passed. And it raises whatever its arithmetic raises.
"""

from __future__ import annotations

import lzma
import tarfile
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

UNREADABLE = (
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)
"""What comes out of ``tarfile`` when an archive is broken; UnicodeDecodeError is a ValueError."""

_EXTENDED = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_MAX_EXTENDED = 1 << 20
_MAX_SIZE = 1 << 62
_PIECE = 1 << 20


class CautiousHeader(tarfile.TarInfo):
    """A header whose size can be used: give it to ``tarfile.open`` as ``tarinfo``."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header; raises tarfile.ReadError for a size that is none or too much."""
        header = super().frombuf(buf, encoding, errors)
        if not 0 <= header.size <= (_MAX_EXTENDED if header.type in _EXTENDED else _MAX_SIZE):
            raise tarfile.ReadError(f"a header states {header.size} bytes")
        return header


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Go to the next header; a stream is read up to it, since tarfile does so behind its end too.

    For a member of a terabyte in a short file that would take minutes.
    """
    stream: Any = archive.fileobj
    first: Any = archive.firstmember  # type: ignore[attr-defined]  # read by opening, to be given yet
    if first is None and isinstance(
        stream,
        tarfile._Stream,  # type: ignore[attr-defined]  # noqa: SLF001 - mode "r|"
    ):
        while (left := archive.offset - stream.tell()) > 0:
            if not stream.read(min(left, _PIECE)):
                raise tarfile.ReadError("unexpected end of data")
    return archive.next()


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in turn, none of them kept; raises one of UNREADABLE."""
    while (member := _next(archive)) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # there since ever, not documented
        if not 0 <= member.size <= _MAX_SIZE:  # an extended header may have set it
            raise tarfile.ReadError(f"a member states {member.size} bytes")
        yield member
