"""Files that only their owner may read, written so that nobody sees a half one or redirects one.

A file appears by rename: its bytes go into a new file beside it, created exclusively with mode
0600 (a link that waits under that name makes it fail) and synced before the rename. The mode is
given when the file is made, so no umask and no moment in between can widen it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

from installer.environment import variable
from installer.errors import InvalidInput, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FILE = 0o600
_FOLDER = 0o700


VARIABLE = "env:"
"""What stands before the name of a variable where a file with a secret could be named."""


def private_folder(path: Path) -> Path:
    """Make a folder of mode 0700, with its parents, or check that it is one and is ours.

    A wider mode is narrowed. Raises InvalidInput for a link, another owner or no folder.
    """
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, mode=0o755)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_FOLDER)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise InvalidInput(
                f"{path}: not a folder of user {os.geteuid()}",
                hint="it would hold secrets: choose another one, or look who made it",
            )
        if status.st_mode & 0o777 != _FOLDER:
            path.chmod(_FOLDER)
    except OSError as error:
        raise TransferFailed(f"{path}: can't be made: {error.strerror}") from error
    return path


def write_file(path: Path, content: bytes | Iterable[bytes], *, mode: int = _FILE) -> None:
    """Write a file whole or not at all; its folder must exist.

    ``mode`` is 0600 unless the file is to be executed, or read by others. Raises TransferFailed;
    what raises from ``content`` leaves nothing behind.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(part, flags, _FILE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in (content,) if isinstance(content, bytes) else content:
                    file.write(piece)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise TransferFailed(
            f"{path}: can't be written: {error.strerror}", hint="is the disk full or read-only?"
        ) from error


def read_file(path: Path) -> bytes | None:
    """Bytes of a file, None when there is none; raises InvalidInput for a link or a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInput(f"{path}: can't be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            return file.read()
        except OSError as error:
            raise InvalidInput(f"{path}: can't be read: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Make a rename in the folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> str:
    """Read a password that a person wrote into a file, without its line's end; InvalidInput.

    ``env:NAME`` is the variable of that name: others can't read it, and programs that are started
    from here do not get it.
    """
    name = str(path)
    if name.startswith(VARIABLE):
        value = variable(name.removeprefix(VARIABLE))
        data = None if value is None else os.fsencode(value)
    else:
        data = read_file(path)
    if data is None:
        kind = "variable" if name.startswith(VARIABLE) else "file"
        raise InvalidInput(f"{path}: there is no such {kind}")
    try:
        word = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None
    if "\n" in word or "\0" in word:
        raise InvalidInput(f"{path}: not one line with a password")
    return word
