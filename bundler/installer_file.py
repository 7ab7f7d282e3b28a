"""The installer as one file: what travels in the bundle, and beside it.

It is made from the environment that ``bundler`` runs in (``bundler/freeze.py``), or was made so on
another machine. What was made is kept in the cache under a name that everything in it decides
about, so that the next build with the same environment takes the same file.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from bundler.cache import measure, read_chunks
from bundler.installer_format import COMPONENTS, PLACE, Component
from installer.bundle.digest import CHUNK, Digest
from installer.errors import InvalidInput, TransferFailed
from installer.structs import decode_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bundler.cache import BlobCache

_MACHINES = {62: "amd64", 183: "arm64"}
"""e_machine of ELF, and the architecture's name in OCI platforms."""
_FIRST_PROGRAM = 64 * 1024
"""Bytes in which the mark of the first program stands."""


@dataclass(frozen=True, slots=True)
class InstallerFile:
    """An installer on disk: architecture as in OCI platforms, size in bytes, and what is in it."""

    path: Path
    architecture: str
    digest: Digest
    size: int
    components: tuple[Component, ...]

    @property
    def name(self) -> str:
        """Its path in the bundle, and its name beside it."""
        return f"installer-linux-{self.architecture}"


def read(path: Path) -> InstallerFile:
    """Look at an installer; raises InvalidInput for any other file, and for one that is cut off."""
    try:
        architecture = _architecture(path)
        with zipfile.ZipFile(path) as archive:
            data = archive.read(COMPONENTS)
        components = decode_json(data, tuple[Component, ...])
        found = measure(path)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, zipfile.BadZipFile, msgspec.DecodeError) as error:
        raise InvalidInput(
            f"{path}: is not a whole installer as `bundler build` makes it",
            hint="take the file installer-linux-… from beside a bundle that was built there",
        ) from error
    return InstallerFile(path, architecture, found.digest, found.size, components)


def _architecture(path: Path) -> str:
    """Read it from the first program; raises ValueError or KeyError for any other file."""
    with path.open("rb") as file:
        head = file.read(_FIRST_PROGRAM)
    if not head.startswith(b"\x7fELF") or PLACE not in head:
        raise ValueError
    return _MACHINES[int.from_bytes(head[18:20], "little")]


def make(
    cache: BlobCache, progress: Callable[[int], AbstractContextManager[Callable[[int], None]]]
) -> InstallerFile:
    """Make the installer from this environment, or take the one that was made from it before.

    ``progress`` shows the bytes that are packed, if it has to be made. Raises InvalidInput when
    this environment can't be packed, TransferFailed when the cache can't be written to.
    """
    from bundler import freeze  # noqa: PLC0415  # 70 ms, and most builds make none
    from bundler.python_environment import environment  # noqa: PLC0415

    found = environment()
    mark = cache.folder / "installers" / found.digest()
    if (kept := _kept(cache, mark)) is not None:
        return kept
    with tempfile.TemporaryFile() as file:
        with progress(found.size) as advance:
            freeze.write(found, file, advance)
        file.seek(0)
        blob = cache.put(iter(lambda: file.read(CHUNK), b""), what="installer")
    try:
        mark.parent.mkdir(mode=0o700, exist_ok=True)
        unfinished = mark.with_name(f".{os.getpid()}")
        unfinished.write_text(blob.digest.hex)
        unfinished.replace(mark)
    except OSError as error:
        raise TransferFailed(f"cache {cache.folder}: {error.strerror}") from error
    return read(blob.path)


def _kept(cache: BlobCache, mark: Path) -> InstallerFile | None:
    """The file that was made before; its mark vouches for it, so only this user may write there."""
    with suppress(OSError, ValueError, InvalidInput):
        for place in (mark, mark.parent):
            status = place.stat(follow_symlinks=False)
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
        blob = cache.get(Digest(mark.read_text()))
        return read(blob.path) if blob else None
    return None


def put_beside(installer: InstallerFile, folder: Path) -> Path:
    """Copy the installer into a folder, ready to be started; raises TransferFailed.

    Raises InvalidInput rather than replacing a file that is no installer.
    """
    place = folder / installer.name
    check_beside(installer, folder)
    with suppress(OSError):
        if measure(place).digest == installer.digest and os.access(place, os.X_OK):
            return place
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as out:
            for chunk in read_chunks(installer.path):
                out.write(chunk)
            out.flush()
            os.fchmod(out.fileno(), 0o755)
            os.fsync(out.fileno())
        unfinished.replace(place)
    except OSError as error:
        raise TransferFailed(f"{place}: {error.strerror}", hint="make room") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return place


def check_beside(installer: InstallerFile, folder: Path) -> None:
    """Raise InvalidInput if a file that is no installer has its name there."""
    place = folder / installer.name
    if place.exists():
        with suppress(OSError, ValueError, KeyError):
            _architecture(place)
            return
        raise InvalidInput(f"{place}: exists, and is not an installer", hint="move it away")
