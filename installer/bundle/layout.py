"""Where every byte of the tar stands: a pure function of ``bundle.json``.

Writer and verifier call the same function. The verifier recomputes each header and compares
bytes, so no field of a header can carry anything that we did not put there, and no other tar
reader can be shown other content than the one that was checked (docs/format.md, "The tar").

The headers are POSIX.1-1988 ustar with mtime 0, uid 0, gid 0. A size over 8 GiB - 1 does not fit
its octal field and is written in base 256 as GNU tar does, which every reader in use accepts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from installer.bundle.manifest import NAME, Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.manifest import Manifest

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
"""End of archive: two zero blocks (POSIX.1, ustar)."""

_MAX_OCTAL = 0o77777777777


def header(path: str, size: int, *, executable: bool = False) -> bytes:
    """The 512 bytes in front of a member; ``path`` is ASCII and at most 100 bytes."""
    octal = size <= _MAX_OCTAL
    size_field = b"%011o\0" % size if octal else b"\x80" + size.to_bytes(11, "big")
    fields = (
        path.encode("ascii").ljust(100, b"\0"),
        b"0000755\0" if executable else b"0000644\0",
        b"0000000\0" * 2,  # uid, gid
        size_field,
        b"00000000000\0",  # mtime
        b" " * 8,  # checksum, counted as spaces
        b"0",  # a regular file
        b"\0" * 100,  # no link
        b"ustar\0" + b"00",
        b"\0" * 64,  # no user name, no group name
        b"0000000\0" * 2,  # no device
        b"\0" * 167,  # no prefix
    )
    block = b"".join(fields)
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def padding(size: int) -> int:
    """Zero bytes behind a member of ``size`` bytes, up to the next block."""
    return -size % BLOCK


@dataclass(frozen=True, slots=True)
class Entry:
    """A member with its place: offsets in bytes from the start of the file."""

    member: Member
    header_offset: int

    @property
    def offset(self) -> int:
        """First byte of the content."""
        return self.header_offset + BLOCK

    @property
    def end(self) -> int:
        """First byte behind the content; zeros follow up to the next block."""
        return self.offset + self.member.size

    @property
    def header(self) -> bytes:
        """The tar header."""
        return header(self.member.path, self.member.size, executable=self.member.executable)


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole file: ``entries`` in order, ``size`` in bytes, trailer included."""

    manifest_offset: int
    manifest_size: int
    entries: tuple[Entry, ...]
    size: int

    @property
    def front(self) -> int:
        """Offset of the first entry's header: behind bundle.json and its padding."""
        return self.manifest_offset + BLOCK + self.manifest_size + padding(self.manifest_size)

    def by_path(self) -> dict[str, Entry]:
        """Entries by member path."""
        return {entry.member.path: entry for entry in self.entries}

    def frames(self) -> Iterator[tuple[int, bytes, str]]:
        """Everything between contents: offset, exact bytes, and the member that it introduces.

        Padding of one member and header of the next are one piece; the last is the trailer.
        """
        yield self.manifest_offset, header(NAME, self.manifest_size), NAME
        position = self.manifest_offset + BLOCK + self.manifest_size
        for entry in self.entries:
            yield position, bytes(entry.header_offset - position) + entry.header, entry.member.path
            position = entry.end
        yield position, bytes(self.size - position), "end of archive"


def layout(manifest: Manifest, manifest_size: int) -> Layout:
    """Place every member; ``manifest_size`` is the length in bytes of the encoded manifest."""
    position = manifest.signature_area + BLOCK + manifest_size + padding(manifest_size)
    entries = []
    for member in manifest.members:
        entries.append(Entry(member, position))
        position += BLOCK + member.size + padding(member.size)
    return Layout(manifest.signature_area, manifest_size, tuple(entries), position + len(TRAILER))
