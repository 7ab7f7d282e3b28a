"""Programs that the site runs: Helm, kubectl. Pinned by digest, carried as OCI artefacts.

The sha256 in the spec is of the file behind the source, as vendors publish it: usually an archive.
The program inside has a digest of its own, which is what the site checks before it runs it.
"""

from __future__ import annotations

import re
import struct
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from bundler.lock import Blob
from bundler.sources.archives import is_archive, read_member
from bundler.sources.upstream import MAX_FILE_BYTES, OCTETS, Locked, authored, bounded
from installer.bundle.digest import Digest
from installer.bundle.manifest import Tool, Verification
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from bundler.sources.upstream import Upstream
    from bundler.spec_document import Tool as ToolSource

TOOL_TYPE = "application/vnd.harbor-airgap.tool.v1"
_MAX_CHECKSUMS_BYTES = 1024 * 1024
_CHECKSUM = re.compile(r"([0-9a-fA-F]{64})(?:\s+[*]?(\S.*?))?\s*\Z")

# Machine numbers of ELF headers (the System V ABI's e_machine), for the spec's platforms.
_MACHINES = {
    3: "386",
    21: "ppc64le",
    22: "s390x",
    40: "arm/v7",
    62: "amd64",
    183: "arm64",
    243: "riscv64",
}
_ELF = b"\x7fELF"
_ELF_BYTES = 20


def lock_tool(upstream: Upstream, platform: str, wanted: ToolSource) -> Locked[Tool]:
    """Resolve a tool; a downloaded archive and what is taken from it stay in the cache.

    ``platform`` is that of a program that doesn't say it itself, such as a script. Raises
    NotFound, TransferFailed, Corrupt for another sha256 than the spec's, InvalidInput.
    """
    what = f"tool {wanted.name}"
    expected = wanted.digest
    pin = upstream.pins.get(f"{what} {wanted.source}")
    if wanted.sha256_from and pin:
        expected = pin
    elif wanted.sha256_from:
        expected = _published(upstream, wanted.sha256_from, wanted.source, what)
    method: Literal["checksum", "pinned", "local"] = "pinned" if wanted.sha256 else "local"
    method = "checksum" if wanted.sha256_from else method
    program = upstream.file(wanted.source, what, expected)
    archive = ""
    if wanted.member:
        archive = str(program.digest)
        content = read_member(program.path, wanted.member, f"{what}: {wanted.source}")
        program = upstream.cache.put(bounded(content, MAX_FILE_BYTES, what), what=what)
    elif is_archive(program.path):
        raise InvalidInput(
            f"{what}: {wanted.source} is an archive, not a program",
            hint="name the file in it, as `member: linux-amd64/helm`",
        )
    if not program.size:
        raise InvalidInput(f"{what}: {wanted.member or wanted.source} is empty")
    layer = Blob(
        str(program.digest),
        program.size,
        OCTETS,
        source=wanted.source,
        member=wanted.member or "",
        archive=archive,
    )
    root, blobs = authored(layer, artifact_type=TOOL_TYPE, title=wanted.name)
    entry = Tool(
        digest=str(root.digest),
        media_type=root.media_type,
        manifest_size=root.size,
        name=wanted.name,
        platform=elf_platform(program.path) or platform,
        source=wanted.source,
        sha256=program.digest.hex,
        size=program.size,
        verified=(Verification(method),),
    )
    return Locked(entry, blobs)


def elf_platform(program: Path) -> str:
    """Platform that an executable was built for, "" when it doesn't say."""
    with program.open("rb") as file:
        header = file.read(_ELF_BYTES)
    if len(header) < _ELF_BYTES or not header.startswith(_ELF):
        return ""
    endian = ">" if header[5] == 2 else "<"  # noqa: PLR2004 - ELFDATA2MSB
    machine = _MACHINES.get(struct.unpack_from(f"{endian}H", header, 18)[0])
    return f"linux/{machine}" if machine else ""


def _published(upstream: Upstream, place: str, source: str, what: str) -> Digest:
    """Digest that a vendor publishes beside a file: alone, or in a list as sha256sum writes it."""
    text = upstream.web.read(place, _MAX_CHECKSUMS_BYTES).decode("utf-8", "replace")
    found = [match for line in text.splitlines() if (match := _CHECKSUM.match(line.strip()))]
    name = PurePosixPath(urlsplit(source).path).name
    named = [match for match in found if match[2] and PurePosixPath(match[2]).name == name]
    alone = [match for match in found if len(found) == 1 and not match[2]]
    digests = {match[1].lower() for match in named or alone}
    if len(digests) != 1:
        raise InvalidInput(
            f"{what}: {place} has {len(digests)} sha256 digests for {name}",
            hint="write the digest itself as `sha256:` into the spec",
        )
    return Digest(digests.pop())
