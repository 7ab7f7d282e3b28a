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

import msgspec

from installer.bundle.manifest import NAME, Member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from installer.bundle.manifest import Manifest

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
"""End of archive: two zero blocks (POSIX.1, ustar)."""

_MAX_OCTAL = 0o77777777777

_MODES = {False: b"0000644\0", True: b"0000755\0"}
_OWNER = b"0000000\0" * 2
_MTIME = b"00000000000\0"
_REST = b"".join((
    b"0",  # a regular file
    b"\0" * 100,  # no link
    b"ustar\0" + b"00",
    b"\0" * 64,  # no user name, no group name
    b"0000000\0" * 2,  # no device
    b"\0" * 167,  # no prefix
))  # fmt: skip
_SUMS = {x: sum(mode + _OWNER + _MTIME + b" " * 8 + _REST) for x, mode in _MODES.items()}
"""Checksum of all fields but path and size; the checksum's own eight bytes count as spaces."""

_FIELDS = (
    ("path", 100),
    ("mode", 8),
    ("owner", 8),
    ("group", 8),
    ("size", 12),
    ("time", 12),
    ("checksum", 8),
    ("type", 1),
    ("link target", 100),
    ("format", 8),
    ("user name", 32),
    ("group name", 32),
    ("device", 16),
    ("path prefix", 155),
    ("unused bytes", 12),
)
"""Fields of a ustar header in their order, with their lengths in bytes (POSIX.1-1988)."""

_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a FIFO",
    b"K": "a GNU long link",
    b"L": "a GNU long name",
    b"S": "a GNU sparse file",
    b"x": "a pax record",
    b"g": "a global pax record",
}


def header(path: str, size: int, *, executable: bool = False) -> bytes:
    """The 512 bytes in front of a member; ``path`` is ASCII and at most 100 bytes."""
    name = path.encode("ascii")
    octal = size <= _MAX_OCTAL
    size_field = b"%011o\0" % size if octal else b"\x80" + size.to_bytes(11, "big")
    checksum = b"%06o\0 " % (_SUMS[executable] + sum(name) + sum(size_field))
    return b"".join(
        (name.ljust(100, b"\0"), _MODES[executable], _OWNER, size_field, _MTIME, checksum, _REST)
    )


def difference(found: bytes, expected: bytes) -> str:
    """Say what is wrong with the bytes in front of a member: padding, then its header.

    ``expected`` is a piece of ``Layout.frames``. A type is named first, since it says what the
    header is meant for; then the field that stands first. The checksum comes last: it is wrong
    whenever another field was changed without it.
    """
    start = len(expected) - BLOCK
    if found[:start] != expected[:start]:
        return "padding that is not zero"
    wrong: dict[str, bytes] = {}
    for name, length in _FIELDS:
        if found[start : start + length] != expected[start : start + length]:
            wrong[name] = found[start : start + length]
        start += length
    if "type" in wrong:
        return _TYPES.get(wrong["type"], f"a member of type {wrong['type']!r}")
    first = next((name for name in wrong if name != "checksum"), "checksum")
    return f"{first} {wrong[first].rstrip(bytes(1))[:60]!r}" if wrong else "nothing"


def padding(size: int) -> int:
    """Zero bytes behind a member of ``size`` bytes, up to the next block."""
    return -size % BLOCK


class Entry(msgspec.Struct, frozen=True, gc=False):
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
