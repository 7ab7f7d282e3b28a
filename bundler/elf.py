"""Just enough of ELF-64: the dynamic loader that a program names, and its part that is loaded."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator


def interpreter(program: Path) -> Path:
    """The dynamic loader that a program names (ELF gABI, PT_INTERP); raises InvalidInput."""
    data = program.read_bytes()
    for kind, offset, size in segments(data):
        if kind == 3:  # noqa: PLR2004 (PT_INTERP)
            return Path(data[offset : offset + size].rstrip(b"\0").decode()).resolve()
    raise InvalidInput(f"{program}: has no dynamic loader")


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, offset and size in the file of each segment (ELF-64, section 2.3), in bytes.

    Raises InvalidInput for what is no 64-bit, little-endian ELF file.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise InvalidInput("a library is no 64-bit little-endian ELF file")
    (at,) = struct.unpack_from("<Q", data, 32)
    size, number = struct.unpack_from("<HH", data, 54)
    for i in range(number):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at + i * size)
        yield kind, offset, length


def loaded_part(path: Path) -> bytes:
    """A program or library without what is never loaded: symbols for debuggers, section names.

    Raises InvalidInput, OSError.
    """
    data = path.read_bytes()
    end = max(offset + size for _, offset, size in segments(data))
    head = bytearray(data[:end])
    struct.pack_into("<Q", head, 40, 0)  # no section headers: offset, number, names
    struct.pack_into("<HH", head, 60, 0, 0)
    return bytes(head)
